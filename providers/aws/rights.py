"""What the credentials may not do and should: by dry runs, with parameters that would do no harm if DryRun were ignored."""

from __future__ import annotations

from typing import Any, Final

from prefect_gpu.providers.aws import network, quotas
from prefect_gpu.providers.aws.api import Api
from prefect_gpu.providers.aws.errors import translated
from prefect_gpu.providers.aws.images import Images
from prefect_gpu.providers.core.errors import AuthFailed, ProviderError, Transient
from prefect_gpu.providers.core.models import Offer

_RIGHTS: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("describe_instances", {"MaxResults": 5}),
    ("describe_instance_type_offerings", {"MaxResults": 5}),
    ("describe_subnets", {"MaxResults": 5}),
    ("describe_security_groups", {"MaxResults": 5}),
    ("describe_images", {"Owners": ["self"]}),
    ("describe_volumes", {"MaxResults": 5}),
    ("describe_network_interfaces", {"MaxResults": 5}),
    ("describe_addresses", {}),
)
# Of ids that cannot exist. A policy that allows these by a tag cannot be told from one that does not allow them.
_OF_RESOURCES: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("terminate_instances", {"InstanceIds": ["i-00000000000000000"]}),
    ("delete_volume", {"VolumeId": "vol-00000000000000000"}),
)
_BY_A_TAG: Final = "or allowed where a tag stands, as docs/providers/aws.md has it: that shows only on a machine"


def missing(api: Api, images: Images) -> list[str]:
    """The rights that these credentials lack, in AWS's terms. AuthFailed when they are no good at all."""
    api.account_id()
    region = next(iter(api.credentials.regions), api.home)
    ec2 = api.client("ec2", region)
    wanted = _RIGHTS
    if api.credentials.capacity_reservation is not None:
        wanted += (("describe_capacity_reservations", {"MaxResults": 5}),)
    denied = ["ec2:DescribeRegions"] if _is_denied(ec2, "describe_regions", {}) else []
    denied += [_right(call) for call, sent in wanted if _is_denied(ec2, call, sent)]
    denied += [f"{_right(call)} ({_BY_A_TAG})" for call, sent in _OF_RESOURCES if _is_denied(ec2, call, sent)]
    if not denied or all(_BY_A_TAG in one for one in denied):
        denied += _to_order(api, images, region)
    try:
        quotas.read(api, region, quotas.ANY)
    except AuthFailed:
        denied.append("servicequotas:GetServiceQuota (without it quotas show only when an order is refused)")
    return denied


def _to_order(api: Api, images: Images, region: str) -> list[str]:
    """Rights that only show in an order as it would be sent: tags, network, image."""
    offer = Offer(provider="aws", instance_type="t3.micro", region=region, price=0.0)
    try:
        image = images.of(offer)
        subnets = network.subnets(api, region)
    except ProviderError as error:
        return [f"an order in {region}: {error}"]
    if not subnets:
        return []  # no rights are missing: the offers say what is
    ec2 = api.client("ec2", region)
    tags = [{"Key": "Name", "Value": "prefect-gpu"}, {"Key": network.REALM_TAG, "Value": "none"}]
    order = {
        "ImageId": image.id,
        "InstanceType": offer.instance_type,
        "MinCount": 1,
        "MaxCount": 1,
        "SubnetId": subnets[0].id,
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume", "network-interface")
        ],
    }
    denied = ["ec2:RunInstances and ec2:CreateTags"] if _is_denied(ec2, "run_instances", order) else []
    if api.credentials.security_group is None:
        group = {
            "GroupName": "prefect-gpu-rights",
            "Description": "never made",
            "VpcId": subnets[0].vpc,
            "TagSpecifications": [{"ResourceType": "security-group", "Tags": tags}],
        }
        if _is_denied(ec2, "create_security_group", group):
            denied.append("ec2:CreateSecurityGroup")
        rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "192.0.2.0/24"}]}
        admit = {"GroupId": "sg-00000000000000000", "IpPermissions": [rule]}
        if _is_denied(ec2, "authorize_security_group_ingress", admit):
            denied.append(f"ec2:AuthorizeSecurityGroupIngress ({_BY_A_TAG})")
    return denied


def _right(call: str) -> str:
    return f"ec2:{''.join(word.capitalize() for word in call.split('_'))}"


def _is_denied(ec2: Any, call: str, sent: dict[str, Any]) -> bool:
    """Whether a right is missing: a dry run is refused for that, or for another reason once the right is there."""
    try:
        with translated(f"ask whether {_right(call)} is allowed"):
            getattr(ec2, call)(DryRun=True, **sent)
    except AuthFailed:
        return True
    except Transient:
        raise
    except ProviderError:
        pass  # DryRunOperation: it would have worked; or an id that does not exist, which is asked after the right
    return False
