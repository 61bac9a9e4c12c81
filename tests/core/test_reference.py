"""The reference driver passes the conformance suite, and its cloud has the faults that flows are tested against."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from prefect_gpu.providers.core.errors import NoCapacity, NotFound, Unconfirmed
from prefect_gpu.providers.core.lease import run_prefix
from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.machine.ssh import connect
from prefect_gpu.providers.core.models import Instance, InstanceState, Offer
from prefect_gpu.providers.core.requests import Requirements, Spot
from tests.conformance import MASTER_SECRET, Faults, ProviderConformance, Subject, launch_spec, lease_name
from tests.fakes.reference import Reference, ReferenceCloud, Terms, reference


class ReferenceFaults(Faults):
    def __init__(self, cloud: ReferenceCloud) -> None:
        self.cloud = cloud

    def sell_out(self) -> str:
        self.cloud.fault("create", "sold out")
        return "we are out of"

    def refuse_quota(self) -> str:
        self.cloud.fault("create", "over quota")
        return "your quota of"

    def empty_the_balance(self) -> str:
        self.cloud.fault("create", "no funds")
        return "please top up"

    def refuse_credentials(self) -> str:
        for call in ("account", "offers", "create", "get", "list", "terminate"):
            self.cloud.fault(call, "bad credentials", times=None)
        return "this key was revoked"

    def refuse_the_request(self) -> str:
        self.cloud.fault("create", "code nobody mapped")
        return "short and stout"

    def limit_rate(self) -> float:
        self.cloud.fault("get", "rate limited", seconds=7)
        return 7

    def limit_creates(self) -> None:
        self.cloud.fault("create", "rate limited", seconds=7)

    def break_creates(self) -> str:
        self.cloud.fault("create", "server error")
        return "upstream connect error"

    def break_reads(self) -> str:
        self.cloud.fault("get", "server error", times=None)
        return "upstream connect error"

    def break_terminates(self) -> str:
        self.cloud.fault("terminate", "server error")
        return "upstream connect error"

    def lose_the_answer(self) -> None:
        self.cloud.fault("create", "lost")

    def garble_the_answer(self) -> None:
        self.cloud.fault("create", "no id")

    def refuse_connections(self) -> None:
        self.cloud.fault("create", "never sent")

    def make_unreadable(self) -> str:
        self.cloud.fault("list", "unread", region="south", times=None)
        return "south"

    def restore(self) -> None:
        self.cloud.mend()

    def show_status(self, instance: Instance, status: str) -> None:
        self.cloud.rename_status(instance.id, status)

    def shrink_pages(self) -> None:
        self.cloud.change(page_size=1)

    def leave_something(self) -> None:
        self.cloud.fault("create", "leaves a disk")

    def create_requests(self) -> int:
        return len(self.cloud.calls("create"))

    def someone_elses(self) -> str:
        self.cloud.order_by_hand("my-pg-conf-database")
        return "my-pg-conf-database"

    def borrow_the_name(self, instance: Instance) -> str:
        return self.cloud.order_by_hand(instance.name)

    def pass_deadline(self, instance: Instance) -> None:
        self.cloud.advance(3 * 3600)


def reference_subject(cloud: ReferenceCloud, driver: type[Reference] = Reference, **capabilities: object) -> Subject:
    return Subject(
        provider=reference(cloud, driver, **capabilities),
        secrets=(cloud.terms.api_key,),
        unknown_id="i-999999",
        pass_time=cloud.advance,
        faults=ReferenceFaults(cloud),
    )


class TestReference(ProviderConformance):
    @pytest.fixture
    def subject(self) -> Iterator[Subject]:
        cloud = ReferenceCloud(is_stopped=True)
        yield reference_subject(cloud)
        cloud.close()


class TestReferenceOnABadDay(ProviderConformance):
    """Slow to boot, slow to end, slow to list, forgetful, and in a file."""

    @pytest.fixture
    def subject(self, tmp_path) -> Iterator[Subject]:
        terms = Terms(boot_s=40, terminate_s=20, listing_lag_s=15, forgets_after_s=30, page_size=1)
        cloud = ReferenceCloud(tmp_path / "cloud.db", terms, is_stopped=True)
        yield reference_subject(cloud, listing_lag_s=15)
        cloud.close()


class TestReferenceWithoutKeys(ProviderConformance):
    """Create cannot be repeated, 404 proves nothing, no spot."""

    @pytest.fixture
    def subject(self) -> Iterator[Subject]:
        cloud = ReferenceCloud(terms=Terms(is_repeatable=False), is_stopped=True)
        yield reference_subject(
            cloud, create_repeatable=None, not_found_proves_absence=False, spot=False, listing_lag_s=5
        )
        cloud.close()


class TestReferenceWithSsh(ProviderConformance):
    """Each running instance is a real SSH server on loopback."""

    @pytest.fixture
    def subject(self, tmp_path) -> Iterator[Subject]:
        cloud = ReferenceCloud(tmp_path / "cloud.db", Terms(has_ssh=True, boot_s=3), is_stopped=True)
        yield reference_subject(cloud)
        cloud.close()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except ConnectionRefusedError:
        return False
    return True


def offer_of(provider: Reference, **requirements: object) -> Offer:
    return min(provider.fetch_offers(Requirements(**requirements)), key=lambda offer: offer.price)  # type: ignore[arg-type]


def test_an_instance_with_ssh_runs_commands_with_the_keys_of_its_order(tmp_path):
    cloud = ReferenceCloud(tmp_path / "cloud.db", Terms(has_ssh=True))
    provider = reference(cloud)
    name = lease_name()
    created = provider.create_instance(offer_of(provider), launch_spec(provider, name))
    client, host = (derive(MASTER_SECRET, name, purpose) for purpose in ("client", "host"))
    with closing(connect(created.ssh, client, host.public)) as connection:
        channel = connection.open("echo $((6*7))")
        assert channel.recv(100) == b"42\n"
    provider.terminate_instance(created.id)
    assert not cloud.alive()
    assert not answers(created.ssh.port)
    assert not [*(tmp_path / "cloud.db.machines").iterdir()]
    cloud.close()


def test_an_interrupted_instance_with_ssh_ends_by_itself(tmp_path):
    cloud = ReferenceCloud(tmp_path / "cloud.db", Terms(has_ssh=True))
    provider = reference(cloud)
    cloud.fault("create", "interrupted", seconds=1)
    created = provider.create_instance(offer_of(provider, spot=Spot.SPOT), launch_spec(provider, lease_name()))
    until = time.monotonic() + 10
    while answers(created.ssh.port) and time.monotonic() < until:
        time.sleep(0.1)
    assert not answers(created.ssh.port)
    seen = provider.get_instance(created.id)
    assert (seen.state, seen.reason) == (InstanceState.INTERRUPTED, "capacity was needed elsewhere")
    assert provider.list_instances(created.name).instances, "what was reclaimed is still to be given back"
    provider.terminate_instance(created.id)
    assert provider.get_instance(created.id).state is InstanceState.TERMINATED
    cloud.close()


BUYER = """
import sys
sys.path.insert(0, {repository!r})
from tests.core.test_reference import *
cloud = ReferenceCloud({path!r})
cloud.fault("create", "slow after", seconds=1000)
provider = reference(cloud)
print("ordering", flush=True)
provider.create_instance(offer_of(provider), launch_spec(provider, {name!r}))
"""


def test_a_cloud_in_a_file_outlives_a_buyer_that_is_killed_in_the_middle_of_create(tmp_path):
    cloud = ReferenceCloud(tmp_path / "cloud.db", Terms(has_ssh=True))
    name = lease_name()
    script = BUYER.format(repository=str(Path(__file__).parents[2]), path=str(tmp_path / "cloud.db"), name=name)
    buyer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert buyer.stdout.readline() == b"ordering\n"
    until = time.monotonic() + 20
    while not cloud.alive(name) and time.monotonic() < until:
        time.sleep(0.02)
    buyer.kill()
    buyer.wait()
    buyer.stdout.close()
    (found,) = reference(cloud).list_instances(name).instances
    assert found.state is InstanceState.RUNNING
    provider = reference(cloud)
    same = provider.create_instance(offer_of(provider), launch_spec(provider, name))
    assert same.id == found.id
    assert len(cloud.orders()) == 1
    cloud.close()


def test_a_late_order_appears_after_its_answer_was_lost():
    cloud = ReferenceCloud(terms=Terms(is_repeatable=False), is_stopped=True)
    provider = reference(cloud, create_repeatable=None)
    cloud.fault("create", "late", seconds=30)
    name = lease_name()
    with pytest.raises(Unconfirmed):
        provider.create_instance(offer_of(provider), launch_spec(provider, name))
    assert not cloud.alive()
    assert provider.list_instances(name).instances == ()
    cloud.advance(31)
    assert len(cloud.alive(name)) == 1
    assert len(provider.list_instances(name).instances) == 1


def test_one_order_may_become_two_instances():
    cloud = ReferenceCloud(is_stopped=True)
    provider = reference(cloud)
    cloud.fault("create", "twice")
    name = lease_name()
    provider.create_instance(offer_of(provider), launch_spec(provider, name))
    assert len(provider.list_instances(name).instances) == 2


@pytest.mark.parametrize(
    ("fate", "state"),
    [
        ("never runs", InstanceState.PROVISIONING),
        ("fails at boot", InstanceState.FAILED),
        ("interrupted", InstanceState.INTERRUPTED),
        ("odd status", InstanceState.UNKNOWN),
    ],
)
def test_an_instance_may_come_to_nothing_and_can_be_given_back(fate, state):
    cloud = ReferenceCloud(is_stopped=True)
    provider = reference(cloud)
    cloud.fault("create", fate)
    created = provider.create_instance(offer_of(provider), launch_spec(provider, lease_name()))
    cloud.advance(60)
    assert provider.get_instance(created.id).state is state
    provider.terminate_instance(created.id)
    assert not cloud.alive()
    assert provider.get_instance(created.id).state is InstanceState.TERMINATED


def test_an_instance_that_vanishes_says_nothing_and_costs_nothing():
    cloud = ReferenceCloud(terms=Terms(forgets_after_s=0), is_stopped=True)
    provider = reference(cloud)
    cloud.fault("create", "vanishes", seconds=10)
    created = provider.create_instance(offer_of(provider), launch_spec(provider, lease_name()))
    cloud.advance(11)
    with pytest.raises(NotFound):
        provider.get_instance(created.id)
    assert not cloud.alive()


def test_a_terminate_that_is_accepted_and_does_nothing_keeps_it_alive_until_mended():
    cloud = ReferenceCloud(is_stopped=True)
    provider = reference(cloud)
    cloud.fault("create", "never ends")
    created = provider.create_instance(offer_of(provider), launch_spec(provider, lease_name()))
    provider.terminate_instance(created.id)
    cloud.advance(10 * 3600)
    assert provider.get_instance(created.id).state is InstanceState.TERMINATING
    assert len(cloud.alive()) == 1
    cloud.mend()
    assert not cloud.alive()


def test_what_it_cost_is_counted_from_the_order_to_the_end():
    cloud = ReferenceCloud(is_stopped=True)
    provider = reference(cloud)
    offer = offer_of(provider)
    created = provider.create_instance(offer, launch_spec(provider, lease_name()))
    cloud.advance(1800)
    provider.terminate_instance(created.id)
    cloud.advance(3600)
    assert cloud.cost() == pytest.approx(offer.price / 2, rel=1e-3)


def test_faults_are_used_up_one_call_at_a_time_and_only_where_they_apply():
    cloud = ReferenceCloud(is_stopped=True)
    provider = reference(cloud)
    cloud.fault("create", "sold out", region="south", times=2)
    north, south = (
        next(offer for offer in provider.fetch_offers(Requirements()) if offer.region == region)
        for region in ("north", "south")
    )
    for _ in range(2):
        with pytest.raises(NoCapacity, match="south"):
            provider.create_instance(south, launch_spec(provider, lease_name()))
        provider.create_instance(north, launch_spec(provider, lease_name()))
    provider.create_instance(south, launch_spec(provider, lease_name()))
    assert [about[:7] for call, about in cloud.calls("create")] == ["pg-conf"] * 5


def test_many_threads_may_use_one_cloud_in_a_file(tmp_path):
    cloud = ReferenceCloud(tmp_path / "cloud.db", is_stopped=True)
    other = ReferenceCloud(tmp_path / "cloud.db")
    run = uuid.uuid4()

    def buy(attempt: int) -> str:
        provider = reference(cloud if attempt % 2 else other)
        return provider.create_instance(
            offer_of(provider), launch_spec(provider, lease_name(run=run, attempt=attempt))
        ).id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(buy, range(24)))) == 24
    assert len(reference(other).list_instances(run_prefix("conf", run)).instances) == 24
