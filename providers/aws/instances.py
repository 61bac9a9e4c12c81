"""One machine of EC2 as it is described, read with care: anybody may have set its tags, and any field may be missing."""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, cast

from prefect_gpu.blocks.aws import AwsCredentials
from prefect_gpu.providers.core.errors import NotFound
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import Instance, InstanceState, SshEndpoint
from prefect_gpu.providers.core.toolkit.network import jump_of

_STATES: Final = {
    "pending": InstanceState.PROVISIONING,
    "running": InstanceState.RUNNING,
    "shutting-down": InstanceState.TERMINATING,
    "terminated": InstanceState.TERMINATED,
    "stopping": InstanceState.FAILED,  # nobody stops ours but a person; stopped it runs no job and its disk is billed
    "stopped": InstanceState.FAILED,
}
FREE_STATES: Final = {"shutting-down", "terminated"}
# https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_StateReason.html
TAKEN_BACK: Final = {"Server.ScheduledStop", "Server.SpotInstanceShutdown", "Server.SpotInstanceTermination"}
NEVER_RAN: Final = {
    "Client.InternalError",
    "Client.InvalidSnapshot.NotFound",
    "Client.VolumeLimitExceeded",
    "Server.InsufficientInstanceCapacity",
    "Server.InternalError",
}

LOGIN_TAG: Final = "prefect-gpu-login"  # how to get in: "ubuntu@public:22"; the block may change while machines live
_LOGIN: Final = re.compile(r"([a-z_][a-z0-9_.-]{0,31})@(public|private):(\d{1,5})", re.ASCII)
_MOST_WORDS: Final = 300  # characters of a reason


class Described(NamedTuple):
    """A machine, and what its description says of whose it is."""

    instance: Instance  # its name is proved, or empty
    bears: str  # the name on it, which anybody may have set
    launched: datetime | None


def described(region: str, machine: dict[str, Any], credentials: AwsCredentials) -> Described:
    """One row of DescribeInstances or RunInstances. KeyError and the like where it cannot be read."""
    tags = tags_of(machine.get("Tags"))
    why = cast("dict[str, Any]", machine.get("StateReason") or {})
    code, status = str(why.get("Code", ""))[:100], str(machine["State"]["Name"])[:100]
    state = _STATES.get(status, InstanceState.UNKNOWN)
    if code in TAKEN_BACK and state is not InstanceState.TERMINATED:
        state = InstanceState.INTERRUPTED
    elif code in NEVER_RAN and state is InstanceState.TERMINATING:
        state = InstanceState.FAILED
    ssh = _endpoint(machine, tags, credentials)
    if state is InstanceState.RUNNING and ssh is None:
        state = InstanceState.PROVISIONING
    launched = moment(machine.get("LaunchTime"))
    zone = cast("dict[str, Any]", machine.get("Placement") or {}).get("AvailabilityZone")
    kind = machine.get("InstanceType")
    instance = Instance(
        id=f"{region}/{checked_id(machine['InstanceId'], 'i-')}",
        name=proved_name(machine.get("ClientToken")),
        provider="aws",
        state=state,
        region=region,
        zone=zone if isinstance(zone, str) else None,
        created_at=launched,
        ssh=ssh,
        reason=str(why.get("Message", ""))[:_MOST_WORDS] if state is not InstanceState.RUNNING else "",
        spot=machine.get("InstanceLifecycle") == "spot",
        raw={"state": status, "state_reason": code, "instance_type": kind if isinstance(kind, str) else None},
    )
    return Described(instance, tags.get("Name", ""), launched)


def proved_name(token: Any) -> str:
    """The name under which a machine was ordered: its client token, which nobody can set or copy later. Empty: not by us."""
    return token if isinstance(token, str) and is_name(token) else ""


def is_name(text: str, prefix: str = "") -> bool:
    """Whether this is a whole name of ours, and begins so."""
    return text.startswith(prefix) and Lease.parse(text) is not None


def checked_id(resource: Any, prefix: str) -> str:
    """An id as AWS gives them; ValueError for anything else."""
    if not isinstance(resource, str) or not re.fullmatch(rf"{prefix}[A-Za-z0-9]{{1,40}}", resource, re.ASCII):
        raise ValueError(f"not an id of AWS: {str(resource)[:40]!r}")
    return resource


def moment(when: Any) -> datetime | None:
    """A time of AWS's, aware and in UTC; None where it is not one."""
    if not isinstance(when, datetime):
        return None
    return when.astimezone(UTC) if when.tzinfo else when.replace(tzinfo=UTC)


def tags_of(rows: Any) -> dict[str, str]:
    """Tags by key; what is not a tag is passed over."""
    if not isinstance(rows, list):
        return {}
    dicts = [cast("dict[str, Any]", row) for row in cast("list[Any]", rows) if isinstance(row, dict)]
    pairs = [(row.get("Key"), row.get("Value")) for row in dicts]
    return {key: value for key, value in pairs if isinstance(key, str) and isinstance(value, str)}


def split(instance_id: str) -> tuple[str, str]:
    """Region and resource of an id of ours. NotFound for what cannot be one."""
    found = re.fullmatch(r"([a-z]{2,8}(?:-[a-z]{2,12})+-\d{1,2})/([a-z]+-[A-Za-z0-9]{1,40})", instance_id, re.ASCII)
    if found is None:
        raise NotFound(f"{instance_id[:80]!r} is not an id of AWS: write for example us-east-1/i-0123456789abcdef0")
    return found[1], found[2]


def _endpoint(machine: dict[str, Any], tags: dict[str, str], credentials: AwsCredentials) -> SshEndpoint | None:
    """How to get in. The tag says so, and whoever can change it cannot change the host key that is accepted."""
    login = _LOGIN.fullmatch(tags.get(LOGIN_TAG, ""))
    user, network, port = login.groups() if login else ("ubuntu", "public", "22")
    if not 0 < int(port) < 65536:
        return None
    host = machine.get("PrivateIpAddress" if network == "private" else "PublicIpAddress")
    try:
        host = str(ipaddress.ip_address(host or ""))
    except ValueError:
        return None
    hop = credentials.network.jump
    jump = jump_of(credentials.network) if network == "private" and hop and hop.private_key else None
    return SshEndpoint(host=host, port=int(port), user=user, jump=jump)
