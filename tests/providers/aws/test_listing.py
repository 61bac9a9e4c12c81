"""Listings, states and the end of machines."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

import pytest

from prefect_gpu.providers.aws import instances, listing
from prefect_gpu.providers.aws.api import Api
from prefect_gpu.providers.aws.driver import Aws
from prefect_gpu.providers.core.errors import (
    InvalidRequest,
    NotFound,
)
from prefect_gpu.providers.core.models import (
    Instance,
    InstanceState,
    Listing,
)
from prefect_gpu.providers.core.renting import give_back as giving_back
from tests.conformance import launch_spec, lease_name
from tests.fakes.aws import IMAGES, AwsCloud, priced_offers
from tests.providers.aws.ordering import (
    Quickly,
    offer_of,
    utc_soon,
    wait_for,
)


def test_a_spot_machine_taken_back_is_interrupted_and_then_gone_with_awss_reason(cloud: AwsCloud, driver: Aws) -> None:
    cloud.set(shutdown_s=1.0)
    created = driver.create_instance(offer_of(spot=True), launch_spec(driver, lease_name()))
    running = wait_for(InstanceState.RUNNING, driver, created)
    assert running.spot
    assert driver.interruption_reason(running) is None
    cloud.take_back(created.id, message="Server.SpotInstanceTermination: Spot instance termination")
    going = driver.get_instance(created.id)
    assert going.state is InstanceState.INTERRUPTED
    assert driver.interruption_reason(going) == "Server.SpotInstanceTermination: Spot instance termination"
    gone = wait_for(InstanceState.TERMINATED, driver, created)
    assert driver.interruption_reason(gone) == "Server.SpotInstanceTermination: Spot instance termination"


def test_a_machine_that_we_gave_back_was_not_interrupted(driver: Aws) -> None:
    created = driver.create_instance(offer_of(spot=True), launch_spec(driver, lease_name()))
    driver.terminate_instance(created.id)
    assert driver.get_instance(created.id).state in {InstanceState.TERMINATING, InstanceState.TERMINATED}
    assert driver.interruption_reason(wait_for(InstanceState.TERMINATED, driver, created)) is None


@pytest.mark.parametrize("code", sorted(instances.NEVER_RAN))
def test_a_machine_that_ends_while_it_starts_failed_with_awss_reason(cloud: AwsCloud, driver: Aws, code: str) -> None:
    cloud.set(shutdown_s=1.0, boot_s=30)
    created = driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    cloud.take_back(created.id, code=code, message=f"{code}: on launch")
    failed = driver.get_instance(created.id)
    assert (failed.state, failed.reason) == (InstanceState.FAILED, f"{code}: on launch")


@pytest.mark.parametrize("status", ["stopping", "stopped"])
def test_a_machine_that_somebody_stopped_has_failed_and_is_still_listed(
    cloud: AwsCloud, driver: Aws, status: str
) -> None:
    created = driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    wait_for(InstanceState.RUNNING, driver, created)
    cloud.show_status(created.id, status)
    assert driver.get_instance(created.id).state is InstanceState.FAILED
    assert [found.id for found in driver.list_instances("pg-").instances] == [created.id]


class TakesNotFoundForGone(Aws):
    capabilities = Aws.capabilities.model_copy(update={"not_found_proves_absence": True})


@pytest.mark.parametrize(("kind", "is_believed"), [(Aws, False), (TakesNotFoundForGone, True)])
def test_not_found_is_no_proof_that_a_machine_is_gone(cloud: AwsCloud, kind: type[Aws], is_believed: bool) -> None:
    driver = kind(cloud.block(), priced_offers=priced_offers)
    cloud.set(hide_new=60)
    spec = launch_spec(driver, lease_name())
    created = driver.create_instance(offer_of(), spec)
    with pytest.raises(NotFound, match="may run all the same"):
        driver.get_instance(created.id)
    ordered_at = utc_soon(-400)
    absence = giving_back.give_back(
        driver, spec.name, known_ids=(created.id,), ordered_at=ordered_at, within_s=20, clock=Quickly()
    )
    assert absence.is_gone is is_believed
    assert [alive["id"] for alive in cloud.alive()] == [created.id], "it runs all the same"
    assert is_believed or absence.owed == (created.id,)


def test_a_machine_that_was_given_back_is_gone_by_awss_own_word_without_the_lag(cloud: AwsCloud, driver: Aws) -> None:
    spec = launch_spec(driver, lease_name())
    created = driver.create_instance(offer_of(), spec)
    started = time.monotonic()
    absence = giving_back.give_back(driver, spec.name, known_ids=(created.id,), within_s=20)
    assert absence.is_gone, absence.evidence
    assert time.monotonic() - started < 5
    assert cloud.alive() == []


def test_one_unknown_id_does_not_keep_the_others_alive(cloud: AwsCloud, driver: Aws) -> None:
    zones = ("us-east-1a", "us-east-1b", "us-west-2a")
    created = [driver.create_instance(offer_of(zone=zone), launch_spec(driver, lease_name())) for zone in zones]
    driver.terminate_instances(["us-east-1/i-0123456789abcdef0", *(instance.id for instance in created)])
    for instance in created:
        wait_for(InstanceState.TERMINATED, driver, instance)


def tagged(kind: str, **tags: str) -> list[dict[str, Any]]:
    return [{"ResourceType": kind, "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}]


def test_what_anybody_named_like_ours_is_reported_and_stays(cloud: AwsCloud, driver: Aws) -> None:
    name, ec2 = lease_name(), cloud.ec2("us-west-2")
    alive = driver.create_instance(offer_of(zone="us-west-2a"), launch_spec(driver, lease_name()))
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    ec2.create_volume(AvailabilityZone="us-west-2a", Size=1, TagSpecifications=tagged("volume", Name=name))
    ec2.create_volume(AvailabilityZone="us-west-2a", Size=1, TagSpecifications=tagged("volume", Name=f"x-{name}"))
    ec2.create_volume(AvailabilityZone="us-west-2a", Size=1, TagSpecifications=tagged("volume", Name="pg-database"))
    ec2.create_network_interface(SubnetId=subnet, TagSpecifications=tagged("network-interface", Name=name))
    ec2.allocate_address(Domain="vpc", TagSpecifications=tagged("elastic-ip", Name=name))
    made = ec2.run_instances(
        ImageId=IMAGES[0]["ami_id"], MinCount=1, MaxCount=1, TagSpecifications=tagged("instance", Name=name)
    )
    found = driver.list_instances("pg-")
    assert found.is_complete
    assert [instance.id for instance in found.instances] == [alive.id]
    assert found.leftovers == ()
    assert {(one.kind, one.name, one.region) for one in found.unproved} == {
        (kind, name, "us-west-2") for kind in ("instance", "volume", "network interface", "address")
    }
    for one in found.unproved:
        assert one.reason
        with pytest.raises(InvalidRequest, match="is left alone"):
            driver.terminate_instance(one.id)
    with pytest.raises(InvalidRequest, match="is left alone"):
        driver.terminate_instances([*(one.id for one in found.unproved), alive.id])
    assert driver.list_instances("pg-").unproved == found.unproved
    wait_for(InstanceState.TERMINATED, driver, alive)
    machine = made["Instances"][0]["InstanceId"]
    (still,) = ec2.describe_instances(InstanceIds=[machine])["Reservations"][0]["Instances"]
    assert still["State"]["Name"] in {"pending", "running"}


@pytest.mark.parametrize("what", ["name", "all tags"])
def test_giving_back_ends_no_machine_that_was_made_from_one_of_ours(cloud: AwsCloud, driver: Aws, what: str) -> None:
    spec = launch_spec(driver, lease_name(), tags={"prefect-gpu-realm": "conf"})
    created = driver.create_instance(offer_of(), spec)
    ec2 = cloud.ec2()
    (ours,) = ec2.describe_instances(InstanceIds=[created.id.split("/")[1]])["Reservations"][0]["Instances"]
    tags = ours["Tags"] if what == "all tags" else [{"Key": "Name", "Value": spec.name}]
    made = ec2.run_instances(ImageId=IMAGES[0]["ami_id"], MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
    ec2.create_tags(Resources=[made], Tags=tags)
    absence = giving_back.give_back(driver, spec.name, known_ids=(created.id,), within_s=20)
    assert absence.is_gone, absence.evidence
    assert [one["id"] for one in cloud.alive()] == [f"us-east-1/{made}"]


def test_a_machine_that_somebody_renamed_is_still_ours(cloud: AwsCloud, driver: Aws) -> None:
    spec = launch_spec(driver, lease_name())
    created = driver.create_instance(offer_of(), spec)
    cloud.ec2().create_tags(Resources=[created.id.split("/")[1]], Tags=[{"Key": "Name", "Value": "mine-now"}])
    assert [one.name for one in driver.list_instances(spec.name).instances] == [spec.name]
    assert giving_back.give_back(driver, spec.name, within_s=20).is_gone
    assert cloud.alive() == []


def test_a_disk_is_removed_only_if_it_came_with_its_machine(cloud: AwsCloud, driver: Aws) -> None:
    """A disk that somebody gives all the tags of ours was made at another time, or in another zone."""
    spec, ec2 = launch_spec(driver, lease_name()), cloud.ec2()
    cloud.set(keep_volumes=True)
    created = driver.create_instance(offer_of(), spec)
    driver.terminate_instance(created.id)
    wait_for(InstanceState.TERMINATED, driver, created)
    other = ec2.create_volume(AvailabilityZone="us-east-1b", Size=1, TagSpecifications=tagged("volume", Name=spec.name))
    seen = driver.list_instances(spec.name)
    (ours,) = seen.leftovers
    assert [one.id for one in seen.unproved] == [f"us-east-1/{other['VolumeId']}"]
    for _ in range(2):  # already gone is success
        driver.terminate_instance(ours.id)
    assert driver.list_instances(spec.name).leftovers == ()
    assert ec2.describe_volumes(VolumeIds=[other["VolumeId"]])["Volumes"]


@pytest.mark.parametrize(
    ("minutes", "zone", "is_ours"), [(0, "z1", True), (-1, "z1", True), (30, "z1", False), (0, "z2", False)]
)
def test_a_disk_is_told_by_the_time_and_zone_of_its_machine(minutes: int, zone: str, is_ours: bool) -> None:
    launched = utc_soon(-3600)
    seen = Instance(id="r/i-1", name="n", provider="aws", state=InstanceState.TERMINATED, zone="z1")
    machine = instances.Described(seen, "n", launched)
    volume = {"AvailabilityZone": zone, "CreateTime": launched + timedelta(minutes=minutes)}
    assert listing.is_proved(volume, [machine]) is is_ours
    assert not listing.is_proved({"AvailabilityZone": zone}, [machine])
    assert not listing.is_proved(volume, [])


def test_a_region_that_policy_denies_is_passed_over_unless_the_block_names_it(cloud: AwsCloud) -> None:
    cloud.fail("DescribeInstances", "UnauthorizedOperation", status=403, region="eu-west-1", times=None)
    assert cloud.driver().list_instances("pg-") == Listing()
    named = cloud.driver(regions=["us-east-1", "eu-west-1"]).list_instances("pg-")
    assert [unread.scope for unread in named.incomplete] == ["eu-west-1"]


def test_a_policy_that_denies_every_region_leaves_no_listing_that_looks_empty(cloud: AwsCloud, driver: Aws) -> None:
    cloud.fail("DescribeInstances", "UnauthorizedOperation", status=403, times=None)
    listing = driver.list_instances("pg-")
    assert {unread.scope for unread in listing.incomplete} == {"us-east-1", "us-west-2", "eu-west-1"}


def test_a_region_that_the_block_names_and_the_account_has_not_enabled_is_unread(cloud: AwsCloud) -> None:
    listing = cloud.driver(regions=["us-east-1", "me-south-1"]).list_instances("pg-")
    assert [(unread.scope, unread.reason) for unread in listing.incomplete] == [
        ("me-south-1", "not enabled in this account")
    ]


@pytest.mark.parametrize("call", ["DescribeVolumes", "DescribeNetworkInterfaces", "DescribeAddresses"])
def test_a_region_whose_leftovers_cannot_be_read_is_unread(cloud: AwsCloud, driver: Aws, call: str) -> None:
    cloud.fail(call, "InternalError", status=500, region="us-west-2", times=None)
    assert [unread.scope for unread in driver.list_instances("pg-").incomplete] == ["us-west-2"]


def test_regions_are_read_side_by_side(driver: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.list_instances("pg-")  # makes the clients
    together = threading.Barrier(3, timeout=10)
    real = listing.read

    def read(api: Api, region: str, prefix: str) -> Listing:
        together.wait()
        return real(api, region, prefix)

    monkeypatch.setattr(listing, "read", read)
    assert driver.list_instances("pg-").is_complete
