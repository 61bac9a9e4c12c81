"""RunPod's lists, and a pod as we see it."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from typing import Any, Final, cast

from prefect_gpu.providers.core import models
from prefect_gpu.providers.core.toolkit import answers, companions, container_boot, scopes, states
from prefect_gpu.providers.runpod.order import LEASE
from prefect_gpu.providers.runpod.words import NO_WAY, REASONS, STATES

WAY_S: Final = 180  # so long after its container began a pod may have no way in
INSIDE: Final = [
    ipaddress.ip_network(one) for one in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
]
KINDS: Final = {
    "pods": "pods",
    "registries": "registries",
    "network-volumes": "networkVolumes",
}  # paths, and their lists


class Lists(companions.Lists):
    """By their paths. Members of clusters are among the pods; pages are not documented, and would be read."""

    def rows(self, kind: str) -> list[dict[str, Any]]:
        asked = {"includeClusterPods": True} if kind == "pods" else {}
        return list(self.api.rows(f"/{kind}", KINDS[kind], asked, next_at="nextCursor"))


def instance_of(row: dict[str, Any]) -> models.Instance:
    """One pod."""
    word, price = str(row.get("status")), row.get("cost")
    ways = [_way(port) for port in answers.each(row, "runtime.ports", "")]
    ssh = next((way for way in ways if way is not None), None)
    state, reason = states.state_of(word, STATES, ssh), REASONS.get(word, "")
    up_s = answers.at(row, "runtime.uptime")
    if word == "RUNNING" and ssh is None and isinstance(up_s, int | float) and up_s > WAY_S:
        state, reason = models.InstanceState.FAILED, NO_WAY
    name, stranger, borrowed = scopes.ours_or_not(row.get("name"), _lease(row), "environment's lease")
    return models.Instance(
        id=scopes.scoped("pods", row["id"]),
        name=name,
        provider="runpod",
        state=state,
        region=str(row.get("dataCenterId") or str(row.get("cloud") or "runpod").lower()),
        created_at=states.moment(row.get("createdAt")),
        ssh=ssh,
        reason=stranger or reason,
        price=float(price) if isinstance(price, int | float) and price >= 0 else None,
        raw={"status": word, **borrowed},  # never env
    )


def _lease(row: dict[str, Any]) -> object:
    """Whose pod its order made it; None where RunPod does not tell the environment."""
    if row.get("cluster"):
        return ""  # ours never are in one
    env = row.get("env")
    return cast("dict[str, Any]", env).get(LEASE, "") if isinstance(env, dict) and env else None


def _way(port: Any) -> models.SshEndpoint | None:
    """The public address and port by which our sshd is reached; never RunPod's proxy."""
    host, public = answers.at(port, "ip"), answers.at(port, "public")
    if answers.at(port, "private") != container_boot.PORT or not isinstance(host, str) or not host:
        return None
    with suppress(ValueError):
        address = ipaddress.ip_address(host)
        if any(address in network for network in INSIDE):  # a host behind somebody's router
            return None
    return models.SshEndpoint(host=host, port=public) if isinstance(public, int) and 0 < public < 65536 else None
