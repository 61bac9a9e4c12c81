"""What every driver must do: subclass `ProviderConformance`, give a `subject`, and run.

    class TestVultr(ProviderConformance):
        @pytest.fixture
        def subject(self, ...) -> Iterator[Subject]:
            with FakeVultr() as fake:
                yield Subject(
                    provider=Vultr(credentials, transport=fake.transport),
                    secrets=("the-api-key",),
                    unknown_id="00000000-0000-4000-8000-000000000000",
                    pass_time=fake.advance,
                    faults=VultrFaults(fake),
                )

A test that needs a fault that the driver's test cannot inject is skipped with the reason, never passed. `Faults` says what each
fault is; override those that the vendor's fake has. Long because the contract is read here from top to bottom, in one place.
"""

from __future__ import annotations

import copy
import math
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, ClassVar, NoReturn

import pytest

from providers.core.contract import Capabilities, Provider
from providers.core.errors import (
    AuthFailed,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Transient,
    Unconfirmed,
    Unsupported,
)
from providers.core.keys import derive
from providers.core.lease import Lease, realm_prefix, run_prefix
from providers.core.matching import why_not
from providers.core.models import (
    GpuRequest,
    Instance,
    InstanceState,
    LaunchSpec,
    Leftover,
    Listing,
    Offer,
    Requirements,
    Spot,
    utc_now,
)

REALM = "conf"
OTHER_REALM = "cone"
MASTER_SECRET = b"the master secret of conformance"


class Faults:
    """Faults that a driver's test can inject at its vendor. Each that is not overridden skips the tests that need it.

    Unless said otherwise a fault hits the next call of its kind once. Where a method returns text, it is the vendor's own words
    (or code) that the error's message must carry; None where the vendor has none.
    """

    def sell_out(self) -> str | None:
        """The next create is refused: none left."""
        self._skip("sold out")

    def refuse_quota(self) -> str | None:
        """The next create is refused: over quota."""
        self._skip("over quota")

    def empty_the_balance(self) -> str | None:
        """The next create is refused: no money left."""
        self._skip("balance too low")

    def refuse_credentials(self) -> str | None:
        """All calls from now on are refused: the credentials are wrong."""
        self._skip("credentials refused")

    def refuse_the_request(self) -> str | None:
        """The next create is refused with a code that nobody mapped."""
        self._skip("an unmapped error")

    def limit_rate(self) -> float | None:
        """The next call of any kind gets a 429; returns the seconds to wait that the vendor names, if it does."""
        self._skip("rate limited")

    def break_creates(self) -> str | None:
        """The next create is answered by a 5xx."""
        self._skip("a 5xx at create")

    def break_reads(self) -> str | None:
        """The next get is answered by a 5xx."""
        self._skip("a 5xx at get")

    def break_terminates(self) -> str | None:
        """The next terminate is answered by a 5xx."""
        self._skip("a 5xx at terminate")

    def lose_the_answer(self) -> None:
        """The next create takes effect and its answer is lost."""
        self._skip("a lost answer")

    def garble_the_answer(self) -> None:
        """The next create takes effect and its 2xx answer is unreadable or names no id."""
        self._skip("an unreadable answer")

    def refuse_connections(self) -> None:
        """The next create cannot connect: nothing was sent."""
        self._skip("connection refused")

    def make_unreadable(self) -> str:
        """Listings of one scope fail from now on; returns the scope as `Unread.scope` names it."""
        self._skip("an unreadable scope")

    def restore(self) -> None:
        """Take back what `make_unreadable` and `refuse_credentials` did."""
        self._skip("taking faults back")

    def show_status(self, instance: Instance, status: str) -> None:
        """The vendor reports this status string for this instance from now on."""
        self._skip("a new status")

    def shrink_pages(self) -> None:
        """Listings come in pages of one or two from now on."""
        self._skip("pages")

    def leave_something(self) -> None:
        """The next instance to be terminated leaves something behind that costs money (a disk, an address ...)."""
        self._skip("leftovers")

    def create_requests(self) -> int:
        """How many create requests of instances the vendor has received so far."""
        self._skip("counting requests")

    def someone_elses(self) -> str:
        """Make an instance that is not ours: its name has `pg-conf` in it, but not at its beginning. Returns the name."""
        self._skip("a stranger's instance")

    def pass_deadline(self, instance: Instance) -> None:
        """Let the lease of this instance end and nobody act on it."""
        self._skip("the end of a lease")

    @staticmethod
    def _skip(what: str) -> NoReturn:
        pytest.skip(f"this driver's test injects no fault: {what}")


@dataclass
class Subject:
    """One driver under test, and how to handle the vendor behind it."""

    provider: Provider[Any]
    secrets: tuple[str, ...]  # strings that stand in no message: keys, tokens, passwords; () only where there are none
    unknown_id: str  # of the right form, never given to any instance
    pass_time: Callable[[float], None] = time.sleep  # lets so many seconds pass at the vendor
    requirements: Requirements = field(default_factory=Requirements)  # that at least one offer meets
    faults: Faults = field(default_factory=Faults)
    at_once_s: float = 5.0  # what a call to this fake may take on a busy machine
    options: dict[str, Any] = field(default_factory=dict)  # LaunchSpec.options
    one_each: bool = False  # an offer is one machine: who wants two takes two offers


def lease_name(realm: str = REALM, run: uuid.UUID | None = None, attempt: int = 0, hours: float = 2) -> str:
    """A name as the library makes them."""
    deadline = utc_now() + timedelta(hours=hours)
    return Lease(realm=realm, run_id=run or uuid.uuid4(), deadline=deadline, run_count=1, attempt=attempt).name


def launch_spec(provider: Provider[Any], name: str, *, deadline: datetime | None = None, **more: Any) -> LaunchSpec:
    """An order as the library makes them: keys derived from the name, deadline of the name."""
    lease = Lease.parse(name)
    assert lease is not None, f"{name} is no lease's name"
    has_host_key = provider.capabilities.host_key == "placed"
    return LaunchSpec(
        name=name,
        deadline=deadline or lease.deadline,
        client_public_key=derive(MASTER_SECRET, name, "client").public,
        host_key=derive(MASTER_SECRET, name, "host") if has_host_key else None,
        **more,
    )


class ProviderConformance:
    """The suite. Tests are grouped as the contract is: offers, create, get, list, terminate, errors, capabilities."""

    rounds: ClassVar[int] = (
        600  # how often a transition is looked at, a second of the vendor's time apart, before it fails
    )

    @pytest.fixture
    def subject(self) -> Subject:
        raise NotImplementedError("give the driver under test by a fixture `subject`")

    @pytest.fixture(autouse=True)
    def _nothing_stays(self, subject: Subject) -> Iterator[None]:
        yield
        for realm in (REALM, OTHER_REALM):
            try:
                listing = subject.provider.list_instances(realm_prefix(realm))
            except ProviderError:
                continue  # this test took the vendor down; its fixture ends with it
            for found in (*listing.instances, *listing.leftovers):
                subject.provider.terminate_instance(found.id)

    # --- who ---------------------------------------------------------------------------------------------------------

    def test_the_driver_has_a_name_and_declares_capabilities(self, subject: Subject) -> None:
        provider = subject.provider
        assert provider.name
        assert provider.name == provider.name.lower()
        assert isinstance(provider.capabilities, Capabilities)
        assert provider.capabilities.listing_lag_s >= 0
        assert provider.capabilities.boot_deadline_s > 0

    def test_the_account_id_is_stable_and_holds_no_secret(self, subject: Subject) -> None:
        first = subject.provider.account_id()
        assert first
        assert first == first.strip()
        assert subject.provider.account_id() == first
        refuse_secrets(first, subject)

    def test_complete_credentials_lack_no_rights(self, subject: Subject) -> None:
        assert subject.provider.missing_rights() == []

    # --- offers ------------------------------------------------------------------------------------------------------

    def test_offers_fit_what_was_asked_and_have_a_price(self, subject: Subject) -> None:
        offers = subject.provider.fetch_offers(subject.requirements)
        assert offers, "give requirements that an offer meets"
        for offer in offers:
            assert offer.provider == subject.provider.name
            assert offer.instance_type
            assert offer.region
            assert math.isfinite(offer.price)
            assert offer.price >= 0
            assert why_not(offer, subject.requirements) is None
            refuse_secrets(repr(offer), subject)

    def test_no_offer_is_an_empty_list_and_not_an_error(self, subject: Subject) -> None:
        nothing = Requirements(gpu=(GpuRequest(names=("NOSUCHGPU9000",), count_min=7),))
        assert subject.provider.fetch_offers(nothing) == []

    def test_a_price_cap_and_a_region_are_obeyed(self, subject: Subject) -> None:
        offers = subject.provider.fetch_offers(subject.requirements)
        cheapest = min(offers, key=lambda offer: offer.price)
        asked = subject.requirements.model_copy(update={"max_price": cheapest.price, "regions": (cheapest.region,)})
        found = subject.provider.fetch_offers(asked)
        assert found
        assert all(offer.price <= cheapest.price and offer.region == cheapest.region for offer in found)
        elsewhere = subject.requirements.model_copy(update={"regions": ("no-such-region",)})
        assert subject.provider.fetch_offers(elsewhere) == []

    def test_spot_offers_come_only_where_spot_is_declared(self, subject: Subject) -> None:
        asked = subject.requirements.model_copy(update={"spot": Spot.EITHER})
        spot = [offer for offer in subject.provider.fetch_offers(asked) if offer.spot]
        if subject.provider.capabilities.spot:
            only = subject.requirements.model_copy(update={"spot": Spot.SPOT})
            assert all(offer.spot for offer in subject.provider.fetch_offers(only))
            on_demand = subject.requirements.model_copy(update={"spot": Spot.ON_DEMAND})
            assert not any(offer.spot for offer in subject.provider.fetch_offers(on_demand))
        else:
            assert spot == []

    def test_a_spot_order_where_there_is_no_spot_is_unsupported(self, subject: Subject) -> None:
        if subject.provider.capabilities.spot:
            pytest.skip("this provider has spot")
        name = lease_name()
        offer = self.offer(subject).model_copy(update={"spot": True})
        with pytest.raises(Unsupported):
            subject.provider.create_instance(offer, launch_spec(subject.provider, name, options=subject.options))
        assert subject.provider.list_instances(name).instances == ()

    def test_an_image_where_images_are_not_declared_is_unsupported(self, subject: Subject) -> None:
        if subject.provider.capabilities.images != "none":
            pytest.skip("this provider runs images")
        name = lease_name()
        spec = launch_spec(subject.provider, name, image="docker.io/library/busybox:1", options=subject.options)
        with pytest.raises(Unsupported):
            subject.provider.create_instance(self.offer(subject), spec)
        assert subject.provider.list_instances(name).instances == ()

    # --- create ------------------------------------------------------------------------------------------------------

    def test_create_returns_at_once_with_an_id_and_the_name_it_was_given(self, subject: Subject) -> None:
        name = lease_name()
        started = time.monotonic()
        created = self.create(subject, name)
        assert time.monotonic() - started < subject.at_once_s
        assert created.id
        assert created.name == name
        assert created.provider == subject.provider.name
        assert created.state in {InstanceState.PROVISIONING, InstanceState.RUNNING}

    def test_create_is_one_order(self, subject: Subject) -> None:
        run = uuid.uuid4()
        self.create(subject, lease_name(run=run))
        self.let_listings_catch_up(subject)
        assert len(subject.provider.list_instances(run_prefix(REALM, run)).instances) == 1

    def test_the_name_comes_back_whole_from_get_and_list(self, subject: Subject) -> None:
        name = lease_name()
        created = self.create(subject, name)
        self.let_listings_catch_up(subject)
        assert subject.provider.get_instance(created.id).name == name
        (listed,) = subject.provider.list_instances(name).instances
        assert (listed.name, listed.id) == (name, created.id)
        assert Lease.parse(listed.name) is not None

    def test_what_was_created_begins_to_run_and_is_reachable(self, subject: Subject) -> None:
        running = self.create_running(subject, lease_name())
        assert running.state is InstanceState.RUNNING
        if subject.provider.capabilities.host_key == "channel":
            return
        assert running.ssh is not None, "running needs an endpoint, not just the vendor's word"
        assert running.ssh.host
        assert 0 < running.ssh.port < 65536
        assert running.ssh.user

    def test_nothing_is_running_before_it_can_be_reached(self, subject: Subject) -> None:
        created = self.create(subject, lease_name())
        for _ in range(self.rounds):
            if created.state is InstanceState.RUNNING:
                assert created.ssh is not None or subject.provider.capabilities.host_key == "channel"
                return
            subject.pass_time(1)
            created = subject.provider.get_instance(created.id)
        pytest.fail("it never began to run")

    def test_times_are_aware_and_the_instance_says_where_it_is(self, subject: Subject) -> None:
        created = self.create_running(subject, lease_name())
        assert created.region
        if created.created_at is not None:
            assert created.created_at.tzinfo is not None

    def test_the_same_order_twice_is_one_instance_where_create_is_repeatable(self, subject: Subject) -> None:
        if subject.provider.capabilities.create_repeatable is None:
            pytest.skip("this provider has no key for an order")
        name = lease_name()
        offer = self.offer(subject)
        spec = launch_spec(subject.provider, name, options=subject.options)
        first = subject.provider.create_instance(offer, spec)
        second = subject.provider.create_instance(offer, copy.deepcopy(spec))
        assert second.id == first.id
        self.let_listings_catch_up(subject)
        assert [found.id for found in subject.provider.list_instances(name).instances] == [first.id]

    def test_the_same_order_from_many_threads_is_one_instance_where_create_is_repeatable(
        self, subject: Subject
    ) -> None:
        if subject.provider.capabilities.create_repeatable is None:
            pytest.skip("this provider has no key for an order")
        name = lease_name()
        offer = self.offer(subject)
        spec = launch_spec(subject.provider, name, options=subject.options)
        together = threading.Barrier(4)

        def order() -> str:
            together.wait()
            return subject.provider.create_instance(offer, spec).id

        with ThreadPoolExecutor(4) as pool:
            ids = {future.result() for future in [pool.submit(order) for _ in range(4)]}
        assert len(ids) == 1
        self.let_listings_catch_up(subject)
        assert len(subject.provider.list_instances(name).instances) == 1

    def test_different_names_are_different_instances(self, subject: Subject) -> None:
        run = uuid.uuid4()
        ids = {self.create(subject, lease_name(run=run, attempt=attempt)).id for attempt in range(2)}
        assert len(ids) == 2

    # --- get ---------------------------------------------------------------------------------------------------------

    def test_an_unknown_id_is_not_found(self, subject: Subject) -> None:
        with pytest.raises(NotFound):
            subject.provider.get_instance(subject.unknown_id)

    def test_a_status_never_seen_before_is_unknown(self, subject: Subject) -> None:
        created = self.create_running(subject, lease_name())
        subject.faults.show_status(created, "TRANSMOGRIFYING")
        assert subject.provider.get_instance(created.id).state is InstanceState.UNKNOWN
        (listed,) = subject.provider.list_instances(created.name).instances
        assert listed.state is InstanceState.UNKNOWN

    # --- list --------------------------------------------------------------------------------------------------------

    def test_a_prefix_finds_its_own_and_nothing_else(self, subject: Subject) -> None:
        run, other_run = uuid.uuid4(), uuid.uuid4()
        mine = {lease_name(run=run, attempt=attempt) for attempt in range(2)}
        others = lease_name(run=other_run)
        foreign = lease_name(realm=OTHER_REALM)
        for name in (*mine, others, foreign):
            self.create(subject, name)
        self.let_listings_catch_up(subject)
        assert self.names(subject, run_prefix(REALM, run)) == mine
        assert self.names(subject, run_prefix(REALM, other_run)) == {others}
        assert self.names(subject, realm_prefix(REALM)) >= mine | {others}
        assert foreign not in self.names(subject, realm_prefix(REALM))
        assert self.names(subject, foreign) == {foreign}

    def test_a_prefix_that_nothing_has_finds_nothing(self, subject: Subject) -> None:
        self.create(subject, lease_name())
        self.let_listings_catch_up(subject)
        listing = subject.provider.list_instances(run_prefix(REALM, uuid.uuid4()))
        assert (listing.instances, listing.leftovers) == ((), ())
        assert listing.is_complete

    def test_a_strangers_instance_is_not_listed(self, subject: Subject) -> None:
        name = subject.faults.someone_elses()
        self.let_listings_catch_up(subject)
        assert name not in self.names(subject, realm_prefix(REALM))

    def test_all_pages_are_read(self, subject: Subject) -> None:
        subject.faults.shrink_pages()
        run = uuid.uuid4()
        names = {lease_name(run=run, attempt=attempt) for attempt in range(5)}
        for name in names:
            self.create(subject, name)
        self.let_listings_catch_up(subject)
        assert self.names(subject, run_prefix(REALM, run)) == names

    def test_all_scopes_are_read(self, subject: Subject) -> None:
        offers = subject.provider.fetch_offers(subject.requirements)
        by_region = {offer.region: offer for offer in offers}
        if len(by_region) == 1:
            pytest.skip("this vendor has one region")
        run = uuid.uuid4()
        names = set[str]()
        for attempt, offer in enumerate(list(by_region.values())[:4]):
            name = lease_name(run=run, attempt=attempt)
            spec = launch_spec(subject.provider, name, options=subject.options)
            subject.provider.create_instance(offer, spec)
            names.add(name)
        self.let_listings_catch_up(subject)
        assert self.names(subject, run_prefix(REALM, run)) == names

    def test_a_scope_that_cannot_be_read_is_said_and_hides_nothing_else(self, subject: Subject) -> None:
        self.create(subject, lease_name())
        self.let_listings_catch_up(subject)
        before = self.names(subject, realm_prefix(REALM))
        scope = subject.faults.make_unreadable()
        listing = subject.provider.list_instances(realm_prefix(REALM))
        assert not listing.is_complete
        assert scope in {unread.scope for unread in listing.incomplete}
        assert all(unread.reason for unread in listing.incomplete)
        for unread in listing.incomplete:
            refuse_secrets(unread.reason, subject)
        subject.faults.restore()
        assert self.names(subject, realm_prefix(REALM)) == before

    # --- terminate ---------------------------------------------------------------------------------------------------

    def test_terminate_returns_at_once_and_makes_it_absent(self, subject: Subject) -> None:
        created = self.create_running(subject, lease_name())
        started = time.monotonic()
        subject.provider.terminate_instance(created.id)
        assert time.monotonic() - started < subject.at_once_s
        self.wait_absent(subject, created)

    def test_terminate_of_what_has_just_been_ordered_works(self, subject: Subject) -> None:
        created = self.create(subject, lease_name())
        subject.provider.terminate_instance(created.id)
        self.wait_absent(subject, created)

    def test_terminate_can_be_repeated_and_already_gone_is_success(self, subject: Subject) -> None:
        created = self.create_running(subject, lease_name())
        subject.provider.terminate_instance(created.id)
        subject.provider.terminate_instance(created.id)
        self.wait_absent(subject, created)
        subject.provider.terminate_instance(created.id)

    def test_terminate_of_an_unknown_id_is_success(self, subject: Subject) -> None:
        subject.provider.terminate_instance(subject.unknown_id)

    def test_terminate_ends_only_what_it_was_told(self, subject: Subject) -> None:
        run = uuid.uuid4()
        goes = self.create_running(subject, lease_name(run=run, attempt=0))
        stays = self.create_running(subject, lease_name(run=run, attempt=1))
        subject.provider.terminate_instance(goes.id)
        self.wait_absent(subject, goes)
        assert subject.provider.get_instance(stays.id).state is InstanceState.RUNNING

    def test_many_can_be_terminated_at_once(self, subject: Subject) -> None:
        run = uuid.uuid4()
        created = [self.create(subject, lease_name(run=run, attempt=attempt)) for attempt in range(3)]
        subject.provider.terminate_instances([instance.id for instance in created])
        for instance in created:
            self.wait_absent(subject, instance)

    def test_nothing_is_left_behind(self, subject: Subject) -> None:
        created = self.create_running(subject, lease_name())
        subject.provider.terminate_instance(created.id)
        self.wait_absent(subject, created)
        assert self.wait_for(subject, lambda: is_empty(subject.provider.list_instances(created.name)))

    def test_a_leftover_is_listed_and_removed_by_its_id(self, subject: Subject) -> None:
        subject.faults.leave_something()
        created = self.create_running(subject, lease_name())
        subject.provider.terminate_instance(created.id)
        self.wait_absent(subject, created)

        def leftovers() -> tuple[Leftover, ...]:
            return subject.provider.list_instances(created.name).leftovers

        assert self.wait_for(subject, lambda: bool(leftovers())), "what stayed was not listed"
        for leftover in leftovers():
            assert leftover.kind
            assert leftover.name == created.name
            subject.provider.terminate_instance(leftover.id)
        assert self.wait_for(subject, lambda: not leftovers()), "what stayed was not removed"

    def test_the_lease_ends_it_where_that_is_declared(self, subject: Subject) -> None:
        if subject.provider.capabilities.self_ends == "none":
            pytest.skip("this provider's machines do not end by themselves")
        created = self.create_running(subject, lease_name())
        subject.faults.pass_deadline(created)
        self.wait_absent(subject, created, terminated=False)

    # --- errors ------------------------------------------------------------------------------------------------------

    def test_sold_out_is_no_capacity(self, subject: Subject) -> None:
        self.refused_create(subject, NoCapacity, subject.faults.sell_out())

    def test_over_quota_is_quota_exceeded(self, subject: Subject) -> None:
        self.refused_create(subject, QuotaExceeded, subject.faults.refuse_quota())

    def test_no_money_is_insufficient_funds(self, subject: Subject) -> None:
        self.refused_create(subject, InsufficientFunds, subject.faults.empty_the_balance())

    def test_a_code_nobody_mapped_is_an_invalid_request_in_the_vendors_words(self, subject: Subject) -> None:
        self.refused_create(subject, InvalidRequest, subject.faults.refuse_the_request())

    def test_wrong_credentials_are_auth_failed_from_every_call(self, subject: Subject) -> None:
        created = self.create(subject, lease_name())
        offer = self.offer(subject)
        words = subject.faults.refuse_credentials()
        spec = launch_spec(subject.provider, lease_name(), options=subject.options)
        calls: list[Callable[[], object]] = [
            subject.provider.account_id,
            lambda: subject.provider.create_instance(offer, spec),
            lambda: subject.provider.get_instance(created.id),
            lambda: subject.provider.terminate_instance(created.id),
        ]
        for call in calls:
            with self.one_error(subject, AuthFailed, words):
                call()
        # A listing may refuse as a whole or call all its scopes unread, but it is never a complete, empty one.
        try:
            listing = subject.provider.list_instances(REALM)
        except AuthFailed as error:
            refuse_secrets(error.message, subject)
        else:
            assert not listing.is_complete
            for unread in listing.incomplete:
                refuse_secrets(unread.reason, subject)

    def test_a_429_is_rate_limited_and_says_how_long(self, subject: Subject) -> None:
        created = self.create(subject, lease_name())
        wait_s = subject.faults.limit_rate()
        with self.one_error(subject, RateLimited, None) as raised:
            subject.provider.get_instance(created.id)
        if wait_s is not None:
            assert raised[0].retry_after_s == pytest.approx(wait_s, abs=1)

    def test_a_create_that_was_rate_limited_is_sent_once_and_not_carried_out(self, subject: Subject) -> None:
        subject.faults.limit_rate()
        name = lease_name()
        with self.one_error(subject, RateLimited, None):
            self.create(subject, name)
        self.let_listings_catch_up(subject)
        assert subject.provider.list_instances(name).instances == ()

    def test_a_5xx_at_create_is_unconfirmed(self, subject: Subject) -> None:
        words = subject.faults.break_creates()
        with self.one_error(subject, Unconfirmed, words):
            self.create(subject, lease_name())

    def test_a_5xx_at_get_is_transient(self, subject: Subject) -> None:
        created = self.create(subject, lease_name())
        words = subject.faults.break_reads()
        with self.one_error(subject, Transient, words):
            subject.provider.get_instance(created.id)
        assert subject.provider.get_instance(created.id).id == created.id

    def test_a_5xx_at_terminate_is_an_error_and_never_a_success(self, subject: Subject) -> None:
        created = self.create_running(subject, lease_name())
        words = subject.faults.break_terminates()
        with self.one_error(subject, Transient, words):
            subject.provider.terminate_instance(created.id)
        assert subject.provider.get_instance(created.id).state is InstanceState.RUNNING
        subject.provider.terminate_instance(created.id)
        self.wait_absent(subject, created)

    def test_a_lost_answer_is_unconfirmed_and_the_listing_finds_what_it_bought(self, subject: Subject) -> None:
        subject.faults.lose_the_answer()
        self.unconfirmed_create_is_found(subject)

    def test_an_unreadable_answer_is_unconfirmed_and_the_listing_finds_what_it_bought(self, subject: Subject) -> None:
        subject.faults.garble_the_answer()
        self.unconfirmed_create_is_found(subject)

    def test_an_order_that_was_never_sent_is_transient_and_buys_nothing(self, subject: Subject) -> None:
        subject.faults.refuse_connections()
        name = lease_name()
        with self.one_error(subject, Transient, None):
            self.create(subject, name)
        self.let_listings_catch_up(subject)
        assert subject.provider.list_instances(name).instances == ()

    def test_a_create_is_never_repeated_by_the_driver(self, subject: Subject) -> None:
        subject.faults.lose_the_answer()
        before = subject.faults.create_requests()
        with pytest.raises(Unconfirmed):
            self.create(subject, lease_name())
        assert subject.faults.create_requests() == before + 1

    def test_errors_of_the_driver_travel_between_processes(self, subject: Subject) -> None:
        with pytest.raises(NotFound) as raised:
            subject.provider.get_instance(subject.unknown_id)
        assert same_error(pickle.loads(pickle.dumps(raised.value)), raised.value)

    # --- threads -----------------------------------------------------------------------------------------------------

    def test_one_driver_serves_many_threads(self, subject: Subject) -> None:
        run = uuid.uuid4()
        offers = [self.offer(subject)] * 6
        if subject.one_each:
            offers = subject.provider.fetch_offers(subject.requirements)
            assert len(offers) >= 6, "give this test six machines"

        def whole_life(attempt: int) -> Instance:
            name, offer = lease_name(run=run, attempt=attempt), offers[attempt]
            spec = launch_spec(subject.provider, name, options=subject.options)
            created = subject.provider.create_instance(offer, spec)
            assert subject.provider.get_instance(created.id).name == name
            subject.provider.list_instances(name)
            subject.provider.terminate_instance(created.id)
            return created

        with ThreadPoolExecutor(6) as pool:
            created = list(pool.map(whole_life, range(6)))
        assert len({instance.id for instance in created}) == 6
        for instance in created:
            self.wait_absent(subject, instance)

    # --- how the tests above do what they do -------------------------------------------------------------------------

    def offer(self, subject: Subject) -> Offer:
        offers = subject.provider.fetch_offers(subject.requirements)
        assert offers, "give requirements that an offer meets"
        return min(offers, key=lambda offer: offer.price)

    def create(self, subject: Subject, name: str) -> Instance:
        spec = launch_spec(subject.provider, name, options=subject.options)
        return subject.provider.create_instance(self.offer(subject), spec)

    def create_running(self, subject: Subject, name: str) -> Instance:
        created = self.create(subject, name)
        for _ in range(self.rounds):
            instance = subject.provider.get_instance(created.id)
            if instance.state is InstanceState.RUNNING:
                return instance
            assert instance.state is InstanceState.PROVISIONING, f"{instance.state}: {instance.reason}"
            subject.pass_time(1)
        pytest.fail(f"{name} never began to run")

    def names(self, subject: Subject, prefix: str) -> set[str]:
        listing = subject.provider.list_instances(prefix)
        assert listing.is_complete, listing.incomplete
        names = [instance.name for instance in listing.instances]
        assert len(names) == len(set(names)), "an instance is listed twice"
        return set(names)

    def let_listings_catch_up(self, subject: Subject) -> None:
        """Let the declared lag pass; a listing that is later than declared fails the test."""
        if subject.provider.capabilities.listing_lag_s:
            subject.pass_time(subject.provider.capabilities.listing_lag_s + 1)

    def wait_for(self, subject: Subject, done: Callable[[], bool]) -> bool:
        for _ in range(self.rounds):
            if done():
                return True
            subject.pass_time(1)
        return False

    def wait_absent(self, subject: Subject, instance: Instance, *, terminated: bool = True) -> None:
        """By the driver's declared rule: final by id, NotFound where that proves it, or two listings `listing_lag_s` apart."""
        capabilities = subject.provider.capabilities

        def is_absent() -> bool:
            try:
                state = subject.provider.get_instance(instance.id).state
            except NotFound:
                if capabilities.not_found_proves_absence:
                    return True
                first = subject.provider.list_instances(instance.name)
                self.let_listings_catch_up(subject)
                second = subject.provider.list_instances(instance.name)
                return all(seen.is_complete and not seen.named(instance.name) for seen in (first, second))
            assert not (terminated and state is InstanceState.PROVISIONING), "terminate had no effect"
            return state.is_final

        assert self.wait_for(subject, is_absent), f"{instance.name} never went away"
        self.let_listings_catch_up(subject)
        assert self.wait_for(subject, lambda: not self.live(subject, instance.name)), "absent by id, listed as alive"

    def live(self, subject: Subject, name: str) -> list[Instance]:
        listing = subject.provider.list_instances(name)
        return [found for found in listing.instances if not found.state.is_final]

    @contextmanager
    def one_error(self, subject: Subject, kind: type[ProviderError], words: str | None) -> Iterator[list[Any]]:
        """This very class (or a subclass that is as good), the vendor's words in it, no secret, and it survives pickling."""
        caught: list[ProviderError] = []
        with pytest.raises(ProviderError) as raised:
            yield caught
        error = raised.value
        caught.append(error)
        assert isinstance(error, kind), f"{type(error).__name__}: {error}"
        if kind is Transient:
            assert not isinstance(error, RateLimited)
        assert error.message.strip()
        assert "\n" not in error.message.strip(), "an error is one sentence"
        if words is not None:
            assert words in error.message or words == error.code
        chain: BaseException | None = error
        while chain is not None:
            refuse_secrets(f"{chain} {chain!r} {getattr(chain, '__notes__', '')}", subject)
            chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
        assert same_error(pickle.loads(pickle.dumps(error)), error)

    def refused_create(self, subject: Subject, kind: type[ProviderError], words: str | None) -> None:
        name = lease_name()
        with self.one_error(subject, kind, words):
            self.create(subject, name)
        self.let_listings_catch_up(subject)
        assert subject.provider.list_instances(name).instances == (), "it was refused and is there"

    def unconfirmed_create_is_found(self, subject: Subject) -> None:
        name = lease_name()
        with self.one_error(subject, Unconfirmed, None):
            self.create(subject, name)
        self.let_listings_catch_up(subject)
        (found,) = subject.provider.list_instances(name).instances
        subject.provider.terminate_instance(found.id)
        self.wait_absent(subject, found)


def refuse_secrets(text: str, subject: Subject) -> None:
    """No credential, no query string, no header."""
    for secret in subject.secrets:
        assert secret not in text, "a secret stands in a message"
    lowered = text.lower()
    for sign in ("authorization:", "bearer ", "x-api-key", "private key-----", "api_key=", "token=", "&signature="):
        assert sign not in lowered, f"{sign!r} stands in a message"


def same_error(one: BaseException, other: BaseException) -> bool:
    return type(one) is type(other) and str(one) == str(other) and one.__dict__ == other.__dict__


def is_empty(listing: Listing) -> bool:
    """Complete, without leftovers, and nothing in it but what is final."""
    return (
        listing.is_complete and not listing.leftovers and all(instance.state.is_final for instance in listing.instances)
    )
