"""One machine of Compute Engine as it is described, read with care: any field may be missing or odd."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final

from prefect_gpu.blocks.gcp import GcpCredentials
from prefect_gpu.providers.core.errors import NotFound
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import Instance, InstanceState, SshEndpoint
from prefect_gpu.providers.core.toolkit.network import jump_of
from prefect_gpu.providers.core.toolkit.states import moment, state_of
from prefect_gpu.providers.gcp.api import dict_of, dicts_of, last

# https://cloud.google.com/compute/docs/instances/instance-lifecycle
STATES: Final = {
    **dict.fromkeys(("PENDING", "PROVISIONING", "STAGING"), InstanceState.PROVISIONING),
    "RUNNING": InstanceState.RUNNING,
    **dict.fromkeys(("PENDING_STOP", "STOPPING", "SUSPENDING", "DEPROVISIONING"), InstanceState.TERMINATING),
    # Nobody stops ours but a person, a failed host or the machine itself; its disk stays and goes on costing money.
    **dict.fromkeys(("STOPPED", "TERMINATED", "SUSPENDED"), InstanceState.FAILED),
}
REASONS: Final = {
    **dict.fromkeys(("STOPPED", "TERMINATED", "SUSPENDED"), "it is stopped, and its disk goes on costing money"),
    "REPAIRING": "Google repairs its host",
}
LOGIN: Final = "prefect-gpu-login"  # in its metadata, "ubuntu:22": the block may change while machines live
_HOW: Final = re.compile(r"([a-z_][a-z0-9_.-]{0,31}):(\d{1,5})", re.ASCII)
_ZONE: Final = re.compile(r"[a-z]+-[a-z]+\d+-[a-z]{1,2}", re.ASCII)
_ID: Final = re.compile(r"([a-z]+-[a-z]+\d+-[a-z]{1,2})/(disk/)?([a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)", re.ASCII)
_WORDS: Final = 300  # of a reason


def instance_id(zone: str, name: str) -> str:
    """A machine's id: names are unique within a zone, and never change."""
    return f"{zone}/{name}"


def disk_id(zone: str, name: str) -> str:
    """The id of a disk that its machine left."""
    return f"{zone}/disk/{name}"


def split(text: str) -> tuple[str, str, str]:
    """Zone, kind (`instances` or `disks`) and name of an id of ours. NotFound for what cannot be one."""
    found = _ID.fullmatch(text)
    if found is None:
        raise NotFound(f"{text[:80]!r} is not an id of Google Cloud: write for example us-central1-a/pg-...")
    return found[1], "disks" if found[2] else "instances", found[3]


def is_zone(place: str) -> bool:
    """Whether this is a zone, and no region."""
    return _ZONE.fullmatch(place) is not None


def region_of(zone: str) -> str:
    """`us-central1` of `us-central1-a`."""
    return zone.rpartition("-")[0]


def is_name(text: object, prefix: str = "") -> bool:
    """Whether this is a whole name of ours, and begins so."""
    return isinstance(text, str) and text.startswith(prefix) and Lease.parse(text) is not None


def described(row: dict[str, Any], credentials: GcpCredentials, zone: str = "") -> Instance:
    """One row of instances.get or a listing. KeyError and the like where it cannot be read.

    A machine's name is given with its order and never changes, so a whole name of ours is the proof that it was ordered under it.
    """
    name, zone = str(row["name"]), zone or last(row["zone"])
    if _ID.fullmatch(instance_id(zone, name)) is None:
        raise ValueError(f"{zone[:40]}/{name[:40]}")
    status = str(row.get("status"))[:60]
    ssh = _endpoint(row, credentials)
    scheduling = dict_of(row.get("scheduling"))
    said = " ".join(str(row.get("statusMessage") or "").split())[:_WORDS]
    return Instance(
        id=instance_id(zone, name),
        name=name if is_name(name) else "",
        provider="gcp",
        state=state_of(status, STATES, ssh),
        region=region_of(zone),
        zone=zone,
        created_at=moment(row.get("creationTimestamp")),
        ssh=ssh,
        reason=said or REASONS.get(status, ""),
        spot=scheduling.get("provisioningModel") == "SPOT" or scheduling.get("preemptible") is True,
        raw={"status": status, "machine_type": last(row.get("machineType"))[:100]},
    )


def _endpoint(row: dict[str, Any], credentials: GcpCredentials) -> SshEndpoint | None:
    """How to get in. Whoever can change the metadata cannot change the host key that is accepted."""
    first = [*dicts_of(row.get("networkInterfaces")), dict_of(None)][0]
    outside = dicts_of(first.get("accessConfigs"))
    host = outside[0].get("natIP") if outside else first.get("networkIP")
    try:
        host = str(ipaddress.ip_address(str(host)))
    except ValueError:
        return None
    user, port = "ubuntu", 22
    for item in dicts_of(dict_of(row.get("metadata")).get("items")):
        found = _HOW.fullmatch(str(item.get("value"))) if item.get("key") == LOGIN else None
        if found is not None and 0 < int(found[2]) < 65536:
            user, port = found[1], int(found[2])
    hop = credentials.network.jump
    jump = jump_of(credentials.network) if not outside and hop and hop.private_key else None
    return SshEndpoint(host=host, port=port, user=user, jump=jump)
