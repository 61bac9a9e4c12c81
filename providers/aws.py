"""AWS: virtual machines of EC2, on-demand or spot, in every region that the account has enabled.

Rented is an instance type in one availability zone, billed by the second from `running` to `shutting-down`, 60 s at least;
disk, public address and traffic come on top. Ids are `region/i-...`. API: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/

Over 300 lines because an order brings its network, image, reservation and user data along, and for EC2's quotas and rights.
What its errors mean is in providers/core/ec2_errors.py.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, TypeVar

from botocore.config import Config  # pyright: ignore[reportMissingTypeStubs] - boto3 has none
from pydantic import ValidationError
from typing_extensions import override

from blocks.aws import AwsCredentials, AwsImage
from providers.core import cloud_init, lease
from providers.core.contract import Billing, Capabilities, Connection, Provider, RateLimit
from providers.core.ec2_errors import ORDERED_BEFORE, translated
from providers.core.errors import (
    AuthFailed,
    InstanceFailed,
    InvalidRequest,
    NotFound,
    ProviderError,
    RegionClosed,
    Transient,
    Unconfirmed,
)
from providers.core.library import TaskLibrary
from providers.core.models import (
    Availability,
    Instance,
    InstanceState,
    LaunchSpec,
    Leftover,
    Listing,
    Model,
    Offer,
    Requirements,
    SshEndpoint,
    SshJump,
    Unread,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

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

# vCPU quotas by the letters a type begins with: on-demand, spot. p6 on spot: sources disagree, so it is not judged.
QUOTA_CODES: Final[dict[str, tuple[str | None, str | None]]] = {
    "p6": ("L-417A185B", None),
    "p5": ("L-417A185B", "L-C4BD4855"),
    "p": ("L-417A185B", "L-7212CCBC"),
    "g": ("L-DB2E81BA", "L-3819A6DF"),
    "gr": ("L-DB2E81BA", "L-3819A6DF"),
    "vt": ("L-DB2E81BA", "L-3819A6DF"),
    "f": ("L-74FC7D96", "L-88CF9481"),
    "x": ("L-7295265B", "L-E3A00192"),
    "inf": ("L-1945791B", "L-B5D1601B"),
    "trn": ("L-2C3B7624", "L-6B0D517C"),
    "dl": ("L-6E869C2A", "L-85EED4F7"),
    **dict.fromkeys("acdhimrtz", ("L-1216C47A", "L-34B43A08")),
}

_ARCH_GPU_IMAGES: Final = {
    "x86_64": "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *",
    "arm64": "Deep Learning ARM64 Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *",
}
_ARCH_CPU_IMAGES: Final = {
    "x86_64": "ubuntu/images/hvm-ssd*/ubuntu-noble-24.04-amd64-server-*",
    "arm64": "ubuntu/images/hvm-ssd*/ubuntu-noble-24.04-arm64-server-*",
}
_DLAMI_OWNER: Final = "898082745236"
_CANONICAL: Final = "099720109477"

_READERS: Final = 16  # regions read at a time
_DEFAULT_DISK_GB: Final = 100.0
_METAL_BOOT_S: Final = 3300  # firmware and memory of a whole server are tested first
_IO2_IOPS: Final = 3000  # io2 has no default; as many as gp3 comes with, and no more than 6 GB may have
_USER_DATA_LIMIT: Final = 16_384  # bytes, before base64
_ROLE_SESSION_S: Final = 600  # an assumed role may be granted for 15 minutes
_LOGIN_TAG: Final = "prefect-gpu-login"  # how to get in: "ubuntu@public:22"; the block may change while machines live

NOTICE_FILE: Final = "/run/prefect-gpu/interruption"
_NOTICE_WATCHER: Final = f"""\
#!/bin/sh
# EC2 takes a spot instance back two minutes after it says so here, and says so nowhere else in time.
api=http://169.254.169.254/latest
mkdir -p "$(dirname {NOTICE_FILE})"
while :; do
  token=$(curl -sf -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' $api/api/token) &&
    curl -sf -m 2 -H "X-aws-ec2-metadata-token: $token" -o {NOTICE_FILE}.new $api/meta-data/spot/instance-action &&
    mv {NOTICE_FILE}.new {NOTICE_FILE}
  sleep 5
done
"""

# What the driver calls, with parameters that would do no harm if DryRun were ignored: ids that cannot exist.
_RIGHTS: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    ("ec2:DescribeInstances", "describe_instances", {"MaxResults": 5}),
    ("ec2:DescribeInstanceTypeOfferings", "describe_instance_type_offerings", {"MaxResults": 5}),
    ("ec2:DescribeSubnets", "describe_subnets", {"MaxResults": 5}),
    ("ec2:DescribeSecurityGroups", "describe_security_groups", {"MaxResults": 5}),
    ("ec2:DescribeImages", "describe_images", {"Owners": ["self"]}),
    ("ec2:DescribeVolumes", "describe_volumes", {"MaxResults": 5}),
    ("ec2:DescribeNetworkInterfaces", "describe_network_interfaces", {"MaxResults": 5}),
    ("ec2:DescribeAddresses", "describe_addresses", {}),
    ("ec2:TerminateInstances", "terminate_instances", {"InstanceIds": ["i-00000000000000000"]}),
    ("ec2:DeleteVolume", "delete_volume", {"VolumeId": "vol-00000000000000000"}),
    ("ec2:DeleteNetworkInterface", "delete_network_interface", {"NetworkInterfaceId": "eni-00000000000000000"}),
    ("ec2:ReleaseAddress", "release_address", {"AllocationId": "eipalloc-00000000000000000"}),
)
_RESERVATION_RIGHT: Final = ("ec2:DescribeCapacityReservations", "describe_capacity_reservations", {"MaxResults": 5})


class AwsOptions(Model):
    """What one order may ask of AWS beside its offer (`LaunchSpec.options`)."""

    image_id: str | None = None
    image_user: str | None = None  # None: as for the image it replaces
    volume_type: Literal["gp3", "gp2", "io2"] | None = None  # None: the block's
    instance_profile: str | None = None  # name; None: the block's
    capacity_reservation: str | None = None  # id, used where the order fits it; None: the block's
    max_spot_price: float | None = None  # USD per hour; None: up to the on-demand price


class _Image(NamedTuple):
    id: str
    root_device: str
    disk_gb: int
    user: str
    port: int


class _Reservation(NamedTuple):
    id: str
    instance_type: str
    zone: str
    free: int
    is_block: bool  # a capacity block for ML

    def covers(self, offer: Offer) -> bool:
        """Whether an order of this offer may name it; a full one is named too, or its last order could not be repeated."""
        return not offer.spot and (self.instance_type, self.zone) == (offer.instance_type, offer.zone)


class _Subnet(NamedTuple):
    id: str
    zone: str
    vpc: str


class Aws(Provider[AwsCredentials]):
    """Drives EC2. `endpoint_url` and `priced_offers` are for tests: another API address, another catalog."""

    name = "aws"
    capabilities = Capabilities(
        create_repeatable="zone",
        listing_lag_s=300,
        not_found_proves_absence=False,  # AWS says so itself: the instance may still be running
        self_ends="guest",
        spot=True,
        images="docker",
        host_key="placed",
        boot_deadline_s=600,
        # EC2's default refill per second, not measured: https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html
        rate_limits={
            "create_instance": RateLimit(calls=2, per_s=1),
            "terminate_instance": RateLimit(calls=5, per_s=1),
        },
        # 100 GB of gp3 at $0.08 a month and an IPv4 address at $0.005 an hour
        billing=Billing(starts="running", step_s=1, minimum_s=60, hourly_extras=0.016, egress_per_gb=0.09),
    )

    def __init__(
        self,
        credentials: AwsCredentials,
        *,
        endpoint_url: str | None = None,
        priced_offers: Callable[[str, Requirements], list[Offer]] | None = None,
    ) -> None:
        super().__init__(credentials)
        self._endpoint_url = endpoint_url
        self._priced_offers = priced_offers or _catalog_offers
        self._lock = threading.Lock()  # boto3's sessions make clients for one thread at a time
        self._session: Any = None
        self._session_ends = 0.0
        self._clients: dict[tuple[str, str, bool], Any] = {}
        self._images: dict[tuple[str, str, str, str], _Image] = {}
        self._account: str | None = None

    # --- the contract -----------------------------------------------------------------------------------------------

    @override
    def account_id(self) -> str:
        if self._account is None:
            with translated("tell whose credentials these are"):
                self._account = str(self._client("sts", self._home).get_caller_identity()["Account"])
        return self._account

    @override
    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        # Zones and disks are what the order adds: the price list knows neither.
        regions = set(requirements.regions or self.credentials.regions)
        if self.credentials.regions:
            regions.intersection_update(self.credentials.regions)
            if not regions:
                return []
        asked = requirements.model_copy(
            update={"zones": (), "exclude_zones": (), "disk_gb": None, "regions": tuple(sorted(regions))}
        )
        by_region: dict[str, list[Offer]] = {}
        for offer in self._priced_offers(self.name, asked):
            by_region.setdefault(offer.region, []).append(offer)
        if not by_region:
            return []
        enabled = self._enabled_regions()
        failures: list[ProviderError] = []

        def overlay(region: str) -> list[Offer]:
            if region not in enabled:
                return _closed(by_region[region], f"{region} is not enabled in this account")
            try:
                return self._in_zones(region, by_region[region], requirements)
            except ProviderError as error:
                failures.append(error)
                return _closed(by_region[region], f"{region} could not be asked: {error}")

        offers = [offer for found in _each(overlay, sorted(by_region)) for offer in found]
        if failures and len(failures) == len(enabled & by_region.keys()):
            raise failures[0]
        return offers

    @override
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        if offer.zone is None:
            raise InvalidRequest(f"{offer.instance_type} needs a zone: a name is one order only within a zone")
        region = offer.region
        options = _options(spec)
        image = self._image(offer, options)
        subnet = self._subnet(region, offer.zone)
        group, is_ours = self._security_group(region, subnet.vpc, spec.name, image.port)
        reservation = None if offer.spot else self._reservation(region, options)
        order = self._order(offer, spec, options, image, subnet, group, reservation)
        try:
            with translated(f"order {offer.instance_type} in {offer.zone}", is_order=True):
                machines = self._client("ec2", region, repeats=False).run_instances(**order).get("Instances")
        except ProviderError as error:
            if error.code in ORDERED_BEFORE:
                return self._ordered_before(region, spec.name, offer, error)
            if error.code == "InvalidGroup.NotFound" and is_ours:
                # The group was made a moment ago and is not everywhere yet; nothing was bought.
                raise Transient("AWS does not know the new security group yet", code=error.code) from None
            raise
        if not machines or not machines[0].get("InstanceId"):
            raise Unconfirmed("AWS took the order and named no instance")
        return self._instance(region, machines[0]).model_copy(update={"name": spec.name})

    @override
    def get_instance(self, instance_id: str) -> Instance:
        region, machine_id = _split(instance_id)
        code = None
        try:
            with translated(f"look at {instance_id}"):
                for reservation in self._pages(region, "describe_instances", "Reservations", InstanceIds=[machine_id]):
                    return self._instance(region, reservation["Instances"][0])
        except NotFound as error:
            code = error.code
        raise NotFound(f"AWS does not show {instance_id}; it may run all the same", code=code)

    @override
    def list_instances(self, prefix: str) -> Listing:
        enabled = self._enabled_regions()
        named = set(self.credentials.regions)
        missing = [Unread(scope=region, reason="not enabled in this account") for region in sorted(named - enabled)]

        def read(region: str) -> Listing | ProviderError:
            try:
                return self._read(region, prefix)
            except ProviderError as error:
                return error

        regions = sorted(enabled)
        answers = dict(zip(regions, _each(read, regions), strict=True))
        read_well = [answer for answer in answers.values() if isinstance(answer, Listing)]
        for region, answer in answers.items():
            if isinstance(answer, Listing):
                continue
            if read_well and region not in named and answer.code == "UnauthorizedOperation":
                # A policy keeps this account out of the region, and nobody asked for it.
                log.info("AWS denies listing %s, which the block does not name: skipped", region)
                continue
            missing.append(Unread(scope=region, reason=answer.message))
        return Listing(
            instances=tuple(instance for listing in read_well for instance in listing.instances),
            leftovers=tuple(leftover for listing in read_well for leftover in listing.leftovers),
            incomplete=tuple(missing),
        )

    @override
    def terminate_instance(self, instance_id: str) -> None:
        region, resource = _split(instance_id)
        ec2 = self._client("ec2", region)
        try:
            with translated(f"give back {instance_id}"):
                if resource.startswith("vol-"):
                    ec2.delete_volume(VolumeId=resource)
                elif resource.startswith("eni-"):
                    ec2.delete_network_interface(NetworkInterfaceId=resource)
                elif resource.startswith("eipalloc-"):
                    ec2.release_address(AllocationId=resource)
                else:
                    ec2.terminate_instances(InstanceIds=[resource])
        except NotFound:
            # No proof that it is gone, and nothing more to ask for: who called looks at listings until it is.
            return

    @override
    def terminate_instances(self, instance_ids: Sequence[str]) -> None:
        machines: dict[str, list[str]] = {}
        for instance_id in instance_ids:
            region, resource = _split(instance_id)
            if resource.startswith("i-"):
                machines.setdefault(region, []).append(resource)
            else:
                self.terminate_instance(instance_id)
        for region, ids in machines.items():
            try:
                with translated(f"give back {len(ids)} instances in {region}"):
                    self._client("ec2", region).terminate_instances(InstanceIds=ids)
            except NotFound:
                # One unknown id, and AWS terminates none of them.
                for machine_id in ids:
                    self.terminate_instance(f"{region}/{machine_id}")

    @override
    def missing_rights(self) -> list[str]:
        self.account_id()
        region = next(iter(self.credentials.regions), self._home)
        ec2 = self._client("ec2", region)
        rights = _RIGHTS if self.credentials.capacity_reservation is None else (*_RIGHTS, _RESERVATION_RIGHT)
        denied = [right for right, call, sent in rights if _is_denied(ec2, call, sent)]
        if _is_denied(ec2, "describe_regions", {}):
            denied.insert(0, "ec2:DescribeRegions")
        if not denied:
            denied += self._missing_to_order(region)
        try:
            self._quota(region, "L-1216C47A")
        except AuthFailed:
            denied.append("servicequotas:GetServiceQuota (without it quotas show only when an order is refused)")
        return denied

    @override
    def check(self, instance: Instance, connection: Connection) -> str | None:
        channel = connection.open(f"cat {NOTICE_FILE} 2>/dev/null")
        try:
            channel.shutdown_write()
            notice = channel.recv(4096).decode("utf-8", "replace").strip()
        finally:
            channel.close()
        return f"AWS is about to take this spot instance back: {notice}" if notice else None

    @override
    def interruption_reason(self, instance: Instance) -> str | None:
        # Also when it is `terminated` by now: that state proves absence, so it is told as it is.
        return instance.reason if instance.raw.get("state_reason") in TAKEN_BACK else None

    # --- offers -----------------------------------------------------------------------------------------------------

    def _in_zones(self, region: str, offers: list[Offer], requirements: Requirements) -> list[Offer]:
        """The region's offers, one for each zone that has the type and a network for us; what cannot be bought says why."""
        with_subnet = {subnet.zone: subnet.vpc for subnet in reversed(self._subnets(region))}  # as `_subnet` takes it
        with_group = set(with_subnet)
        if chosen := self.credentials.security_group:
            vpcs = {group["VpcId"] for group in self._groups(region, chosen)}
            with_group = {zone for zone, vpc in with_subnet.items() if vpc in vpcs}
        reservation = self._reservation(region, AwsOptions())
        images: dict[tuple[bool, str | None, str | None], str | None] = {}
        zones = self._type_zones(region, {offer.instance_type for offer in offers})
        quotas: dict[str, float | None] = {}
        placed: list[Offer] = []
        for offer in offers:
            having = zones.get(offer.instance_type, set())
            wanted = {
                zone
                for zone in having
                if zone not in requirements.exclude_zones and (not requirements.zones or zone in requirements.zones)
            }
            sized = offer.model_copy(update={"disk_gb": max(_DEFAULT_DISK_GB, requirements.disk_gb or 0.0)})
            if ".metal" in offer.instance_type:
                sized = sized.model_copy(update={"boot_deadline_s": _METAL_BOOT_S})
            if having and not wanted:
                continue
            image = (bool(offer.gpu_count), offer.gpu_vendor, offer.arch)
            if image not in images:
                images[image] = self._image_problem(offer)
            problem = images[image]
            if not having:
                problem = f"EC2 has no {offer.instance_type} in {region}"
            elif not wanted & with_subnet.keys():
                problem = f"no subnet in {', '.join(sorted(wanted))}: name one in the block, or make the default one"
            elif not wanted & with_group:
                problem = f"no security group {chosen} in the VPC of {', '.join(sorted(wanted & with_subnet.keys()))}"
            if (problem := problem or self._quota_problem(offer, quotas)) is not None:
                placed += _closed([sized], problem)
                continue
            for zone in sorted(wanted & with_group):
                here = sized.model_copy(update={"zone": zone})
                if reservation is not None and reservation.free and reservation.covers(here):
                    here = here.model_copy(update={"availability": Availability.AVAILABLE})
                placed.append(here)
        return placed

    def _quota_problem(self, offer: Offer, quotas: dict[str, float | None]) -> str | None:
        """Whether the offer is above its quota; `quotas` keeps what the region told already."""
        code = _quota_code(offer)
        if code is None or offer.cpu is None:
            return None
        if code not in quotas:
            quotas[code] = self._quota_if_told(offer.region, code)
        quota = quotas[code]
        if quota is None or quota >= offer.cpu:
            return None
        return f"quota {code} is {quota:g} vCPU in {offer.region}, this takes {offer.cpu:g}: ask AWS for more"

    def _image_problem(self, offer: Offer) -> str | None:
        named = self.credentials.gpu_image if offer.gpu_count else self.credentials.cpu_image
        if named is None:  # AWS's own images are in every region
            if offer.gpu_count and offer.gpu_vendor not in {None, "nvidia"}:
                return f"AWS has no image with {offer.gpu_vendor} drivers: name one in the block"
            return None
        try:
            self._image(offer, AwsOptions())
        except RegionClosed as error:
            return error.message
        return None

    def _type_zones(self, region: str, types: set[str]) -> dict[str, set[str]]:
        # More values than 200 in one filter are refused.
        only = [{"Name": "instance-type", "Values": sorted(types)}] if len(types) <= 200 else []
        zones: dict[str, set[str]] = {}
        with translated(f"ask for the zones of {region}"):
            for row in self._pages(
                region,
                "describe_instance_type_offerings",
                "InstanceTypeOfferings",
                LocationType="availability-zone",
                Filters=only,
            ):
                zones.setdefault(row["InstanceType"], set()).add(row["Location"])
        return zones

    def _quota(self, region: str, code: str) -> float:
        with translated(f"ask for quota {code} in {region}"):
            reply = self._client("service-quotas", region).get_service_quota(ServiceCode="ec2", QuotaCode=code)
            return float(reply["Quota"]["Value"])

    def _quota_if_told(self, region: str, code: str) -> float | None:
        try:
            return self._quota(region, code)
        except ProviderError as error:
            # Not told is not zero: the order will say.
            log.info("%s", error)
            return None

    # --- orders -----------------------------------------------------------------------------------------------------

    def _order(
        self,
        offer: Offer,
        spec: LaunchSpec,
        options: AwsOptions,
        image: _Image,
        subnet: _Subnet,
        group: str,
        reservation: _Reservation | None,
    ) -> dict[str, Any]:
        services = {"notice": _NOTICE_WATCHER} if offer.spot else {}
        user_data = cloud_init.user_data(spec, powers_off=True, services=services)
        if len(user_data.encode()) > _USER_DATA_LIMIT:
            raise InvalidRequest(f"the machine's user data has {len(user_data)} bytes, EC2 takes {_USER_DATA_LIMIT}")
        is_private = self.credentials.private or spec.network == "private"
        login = f"{image.user}@{'private' if is_private else 'public'}:{image.port}"
        tags = [
            {"Key": key, "Value": text} for key, text in ({**spec.tags, "Name": spec.name, _LOGIN_TAG: login}).items()
        ]
        tagged = ["instance", "volume", "network-interface", *(["spot-instances-request"] if offer.spot else [])]
        disk_gb = int(-(-max(spec.disk_gb or offer.disk_gb or _DEFAULT_DISK_GB, image.disk_gb) // 1))
        volume: dict[str, Any] = {
            "VolumeSize": disk_gb,
            "VolumeType": options.volume_type or self.credentials.volume_type,
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
            "UserData": user_data,
            "InstanceInitiatedShutdownBehavior": "terminate",
            # One hop: containers on the machine's bridge cannot read the user data.
            "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 1},
            "Placement": {"AvailabilityZone": offer.zone},
            "NetworkInterfaces": [
                {
                    "DeviceIndex": 0,
                    "SubnetId": subnet.id,
                    "Groups": [group],
                    "AssociatePublicIpAddress": not is_private,
                    "DeleteOnTermination": True,
                }
            ],
            "BlockDeviceMappings": [{"DeviceName": image.root_device, "Ebs": volume}],
            "TagSpecifications": [{"ResourceType": kind, "Tags": tags} for kind in tagged],
        }
        if profile := options.instance_profile or self.credentials.instance_profile:
            order["IamInstanceProfile"] = {"Name": profile}
        if reservation is not None and reservation.covers(offer):
            order["CapacityReservationSpecification"] = {
                "CapacityReservationTarget": {"CapacityReservationId": reservation.id}
            }
            if reservation.is_block:
                order["InstanceMarketOptions"] = {"MarketType": "capacity-block"}
        elif offer.spot:
            spot: dict[str, Any] = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
            limits = [limit for limit in (options.max_spot_price, spec.max_price) if limit is not None]
            if limits:
                spot["MaxPrice"] = f"{min(limits):.5f}"
            order["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": spot}
        return order

    def _ordered_before(self, region: str, name: str, offer: Offer, error: ProviderError) -> Instance:
        """What was ordered under this name, when EC2's answer proves that something was: also if it has ended by now.

        The newest image may be another one by the time an order is repeated, which makes it a different order.
        """
        with translated(f"look for {name}"):
            found = self._instances(region, [{"Name": "client-token", "Values": [name]}])
        here = [instance for instance in found if instance.zone == offer.zone]
        if not here:
            if isinstance(error, InstanceFailed):
                raise error
            raise Unconfirmed(f"AWS has an order under the name {name} and does not show it yet", code=error.code)
        if here[0].raw["instance_type"] != offer.instance_type:
            raise error
        return here[0]

    def _reservation(self, region: str, options: AwsOptions) -> _Reservation | None:
        """The capacity reservation of the order or the block, where it is one of this region and active now."""
        chosen = options.capacity_reservation or self.credentials.capacity_reservation
        if chosen is None:
            return None
        try:
            with translated(f"look at the capacity reservation {chosen}"):
                reply = self._client("ec2", region).describe_capacity_reservations(CapacityReservationIds=[chosen])
        except RegionClosed as error:
            if error.code != "InvalidCapacityReservationId.NotFound":
                raise
            return None  # it is of another region
        for row in reply["CapacityReservations"]:
            if row["State"] == "active":
                return _Reservation(
                    id=chosen,
                    instance_type=row["InstanceType"],
                    zone=row["AvailabilityZone"],
                    free=row["AvailableInstanceCount"],
                    is_block=row.get("ReservationType") == "capacity-block",
                )
        return None

    def _image(self, offer: Offer, options: AwsOptions) -> _Image:
        is_gpu = bool(offer.gpu_count)
        arch = offer.arch or "x86_64"
        wanted = self.credentials.gpu_image if is_gpu else self.credentials.cpu_image
        if wanted is None:
            names, owner = (_ARCH_GPU_IMAGES, _DLAMI_OWNER) if is_gpu else (_ARCH_CPU_IMAGES, _CANONICAL)
            wanted = AwsImage(owner=owner, name=names.get(arch, names["x86_64"]))
        if options.image_id:
            wanted = wanted.model_copy(update={"name": options.image_id, "user": options.image_user or wanted.user})
        key = (offer.region, wanted.owner, wanted.name, arch)
        if key not in self._images:
            query: dict[str, Any] = {"ImageIds": [options.image_id]}
            if not options.image_id:
                filters = {"name": wanted.name, "architecture": arch, "state": "available"}
                query = {
                    "Owners": [wanted.owner],
                    "Filters": [{"Name": name, "Values": [value]} for name, value in filters.items()],
                }
            with translated(f"look for the image {wanted.name}"):
                found = list(self._pages(offer.region, "describe_images", "Images", **query))
            if not found:
                raise RegionClosed(
                    f"no {arch} image {wanted.name!r} of owner {wanted.owner} in {offer.region}: name another in the block"
                )
            newest = max(found, key=lambda image: (image["CreationDate"], image["ImageId"]))
            root = newest.get("RootDeviceName") or "/dev/sda1"
            sizes = [
                device.get("Ebs", {}).get("VolumeSize") or 0
                for device in newest.get("BlockDeviceMappings", [])
                if device.get("DeviceName") == root
            ]
            self._images[key] = _Image(newest["ImageId"], root, max(sizes, default=0), wanted.user, wanted.port)
        return self._images[key]

    def _subnets(self, region: str) -> list[_Subnet]:
        """The block's subnets in this region; without any in the block, the default subnets."""
        if self.credentials.subnets:
            # As a filter: ids of other regions match nothing, where as a parameter they are an error.
            only = {"Name": "subnet-id", "Values": list(self.credentials.subnets)}
        else:
            only = {"Name": "default-for-az", "Values": ["true"]}
        with translated(f"ask for the subnets of {region}"):
            rows = list(self._pages(region, "describe_subnets", "Subnets", Filters=[only]))
        return sorted(_Subnet(row["SubnetId"], row["AvailabilityZone"], row["VpcId"]) for row in rows)

    def _subnet(self, region: str, zone: str) -> _Subnet:
        # Always the first: a repeated order must be the same order.
        for subnet in self._subnets(region):
            if subnet.zone == zone:
                return subnet
        raise RegionClosed(f"no subnet in {zone}: name one in the block, or make the zone's default subnet")

    def _security_group(self, region: str, vpc: str, name: str, port: int) -> tuple[str, bool]:
        """The group's id, and whether it is ours.

        Ours is one per realm, VPC and what it admits, shared by all machines: it costs nothing and stays. Whoever deleted it
        with the last machine would take it away under the next order. What it admits is in its name, so that a block which is
        narrowed has another group from then on, and nobody's running machine is cut off.
        """
        if chosen := self.credentials.security_group:
            found = self._groups(region, chosen, vpc)
            if not found:
                raise RegionClosed(
                    f"no security group {chosen} in {vpc} of {region}: look at the block's security group"
                )
            return found[0]["GroupId"], False
        realm = parsed.realm if (parsed := lease.Lease.parse(name)) else "none"
        sources = sorted(set(self.credentials.ssh_from))
        admits = hashlib.sha256(" ".join([str(port), *sources]).encode()).hexdigest()
        title = f"prefect-gpu-{realm}-{admits[:8]}"
        ec2 = self._client("ec2", region)
        found = self._groups(region, title, vpc)
        if not found:
            try:
                with translated(f"make the security group {title}"):
                    made: dict[str, Any] = ec2.create_security_group(
                        GroupName=title,
                        Description="prefect-gpu: admits SSH and nothing else",
                        VpcId=vpc,
                        TagSpecifications=[
                            {"ResourceType": "security-group", "Tags": [{"Key": "Name", "Value": title}]}
                        ],
                    )
                found = [made]
            except InvalidRequest as error:
                if error.code != "InvalidGroup.Duplicate":
                    raise
                # Another worker was first.
                found = self._groups(region, title, vpc)
                if not found:
                    raise Transient("AWS does not show the new security group yet", code=error.code) from None
        group = str(found[0]["GroupId"])
        admitted = {source for rule in found[0].get("IpPermissions", []) for source in _sources(rule, port)}
        absent = [source for source in sources if source not in admitted]
        if absent:
            rule: dict[str, Any] = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port}
            if v4 := [{"CidrIp": source} for source in absent if ":" not in source]:
                rule["IpRanges"] = v4
            if v6 := [{"CidrIpv6": source} for source in absent if ":" in source]:
                rule["Ipv6Ranges"] = v6
            try:
                with translated(f"admit SSH to the security group {title}"):
                    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[rule])
            except InvalidRequest as error:
                if error.code != "InvalidPermission.Duplicate":
                    raise
        return group, True

    def _groups(self, region: str, chosen: str, vpc: str | None = None) -> list[dict[str, Any]]:
        """The groups of this id or name, in one VPC or in all of the region."""
        filters = [{"Name": "group-id" if chosen.startswith("sg-") else "group-name", "Values": [chosen]}]
        if vpc is not None:
            filters.append({"Name": "vpc-id", "Values": [vpc]})
        with translated(f"look for the security group {chosen}"):
            return list(self._pages(region, "describe_security_groups", "SecurityGroups", Filters=filters))

    def _missing_to_order(self, region: str) -> list[str]:
        """Rights that only show in an order as it would be sent: tags, network, image."""
        offer = Offer(provider=self.name, instance_type="t3.micro", region=region, price=0.0)
        try:
            image = self._image(offer, AwsOptions())
            subnets = self._subnets(region)
        except ProviderError as error:
            return [f"an order in {region}: {error}"]
        if not subnets:
            return []  # no rights are missing: the offers say what is
        ec2 = self._client("ec2", region)
        tags = [{"Key": "Name", "Value": "prefect-gpu"}]
        order = {
            "ImageId": image.id,
            "InstanceType": offer.instance_type,
            "MinCount": 1,
            "MaxCount": 1,
            "SubnetId": subnets[0].id,
            "TagSpecifications": [{"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")],
        }
        denied = ["ec2:RunInstances and ec2:CreateTags"] if _is_denied(ec2, "run_instances", order) else []
        if self.credentials.security_group is None:
            group = {"GroupName": "prefect-gpu-rights", "Description": "never made", "VpcId": subnets[0].vpc}
            if _is_denied(ec2, "create_security_group", group):
                denied.append("ec2:CreateSecurityGroup")
            rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "192.0.2.0/24"}]}
            admit = {"GroupId": "sg-00000000000000000", "IpPermissions": [rule]}
            if _is_denied(ec2, "authorize_security_group_ingress", admit):
                denied.append("ec2:AuthorizeSecurityGroupIngress")
        return denied

    # --- listings ---------------------------------------------------------------------------------------------------

    def _enabled_regions(self) -> set[str]:
        with translated("ask for the account's regions"):
            reply = self._client("ec2", self._home).describe_regions(AllRegions=False)
            return {str(row["RegionName"]) for row in reply["Regions"]}

    def _read(self, region: str, prefix: str) -> Listing:
        """All of one region that may cost money: every state but the two that are known to cost nothing."""
        named = {"Name": "tag:Name", "Values": [f"{prefix}*"]}
        unused = {"Name": "status", "Values": ["available", "error"]}
        with translated(f"list {region}"):
            instances = self._instances(region, [named])
            rows = [
                *(
                    ("volume", row["VolumeId"], row["Tags"])
                    for row in self._pages(region, "describe_volumes", "Volumes", Filters=[named, unused])
                ),
                *(
                    ("network interface", row["NetworkInterfaceId"], row["TagSet"])
                    for row in self._pages(
                        region,
                        "describe_network_interfaces",
                        "NetworkInterfaces",
                        Filters=[named, {"Name": "status", "Values": ["available"]}],
                    )
                ),
                *(
                    ("address", row["AllocationId"], row["Tags"])
                    for row in self._client("ec2", region).describe_addresses(Filters=[named])["Addresses"]
                    if "AssociationId" not in row
                ),
            ]
        leftovers = [
            Leftover(id=f"{region}/{resource}", kind=kind, name=_tags(tags).get("Name", ""), region=region)
            for kind, resource, tags in rows
        ]
        return Listing(
            instances=tuple(
                instance
                for instance in instances
                if instance.name.startswith(prefix) and instance.raw["state"] not in FREE_STATES
            ),
            leftovers=tuple(leftover for leftover in leftovers if leftover.name.startswith(prefix)),
        )

    def _instances(self, region: str, filters: list[dict[str, Any]]) -> list[Instance]:
        reservations = self._pages(region, "describe_instances", "Reservations", Filters=filters)
        return [self._instance(region, machine) for reservation in reservations for machine in reservation["Instances"]]

    def _pages(self, region: str, call: str, rows: str, **sent: Any) -> Iterator[dict[str, Any]]:
        for page in self._client("ec2", region).get_paginator(call).paginate(**sent):
            yield from page.get(rows, [])

    def _instance(self, region: str, machine: dict[str, Any]) -> Instance:
        tags = _tags(machine.get("Tags", []))
        why: dict[str, str] = machine.get("StateReason") or {}
        code, status = why.get("Code", ""), machine["State"]["Name"]
        state = _STATES.get(status, InstanceState.UNKNOWN)
        if code in TAKEN_BACK and state is not InstanceState.TERMINATED:
            state = InstanceState.INTERRUPTED
        elif code in NEVER_RAN and state is InstanceState.TERMINATING:
            state = InstanceState.FAILED
        ssh = self._endpoint(machine, tags)
        if state is InstanceState.RUNNING and ssh is None:
            state = InstanceState.PROVISIONING
        launched: datetime | None = machine.get("LaunchTime")
        return Instance(
            id=f"{region}/{machine['InstanceId']}",
            name=tags.get("Name", ""),
            provider=self.name,
            state=state,
            region=region,
            zone=machine.get("Placement", {}).get("AvailabilityZone"),
            created_at=launched.astimezone(UTC) if launched else None,
            ssh=ssh,
            reason=why.get("Message", "") if state is not InstanceState.RUNNING else "",
            spot=machine.get("InstanceLifecycle") == "spot",
            raw={"state": status, "state_reason": code, "instance_type": machine.get("InstanceType")},
        )

    def _endpoint(self, machine: dict[str, Any], tags: dict[str, str]) -> SshEndpoint | None:
        login = re.fullmatch(r"(.+)@(public|private):(\d+)", tags.get(_LOGIN_TAG, ""))
        user, network, port = login.groups() if login else ("ubuntu", "public", "22")
        host = machine.get("PrivateIpAddress" if network == "private" else "PublicIpAddress")
        if not host:
            return None
        block = self.credentials
        jump = None
        if network == "private" and block.jump_host and block.jump_private_key:
            jump = SshJump(
                host=block.jump_host,
                port=block.jump_port,
                user=block.jump_user,
                private_key=block.jump_private_key,
                host_key=block.jump_host_key,
            )
        return SshEndpoint(host=host, port=int(port), user=user, jump=jump)

    # --- the wire ---------------------------------------------------------------------------------------------------

    @property
    def _home(self) -> str:
        """The region that is asked about the account as a whole."""
        aws = self.credentials.aws
        return (aws and aws.region_name) or next(iter(self.credentials.regions), "us-east-1")

    def _client(self, service: str, region: str, *, repeats: bool = True) -> Any:
        """A client of one region; `repeats`: whether a call may be sent again, which an order never is."""
        with self._lock:
            aws = self.credentials.aws
            if self._session is None or (aws and aws.assume_role_arn and time.monotonic() > self._session_ends):
                with translated("use these credentials"):
                    self._session = self.credentials.get_session()
                self._session_ends = time.monotonic() + _ROLE_SESSION_S
                self._clients.clear()
            key = (service, region, repeats)
            if key not in self._clients:
                settings: dict[str, Any] = aws.aws_client_parameters.get_params_override() if aws else {}
                ours = Config(
                    connect_timeout=5,
                    read_timeout=20 if repeats else 60,  # an order's answer is worth waiting for
                    retries={"total_max_attempts": 3 if repeats else 1, "mode": "standard"},
                    max_pool_connections=_READERS,
                )
                theirs: Any = settings.pop("config", None)
                settings["config"] = theirs.merge(ours) if theirs else ours
                if self._endpoint_url:
                    settings["endpoint_url"] = self._endpoint_url
                with translated(f"speak to {region}"):
                    self._clients[key] = self._session.client(service, region_name=region, **settings)
            return self._clients[key]


def _is_denied(ec2: Any, call: str, sent: dict[str, Any]) -> bool:
    """Whether a right is missing: a dry run is refused for that, or for another reason once the right is there."""
    try:
        with translated(call):
            getattr(ec2, call)(DryRun=True, **sent)
    except AuthFailed:
        return True
    except Transient:
        raise
    except ProviderError:
        pass  # DryRunOperation: it would have worked; or an id that does not exist, which is asked after the right
    return False


def _catalog_offers(provider: str, requirements: Requirements) -> list[Offer]:
    from providers.core import catalog  # gpuhunt takes its time to import, and orders need no prices

    return catalog.offers(provider, requirements)


def _each(read: Callable[[str], T], regions: Sequence[str]) -> list[T]:
    """`read` of all regions side by side, in their order."""
    with ThreadPoolExecutor(min(_READERS, len(regions)) or 1, thread_name_prefix="aws") as pool:
        return list(pool.map(read, regions))


def _options(spec: LaunchSpec) -> AwsOptions:
    try:
        return AwsOptions.model_validate(spec.options)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        known = ", ".join(AwsOptions.model_fields)
        raise InvalidRequest(f"AWS does not take these options: {wrong}. It takes {known}") from None


def _closed(offers: Sequence[Offer], why: str) -> list[Offer]:
    closed = {"availability": Availability.UNAVAILABLE, "unavailable_because": why}
    return [offer.model_copy(update=closed) for offer in offers]


def _quota_code(offer: Offer) -> str | None:
    """The vCPU quota that an offer counts against: by the longest beginning of its type that has one."""
    letters = re.match(r"[a-z]+", offer.instance_type)
    family = offer.instance_type[: (letters.end() if letters else 0) + 1]
    codes = QUOTA_CODES.get(family) or QUOTA_CODES.get(family[:-1])
    if codes is None:
        return None
    return codes[1] if offer.spot else codes[0]


def _split(instance_id: str) -> tuple[str, str]:
    region, slash, resource = instance_id.partition("/")
    if not (region and slash and resource):
        raise NotFound(f"{instance_id!r} is no id of AWS: they look like us-east-1/i-0123456789abcdef0")
    return region, resource


def _tags(rows: Sequence[dict[str, str]]) -> dict[str, str]:
    return {row["Key"]: row["Value"] for row in rows}


def _sources(rule: dict[str, Any], port: int) -> list[str]:
    """The address ranges that a rule admits to this port."""
    if rule.get("IpProtocol") not in {"tcp", "-1"} or not (
        rule.get("FromPort", 0) <= port <= rule.get("ToPort", 65535)
    ):
        return []
    v4 = [row["CidrIp"] for row in rule.get("IpRanges", [])]
    return v4 + [row["CidrIpv6"] for row in rule.get("Ipv6Ranges", [])]


tasks = TaskLibrary(Aws, AwsCredentials)
