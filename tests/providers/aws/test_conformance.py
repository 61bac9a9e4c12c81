"""AWS keeps the contract, and the suite catches AWS drivers that are wrong in one way."""

from __future__ import annotations

import inspect
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from prefect_gpu.providers.aws import driver as driver_module
from prefect_gpu.providers.aws import give_back, instances, listing, order
from prefect_gpu.providers.aws.driver import Aws
from prefect_gpu.providers.core.errors import AuthFailed, ProviderError, Transient, Unconfirmed
from prefect_gpu.providers.core.models import Instance, InstanceState, LaunchSpec, Listing, Offer
from prefect_gpu.providers.core.requests import Requirements
from tests.conformance import Faults, ProviderConformance, Subject, lease_name
from tests.fakes.aws import IMAGES, AwsCloud
from tests.providers.aws.ordering import AWS_ATTEMPTS, SECRET


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

    def limit_creates(self) -> None:
        self.cloud.fail("RunInstances", "RequestLimitExceeded", status=503)

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
            client = self.driver.api.client("ec2", region, repeats=False)
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

    def borrow_the_name(self, instance: Instance) -> str:
        return launch_more_like(self.cloud, instance.id)

    def pass_deadline(self, instance: Instance) -> None:
        self.cloud.end_lease(instance.id)


def launch_more_like(cloud: AwsCloud, instance_id: str) -> str:
    """What EC2's console makes of that wish: a machine with all the tags, and another client token."""
    region, _, machine = instance_id.partition("/")
    ec2 = cloud.ec2(region)
    (like,) = ec2.describe_instances(InstanceIds=[machine])["Reservations"][0]["Instances"]
    tags = [{"ResourceType": kind, "Tags": like["Tags"]} for kind in ("instance", "volume")]
    made = ec2.run_instances(ImageId=like["ImageId"], MinCount=1, MaxCount=1, TagSpecifications=tags)
    return f"{region}/{made['Instances'][0]['InstanceId']}"


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


def sends_no_token(_driver: Aws, patch: pytest.MonkeyPatch) -> None:
    real = order.request
    patch.setattr(order, "request", lambda *given, **more: without(real(*given, **more), "ClientToken"))


def drops_the_second_page(driver: Aws, patch: pytest.MonkeyPatch) -> None:
    def first(region: str, call: str, rows: str, **sent: Any) -> Iterator[dict[str, Any]]:
        yield from next(iter(driver.api.client("ec2", region).get_paginator(call).paginate(**sent)))[rows]

    patch.setattr(driver.api, "pages", first)


def swallows_region_errors(driver: Aws, patch: pytest.MonkeyPatch) -> None:
    real = driver.list_instances
    patch.setattr(driver, "list_instances", lambda prefix: real(prefix).model_copy(update={"incomplete": ()}))


def takes_the_wrong_region_for_an_answer(driver: Aws, patch: pytest.MonkeyPatch) -> None:
    """The answers of the regions are put to the names of the regions in another order."""
    real, regions = listing.read, sorted(driver.api.regions())
    patch.setattr(listing, "read", lambda api, region, prefix: real(api, regions[regions.index(region) - 1], prefix))


def reads_its_home_region_only(driver: Aws, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(driver.api, "regions", lambda: {driver.api.home})


def takes_a_lost_answer_for_transient(driver: Aws, patch: pytest.MonkeyPatch) -> None:
    real = driver.create_instance

    def create(offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            return real(offer, spec)
        except Unconfirmed as error:
            raise Transient(error.message, code=error.code) from None

    patch.setattr(driver, "create_instance", create)


def never_sets_the_timer(_driver: Aws, patch: pytest.MonkeyPatch) -> None:
    real = order.user_data

    def user_data(offer: Offer, spec: LaunchSpec) -> str:
        config = yaml.safe_load(real(offer, spec))
        del config["runcmd"], config["write_files"]
        return "#cloud-config\n" + yaml.safe_dump(config)

    patch.setattr(order, "user_data", user_data)


def repeats_orders_on_the_wire(driver: Aws, patch: pytest.MonkeyPatch) -> None:
    real = driver.api.client
    patch.setattr(driver.api, "client", lambda service, region, **_: real(service, region))


def lists_only_known_states(_driver: Aws, patch: pytest.MonkeyPatch) -> None:
    real = listing.machine_rows
    known = {"pending", "running", "stopping", "stopped"}
    patch.setattr(
        listing, "machine_rows", lambda *given: (row for row in real(*given) if row["State"]["Name"] in known)
    )


def believes_the_name_tag(_driver: Aws, patch: pytest.MonkeyPatch) -> None:
    real = instances.described

    def described(*given: Any) -> instances.Described:
        one = real(*given)
        return one._replace(instance=one.instance.model_copy(update={"name": one.bears}))

    for module in (listing, driver_module):
        patch.setattr(module, "described", described)


def ends_whatever_it_is_told(_driver: Aws, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(give_back, "proved_name", lambda _token: "pg-")


def ends_it_all(driver: Aws, patch: pytest.MonkeyPatch) -> None:
    def terminate(instance_id: str) -> None:
        found = driver.list_instances("pg-").instances
        driver.terminate_instances([one.id for one in found] or [instance_id])

    patch.setattr(driver, "terminate_instance", terminate)


def keeps_the_disk(_driver: Aws, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(listing, "is_proved", lambda *_: False)


def takes_a_machine_without_an_address_for_running(_driver: Aws, patch: pytest.MonkeyPatch) -> None:
    real = instances.described

    def described(*given: Any) -> instances.Described:
        one = real(*given)
        running = {"state": InstanceState.RUNNING, "ssh": None}
        return one._replace(instance=one.instance.model_copy(update=running))

    patch.setattr(driver_module, "described", described)


def answers_without_the_name(driver: Aws, patch: pytest.MonkeyPatch) -> None:
    real = driver.create_instance
    patch.setattr(driver, "create_instance", lambda *given: real(*given).model_copy(update={"name": ""}))


def offers_what_is_too_dear(driver: Aws, patch: pytest.MonkeyPatch) -> None:
    real = driver.fetch_offers
    patch.setattr(
        driver, "fetch_offers", lambda asked: real(asked.model_copy(update={"max_price": None, "regions": ()}))
    )


def takes_wrong_credentials_for_an_empty_account(driver: Aws, patch: pytest.MonkeyPatch) -> None:
    real = driver.list_instances

    def listed(prefix: str) -> Listing:
        try:
            return real(prefix)
        except AuthFailed:
            return Listing()

    patch.setattr(driver, "list_instances", listed)


MUTANTS: dict[Callable[[Aws, pytest.MonkeyPatch], None], str] = {
    sends_no_token: "test_the_same_order_twice_is_one_instance_where_create_is_repeatable",
    drops_the_second_page: "test_all_pages_are_read",
    swallows_region_errors: "test_a_scope_that_cannot_be_read_is_said_and_hides_nothing_else",
    takes_the_wrong_region_for_an_answer: "test_a_scope_that_cannot_be_read_is_said_and_hides_nothing_else",
    reads_its_home_region_only: "test_all_scopes_are_read",
    takes_a_lost_answer_for_transient: "test_a_lost_answer_is_unconfirmed_and_the_listing_finds_what_it_bought",
    never_sets_the_timer: "test_the_lease_ends_it_where_that_is_declared",
    repeats_orders_on_the_wire: "test_a_create_is_never_repeated_by_the_driver",
    lists_only_known_states: "test_a_status_never_seen_before_is_unknown",
    believes_the_name_tag: "test_what_only_bears_a_name_of_ours_is_reported_and_never_ended",
    ends_whatever_it_is_told: "test_what_only_bears_a_name_of_ours_is_reported_and_never_ended",
    ends_it_all: "test_terminate_ends_only_what_it_was_told",
    keeps_the_disk: "test_a_leftover_is_listed_and_removed_by_its_id",
    takes_a_machine_without_an_address_for_running: "test_nothing_is_running_before_it_can_be_reached",
    answers_without_the_name: "test_create_returns_at_once_with_an_id_and_the_name_it_was_given",
    offers_what_is_too_dear: "test_a_price_cap_and_a_region_are_obeyed",
    takes_wrong_credentials_for_an_empty_account: "test_wrong_credentials_are_auth_failed_from_every_call",
}
SUITE: dict[str, Callable[..., None]] = dict(inspect.getmembers(ProviderConformance, inspect.isfunction))


class Quick(ProviderConformance):
    rounds = 20


def without(sent: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in sent.items() if name != key}


@pytest.mark.parametrize(
    ("mutant", "test"), MUTANTS.items(), ids=lambda value: value.__name__ if callable(value) else ""
)
def test_the_suite_catches_an_aws_driver_that(
    cloud: AwsCloud, driver: Aws, monkeypatch: pytest.MonkeyPatch, mutant: Any, test: str
) -> None:
    mutant(driver, monkeypatch)
    with pytest.raises((AssertionError, ProviderError, ValueError, pytest.fail.Exception)):
        SUITE[test](Quick(), subject_of(cloud, driver))
