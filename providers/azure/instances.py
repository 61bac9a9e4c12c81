"""One machine of Azure as it is described, read with care, and the ids of machines and of what they brought along."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Final

from prefect_gpu.blocks.azure import AzureCredentials
from prefect_gpu.providers.azure.api import COMPUTE, NETWORK, Arm, at, each_dict
from prefect_gpu.providers.core.errors import NotFound
from prefect_gpu.providers.core.lease import NAME_LENGTH, Lease
from prefect_gpu.providers.core.models import Instance, InstanceState, SshEndpoint
from prefect_gpu.providers.core.toolkit import states
from prefect_gpu.providers.core.toolkit.network import jump_of

USER: Final = "ubuntu"  # made by the order, whatever the image
MACHINES: Final = f"{COMPUTE}/virtualMachines"
# What machines bring along, in the order in which it can be removed: where it is listed, and its kind for people.
BROUGHT: Final = {
    "networkInterfaces": (f"{NETWORK}/networkInterfaces", "network interface"),
    "publicIPAddresses": (f"{NETWORK}/publicIPAddresses", "address"),
    "disks": (f"{COMPUTE}/disks", "volume"),
}
# https://learn.microsoft.com/azure/virtual-machines/states-billing
_PROVISIONING: Final = {
    "Creating": InstanceState.PROVISIONING,
    "Updating": InstanceState.PROVISIONING,
    "Migrating": InstanceState.PROVISIONING,
    "Succeeded": InstanceState.RUNNING,
    "Failed": InstanceState.FAILED,
    "Deleting": InstanceState.TERMINATING,
}
_POWER: Final = {
    None: InstanceState.PROVISIONING,  # it has not told yet
    "running": InstanceState.RUNNING,
    "starting": InstanceState.PROVISIONING,
    # Nobody switches ours off but a person or the machine itself; then it runs no job.
    "stopping": InstanceState.FAILED,
    "stopped": InstanceState.FAILED,
    "deallocating": InstanceState.FAILED,
    "deallocated": InstanceState.FAILED,
}
_REASONS: Final = {
    "stopping": "it was switched off, and goes on costing money until it is deleted",
    "stopped": "it was switched off, and goes on costing money until it is deleted",
    "deallocating": "somebody deallocated it; its disk goes on costing money",
    "deallocated": "somebody deallocated it; its disk goes on costing money",
}
LOGIN_TAG: Final = "prefect-gpu-login"  # how to get in: "public:22"; the block may change while machines live
_LOGIN: Final = re.compile(r"(public|private):(\d{1,5})", re.ASCII)
_ID: Final = re.compile(r"([A-Za-z0-9_().-]{1,90})/(?:(\w+)/)?([A-Za-z0-9_.-]{1,80})", re.ASCII)
_MOST_WORDS: Final = 300  # characters of a reason


def id_of(group: str, name: str, kind: str | None = None) -> str:
    """`prefect-gpu/pg-...`, or `prefect-gpu/disks/pg-...` for what a machine left."""
    return f"{group}/{kind}/{name}" if kind else f"{group}/{name}"


def split(instance_id: str) -> tuple[str, str | None, str]:
    """Resource group, kind (None: a machine) and name of an id of ours. NotFound for what cannot be one."""
    found = _ID.fullmatch(instance_id)
    if found is None or found[1].strip(".") == "" or found[3].strip(".") == "" or found[2] not in {None, *BROUGHT}:
        raise NotFound(f"{instance_id[:80]!r} is not an id of Azure: write for example prefect-gpu/pg-...")
    return found[1], found[2], found[3]


def proved_name(text: Any) -> str:
    """The lease's name, where a machine or what it brought is called so; empty: not by us.

    A name in our resource group is set by an order alone and never changes. Azure may add to the names of what it makes for a machine.
    """
    name = text[:NAME_LENGTH] if isinstance(text, str) else ""
    return name if Lease.parse(name) is not None and text[NAME_LENGTH : NAME_LENGTH + 1] in ("", "-", "_") else ""


def described(
    row: dict[str, Any],
    group: str,
    interfaces: Mapping[str, dict[str, Any]],
    addresses: Mapping[str, dict[str, Any]],
    credentials: AzureCredentials,
) -> Instance:
    """One row of virtualMachines, with the interfaces and addresses by their ids in lower case."""
    properties: dict[str, Any] = at(row, "properties", {})
    made, power, failure, words = _said(properties)
    ssh = _endpoint(row, interfaces, addresses, credentials)
    state = _state(made, power, ssh)
    zones = at(row, "zones", [""])
    region = str(row.get("location") or "").lower()
    reason = words if state is InstanceState.FAILED and words else _REASONS.get(power or "", "")
    return Instance(
        id=id_of(group, str(row["name"])),
        name=proved_name(row["name"]) if len(str(row["name"])) == NAME_LENGTH else "",
        provider="azure",
        state=state,
        region=region,
        zone=f"{region}-{zones[0]}" if zones and zones[0] else None,
        created_at=states.moment(properties.get("timeCreated")),
        ssh=ssh,
        reason=reason[:_MOST_WORDS],
        spot=properties.get("priority") in ("Spot", "Low"),
        raw={"state": made[:100], "power": power, "failure": failure, "type": at(properties, "hardwareProfile.vmSize")},
    )


def look(arm: Arm, group: str, name: str) -> Instance:
    """A machine with its way in."""
    base = arm.group_named(group)
    row = arm.get(f"{base}{MACHINES}/{name}", what=f"look at {name}", expand="instanceView")
    interfaces, addresses = dict[str, dict[str, Any]](), dict[str, dict[str, Any]]()
    for found, of in ((interfaces, _interface_ids(row)), (addresses, [])):
        ids = of or [one for interface in interfaces.values() for one in _address_ids(interface)]
        for resource in ids:
            try:
                found[resource] = arm.get(resource, what=f"look at the network of {name}")
            except NotFound:
                continue  # it is being made, or going
    return described(row, group, interfaces, addresses, arm.credentials)


def _state(made: str, power: str | None, ssh: SshEndpoint | None) -> InstanceState:
    by_order = _PROVISIONING.get(made, InstanceState.UNKNOWN)
    if by_order in (InstanceState.UNKNOWN, InstanceState.TERMINATING):
        return by_order
    by_power = _POWER.get(power, InstanceState.UNKNOWN)
    if by_power is InstanceState.RUNNING:
        # It runs before Azure calls it made, and goes on when an extension fails that a policy put on it.
        return InstanceState.RUNNING if ssh is not None else InstanceState.PROVISIONING
    if by_order is InstanceState.FAILED:
        return by_order
    return InstanceState.PROVISIONING if by_order is InstanceState.PROVISIONING and power is None else by_power


def _said(properties: dict[str, Any]) -> tuple[str, str | None, str, str]:
    """Provisioning state; power state; the code and the words of a failure."""
    power: str | None = None
    failure = words = ""
    for status in each_dict(properties, "instanceView.statuses"):
        kind, _, rest = at(status, "code", "").partition("/")
        if kind == "PowerState":
            power = rest[:100]
        elif kind == "ProvisioningState" and rest.startswith("failed"):
            failure, words = rest.partition("/")[2][:100], " ".join(at(status, "message", "").split())
    if "instanceView" not in properties and properties.get("provisioningState") == "Succeeded":
        power = "running"  # a list does not tell it; who must know looks at the machine itself
    reason = f"{failure}: {words}" if failure and words else words or failure
    return str(properties.get("provisioningState")), power, failure, reason


def _interface_ids(row: dict[str, Any]) -> list[str]:
    return _ids(each_dict(row, "properties.networkProfile.networkInterfaces"), "id")


def _address_ids(interface: dict[str, Any]) -> list[str]:
    return _ids(each_dict(interface, "properties.ipConfigurations"), "properties.publicIPAddress.id")


def _ids(rows: list[dict[str, Any]], path: str) -> list[str]:
    ids = [at(row, path, "").lower() for row in rows]
    return [one for one in ids if re.fullmatch(r"/subscriptions/[a-z0-9_().,/-]{1,400}", one, re.ASCII)]


def _endpoint(
    row: dict[str, Any],
    interfaces: Mapping[str, dict[str, Any]],
    addresses: Mapping[str, dict[str, Any]],
    credentials: AzureCredentials,
) -> SshEndpoint | None:
    """How to get in. The tag says so, and whoever can change it cannot change the host key that is accepted."""
    tags: dict[str, Any] = at(row, "tags", {})
    login = _LOGIN.fullmatch(str(tags.get(LOGIN_TAG, "")))
    network, port = login.groups() if login else ("public", "22")
    if not 0 < int(port) < 65536:
        return None
    mine = [interfaces[one] for one in _interface_ids(row) if one in interfaces]
    if network == "private":
        found = [
            at(one, "properties.privateIPAddress")
            for nic in mine
            for one in each_dict(nic, "properties.ipConfigurations")
        ]
    else:
        ids = [one for interface in mine for one in _address_ids(interface)]
        found = [at(addresses[one], "properties.ipAddress") for one in ids if one in addresses]
    try:
        host = str(ipaddress.ip_address(next((one for one in found if one), "")))
    except ValueError:
        return None
    hop = credentials.network.jump
    jump = jump_of(credentials.network) if network == "private" and hop and hop.private_key else None
    return SshEndpoint(host=host, port=int(port), user=USER, jump=jump)
