"""Where in an account machines stand and who reaches them: subnets, and a security group that admits nothing but SSH."""

from __future__ import annotations

import hashlib
from typing import Any, Final, NamedTuple, cast

from prefect_gpu.providers.aws.api import Api
from prefect_gpu.providers.aws.instances import checked_id
from prefect_gpu.providers.core import lease
from prefect_gpu.providers.core.errors import InvalidRequest, RegionClosed, Transient

REALM_TAG: Final = "prefect-gpu-realm"


class Subnet(NamedTuple):
    """A subnet that orders may name."""

    id: str
    zone: str
    vpc: str


class Group(NamedTuple):
    """A security group, and whether it is one of those that are made here."""

    id: str
    is_ours: bool


def subnets(api: Api, region: str) -> list[Subnet]:
    """The block's subnets in this region; without any in the block, the default subnets."""
    if api.credentials.subnets:
        # As a filter: ids of other regions match nothing, where as a parameter they are an error.
        only = {"Name": "subnet-id", "Values": list(api.credentials.subnets)}
    else:
        only = {"Name": "default-for-az", "Values": ["true"]}
    with api.asks(f"ask for the subnets of {region}", region=region):
        rows = api.pages(region, "describe_subnets", "Subnets", Filters=[only])
        return sorted(
            Subnet(
                checked_id(row["SubnetId"], "subnet-"), str(row["AvailabilityZone"]), checked_id(row["VpcId"], "vpc-")
            )
            for row in rows
        )


def subnet_in(api: Api, region: str, zone: str) -> Subnet:
    """The subnet of a zone: always the first, since a repeated order must be the same order."""
    for subnet in subnets(api, region):
        if subnet.zone == zone:
            return subnet
    raise RegionClosed(no_subnet(api, zone), reach="offer")


def no_subnet(api: Api, zones: str) -> str:
    """What is missing, and what to do."""
    if named := api.credentials.subnets:
        return f"no subnet in {zones}: the block names {', '.join(named[:3])}, none of which is there"
    return f"no subnet in {zones}: name one in the block, or make the default one"


def groups(api: Api, region: str, chosen: str, vpc: str | None = None) -> list[dict[str, Any]]:
    """The groups of this id or name, in one VPC or in all of the region."""
    filters = [{"Name": "group-id" if chosen.startswith("sg-") else "group-name", "Values": [chosen]}]
    if vpc is not None:
        filters.append({"Name": "vpc-id", "Values": [vpc]})
    with api.asks(f"look for the security group {chosen}", region=region):
        return list(api.pages(region, "describe_security_groups", "SecurityGroups", Filters=filters))


def security_group(api: Api, region: str, vpc: str, name: str, port: int) -> Group:
    """The block's group, else ours, which is made when it is missing.

    Ours is one per realm, VPC and what it admits, shared by all machines: it costs nothing and stays. Whoever deleted it
    with the last machine would take it away under the next order. What it admits is in its name, so that a block which is
    narrowed has another group from then on, and nobody's running machine is cut off.
    """
    if chosen := api.credentials.security_group:
        found = groups(api, region, chosen, vpc)
        if not found:
            raise RegionClosed(f"no security group {chosen} in {vpc} of {region}: look at the block's security group")
        with api.asks(f"look for the security group {chosen}", region=region):
            return Group(checked_id(found[0]["GroupId"], "sg-"), is_ours=False)
    realm = parsed.realm if (parsed := lease.Lease.parse(name)) else "none"
    sources = sorted(set(api.credentials.network.ssh_from))
    admits = hashlib.sha256(" ".join([str(port), *sources]).encode()).hexdigest()
    title = f"prefect-gpu-{realm}-{admits[:8]}"
    found = groups(api, region, title, vpc) or _made(api, region, vpc, title, realm)
    doing = f"admit SSH to the security group {title}"
    with api.asks(doing, region=region):
        group = checked_id(found[0]["GroupId"], "sg-")
        admitted = _admitted(found[0], port)
    if strange := admitted - set(sources):
        # Anybody may have made a group of this name first, or opened ours.
        raise RegionClosed(
            f"the security group {title} in {vpc} admits {', '.join(sorted(strange))[:200]} too: delete these rules, "
            "or name a group of your own in the block"
        )
    absent = [source for source in sources if source not in admitted]
    if absent:
        rule: dict[str, Any] = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port}
        if v4 := [{"CidrIp": source} for source in absent if ":" not in source]:
            rule["IpRanges"] = v4
        if v6 := [{"CidrIpv6": source} for source in absent if ":" in source]:
            rule["Ipv6Ranges"] = v6
        try:
            with api.asks(doing, region=region):
                api.client("ec2", region).authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
        except InvalidRequest as error:
            if error.code != "InvalidPermission.Duplicate":
                raise
    return Group(group, is_ours=True)


def _made(api: Api, region: str, vpc: str, title: str, realm: str) -> list[dict[str, Any]]:
    tags = [{"Key": "Name", "Value": title}, {"Key": REALM_TAG, "Value": realm}]
    try:
        with api.asks(f"make the security group {title}", region=region):
            made: dict[str, Any] = api.client("ec2", region).create_security_group(
                GroupName=title,
                Description="prefect-gpu: admits SSH and nothing else",
                VpcId=vpc,
                TagSpecifications=[{"ResourceType": "security-group", "Tags": tags}],
            )
    except InvalidRequest as error:
        if error.code != "InvalidGroup.Duplicate":
            raise
        # Another worker was first.
        if found := groups(api, region, title, vpc):
            return found
        raise Transient("AWS does not show the new security group yet", code=error.code, reach="region") from None
    return [made]


def _admitted(group: dict[str, Any], port: int) -> set[str]:
    """Who a group lets in: address ranges where only SSH is open to them, else in words of their own."""
    admitted: set[str] = set()
    for rule in _dicts(group, "IpPermissions"):
        ports = (rule.get("FromPort"), rule.get("ToPort"))
        is_ssh = rule.get("IpProtocol") == "tcp" and ports == (port, port)
        ranges = [str(row["CidrIp"]) for row in _dicts(rule, "IpRanges")]
        ranges += [str(row["CidrIpv6"]) for row in _dicts(rule, "Ipv6Ranges")]
        admitted |= {one if is_ssh else f"{one} to {rule.get('IpProtocol')} {ports}" for one in ranges}
        admitted |= {str(row.get("GroupId")) for row in _dicts(rule, "UserIdGroupPairs")}
        admitted |= {str(row.get("PrefixListId")) for row in _dicts(rule, "PrefixListIds")}
    return admitted


def _dicts(row: dict[str, Any], key: str) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", row.get(key) or [])
