"""One order: what RunInstances is sent, the same bytes for the same offer and spec."""

from __future__ import annotations

from typing import Any, Final, Literal

from prefect_gpu.blocks.aws import AwsCredentials
from prefect_gpu.providers.aws.images import Image
from prefect_gpu.providers.aws.instances import LOGIN_TAG
from prefect_gpu.providers.aws.network import Group, Subnet
from prefect_gpu.providers.aws.reservations import Reservation
from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.models import LaunchSpec, Model, Offer
from prefect_gpu.providers.core.toolkit import cloud_init, notice

DEFAULT_DISK_GB: Final = 100.0
MOST_DISK_GB: Final = 16_384  # of a volume of any of the three types
# Two minutes before EC2 takes a spot instance back, and nowhere else in time:
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
AWS_SPOT: Final = notice.Notice(
    url="http://169.254.169.254/latest/meta-data/spot/instance-action",
    grant_url="http://169.254.169.254/latest/api/token",
    grant_ask="X-aws-ec2-metadata-token-ttl-seconds: 60",
    grant_header="X-aws-ec2-metadata-token",
)
_IO2_IOPS: Final = 3000  # io2 has no default; as many as gp3 comes with, and no more than 6 GB may have
_USER_DATA_BYTES: Final = 16_384  # before base64


class AwsOptions(Model):
    """What one order may ask of AWS beside its offer (`LaunchSpec.options`)."""

    image_id: str | None = None
    image_user: str | None = None  # None: as for the image it replaces
    volume_type: Literal["gp3", "gp2", "io2"] | None = None  # None: the block's
    instance_profile: str | None = None  # name; None: the block's
    capacity_reservation: str | None = None  # id, used where the order fits it; None: the block's
    max_spot_price: float | None = None  # USD per hour; None: up to the on-demand price


def user_data(offer: Offer, spec: LaunchSpec) -> str:
    """What the machine boots with. InvalidRequest where EC2 would not take it: ask before anything is made."""
    text = cloud_init.user_data(
        spec, powers_off=True, services={"notice": notice.script(AWS_SPOT)} if offer.spot else {}
    )
    if (size := len(text.encode())) > _USER_DATA_BYTES:
        raise InvalidRequest(f"the machine's user data has {size} bytes, EC2 takes {_USER_DATA_BYTES}")
    return text


def disk_gb(offer: Offer, spec: LaunchSpec, image: Image) -> int:
    """The root disk's size: what was asked for, and no less than the image needs. InvalidRequest above EC2's limit."""
    asked = -(-max(spec.disk_gb or offer.disk_gb or DEFAULT_DISK_GB, image.disk_gb) // 1)
    if asked > MOST_DISK_GB:
        raise InvalidRequest(f"a disk of {asked:.0f} GB is asked for, EC2's have at most {MOST_DISK_GB}")
    return int(asked)


def request(
    credentials: AwsCredentials,
    offer: Offer,
    spec: LaunchSpec,
    options: AwsOptions,
    *,
    image: Image,
    subnet: Subnet,
    group: Group,
    reservation: Reservation | None,
) -> dict[str, Any]:
    """The parameters of RunInstances."""
    is_private = credentials.network.private or spec.network == "private"
    login = f"{image.user}@{'private' if is_private else 'public'}:{image.port}"
    tags = [{"Key": key, "Value": text} for key, text in ({**spec.tags, "Name": spec.name, LOGIN_TAG: login}).items()]
    tagged = ["instance", "volume", "network-interface", *(["spot-instances-request"] if offer.spot else [])]
    volume: dict[str, Any] = {
        "VolumeSize": disk_gb(offer, spec, image),
        "VolumeType": options.volume_type or credentials.volume_type,
        "DeleteOnTermination": True,
    }
    if volume["VolumeType"] == "io2":
        volume["Iops"] = _IO2_IOPS
    order: dict[str, Any] = {
        "ClientToken": spec.name,
        "MinCount": 1,
        "MaxCount": 1,
        "ImageId": image.id,
        "InstanceType": offer.instance_type,
        "UserData": user_data(offer, spec),
        "InstanceInitiatedShutdownBehavior": "terminate",
        # One hop: containers on the machine's bridge cannot read the user data.
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 1},
        "Placement": {"AvailabilityZone": offer.zone},
        "NetworkInterfaces": [
            {
                "DeviceIndex": 0,
                "SubnetId": subnet.id,
                "Groups": [group.id],
                "AssociatePublicIpAddress": not is_private,
                "DeleteOnTermination": True,
            }
        ],
        "BlockDeviceMappings": [{"DeviceName": image.root_device, "Ebs": volume}],
        "TagSpecifications": [{"ResourceType": kind, "Tags": tags} for kind in tagged],
    }
    if profile := options.instance_profile or credentials.instance_profile:
        order["IamInstanceProfile"] = {"Name": profile}
    return order | _market(offer, spec, options, reservation)


def _market(offer: Offer, spec: LaunchSpec, options: AwsOptions, reservation: Reservation | None) -> dict[str, Any]:
    """How the machine is bought: from a reservation, on the spot market, or on demand."""
    if reservation is not None and reservation.covers(offer):
        placed: dict[str, Any] = {
            "CapacityReservationSpecification": {"CapacityReservationTarget": {"CapacityReservationId": reservation.id}}
        }
        return placed | ({"InstanceMarketOptions": {"MarketType": "capacity-block"}} if reservation.is_block else {})
    if not offer.spot:
        return {}
    spot: dict[str, Any] = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
    limits = [limit for limit in (options.max_spot_price, spec.max_price) if limit is not None]
    if limits:
        spot["MaxPrice"] = f"{min(limits):.5f}"
    return {"InstanceMarketOptions": {"MarketType": "spot", "SpotOptions": spot}}
