"""Where in a subscription machines stand and who reaches them: a subnet, and a security group that admits nothing but SSH."""

from __future__ import annotations

import hashlib
import ipaddress
from typing import Any, Final, NamedTuple

from prefect_gpu.providers.azure.api import NETWORK, Arm, at, each_dict
from prefect_gpu.providers.core import lease
from prefect_gpu.providers.core.errors import InvalidRequest, NotFound, RegionClosed
from prefect_gpu.providers.core.models import LaunchSpec

REALM_TAG: Final = "prefect-gpu-realm"
RANGE: Final = "10.210.0.0/16"  # of the networks that are made here; nothing else is in them
SUBNET: Final = "machines"


class Place(NamedTuple):
    """What an order's network interface names."""

    subnet: str
    security_group: str


def is_private(arm: Arm, spec: LaunchSpec) -> bool:
    """Whether the machine gets no public address."""
    return arm.credentials.network.private or spec.network == "private"


def check(arm: Arm, spec: LaunchSpec) -> None:
    """InvalidRequest where nobody could reach the machine: ask before anything is made."""
    if is_private(arm, spec) and not arm.credentials.subnets:
        raise InvalidRequest("private addresses are reached in a network of yours only: name its subnets in the block")
    if arm.credentials.security_group is None and not admitted(arm):
        raise InvalidRequest("machines have IPv4 addresses only: name an IPv4 range in the block's `ssh_from`")


def admitted(arm: Arm) -> list[str]:
    """The address ranges that a security group made here admits."""
    ranges = {ipaddress.ip_network(source) for source in arm.credentials.network.ssh_from}
    return sorted(str(one) for one in ranges if one.version == 4)


def place(arm: Arm, region: str, name: str, port: int) -> Place:
    """Subnet and security group of an order, made where they are missing: always the same ones for the same order."""
    subnets = arm.credentials.subnets
    subnet = subnet_in(arm, region) if subnets else _own_subnet(arm, region)
    return Place(subnet, arm.credentials.security_group or _own_group(arm, region, name, port))


def subnet_in(arm: Arm, region: str) -> str:
    """The first of the block's subnets that is in this region."""
    for subnet in arm.credentials.subnets:
        start = subnet.lower().index("/subnets/")
        try:
            network = arm.get(subnet[:start], what="look at the block's subnets")
        except NotFound as missing:
            raise InvalidRequest(
                f"there is no network {subnet[:start]}: look at the block's subnets", code=missing.code
            ) from None
        if str(network.get("location") or "").lower() == region:
            return subnet
    raise RegionClosed(
        f"none of the block's subnets is in {region}: name one there", reach="region", category="network"
    )


def make_resource_group(arm: Arm, region: str) -> None:
    """The resource group, where it is missing. It stays: it costs nothing."""
    what = f"look at the resource group {arm.credentials.resource_group}"
    try:
        arm.get(arm.group, what=what)
    except NotFound:
        body = {"location": region, "tags": {"managed-by": "prefect-gpu"}}
        arm.put(arm.group, body, what=f"make the resource group {arm.credentials.resource_group}")


def _own_subnet(arm: Arm, region: str) -> str:
    """One network a region, shared by all machines, made once: made again it would lose what somebody added."""
    network = f"{arm.group}{NETWORK}/virtualNetworks/prefect-gpu-{region}"
    try:
        arm.get(network, what=f"look at the network of {region}")
    except NotFound:
        properties = {
            "addressSpace": {"addressPrefixes": [RANGE]},
            "subnets": [{"name": SUBNET, "properties": {"addressPrefix": RANGE}}],
        }
        body = {"location": region, "tags": {"managed-by": "prefect-gpu"}, "properties": properties}
        arm.put(network, body, what=f"make a network in {region}")
    return f"{network}/subnets/{SUBNET}"


def _own_group(arm: Arm, region: str, name: str, port: int) -> str:
    """The security group of a realm and what it admits, made where it is missing.

    What it admits is in its name, so that a block which is narrowed has another group from then on, and nobody's running
    machine is cut off. Whoever deleted it with the last machine would take it away under the next order.
    """
    sources = admitted(arm)
    realm = parsed.realm if (parsed := lease.Lease.parse(name)) else "none"
    admits = hashlib.sha256(" ".join([str(port), *sources]).encode()).hexdigest()
    title = f"prefect-gpu-{realm}-{region}-{admits[:8]}"
    path = f"{arm.group}{NETWORK}/networkSecurityGroups/{title}"
    rules = _rules(sources, port)
    try:
        seen = arm.get(path, what=f"look at the security group {title}")
    except NotFound:
        tags = {"managed-by": "prefect-gpu", REALM_TAG: realm}
        body = {"location": region, "tags": tags, "properties": {"securityRules": rules}}
        arm.put(path, body, what=f"make the security group {title}")
        return path
    if opened := _opened(seen, sources, port):
        # Anybody may have made a group of this name first, or opened ours.
        raise RegionClosed(
            f"the security group {title} admits {', '.join(opened)[:200]} too: delete these rules, or name a group of your own in the block",
            reach="region",
            category="network",
        )
    return path


def _rules(sources: list[str], port: int) -> list[dict[str, Any]]:
    # Without the second rule Azure's own ones admit all that stands in the same network: other runs' machines.
    usual = {"direction": "Inbound", "protocol": "*", "sourcePortRange": "*", "destinationAddressPrefix": "*"}
    admits = {"access": "Allow", "priority": 100, "protocol": "Tcp", "destinationPortRange": str(port)}
    closes = {"access": "Deny", "priority": 4096, "sourceAddressPrefix": "*", "destinationPortRange": "*"}
    return [
        {"name": "ssh", "properties": {**usual, **admits, **_named(sources)}},
        {"name": "nothing-else", "properties": {**usual, **closes}},
    ]


def _named(sources: list[str]) -> dict[str, Any]:
    return {"sourceAddressPrefix": sources[0]} if len(sources) == 1 else {"sourceAddressPrefixes": sources}


def _canonical(source: str) -> str:
    """An address range as blocks keep it; another word as it is."""
    try:
        return str(ipaddress.ip_network("0.0.0.0/0" if source == "*" else source))
    except ValueError:
        return source


def _opened(group: dict[str, Any], sources: list[str], port: int) -> list[str]:
    """The rules of a group that let in more than SSH from where it should be."""
    opened: list[str] = []
    for rule in each_dict(group, "properties.securityRules"):
        said: dict[str, Any] = at(rule, "properties", {})
        if said.get("direction") != "Inbound" or said.get("access") != "Allow":
            continue
        single, many = at(said, "sourceAddressPrefix", ""), at(said, "sourceAddressPrefixes", [""])
        found = {_canonical(str(one)) for one in (single, *many) if one}
        ports = {
            str(one) for one in (said.get("destinationPortRange"), *at(said, "destinationPortRanges", [""])) if one
        }
        is_ssh = str(said.get("protocol")).lower() == "tcp" and ports == {str(port)}
        if not is_ssh or not found <= set(sources) or at(said, "sourceApplicationSecurityGroups"):
            opened.append(f"{at(rule, 'name', 'a rule')} ({', '.join(sorted(found)) or 'a group'})")
    return opened
