"""Who reaches machines: the block's network tags, or two rules of ours that admit SSH from where the block says and nothing else.

The network `default` admits SSH from everywhere, so one rule admits and the next denies the rest, both before what was there. They are
of one realm, network and set of sources, shared by all its machines, cost nothing and stay: who deleted them with the last machine would
take them away under the next order. What they admit is in their name, so a block that is narrowed has others from then on.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import Any, Final, cast

from prefect_gpu.providers.core import lease
from prefect_gpu.providers.core.errors import InvalidRequest, NotFound, RegionClosed
from prefect_gpu.providers.gcp import operations
from prefect_gpu.providers.gcp.api import Api
from prefect_gpu.providers.gcp.errors import EXISTS
from prefect_gpu.providers.gcp.network import Subnet, network_of

_BEFORE: Final = 900  # what comes with a network has 1000 and more
_COMPARED: Final = ("allowed", "denied", "direction", "priority", "sourceRanges", "targetTags")


def tags(api: Api, subnet: Subnet, name: str, port: int) -> list[str]:
    """The network tags of a machine that is ordered under this name; makes the rules where they are missing."""
    if api.credentials.network_tags:
        return list(api.credentials.network_tags)
    if (problem := problem_with(api, subnet.project)) is not None:
        raise RegionClosed(problem)
    parsed = lease.Lease.parse(name)
    sources = sorted({source for source in api.credentials.network.ssh_from if ":" not in source})
    if not sources:
        raise InvalidRequest(
            "machines of Google Cloud have IPv4 addresses: the block's ssh_from needs a range of these"
        )
    admits = hashlib.sha256(" ".join([subnet.network, str(port), *sources]).encode()).hexdigest()
    tag = f"prefect-gpu-{parsed.realm if parsed else 'none'}-{admits[:8]}"
    for rule in _rules(tag, subnet.network, port, sources):
        _ensure(api, rule)
    return [tag]


def problem_with(api: Api, project: str | None) -> str | None:
    """Why no rule can be made in a subnet's network; None where one can."""
    if project in {None, api.project} or api.credentials.network_tags:
        return None
    return f"the network is shared by {project}, whose firewall rules are made there: name network tags in the block that admit SSH"


def _rules(tag: str, network: str, port: int, sources: list[str]) -> list[dict[str, Any]]:
    common = {"network": network, "direction": "INGRESS", "targetTags": [tag]}
    return [
        {
            **common,
            "name": tag,
            "description": "prefect-gpu: admits SSH",
            "priority": _BEFORE,
            "sourceRanges": sources,
            "allowed": [{"IPProtocol": "tcp", "ports": [str(port)]}],
        },
        {
            **common,
            "name": f"{tag}-rest",
            "description": "prefect-gpu: admits nothing else",
            "priority": _BEFORE + 1,
            "sourceRanges": ["0.0.0.0/0"],
            "denied": [{"IPProtocol": "all"}],
        },
    ]


def _ensure(api: Api, rule: dict[str, Any]) -> None:
    title, doing = str(rule["name"]), f"make the firewall rule {rule['name']}"
    found = _shown(api, title)
    if found is None:
        made: Any = {}
        try:
            request = {"requestId": str(uuid.uuid4())}
            made = api.http.post(api.path("global", "firewalls"), rule, request, what=doing)
        except InvalidRequest as error:
            if error.code not in EXISTS:
                raise
        else:
            operations.carried_out(api, made, "global", doing=doing)
        if made:
            return
        found = _shown(api, title) or {}  # another worker was first
    is_other = network_of(found) != rule["network"] or found.get("disabled") is True
    if is_other or any(_plain(found.get(key)) != _plain(rule.get(key)) for key in _COMPARED):
        raise RegionClosed(
            f"the firewall rule {title} is not as it was made: delete it, or name network tags of your own in the block",
            reach="provider",
        )


def _shown(api: Api, title: str) -> dict[str, Any] | None:
    try:
        return api.http.row(api.path("global", "firewalls", title), "", what=f"look at the firewall rule {title}")
    except NotFound:
        return None


def _plain(value: Any) -> Any:
    return sorted(str(one) for one in cast("list[Any]", value)) if isinstance(value, list) else value
