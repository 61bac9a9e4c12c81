"""AWS against moto's EC2 server, corrected where it is not EC2 (tests/fakes/aws.py): conformance, orders, errors, listings."""

from __future__ import annotations

import asyncio
import functools
import http.server
import inspect
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncssh
import botocore.exceptions as boto_errors
import botocore.session
import pytest
import yaml
from botocore.parsers import ResponseParserError
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import SecretStr, ValidationError

from blocks.aws import AwsCredentials, AwsImage
from providers import aws
from providers.aws import Aws, AwsOptions
from providers.core import ec2_errors, orders, remote
from providers.core.errors import (
    AuthFailed,
    InstanceFailed,
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    RegionClosed,
    Transient,
    Unconfirmed,
)
from providers.core.jobs import Machine
from providers.core.keys import Purpose, derive
from providers.core.lease import Lease
from providers.core.models import (
    Availability,
    Instance,
    InstanceState,
    JobSpec,
    LaunchSpec,
    Listing,
    Offer,
    Requirements,
    Spot,
    utc_now,
)
from tests.conformance import MASTER_SECRET, Faults, ProviderConformance, Subject, launch_spec, lease_name, same_error
from tests.fakes.aws import ACCOUNT, IMAGES, REGIONS, AwsCloud, priced_offers

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"
AWS_ATTEMPTS = 3  # boto3 sends a read so often before it gives up


@pytest.fixture(scope="module", autouse=True)
def _models_of_services_are_read_once() -> Iterator[None]:
    """Each test's driver has a boto3 session of its own, which would read EC2's 5 MB of descriptions again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        yield


@pytest.fixture(scope="module")
def running_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsCloud]:
    cloud = AwsCloud.start(tmp_path_factory.mktemp("aws"))
    yield cloud
    cloud.stop()


@pytest.fixture
def cloud(running_cloud: AwsCloud) -> AwsCloud:
    running_cloud.reset()
    return running_cloud


@pytest.fixture
def driver(cloud: AwsCloud) -> Aws:
    return cloud.driver()


# --- conformance --------------------------------------------------------------------------------------------------------


class AwsFaults(Faults):
    def __init__(self, cloud: AwsCloud, driver: Aws) -> None:
        self.cloud, self.driver = cloud, driver

    def sell_out(self) -> str:
        self.cloud.fail("RunInstances", "InsufficientInstanceCapacity", status=500)
        return "InsufficientInstanceCapacity"

    def refuse_quota(self) -> str:
        self.cloud.fail("RunInstances", "VcpuLimitExceeded")
        return "VcpuLimitExceeded"

    def refuse_credentials(self) -> str:
        self.cloud.fail("*", "AuthFailure", status=401, times=None)
        return "AuthFailure"

    def refuse_the_request(self) -> str:
        self.cloud.fail("RunInstances", "ShortAndStout", message="I am a teapot")
        return "I am a teapot"

    def limit_rate(self) -> None:
        self.cloud.fail("*", "RequestLimitExceeded", status=503, times=AWS_ATTEMPTS)

    def break_creates(self) -> str:
        self.cloud.fail("RunInstances", "InternalError", status=500)
        return "InternalError"

    def break_reads(self) -> str:
        self.cloud.fail("DescribeInstances", "Unavailable", status=503, times=AWS_ATTEMPTS)
        return "Unavailable"

    def break_terminates(self) -> str:
        self.cloud.fail("TerminateInstances", "InternalError", status=500, times=AWS_ATTEMPTS)
        return "InternalError"

    def lose_the_answer(self) -> None:
        self.cloud.fail("RunInstances", how="lost")

    def garble_the_answer(self) -> None:
        self.cloud.fail("RunInstances", how="unreadable")

    def refuse_connections(self) -> None:
        # boto3 itself tries to connect, to a port where nobody listens.
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            nobody = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        left = [1]

        def redirect(request: Any, **_: Any) -> None:
            if left:
                left.pop()
                request.url = nobody

        for region in ("us-east-1", "us-west-2", "eu-west-1"):
            client = self.driver._client("ec2", region, repeats=False)
            client.meta.events.register("before-send.ec2.RunInstances", redirect)

    def make_unreadable(self) -> str:
        self.cloud.fail("DescribeInstances", "InternalError", status=500, region="us-west-2", times=None)
        return "us-west-2"

    def restore(self) -> None:
        self.cloud.mend()

    def show_status(self, instance: Instance, status: str) -> None:
        self.cloud.show_status(instance.id, status)

    def shrink_pages(self) -> None:
        self.cloud.set(page_size=1)

    def leave_something(self) -> None:
        self.cloud.set(keep_volumes=True)

    def create_requests(self) -> int:
        return len(self.cloud.calls("RunInstances"))

    def someone_elses(self) -> str:
        name = f"not-{lease_name()}"
        tags = [{"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": name}]}]
        self.cloud.ec2().run_instances(ImageId=IMAGES[0]["ami_id"], MinCount=1, MaxCount=1, TagSpecifications=tags)
        return name

    def pass_deadline(self, instance: Instance) -> None:
        self.cloud.end_lease(instance.id)


def subject_of(cloud: AwsCloud, driver: Aws) -> Subject:
    return Subject(
        provider=driver,
        secrets=(SECRET,),
        unknown_id="us-east-1/i-0123456789abcdef0",
        pass_time=lambda seconds: time.sleep(min(seconds, 0.05)),
        requirements=Requirements(regions=("us-east-1", "us-west-2")),
        faults=AwsFaults(cloud, driver),
    )


class TestAws(ProviderConformance):
    @pytest.fixture
    def subject(self, cloud: AwsCloud, driver: Aws) -> Subject:
        return subject_of(cloud, driver)


# --- the suite against drivers that are wrong in one way ----------------------------------------------------------------


class SendsNoToken(Aws):
    def _order(self, *given: Any) -> dict[str, Any]:
        order = super()._order(*given)
        del order["ClientToken"]
        return order


class DropsTheSecondPage(Aws):
    def _pages(self, region: str, call: str, rows: str, **sent: Any) -> Iterator[dict[str, Any]]:
        first = next(iter(self._client("ec2", region).get_paginator(call).paginate(**sent)))
        yield from first[rows]


class SwallowsRegionErrors(Aws):
    def list_instances(self, prefix: str) -> Listing:
        return super().list_instances(prefix).model_copy(update={"incomplete": ()})


class TakesTheWrongRegionForAnAnswer(Aws):
    """The answers of the regions are put to the names of the regions in another order."""

    def _read(self, region: str, prefix: str) -> Listing:
        regions = sorted(self._enabled_regions())
        return super()._read(regions[regions.index(region) - 1], prefix)


class ReadsItsHomeRegionOnly(Aws):
    def _enabled_regions(self) -> set[str]:
        return {self._home}


class TakesAnyTokenAnswerForTransient(Aws):
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            return super().create_instance(offer, spec)
        except Unconfirmed as error:
            raise Transient(error.message, code=error.code) from None


class NeverSetsTheTimer(Aws):
    def _order(self, *given: Any) -> dict[str, Any]:
        order = super()._order(*given)
        config = yaml.safe_load(order["UserData"])
        del config["runcmd"], config["write_files"]
        return {**order, "UserData": "#cloud-config\n" + yaml.safe_dump(config)}


class RepeatsOrdersOnTheWire(Aws):
    def _client(self, service: str, region: str, *, repeats: bool = True) -> Any:
        return super()._client(service, region)


class ListsOnlyKnownStates(Aws):
    def _instances(self, region: str, filters: list[dict[str, Any]]) -> list[Instance]:
        known = {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}
        return super()._instances(region, [*filters, known])


MUTANTS: dict[type[Aws], str] = {
    SendsNoToken: "test_the_same_order_twice_is_one_instance_where_create_is_repeatable",
    DropsTheSecondPage: "test_all_pages_are_read",
    SwallowsRegionErrors: "test_a_scope_that_cannot_be_read_is_said_and_hides_nothing_else",
    TakesTheWrongRegionForAnAnswer: "test_a_scope_that_cannot_be_read_is_said_and_hides_nothing_else",
    ReadsItsHomeRegionOnly: "test_all_scopes_are_read",
    TakesAnyTokenAnswerForTransient: "test_a_lost_answer_is_unconfirmed_and_the_listing_finds_what_it_bought",
    NeverSetsTheTimer: "test_the_lease_ends_it_where_that_is_declared",
    RepeatsOrdersOnTheWire: "test_a_create_is_never_repeated_by_the_driver",
    ListsOnlyKnownStates: "test_a_status_never_seen_before_is_unknown",
}
SUITE: dict[str, Callable[..., None]] = dict(inspect.getmembers(ProviderConformance, inspect.isfunction))


class Quick(ProviderConformance):
    rounds = 20


def is_caught(cloud: AwsCloud, mutant: type[Aws], test: str) -> bool:
    cloud.reset()
    driver = mutant(cloud.block(), priced_offers=priced_offers)
    try:
        SUITE[test](Quick(), subject_of(cloud, driver))
    except (AssertionError, ProviderError, ValueError, pytest.fail.Exception):
        return True
    return False


@pytest.mark.parametrize(("mutant", "test"), MUTANTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_the_suite_catches_an_aws_driver_that(cloud: AwsCloud, mutant: type[Aws], test: str) -> None:
    assert is_caught(cloud, mutant, test)


# --- orders -------------------------------------------------------------------------------------------------------------


def offer_of(instance_type: str = "m5.large", zone: str = "us-east-1a", **more: Any) -> Offer:
    return Offer(
        **{
            "provider": "aws",
            "instance_type": instance_type,
            "region": zone[:-1],
            "zone": zone,
            "price": 0.1,
            "arch": "x86_64",
            **more,
        }
    )


def gpu_offer(**more: Any) -> Offer:
    return offer_of("g4dn.xlarge", **{"gpu_name": "T4", "gpu_count": 1, "gpu_vendor": "nvidia", **more})


def utc_soon(seconds: float) -> datetime:
    return utc_now() + timedelta(seconds=seconds)


def order_sent(cloud: AwsCloud) -> dict[str, str]:
    """The parameters of the last RunInstances, as they went over the wire."""
    return cloud.calls("RunInstances")[-1]["sent"]


def tags_sent(sent: dict[str, str]) -> dict[str, dict[str, str]]:
    tags: dict[str, dict[str, str]] = {}
    for key, kind in sent.items():
        if key.startswith("TagSpecification.") and key.endswith(".ResourceType"):
            at = key.removesuffix("ResourceType")
            tags[kind] = {
                sent[f"{at}Tag.{n}.Key"]: sent[f"{at}Tag.{n}.Value"] for n in range(1, 20) if f"{at}Tag.{n}.Key" in sent
            }
    return tags


def wait_for(state: InstanceState, driver: Aws, instance: Instance) -> Instance:
    end = time.monotonic() + 20
    while (seen := driver.get_instance(instance.id)).state is not state:
        assert time.monotonic() < end, f"it is {seen.state}, not {state}"
        time.sleep(0.02)
    return seen


def test_an_order_carries_its_name_as_token_and_everything_it_brings_along_carries_name_and_tags(
    cloud: AwsCloud, driver: Aws
) -> None:
    name = lease_name()
    tags = {"prefect-gpu-realm": "conf", "prefect-gpu-flow-run": "a-run"}
    created = driver.create_instance(offer_of(), launch_spec(driver, name, tags=tags))
    sent = order_sent(cloud)
    assert sent["ClientToken"] == name
    assert (sent["MinCount"], sent["MaxCount"]) == ("1", "1")
    assert sent["Placement.AvailabilityZone"] == "us-east-1a"
    assert sent["NetworkInterface.1.AssociatePublicIpAddress"] == "true"
    for kind in ("instance", "volume", "network-interface"):
        assert tags_sent(sent)[kind].items() >= {"Name": name, **tags}.items()
    machine_id = created.id.split("/")[1]
    ec2 = cloud.ec2()
    (reservation,) = ec2.describe_instances(InstanceIds=[machine_id])["Reservations"]
    machine = reservation["Instances"][0]
    (volume,) = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [machine_id]}])["Volumes"]
    (nic,) = ec2.describe_network_interfaces(
        NetworkInterfaceIds=[machine["NetworkInterfaces"][0]["NetworkInterfaceId"]]
    )["NetworkInterfaces"]
    for rows in (machine["Tags"], volume["Tags"], nic["TagSet"]):
        assert {"Key": "Name", "Value": name} in rows


def test_an_order_ends_with_its_lease_and_hides_its_user_data_from_containers(cloud: AwsCloud, driver: Aws) -> None:
    driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    sent = order_sent(cloud)
    assert sent["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert sent["MetadataOptions.HttpTokens"] == "required"
    assert sent["MetadataOptions.HttpPutResponseHopLimit"] == "1"
    assert sent["BlockDeviceMapping.1.DeviceName"] == "/dev/sda1"
    assert sent["BlockDeviceMapping.1.Ebs.DeleteOnTermination"] == "true"
    assert sent["NetworkInterface.1.DeleteOnTermination"] == "true"
    assert "InstanceMarketOptions.MarketType" not in sent


def test_a_machine_ends_itself_when_its_lease_is_over(cloud: AwsCloud, driver: Aws) -> None:
    name = lease_name()
    created = driver.create_instance(offer_of(), launch_spec(driver, name, deadline=utc_soon(3)))
    wait_for(InstanceState.RUNNING, driver, created)
    ended = wait_for(InstanceState.TERMINATED, driver, created)
    assert "nstance initiated shutdown" in ended.reason
    assert cloud.alive() == []


def test_a_spot_order_is_one_time_and_terminates_and_its_request_is_tagged_too(cloud: AwsCloud, driver: Aws) -> None:
    name = lease_name()
    driver.create_instance(offer_of(spot=True), launch_spec(driver, name, options={"max_spot_price": 0.05}))
    sent = order_sent(cloud)
    assert sent["InstanceMarketOptions.MarketType"] == "spot"
    assert sent["InstanceMarketOptions.SpotOptions.SpotInstanceType"] == "one-time"
    assert sent["InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior"] == "terminate"
    assert sent["InstanceMarketOptions.SpotOptions.MaxPrice"] == "0.05000"
    assert tags_sent(sent)["spot-instances-request"]["Name"] == name


@pytest.mark.parametrize(("option", "limit"), [(None, "0.07000"), (0.05, "0.05000"), (0.09, "0.07000")])
def test_a_runs_limit_holds_for_a_spot_price_that_rises(
    cloud: AwsCloud, driver: Aws, option: float | None, limit: str
) -> None:
    """Without one of ours EC2 charges up to the on-demand price."""
    order = launch_spec(driver, lease_name(), options={"max_spot_price": option}, max_price=0.07)
    driver.create_instance(offer_of(spot=True), order)
    assert order_sent(cloud)["InstanceMarketOptions.SpotOptions.MaxPrice"] == limit


def test_a_name_is_a_key_within_its_zone_only_so_the_next_zone_needs_its_own(cloud: AwsCloud, driver: Aws) -> None:
    spec = launch_spec(driver, lease_name())
    first = driver.create_instance(offer_of(), spec)
    elsewhere = driver.create_instance(offer_of(zone="us-east-1b"), spec)
    assert first.id != elsewhere.id
    assert len(cloud.alive()) == 2


def test_an_order_without_a_zone_is_refused_before_it_is_sent(cloud: AwsCloud, driver: Aws) -> None:
    with pytest.raises(InvalidRequest, match="needs a zone"):
        driver.create_instance(offer_of().model_copy(update={"zone": None}), launch_spec(driver, lease_name()))
    assert cloud.calls("RunInstances") == []


def test_a_lost_answer_is_asked_for_again_and_buys_one_machine(cloud: AwsCloud, driver: Aws) -> None:
    cloud.fail("RunInstances", how="lost")
    cloud.set(hide_new=30)
    created = orders.place_order(driver, offer_of(), launch_spec(driver, lease_name()), clock=Quickly())
    assert [alive["id"] for alive in cloud.alive()] == [created.id]
    assert len(cloud.calls("RunInstances")) == 2


def test_an_answer_that_names_no_instance_is_unconfirmed(cloud: AwsCloud, driver: Aws) -> None:
    cloud.fail("RunInstances", how="empty")
    with pytest.raises(Unconfirmed, match="named no instance"):
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    assert len(cloud.alive()) == 1


def test_an_order_repeated_after_a_newer_image_came_out_is_the_machine_that_stands(cloud: AwsCloud) -> None:
    spec = launch_spec(cloud.driver(), lease_name())
    image = AwsImage(owner="099720109477", name="ubuntu/*-amd64-server-20260301", user="root", port=cloud.ssh_port)
    first = cloud.driver(cpu_image=image).create_instance(offer_of(), spec)
    again = cloud.driver().create_instance(offer_of(), spec)
    assert again.id == first.id
    assert len(cloud.alive()) == 1


def test_a_mismatch_whose_order_is_not_shown_yet_is_unconfirmed_never_free_to_forget(cloud: AwsCloud) -> None:
    spec = launch_spec(cloud.driver(), lease_name())
    cloud.set(hide_new=30)
    image = AwsImage(owner="099720109477", name="ubuntu/*-amd64-server-20260301", user="root", port=cloud.ssh_port)
    cloud.driver(cpu_image=image).create_instance(offer_of(), spec)
    with pytest.raises(Unconfirmed, match="does not show it yet"):
        cloud.driver().create_instance(offer_of(), spec)


def test_another_order_under_the_same_name_is_our_bug(cloud: AwsCloud, driver: Aws) -> None:
    spec = launch_spec(driver, lease_name())
    driver.create_instance(offer_of(), spec)
    with pytest.raises(InvalidRequest, match="another order was sent under this name") as raised:
        driver.create_instance(offer_of("c5.large"), spec)
    assert raised.value.code == "IdempotentParameterMismatch"
    assert len(cloud.alive()) == 1


def test_an_order_repeated_after_its_machine_ended_is_that_machine_and_buys_no_other(
    cloud: AwsCloud, driver: Aws
) -> None:
    spec = launch_spec(driver, lease_name())
    created = driver.create_instance(offer_of(), spec)
    driver.terminate_instance(created.id)
    wait_for(InstanceState.TERMINATED, driver, created)
    again = driver.create_instance(offer_of(), spec)
    assert (again.id, again.state) == (created.id, InstanceState.TERMINATED)
    assert cloud.alive() == []


def test_an_order_repeated_after_its_machine_ended_and_was_forgotten_failed_and_the_next_offer_is_tried(
    cloud: AwsCloud, driver: Aws
) -> None:
    cloud.fail("RunInstances", "IdempotentInstanceTerminated")
    with pytest.raises(InstanceFailed, match="ordered under this name has ended") as raised:
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    assert not raised.value.rules_out(offer_of(), offer_of(zone="us-east-1b"))


@pytest.mark.parametrize("page_size", [1000, 1])
def test_the_image_is_the_newest_of_its_owner_by_name(cloud: AwsCloud, page_size: int) -> None:
    cloud.set(page_size=page_size)
    driver = cloud.driver(gpu_image=None, cpu_image=None)
    created = driver.create_instance(gpu_offer(), launch_spec(driver, lease_name()))
    assert order_sent(cloud)["ImageId"] == "ami-00000002"
    assert created.ssh is None or created.ssh.user == "ubuntu"
    driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    assert order_sent(cloud)["ImageId"] == "ami-00000005"
    driver.create_instance(offer_of("m6g.large", arch="arm64"), launch_spec(driver, lease_name()))
    assert order_sent(cloud)["ImageId"] == "ami-00000006"


def test_an_image_of_the_order_goes_before_the_blocks_and_a_missing_one_is_explained(
    cloud: AwsCloud, driver: Aws
) -> None:
    options = {"image_id": "ami-00000007", "volume_type": "gp2", "instance_profile": None}
    driver.create_instance(offer_of(), launch_spec(driver, lease_name(), options=options))
    assert order_sent(cloud)["ImageId"] == "ami-00000007"
    assert order_sent(cloud)["BlockDeviceMapping.1.Ebs.VolumeType"] == "gp2"
    nothing = cloud.driver(cpu_image=AwsImage(owner="self", name="no-such-*"))
    with pytest.raises(RegionClosed, match=r"no x86_64 image 'no-such-\*' of owner self in us-east-1"):
        nothing.create_instance(offer_of(), launch_spec(nothing, lease_name()))


def test_options_that_aws_does_not_have_are_refused_with_those_it_has(cloud: AwsCloud, driver: Aws) -> None:
    with pytest.raises(InvalidRequest, match=r"image: .*It takes image_id, "):
        driver.create_instance(offer_of(), launch_spec(driver, lease_name(), options={"image": "ami-1"}))
    assert cloud.calls("RunInstances") == []
    assert AwsOptions() == AwsOptions.model_validate({})


def test_the_blocks_profile_and_disk_type_stand_in_the_order(cloud: AwsCloud) -> None:
    driver = cloud.driver(instance_profile="jobs", volume_type="gp2")
    cloud.fail("RunInstances", "InsufficientInstanceCapacity")
    with pytest.raises(NoCapacity):
        driver.create_instance(offer_of(), launch_spec(driver, lease_name(), disk_gb=250.5))
    sent = order_sent(cloud)
    assert sent["IamInstanceProfile.Name"] == "jobs"
    assert sent["BlockDeviceMapping.1.Ebs.VolumeSize"] == "251"
    assert sent["BlockDeviceMapping.1.Ebs.VolumeType"] == "gp2"


@pytest.mark.parametrize("whose", ["block", "order"])
def test_an_io2_disk_is_ordered_with_the_iops_that_it_needs_and_that_a_small_one_may_have(
    cloud: AwsCloud, whose: str
) -> None:
    driver = cloud.driver(volume_type="io2") if whose == "block" else cloud.driver()
    options = {"volume_type": "io2"} if whose == "order" else {}
    created = driver.create_instance(offer_of(), launch_spec(driver, lease_name(), disk_gb=8, options=options))
    attached = [{"Name": "attachment.instance-id", "Values": [created.id.split("/")[1]]}]
    (volume,) = cloud.ec2().describe_volumes(Filters=attached)["Volumes"]
    assert (volume["VolumeType"], volume["Iops"]) == ("io2", 3000)
    assert "BlockDeviceMapping.1.Ebs.Iops" in order_sent(cloud)
    gp3 = cloud.driver()
    gp3.create_instance(offer_of(), launch_spec(gp3, lease_name()))
    assert "BlockDeviceMapping.1.Ebs.Iops" not in order_sent(cloud), "gp3 has its own"


# --- capacity reservations ----------------------------------------------------------------------------------------------

RESERVATION = "CapacityReservationSpecification.CapacityReservationTarget.CapacityReservationId"


def reservation_of(instance_type: str = "m5.large", zone: str = "us-east-1b", **more: Any) -> dict[str, Any]:
    reserved = {"InstanceType": instance_type, "AvailabilityZone": zone, "State": "active"}
    return {**reserved, "ReservationType": "default", "AvailableInstanceCount": 1, **more}


def test_only_on_demand_orders_of_the_reservations_type_in_its_zone_are_placed_in_it(cloud: AwsCloud) -> None:
    cloud.set(reservations={"cr-1": reservation_of()})
    driver = cloud.driver(capacity_reservation="cr-1")
    placed: list[str] = []
    for offer in (
        offer_of(),
        offer_of(zone="us-west-2b"),
        offer_of("c5.large", zone="us-east-1b"),
        offer_of(zone="us-east-1b", spot=True),
        offer_of(zone="us-east-1b"),
    ):
        driver.create_instance(offer, launch_spec(driver, lease_name()))
        sent = order_sent(cloud)
        if RESERVATION in sent:
            placed.append(f"{sent['InstanceType']} in {sent['Placement.AvailabilityZone']}")
    assert placed == ["m5.large in us-east-1b"]
    assert sent[RESERVATION] == "cr-1"
    assert len(cloud.alive()) == 5


@pytest.mark.parametrize("state", ["scheduled", "expired", "cancelled"])
def test_a_reservation_that_is_not_active_is_not_ordered_from(cloud: AwsCloud, state: str) -> None:
    cloud.set(reservations={"cr-1": reservation_of(State=state)})
    driver = cloud.driver(capacity_reservation="cr-1")
    driver.create_instance(offer_of(zone="us-east-1b"), launch_spec(driver, lease_name()))
    assert RESERVATION not in order_sent(cloud)


def test_a_full_reservation_rules_out_its_own_offer_only(cloud: AwsCloud) -> None:
    cloud.set(reservations={"cr-1": reservation_of(AvailableInstanceCount=0)})
    driver, offer = cloud.driver(capacity_reservation="cr-1"), offer_of(zone="us-east-1b")
    with pytest.raises(NoCapacity) as raised:
        driver.create_instance(offer, launch_spec(driver, lease_name()))
    assert not raised.value.rules_out(offer, offer_of())


def test_a_lost_answer_of_the_last_order_that_a_reservation_holds_is_asked_for_again(cloud: AwsCloud) -> None:
    cloud.set(reservations={"cr-1": reservation_of()}, hide_new=30)
    driver, spec = cloud.driver(capacity_reservation="cr-1"), launch_spec(cloud.driver(), lease_name())
    cloud.fail("RunInstances", how="lost")
    created = orders.place_order(driver, offer_of(zone="us-east-1b"), spec, clock=Quickly())
    assert [alive["id"] for alive in cloud.alive()] == [created.id]


@pytest.mark.parametrize("whose", ["block", "order"])
def test_a_capacity_block_is_told_by_its_reservation_and_is_not_spot(cloud: AwsCloud, whose: str) -> None:
    cloud.set(reservations={"cr-1": reservation_of(ReservationType="capacity-block")})
    driver = cloud.driver(capacity_reservation="cr-1" if whose == "block" else None)
    options = {"capacity_reservation": "cr-1"} if whose == "order" else {}
    driver.create_instance(offer_of(zone="us-east-1b"), launch_spec(driver, lease_name(), options=options))
    assert order_sent(cloud)["InstanceMarketOptions.MarketType"] == "capacity-block"
    assert order_sent(cloud)[RESERVATION] == "cr-1"


def test_an_offer_that_the_reservation_holds_is_available_while_it_has_room(cloud: AwsCloud) -> None:
    driver = cloud.driver(capacity_reservation="cr-1")
    for free in (2, 0):
        cloud.set(reservations={"cr-1": reservation_of(AvailableInstanceCount=free)})
        offers = driver.fetch_offers(Requirements(spot=Spot.EITHER))
        sure = [offer for offer in offers if offer.availability is Availability.AVAILABLE]
        assert [(offer.instance_type, offer.zone, offer.spot) for offer in sure] == (
            [("m5.large", "us-east-1b", False)] if free else []
        )
    assert len(cloud.calls("DescribeCapacityReservations")) == 2 * len(REGIONS)


def test_without_a_reservation_nobody_asks_for_one(cloud: AwsCloud, driver: Aws) -> None:
    driver.create_instance(driver.fetch_offers(Requirements())[0], launch_spec(driver, lease_name()))
    assert cloud.calls("DescribeCapacityReservations") == []


# --- networks -----------------------------------------------------------------------------------------------------------


def made_groups(cloud: AwsCloud, region: str = "us-east-1") -> list[dict[str, Any]]:
    groups = cloud.ec2(region).describe_security_groups()["SecurityGroups"]
    return [group for group in groups if group["GroupName"].startswith("prefect-gpu")]


def test_the_security_group_is_made_once_per_realm_and_admits_nothing_but_ssh(cloud: AwsCloud, driver: Aws) -> None:
    for attempt in range(2):
        driver.create_instance(offer_of(), launch_spec(driver, lease_name(attempt=attempt)))
    driver.create_instance(offer_of(), launch_spec(driver, lease_name(realm="cone")))
    groups = {group["GroupName"].rpartition("-")[0]: group for group in made_groups(cloud)}
    assert len(made_groups(cloud)) == 2
    assert set(groups) == {"prefect-gpu-conf", "prefect-gpu-cone"}
    (rule,) = groups["prefect-gpu-conf"]["IpPermissions"]
    assert (rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) == ("tcp", cloud.ssh_port, cloud.ssh_port)
    assert [row["CidrIp"] for row in rule["IpRanges"]] == ["0.0.0.0/0"]
    assert [row["CidrIpv6"] for row in rule["Ipv6Ranges"]] == ["::/0"]
    assert order_sent(cloud)["NetworkInterface.1.SecurityGroupId.1"] == groups["prefect-gpu-cone"]["GroupId"]


def test_the_group_stays_when_the_last_machine_goes_and_is_no_leftover(cloud: AwsCloud, driver: Aws) -> None:
    created = driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    driver.terminate_instance(created.id)
    wait_for(InstanceState.TERMINATED, driver, created)
    assert driver.list_instances("pg-") == Listing()
    assert len(made_groups(cloud)) == 1


def test_a_group_that_another_worker_makes_at_the_same_moment_is_used(cloud: AwsCloud, driver: Aws) -> None:
    real = driver._groups
    answers: list[list[dict[str, Any]]] = [[]]  # the first look comes a moment before the other worker

    def late(*given: str) -> list[dict[str, Any]]:
        return answers.pop() if answers else real(*given)

    driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    driver._groups = late
    driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    assert len(made_groups(cloud)) == 1


def test_a_group_that_lost_its_rule_admits_ssh_again_from_where_the_block_says(cloud: AwsCloud) -> None:
    driver = cloud.driver(ssh_from=["203.0.113.0/24"])
    for _ in range(3):
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
        if len(cloud.calls("AuthorizeSecurityGroupIngress")) == 1:
            (group,) = made_groups(cloud)
            cloud.ec2().revoke_security_group_ingress(GroupId=group["GroupId"], IpPermissions=group["IpPermissions"])
    (rule,) = made_groups(cloud)[0]["IpPermissions"]
    assert [row["CidrIp"] for row in rule["IpRanges"]] == ["203.0.113.0/24"]
    assert len(cloud.calls("AuthorizeSecurityGroupIngress")) == 2


def admitted_by_order(cloud: AwsCloud) -> set[str]:
    """Where the last order's machine admits SSH from."""
    used = [order_sent(cloud)["NetworkInterface.1.SecurityGroupId.1"]]
    (group,) = cloud.ec2().describe_security_groups(GroupIds=used)["SecurityGroups"]
    v4 = {row["CidrIp"] for rule in group["IpPermissions"] for row in rule["IpRanges"]}
    return v4 | {row["CidrIpv6"] for rule in group["IpPermissions"] for row in rule["Ipv6Ranges"]}


def test_narrowing_where_ssh_is_admitted_from_narrows_the_next_machines_group(cloud: AwsCloud) -> None:
    for ranges in (["0.0.0.0/0", "::/0"], ["203.0.113.0/24"], ["203.0.113.7", "2001:DB8::/32"]):
        driver = cloud.driver(ssh_from=ranges)
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
        wanted = {"203.0.113.7": "203.0.113.7/32", "2001:DB8::/32": "2001:db8::/32"}
        assert admitted_by_order(cloud) == {wanted.get(one, one) for one in ranges}
    assert len(made_groups(cloud)) == 3


def test_an_image_whose_sshd_listens_elsewhere_has_a_group_of_its_own(cloud: AwsCloud) -> None:
    other = AwsImage(owner="self", name="test-machine-*", user="root", port=2222)
    for driver in (cloud.driver(), cloud.driver(cpu_image=other)):
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    ports = [[rule["FromPort"] for rule in group["IpPermissions"]] for group in made_groups(cloud)]
    assert sorted(ports) == sorted([[2222], [cloud.ssh_port]])


def test_the_same_addresses_written_in_another_way_are_the_same_group(cloud: AwsCloud) -> None:
    for ranges in (["203.0.113.0/24", "198.51.100.1"], ["198.51.100.1/32", "203.0.113.0/24", "198.51.100.1"]):
        driver = cloud.driver(ssh_from=ranges)
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    assert len(made_groups(cloud)) == 1
    assert admitted_by_order(cloud) == {"203.0.113.0/24", "198.51.100.1/32"}


def test_a_new_group_that_is_not_everywhere_yet_is_asked_for_again(cloud: AwsCloud, driver: Aws) -> None:
    cloud.fail("RunInstances", "InvalidGroup.NotFound")
    created = orders.place_order(driver, offer_of(), launch_spec(driver, lease_name()), clock=Quickly())
    assert [alive["id"] for alive in cloud.alive()] == [created.id]


@pytest.mark.parametrize("by", ["GroupName", "GroupId"])
def test_a_group_of_the_team_is_used_as_it_is(cloud: AwsCloud, by: str) -> None:
    vpc = cloud.ec2().describe_vpcs()["Vpcs"][0]["VpcId"]
    made = cloud.ec2().create_security_group(GroupName="team-ssh", Description="theirs", VpcId=vpc)
    driver = cloud.driver(security_group={"GroupName": "team-ssh", "GroupId": made["GroupId"]}[by])
    driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    assert order_sent(cloud)["NetworkInterface.1.SecurityGroupId.1"] == made["GroupId"]
    assert made_groups(cloud) == []
    assert cloud.calls("AuthorizeSecurityGroupIngress") == []
    missing = cloud.driver(security_group="no-such")
    with pytest.raises(RegionClosed, match=r"no security group no-such in vpc-\w+ of us-east-1"):
        missing.create_instance(offer_of(), launch_spec(missing, lease_name()))


def test_the_blocks_subnets_are_used_in_their_zones_and_no_others(cloud: AwsCloud) -> None:
    ec2 = cloud.ec2()
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.1.0/24", AvailabilityZone="us-east-1b")["Subnet"]["SubnetId"]
    driver = cloud.driver(subnets=[subnet, "subnet-of-another-region"], regions=["us-east-1"])
    offers = driver.fetch_offers(Requirements())
    assert {offer.zone for offer in offers if offer.availability is not Availability.UNAVAILABLE} == {"us-east-1b"}
    driver.create_instance(offer_of(zone="us-east-1b"), launch_spec(driver, lease_name()))
    assert order_sent(cloud)["NetworkInterface.1.SubnetId"] == subnet
    with pytest.raises(RegionClosed, match="no subnet in us-east-1a"):
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))


@pytest.mark.parametrize("whose", ["block", "order"])
def test_a_private_machine_has_no_public_address_and_is_reached_by_the_jump_host(cloud: AwsCloud, whose: str) -> None:
    driver = cloud.driver(
        private=whose == "block",
        jump_host="bastion.example.com",
        jump_user="ops",
        jump_private_key="the-jump-key",
        jump_host_key="ssh-ed25519 AAAA",
    )
    network = "private" if whose == "order" else "public"
    created = driver.create_instance(offer_of(), launch_spec(driver, lease_name(), network=network))
    assert order_sent(cloud)["NetworkInterface.1.AssociatePublicIpAddress"] == "false"
    ssh = wait_for(InstanceState.RUNNING, driver, created).ssh
    assert ssh is not None
    assert ssh.host.startswith("127.")
    assert ssh.jump is not None
    assert (ssh.jump.host, ssh.jump.user, ssh.jump.port) == ("bastion.example.com", "ops", 22)
    assert ssh.jump.private_key == SecretStr("the-jump-key")
    assert ssh.jump.host_key == "ssh-ed25519 AAAA"
    assert "the-jump-key" not in repr(ssh)


def test_a_public_machine_without_its_address_is_not_running_yet(driver: Aws) -> None:
    machine = {
        "InstanceId": "i-1",
        "State": {"Name": "running"},
        "PrivateIpAddress": "10.0.0.1",
        "Tags": [{"Key": "prefect-gpu-login", "Value": "ubuntu@public:22"}],
    }
    assert driver._instance("us-east-1", machine).state is InstanceState.PROVISIONING
    running = driver._instance("us-east-1", {**machine, "PublicIpAddress": "192.0.2.1"})
    assert running.state is InstanceState.RUNNING
    assert running.ssh is not None
    assert running.ssh.host == "192.0.2.1"


# --- user data ----------------------------------------------------------------------------------------------------------


def user_data_of(driver: Aws, offer: Offer, spec: LaunchSpec) -> str:
    image = aws._Image("ami-1", "/dev/sda1", 8, "ubuntu", 22)
    subnet = aws._Subnet("subnet-1", "us-east-1a", "vpc-1")
    return driver._order(offer, spec, AwsOptions(), image, subnet, "sg-1", None)["UserData"]


def files_of(user_data: str) -> dict[str, str]:
    return {Path(file["path"]).name: file["content"] for file in yaml.safe_load(user_data)["write_files"]}


def test_user_data_places_the_host_key_and_who_may_log_in_and_is_the_same_bytes_twice(driver: Aws) -> None:
    spec = launch_spec(driver, lease_name())
    assert spec.host_key is not None
    text = user_data_of(driver, offer_of(), spec)
    assert text == user_data_of(driver, offer_of(), spec)
    assert text.startswith("#cloud-config\n")
    assert len(text.encode()) < 4096
    config = yaml.safe_load(text)
    assert config["ssh_deletekeys"] is True
    assert config["ssh_authorized_keys"] == [spec.client_public_key]
    assert config["ssh_keys"]["ed25519_private"] == spec.host_key.private.get_secret_value()
    assert config["ssh_keys"]["ed25519_public"] == spec.host_key.public
    assert "notice" not in files_of(text)
    assert "notice" in files_of(user_data_of(driver, offer_of(spot=True), spec))


def test_user_data_that_ec2_would_not_take_is_refused_before_the_order(cloud: AwsCloud, driver: Aws) -> None:
    spec = launch_spec(driver, lease_name())
    fat = spec.model_copy(update={"client_public_key": "ssh-ed25519 " + "A" * 16_384})
    with pytest.raises(InvalidRequest, match="EC2 takes 16384"):
        driver.create_instance(offer_of(), fat)
    assert cloud.calls("RunInstances") == []


def test_user_data_is_what_cloud_init_reads(driver: Aws, tmp_path: Path) -> None:
    if shutil.which("cloud-init") is None:
        pytest.skip("cloud-init is not installed")
    file = tmp_path / "user-data"
    file.write_text(user_data_of(driver, offer_of(spot=True), launch_spec(driver, lease_name())))
    checked = subprocess.run(
        ["cloud-init", "schema", "-c", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "Valid" in checked.stdout, checked.stdout + checked.stderr


def test_the_units_are_what_systemd_reads_and_the_timer_goes_off_at_the_leases_end(driver: Aws, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    name = lease_name()
    lease = Lease.parse(name)
    assert lease is not None
    files = files_of(user_data_of(driver, offer_of(spot=True), launch_spec(driver, name)))
    for file, content in files.items():
        (tmp_path / file).write_text(content.replace(aws.cloud_init.FOLDER, str(tmp_path)))
        (tmp_path / file).chmod(0o755 if "." not in file else 0o644)
    units = [str(tmp_path / file) for file in files if "." in file]
    assert len(units) == 3
    checked = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stderr
    (when,) = [line for line in files["prefect-gpu-lease.timer"].splitlines() if line.startswith("OnCalendar=")]
    read = subprocess.run(
        ["systemd-analyze", "calendar", when.removeprefix("OnCalendar=")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "TZ": "UTC", "LC_ALL": "C"},
    )
    assert f"{lease.deadline:%Y-%m-%d %H:%M:%S} UTC" in read.stdout.partition("Next elapse:")[2]


@pytest.mark.parametrize(("hours", "is_off"), [(2, False), (-2, True)])
def test_the_lease_script_powers_off_after_the_end_and_not_before(
    driver: Aws, tmp_path: Path, hours: float, is_off: bool
) -> None:
    said = tmp_path / "said"
    script = files_of(user_data_of(driver, offer_of(), launch_spec(driver, lease_name(hours=hours))))["lease"]
    run_script(script, tmp_path, systemctl=f'echo "$@" > {said}')
    assert said.exists() is is_off
    assert not is_off or said.read_text() == "poweroff --force\n"


def run_script(script: str, folder: Path, **commands: str) -> subprocess.Popen[bytes]:
    """Starts a script with commands of our own in front of the machine's, and waits for it unless it is a loop."""
    for command, body in commands.items():
        (folder / command).write_text(f"#!/bin/sh\n{body}\n")
        (folder / command).chmod(0o755)
    process = subprocess.Popen(["/bin/sh", "-c", script], env={"PATH": f"{folder}:{os.environ['PATH']}"})
    if "while" not in script:
        assert process.wait(10) == 0
    return process


class Imds(http.server.BaseHTTPRequestHandler):
    """The metadata service of a spot instance, version 2: no answer without a token."""

    notice: bytes | None = None

    def do_PUT(self) -> None:
        self._answer(b"a-token" if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else None)

    def do_GET(self) -> None:
        is_known = self.headers["X-aws-ec2-metadata-token"] == "a-token"
        self._answer(self.notice if is_known and self.path == "/latest/meta-data/spot/instance-action" else None)

    def _answer(self, body: bytes | None) -> None:
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: Any) -> None:
        pass


def test_the_machine_hears_the_two_minute_notice_and_the_check_tells_it(driver: Aws, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    notice = tmp_path / "run" / "interruption"
    action = b'{"action": "terminate", "time": "2026-11-24T20:00:00Z"}'
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Imds) as imds:
        threading.Thread(target=imds.serve_forever, daemon=True).start()
        script = files_of(user_data_of(driver, offer_of(spot=True), launch_spec(driver, lease_name())))["notice"]
        script = script.replace("169.254.169.254", f"127.0.0.1:{imds.server_port}").replace("sleep 5", "sleep 0.05")
        process = run_script(script.replace(aws.NOTICE_FILE, str(notice)), tmp_path)
        try:
            time.sleep(0.3)
            assert not notice.exists(), "no notice, no file"
            Imds.notice = action
            end = time.monotonic() + 10
            while not notice.exists():
                assert time.monotonic() < end, "the notice was not heard"
                time.sleep(0.02)
        finally:
            Imds.notice = None
            process.kill()
            process.wait(10)
            imds.shutdown()
    assert notice.read_bytes() == action
    instance = driver._instance("us-east-1", {"InstanceId": "i-1", "State": {"Name": "running"}})
    assert driver.check(instance, OneAnswer(b"")) is None
    assert "take this spot instance back" in (driver.check(instance, OneAnswer(action)) or "")


class OneAnswer:
    """A connection whose every command answers the same."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def open(self, command: str) -> OneAnswer:
        assert aws.NOTICE_FILE in command
        return self

    def recv(self, _size: int) -> bytes:
        return self.answer

    def exit_status(self, _timeout_s: float) -> int:
        return 0

    def sendall(self, _data: bytes) -> None: ...

    def shutdown_write(self) -> None: ...

    def error_text(self) -> str:
        return ""

    def is_alive(self) -> bool:
        return True

    def close(self) -> None: ...


# --- what EC2 says ------------------------------------------------------------------------------------------------------

# What an order that is refused so becomes. Written out here, not read from the driver, so that a code that moves is seen;
# it shows that the table is kept, not that EC2 gives these codes.
REFUSALS: dict[type[ProviderError], str] = {
    NoCapacity: """InsufficientInstanceCapacity InsufficientHostCapacity InsufficientReservedInstanceCapacity
        InsufficientCapacityOnHost UnfulfillableCapacity Unsupported SpotMaxPriceTooLow InsufficientFreeAddressesInSubnet
        InsufficientCapacity InsufficientAddressCapacity InsufficientVolumeCapacity ReservationCapacityExceeded
        Server.InsufficientInstanceCapacity VolumeTypeNotAvailableInZone InvalidAvailabilityZone UnsupportedOperation""",
    QuotaExceeded: """VcpuLimitExceeded InstanceLimitExceeded MaxSpotInstanceCountExceeded AddressLimitExceeded
        VolumeLimitExceeded MaxIOPSLimitExceeded NetworkInterfaceLimitExceeded ResourceLimitExceeded
        SecurityGroupLimitExceeded SecurityGroupsPerInstanceLimitExceeded""",
    RateLimited: """RequestLimitExceeded Throttling ThrottlingException TooManyRequestsException RequestThrottled
        RequestThrottledException SlowDown BandwidthLimitExceeded EC2ThrottledException""",
    Unconfirmed: """InternalError InternalFailure ServiceUnavailable Unavailable InternalServiceError RequestTimeout
        RequestTimeoutException ServiceException ServiceUnavailableException PriorRequestNotComplete""",
    AuthFailed: """AuthFailure UnauthorizedOperation OptInRequired Blocked ExpiredToken
        ExpiredTokenException RequestExpired SignatureDoesNotMatch InvalidClientTokenId UnrecognizedClientException
        MissingAuthenticationToken IncompleteSignature AccessDenied AccessDeniedException InvalidAccessKeyId
        InvalidSecurityToken NotAuthorized AuthFailure.ServiceLinkedRoleCreationNotPermitted Client.UnauthorizedOperation""",
    RegionClosed: """InvalidAMIID.NotFound InvalidAMIID.Unavailable InvalidSubnetID.NotFound VPCIdNotSpecified
        InvalidCapacityReservationId.NotFound PendingVerification""",
    InvalidRequest: "InvalidParameterValue InvalidParameterCombination NeverSeenBefore",
    Transient: "DependencyViolation IncorrectState ResourceInUse VolumeInUse InvalidNetworkInterface.InUse",
}


@pytest.mark.parametrize(("kind", "code"), [(kind, code) for kind, codes in REFUSALS.items() for code in codes.split()])
def test_each_code_is_told_apart(cloud: AwsCloud, kind: type[ProviderError], code: str) -> None:
    driver = steady_driver(cloud)
    cloud.fail("RunInstances", code, status=500 if "Insufficient" in code else 400, message="EC2's own words")
    with pytest.raises(ProviderError) as raised:
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    assert type(raised.value) is kind
    assert raised.value.code == code.removeprefix("Server.").removeprefix("Client.")
    assert "EC2's own words" in raised.value.message
    assert len(cloud.calls("RunInstances")) == 1
    assert cloud.alive() == []


_STEADY: dict[str, Aws] = {}


def steady_driver(cloud: AwsCloud) -> Aws:
    """One driver for the table of codes: clients are dear."""
    return _STEADY.setdefault(cloud.endpoint_url, cloud.driver())


def test_every_code_of_the_drivers_table_stands_in_the_tests_table() -> None:
    tested = {code for codes in REFUSALS.values() for code in codes.split()}
    elsewhere = {"InvalidGroup.NotFound", *ec2_errors.ORDERED_BEFORE} | ec2_errors.GONE
    assert set(ec2_errors.CLASSES) <= tested | elsewhere


def test_a_503_without_a_code_is_unconfirmed_for_an_order_and_transient_for_a_look(
    cloud: AwsCloud, driver: Aws
) -> None:
    created = driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    cloud.fail("RunInstances", "", status=503)
    with pytest.raises(Unconfirmed):
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    cloud.fail("DescribeInstances", "", status=503, times=AWS_ATTEMPTS)
    with pytest.raises(Transient):
        driver.get_instance(created.id)


@pytest.mark.parametrize(
    ("error", "for_a_look", "for_an_order"),
    [
        (boto_errors.EndpointConnectionError(endpoint_url="http://x/?a=b"), Transient, Transient),
        (boto_errors.ConnectTimeoutError(endpoint_url="http://x"), Transient, Transient),
        (boto_errors.ProxyConnectionError(proxy_url="http://x"), Transient, Transient),
        (boto_errors.ReadTimeoutError(endpoint_url="http://x"), Transient, Unconfirmed),
        (boto_errors.ConnectionClosedError(endpoint_url="http://x"), Transient, Unconfirmed),
        (boto_errors.HTTPClientError(error="reset"), Transient, Unconfirmed),
        (boto_errors.SSLError(endpoint_url="http://x", error="eof"), Transient, Unconfirmed),
        (boto_errors.IncompleteReadError(actual_bytes=1, expected_bytes=2), Transient, Unconfirmed),
        (ResponseParserError("no xml"), Transient, Unconfirmed),
        (boto_errors.NoCredentialsError(), AuthFailed, AuthFailed),
        (boto_errors.PartialCredentialsError(provider="env", cred_var="key"), AuthFailed, AuthFailed),
        (boto_errors.ProfileNotFound(profile="x"), AuthFailed, AuthFailed),
        (boto_errors.UnauthorizedSSOTokenError(), AuthFailed, AuthFailed),
        (boto_errors.ParamValidationError(report="a\nb"), InvalidRequest, InvalidRequest),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_breaks_on_the_way_is_told_apart(
    error: Exception, for_a_look: type[ProviderError], for_an_order: type[ProviderError]
) -> None:
    for is_order, kind in ((False, for_a_look), (True, for_an_order)):
        with pytest.raises(ProviderError) as raised, ec2_errors.translated("do it", is_order=is_order):
            raise error
        assert type(raised.value) is kind
        assert "\n" not in raised.value.message
        assert "a=b" not in raised.value.message
        assert same_error(raised.value, raised.value)


def test_what_only_aws_can_decode_is_left_out_of_the_message(cloud: AwsCloud, driver: Aws) -> None:
    words = "You are not authorized to perform this operation. Encoded authorization failure message: 4Gx9fQpageoflet"
    cloud.fail("RunInstances", "UnauthorizedOperation", status=403, message=words)
    with pytest.raises(AuthFailed, match="not authorized to perform this operation") as raised:
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    assert "4Gx9" not in raised.value.message


def test_without_any_credentials_the_account_is_auth_failed(
    cloud: AwsCloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(AuthFailed, match="Unable to locate credentials"):
        Aws(AwsCredentials(), endpoint_url=cloud.endpoint_url).account_id()


def test_the_default_chain_serves_where_the_block_holds_no_credentials(
    cloud: AwsCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert Aws(AwsCredentials(), endpoint_url=cloud.endpoint_url).account_id() == ACCOUNT


def test_an_assumed_role_is_assumed_again_before_it_ends(cloud: AwsCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", cloud.endpoint_url)  # prefect-aws asks STS without the block's settings
    block = cloud.block()
    assert block.aws is not None
    block.aws.assume_role_arn = f"arn:aws:iam::{ACCOUNT}:role/gpu"
    driver = Aws(block, priced_offers=priced_offers)
    for _ in range(2):
        driver.list_instances("pg-")
    assert len(cloud.calls("AssumeRole")) == 1
    driver._session_ends = 0.0
    driver.list_instances("pg-")
    assert len(cloud.calls("AssumeRole")) == 2


# --- states -------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("code", sorted(aws.NEVER_RAN))
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


# --- absence ------------------------------------------------------------------------------------------------------------


class Quickly(orders.Clock):
    """Minutes pass at once."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        time.sleep(0.002)


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
    absence = orders.give_back(
        driver, spec.name, known_ids=(created.id,), ordered_at=ordered_at, within_s=20, clock=Quickly()
    )
    assert absence.is_gone is is_believed
    assert [alive["id"] for alive in cloud.alive()] == [created.id], "it runs all the same"
    assert is_believed or absence.owed == (created.id,)


def test_a_machine_that_was_given_back_is_gone_by_awss_own_word_without_the_lag(cloud: AwsCloud, driver: Aws) -> None:
    spec = launch_spec(driver, lease_name())
    created = driver.create_instance(offer_of(), spec)
    started = time.monotonic()
    absence = orders.give_back(driver, spec.name, known_ids=(created.id,), within_s=20)
    assert absence.is_gone, absence.evidence
    assert time.monotonic() - started < 5
    assert cloud.alive() == []


def test_one_unknown_id_does_not_keep_the_others_alive(cloud: AwsCloud, driver: Aws) -> None:
    zones = ("us-east-1a", "us-east-1b", "us-west-2a")
    created = [driver.create_instance(offer_of(zone=zone), launch_spec(driver, lease_name())) for zone in zones]
    driver.terminate_instances(["us-east-1/i-0123456789abcdef0", *(instance.id for instance in created)])
    for instance in created:
        wait_for(InstanceState.TERMINATED, driver, instance)


# --- listings -----------------------------------------------------------------------------------------------------------


def test_leftovers_of_every_kind_are_listed_by_their_lease_and_removed(cloud: AwsCloud, driver: Aws) -> None:
    name, ec2 = lease_name(), cloud.ec2("us-west-2")
    alive = driver.create_instance(offer_of(zone="us-west-2a"), launch_spec(driver, lease_name()))

    def tags(kind: str, name: str = name) -> list[dict[str, Any]]:
        return [{"ResourceType": kind, "Tags": [{"Key": "Name", "Value": name}]}]

    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    ec2.create_volume(AvailabilityZone="us-west-2a", Size=1, TagSpecifications=tags("volume"))
    ec2.create_volume(AvailabilityZone="us-west-2a", Size=1, TagSpecifications=tags("volume", f"x-{name}"))
    ec2.create_network_interface(SubnetId=subnet, TagSpecifications=tags("network-interface"))
    ec2.allocate_address(Domain="vpc", TagSpecifications=tags("elastic-ip"))
    listing = driver.list_instances("pg-")
    assert listing.is_complete
    assert [instance.id for instance in listing.instances] == [alive.id]
    assert {(left.kind, left.name, left.region) for left in listing.leftovers} == {
        (kind, name, "us-west-2") for kind in ("volume", "network interface", "address")
    }
    for left in listing.leftovers:
        driver.terminate_instance(left.id)
        driver.terminate_instance(left.id)  # already gone is success
    assert driver.list_instances("pg-").leftovers == ()


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


def test_regions_are_read_side_by_side(cloud: AwsCloud, driver: Aws) -> None:
    driver.list_instances("pg-")  # makes the clients
    together = threading.Barrier(3, timeout=10)
    real = driver._read

    def read(region: str, prefix: str) -> Listing:
        together.wait()
        return real(region, prefix)

    driver._read = read
    assert driver.list_instances("pg-").is_complete


# --- offers -------------------------------------------------------------------------------------------------------------


def test_an_offer_stands_in_each_zone_that_has_the_type(driver: Aws) -> None:
    offers = [offer for offer in driver.fetch_offers(Requirements()) if offer.instance_type == "p4d.24xlarge"]
    assert [offer.zone for offer in offers] == ["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1d"]
    assert {offer.price for offer in offers} == {21.96}
    assert {offer.disk_gb for offer in offers} == {100.0}


def test_bare_metal_has_55_minutes_to_boot_and_virtual_machines_ten(cloud: AwsCloud) -> None:
    kinds = ("m5.large", "m5.metal", "c6i.metal", "m7i.metal-24xl")
    prices = [offer_of(kind).model_copy(update={"zone": None}) for kind in kinds]
    driver = Aws(cloud.block(), priced_offers=lambda _name, _asked: prices)
    allowed = {
        offer.instance_type: offer.boot_deadline_s or driver.capabilities.boot_deadline_s
        for offer in driver.fetch_offers(Requirements())
    }
    assert allowed == {"m5.large": 600, **dict.fromkeys(kinds[1:], 3300)}


def test_zones_and_disk_that_were_asked_for_are_obeyed(driver: Aws) -> None:
    asked = Requirements(regions=("us-east-1",), zones=("us-east-1b", "us-east-1c"), disk_gb=300)
    offers = driver.fetch_offers(asked)
    assert {offer.zone for offer in offers} == {"us-east-1b", "us-east-1c"}
    assert {offer.disk_gb for offer in offers} == {300.0}
    without = driver.fetch_offers(Requirements(regions=("us-east-1",), exclude_zones=("us-east-1b",)))
    assert "us-east-1b" not in {offer.zone for offer in without}


def test_the_blocks_regions_bound_what_is_offered(cloud: AwsCloud) -> None:
    driver = cloud.driver(regions=["us-west-2", "eu-west-1"])
    assert {offer.region for offer in driver.fetch_offers(Requirements())} == {"us-west-2", "eu-west-1"}
    assert {offer.region for offer in driver.fetch_offers(Requirements(regions=("eu-west-1",)))} == {"eu-west-1"}
    assert driver.fetch_offers(Requirements(regions=("us-east-1",))) == []
    assert {call["region"] for call in cloud.calls("DescribeSubnets")} == {"us-west-2", "eu-west-1"}


def why_closed(offers: list[Offer], instance_type: str, region: str = "us-east-1") -> str | None:
    (offer,) = [
        offer
        for offer in offers
        if (offer.instance_type, offer.region, offer.zone) == (instance_type, region, None)
        and offer.availability is Availability.UNAVAILABLE
    ]
    return offer.unavailable_because


def test_an_offer_above_the_accounts_quota_says_so(cloud: AwsCloud, driver: Aws) -> None:
    cloud.set(quotas={"L-417A185B": 95.0, "us-west-2/L-DB2E81BA": 0.0, "L-1216C47A": None})
    offers = driver.fetch_offers(Requirements())
    assert why_closed(offers, "p4d.24xlarge") == (
        "quota L-417A185B is 95 vCPU in us-east-1, this takes 96: ask AWS for more"
    )
    assert (why_closed(offers, "g4dn.xlarge", "us-west-2") or "").startswith("quota L-DB2E81BA is 0 vCPU in us-west-2")
    buyable = {(offer.instance_type, offer.region) for offer in offers if offer.zone}
    assert buyable == {
        ("g4dn.xlarge", "us-east-1"),
        ("g4dn.xlarge", "eu-west-1"),
        *(("m5.large", region) for region in ("us-east-1", "us-west-2", "eu-west-1")),  # a quota not told is not zero
    }
    assert len(cloud.calls("GetServiceQuota")) == 7, "one question for each quota and region"


def test_spot_counts_against_its_own_quotas(cloud: AwsCloud, driver: Aws) -> None:
    cloud.set(quotas={"L-3819A6DF": 0.0, "L-DB2E81BA": 0.0})
    offers = driver.fetch_offers(Requirements(spot=Spot.SPOT))
    assert "L-3819A6DF" in (why_closed(offers, "g4dn.xlarge") or "")
    assert [offer.instance_type for offer in offers if offer.zone] == ["m5.large"] * 5


@pytest.mark.parametrize(
    ("instance_type", "on_demand", "spot"),
    [
        ("p6-b200.48xlarge", "L-417A185B", None),
        ("p5e.48xlarge", "L-417A185B", "L-C4BD4855"),
        ("p4de.24xlarge", "L-417A185B", "L-7212CCBC"),
        ("g6e.xlarge", "L-DB2E81BA", "L-3819A6DF"),
        ("gr6.4xlarge", "L-DB2E81BA", "L-3819A6DF"),
        ("m7i.large", "L-1216C47A", "L-34B43A08"),
        ("t2.small", "L-1216C47A", "L-34B43A08"),
        ("inf2.xlarge", "L-1945791B", "L-B5D1601B"),
        ("trn1.32xlarge", "L-2C3B7624", "L-6B0D517C"),
        ("u-6tb1.metal", None, None),
        ("mac2.metal", None, None),
    ],
)
def test_each_family_counts_against_its_quota(instance_type: str, on_demand: str | None, spot: str | None) -> None:
    assert aws._quota_code(offer_of(instance_type)) == on_demand
    assert aws._quota_code(offer_of(instance_type, spot=True)) == spot


def test_quotas_that_may_not_be_read_close_nothing(cloud: AwsCloud, driver: Aws) -> None:
    cloud.fail("GetServiceQuota", "AccessDeniedException", times=None)
    assert all(offer.zone for offer in driver.fetch_offers(Requirements()))


def test_what_cannot_be_bought_says_why(cloud: AwsCloud) -> None:
    cloud.set(regions=["us-east-1", "us-west-2"])
    cloud.fail("DescribeSubnets", "UnauthorizedOperation", status=403, region="us-west-2", times=None)
    prices = [
        offer_of("m5.large", region="us-east-1"),
        offer_of("p9.huge", region="us-east-1"),
        offer_of("m5.large", zone="us-west-2a"),
        offer_of("m5.large", zone="eu-west-1a"),
        gpu_offer(gpu_vendor="amd", gpu_name="V520"),
    ]
    prices = [offer.model_copy(update={"zone": None}) for offer in prices]
    driver = Aws(cloud.block(gpu_image=None), priced_offers=lambda _name, _asked: prices)
    offers = driver.fetch_offers(Requirements())
    assert why_closed(offers, "p9.huge") == "EC2 has no p9.huge in us-east-1"
    assert why_closed(offers, "m5.large", "eu-west-1") == "eu-west-1 is not enabled in this account"
    assert (why_closed(offers, "m5.large", "us-west-2") or "").startswith("us-west-2 could not be asked: ")
    assert why_closed(offers, "g4dn.xlarge") == "AWS has no image with amd drivers: name one in the block"
    assert {offer.zone for offer in offers if offer.zone} == {f"us-east-1{letter}" for letter in "abcdf"}


def test_a_zone_without_a_subnet_for_us_is_not_offered(cloud: AwsCloud) -> None:
    driver = cloud.driver(subnets=["subnet-gone"], regions=["us-east-1"])
    offers = driver.fetch_offers(Requirements())
    assert all(offer.availability is Availability.UNAVAILABLE for offer in offers)
    assert "no subnet in us-east-1a, us-east-1b" in (why_closed(offers, "m5.large") or "")


@pytest.mark.parametrize("by", ["GroupName", "GroupId"])
def test_a_region_without_the_blocks_security_group_is_not_offered_and_the_others_are(cloud: AwsCloud, by: str) -> None:
    vpc = cloud.ec2("us-west-2").describe_vpcs()["Vpcs"][0]["VpcId"]
    made = cloud.ec2("us-west-2").create_security_group(GroupName="team-ssh", Description="theirs", VpcId=vpc)
    chosen = {"GroupName": "team-ssh", "GroupId": made["GroupId"]}[by]
    driver = cloud.driver(security_group=chosen)
    offers = driver.fetch_offers(Requirements())
    assert {offer.region for offer in offers if offer.zone} == {"us-west-2"}
    assert why_closed(offers, "m5.large", "eu-west-1") == (
        f"no security group {chosen} in the VPC of eu-west-1a, eu-west-1b, eu-west-1c"
    )
    assert len(cloud.calls("DescribeSecurityGroups")) == 3, "one question for each region"
    here = next(offer for offer in offers if offer.zone)
    driver.create_instance(here, launch_spec(driver, lease_name()))
    assert order_sent(cloud)["NetworkInterface.1.SecurityGroupId.1"] == made["GroupId"]


def test_a_zone_whose_subnet_stands_in_another_vpc_than_the_blocks_group_is_not_offered(cloud: AwsCloud) -> None:
    ec2 = cloud.ec2()
    home = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName="team-ssh", Description="theirs", VpcId=home)["GroupId"]
    here = ec2.describe_subnets(Filters=[{"Name": "availability-zone", "Values": ["us-east-1a"]}])["Subnets"][0]
    away = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    there = ec2.create_subnet(VpcId=away, CidrBlock="10.9.1.0/24", AvailabilityZone="us-east-1b")["Subnet"]
    driver = cloud.driver(subnets=[here["SubnetId"], there["SubnetId"]], security_group=group, regions=["us-east-1"])
    assert {offer.zone for offer in driver.fetch_offers(Requirements()) if offer.zone} == {"us-east-1a"}
    with pytest.raises(RegionClosed, match=f"no security group {group} in {away}"):
        driver.create_instance(offer_of(zone="us-east-1b"), launch_spec(driver, lease_name()))


def test_a_region_without_the_blocks_image_is_not_offered_and_the_others_are(cloud: AwsCloud) -> None:
    ours = AwsImage(owner="self", name="team-*", user="root", port=cloud.ssh_port)
    cloud.ec2("us-west-2").copy_image(Name="team-1", SourceImageId="ami-00000008", SourceRegion="us-west-2")
    driver = cloud.driver(cpu_image=ours)
    offers = driver.fetch_offers(Requirements())
    assert {offer.region for offer in offers if offer.zone and offer.instance_type == "m5.large"} == {"us-west-2"}
    assert why_closed(offers, "m5.large", "eu-west-1") == (
        "no x86_64 image 'team-*' of owner self in eu-west-1: name another in the block"
    )
    assert {offer.region for offer in offers if offer.zone and offer.gpu_count} == set(REGIONS), "another image"
    asked = [call["region"] for call in cloud.calls("DescribeImages")]
    assert {region: asked.count(region) for region in asked} == dict.fromkeys(REGIONS, 2), "once for each image"


def test_when_no_region_answers_the_error_is_told_and_not_an_empty_list(cloud: AwsCloud, driver: Aws) -> None:
    cloud.fail("DescribeSubnets", "UnauthorizedOperation", status=403, times=None)
    with pytest.raises(AuthFailed):
        driver.fetch_offers(Requirements())


# --- rights -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "right"),
    [
        ("DescribeInstances", "ec2:DescribeInstances"),
        ("DescribeRegions", "ec2:DescribeRegions"),
        ("TerminateInstances", "ec2:TerminateInstances"),
        ("DeleteVolume", "ec2:DeleteVolume"),
        ("RunInstances", "ec2:RunInstances and ec2:CreateTags"),
        ("CreateSecurityGroup", "ec2:CreateSecurityGroup"),
        ("AuthorizeSecurityGroupIngress", "ec2:AuthorizeSecurityGroupIngress"),
    ],
)
def test_a_missing_right_is_named_in_awss_terms(cloud: AwsCloud, driver: Aws, action: str, right: str) -> None:
    cloud.fail(action, "UnauthorizedOperation", status=403, times=None)
    assert driver.missing_rights() == [right]
    assert cloud.alive() == []
    assert made_groups(cloud) == []


def test_a_blocks_reservation_needs_a_right_of_its_own(cloud: AwsCloud) -> None:
    cloud.fail("DescribeCapacityReservations", "UnauthorizedOperation", status=403, times=None)
    assert cloud.driver().missing_rights() == []
    assert cloud.driver(capacity_reservation="cr-1").missing_rights() == ["ec2:DescribeCapacityReservations"]


def test_quotas_that_may_not_be_read_are_a_missing_right(cloud: AwsCloud, driver: Aws) -> None:
    cloud.fail("GetServiceQuota", "AccessDeniedException", times=None)
    assert [right.split()[0] for right in driver.missing_rights()] == ["servicequotas:GetServiceQuota"]


# --- machines -----------------------------------------------------------------------------------------------------------


def test_the_machine_answers_with_the_key_that_was_placed_and_lets_in_whom_the_order_names(
    cloud: AwsCloud, driver: Aws
) -> None:
    spec = launch_spec(driver, lease_name())
    created = driver.create_instance(offer_of(), spec)
    ssh = wait_for(InstanceState.RUNNING, driver, created).ssh
    assert ssh is not None
    assert spec.host_key is not None
    host_key = asyncssh.import_public_key(spec.host_key.public)

    async def run(command: str, purpose: Purpose) -> asyncssh.SSHCompletedProcess:
        key = asyncssh.import_private_key(derive(MASTER_SECRET, spec.name, purpose).private.get_secret_value())
        async with asyncssh.connect(
            ssh.host,
            ssh.port,
            username=ssh.user,
            client_keys=[key],
            known_hosts=([host_key], [], []),
            config=None,
            agent_path=None,
        ) as connection:
            return await connection.run(command)

    done = asyncio.run(run('echo "$HOME"; setsid sleep 600 >/dev/null 2>&1 & exit 3', "client"))
    assert done.exit_status == 3
    with pytest.raises(asyncssh.PermissionDenied):
        asyncio.run(run("true", "host"))
    assert cloud.machine_processes(created.id), "the job's child runs on"
    driver.terminate_instance(created.id)
    wait_for(InstanceState.TERMINATED, driver, created)
    assert cloud.machine_processes(created.id) == []


def test_a_job_runs_there_by_the_supervisor_and_its_output_comes_whole(
    cloud: AwsCloud, driver: Aws, tmp_path: Path
) -> None:
    spec = launch_spec(driver, lease_name())
    running = wait_for(InstanceState.RUNNING, driver, driver.create_instance(offer_of(), spec))
    endpoint = running.ssh
    assert endpoint is not None
    assert spec.host_key is not None
    host_key, client_key = spec.host_key.public, derive(MASTER_SECRET, spec.name, "client")
    machine = Machine(lambda: remote.connect(endpoint, client_key, host_key))
    try:
        job = JobSpec(id=f"{spec.name}.1", command='echo "$HOME"; seq 20000; exit 3', timeout_s=60)
        result = machine.run(job, tmp_path / "job.log")
    finally:
        machine.close()
    assert result is not None
    assert result.exit_code == 3
    home, *lines = (tmp_path / "job.log").read_text().splitlines()
    assert running.id.split("/")[1] in home, "the machine's own home"
    assert lines == [str(number) for number in range(1, 20001)]


# --- the block ----------------------------------------------------------------------------------------------------------


class TestAwsBlock(BlockStandardTestSuite):
    @pytest.fixture
    def block(self) -> type[AwsCredentials]:
        return AwsCredentials


def test_the_block_hides_what_is_secret_and_refuses_what_is_no_address_range(cloud: AwsCloud) -> None:
    block = cloud.block(jump_private_key="the-jump-key")
    assert "the-jump-key" not in repr(block)
    assert SECRET not in repr(block)
    assert AwsCredentials.get_block_type_slug() == "gpu-aws"
    with pytest.raises(ValidationError, match="is no address range: write for example"):
        AwsCredentials(ssh_from=["everywhere"])


def test_the_block_gives_flows_a_client_of_their_own(cloud: AwsCloud) -> None:
    assert cloud.block().get_client("sts").get_caller_identity()["Account"] == ACCOUNT


def test_without_the_extra_the_registry_says_what_to_install() -> None:
    code = """
import sys
sys.modules["boto3"] = None
import blocks, providers
from providers.core.errors import Unsupported
assert "aws" in list(providers.ProviderName)
try:
    providers.library("aws")
except Unsupported as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, cwd=Path.cwd()
    )
    assert "pip install 'prefect-gpu[aws]'" in done.stdout, done.stderr
