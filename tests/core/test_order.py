"""Orders and give-backs against a cloud with every fault: the answer becomes definite, nothing is bought twice, nothing stays."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from prefect_gpu.providers.core.aside import Stopped
from prefect_gpu.providers.core.errors import AuthFailed, NoCapacity, ProviderError, RateLimited, Transient, Unconfirmed
from prefect_gpu.providers.core.lease import Lease, run_prefix
from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.models import LaunchSpec, Listing, Offer, utc_now
from prefect_gpu.providers.core.renting.give_back import give_back
from prefect_gpu.providers.core.renting.order import UNREAD_S, Clock, Owed, keep_one, place_order
from prefect_gpu.providers.core.requests import Requirements
from tests.fakes.reference import Reference, ReferenceCloud, Terms, reference

RUN = UUID(int=7)


class CloudClock(Clock):
    """The cloud's clock: sleeping moves it, so no test of lag sleeps."""

    def __init__(self, cloud: ReferenceCloud) -> None:
        self.cloud = cloud
        self.slept = 0.0

    def now(self) -> float:
        return self.cloud.now()

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.cloud.advance(seconds)


def cloud_of(**terms: object) -> ReferenceCloud:
    return ReferenceCloud(terms=Terms(**terms), is_stopped=True)  # type: ignore[arg-type]


def spec(attempt: int = 0) -> LaunchSpec:
    lease = Lease(realm="test", run_id=RUN, deadline=utc_now() + timedelta(hours=1), run_count=1, attempt=attempt)
    return LaunchSpec(
        name=lease.name,
        deadline=lease.deadline,
        client_public_key=derive(b"m", lease.name, "client").public,
        host_key=derive(b"m", lease.name, "host"),
    )


def first_offer(driver: Reference) -> Offer:
    return driver.fetch_offers(Requirements())[0]


def test_an_order_is_answered_with_its_instance() -> None:
    cloud = cloud_of()
    driver = reference(cloud)
    order = spec()
    assert place_order(driver, first_offer(driver), order, clock=CloudClock(cloud)).name == order.name
    assert len(cloud.orders()) == 1


@pytest.mark.parametrize("what", ["lost", "no id"])
def test_where_the_name_is_a_key_a_lost_answer_is_got_by_the_identical_order(what: str) -> None:
    cloud = cloud_of()
    driver = reference(cloud)
    offer = first_offer(driver)
    cloud.fault("create", what, times=3)  # type: ignore[arg-type]
    instance = place_order(driver, offer, spec(), clock=CloudClock(cloud))
    assert [order.id for order in cloud.orders()] == [instance.id]


def test_where_the_name_is_no_key_a_lost_answer_is_found_by_listing_and_never_sent_again() -> None:
    cloud = cloud_of(is_repeatable=False, listing_lag_s=40)
    driver = reference(cloud, create_repeatable=None, listing_lag_s=60)
    cloud.fault("create", "lost")
    instance = place_order(driver, first_offer(driver), spec(), clock=CloudClock(cloud))
    assert [order.id for order in cloud.orders()] == [instance.id]
    assert len(cloud.calls("create")) == 1


def test_an_order_that_is_never_seen_is_owed_and_was_looked_for_as_long_as_listings_lag() -> None:
    cloud = cloud_of(is_repeatable=False)
    driver = reference(cloud, create_repeatable=None, listing_lag_s=60)
    cloud.fault("create", "server error")
    clock = CloudClock(cloud)
    with pytest.raises(Owed, match="stays watched"):
        place_order(driver, first_offer(driver), spec(), clock=clock)
    assert 59 <= clock.slept <= 70
    assert len(cloud.calls("create")) == 1


@pytest.mark.parametrize("trouble", ["bad credentials", "server error", "unread"])
def test_a_list_that_cannot_be_read_says_nothing_of_an_order(trouble: str) -> None:
    """Else another machine would be bought beside it."""
    cloud = cloud_of(is_repeatable=False, listing_lag_s=5)
    driver = reference(cloud, create_repeatable=None, listing_lag_s=5)
    order, clock = spec(), CloudClock(cloud)
    cloud.fault("create", "lost")
    cloud.fault("list", trouble, times=8)
    assert place_order(driver, first_offer(driver), order, clock=clock).name == order.name
    assert clock.slept < 5 + UNREAD_S


def test_lists_that_cannot_be_read_are_not_waited_for_longer_than_a_minute() -> None:
    cloud = cloud_of(is_repeatable=False, listing_lag_s=5)
    driver = reference(cloud, create_repeatable=None, listing_lag_s=5)
    clock = CloudClock(cloud)
    cloud.fault("create", "lost")
    cloud.fault("list", "server error", times=None)
    with pytest.raises(Owed):
        place_order(driver, first_offer(driver), spec(), clock=clock)
    assert 4 + UNREAD_S <= clock.slept <= 15 + UNREAD_S


def test_a_list_that_came_late_shows_what_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order had not appeared when it was asked for, and the lag was over when it came."""
    cloud = cloud_of(is_repeatable=False, listing_lag_s=5)
    driver = reference(cloud, create_repeatable=None, listing_lag_s=5)
    order, offer = spec(), first_offer(driver)
    listed = driver.list_instances

    def slowly(prefix: str) -> Listing:
        seen = listed(prefix)
        cloud.advance(6)
        return seen

    monkeypatch.setattr(driver, "list_instances", slowly)
    cloud.fault("create", "lost")
    assert place_order(driver, offer, order, clock=CloudClock(cloud)).name == order.name


def test_what_appears_late_under_an_owed_name_is_found_and_ended_by_name() -> None:
    cloud = cloud_of(is_repeatable=False)
    driver = reference(cloud, create_repeatable=None, listing_lag_s=60)
    offer, order = first_offer(driver), spec()
    cloud.fault("create", "late", seconds=500)
    with pytest.raises(Owed):
        place_order(driver, offer, order, clock=CloudClock(cloud))
    cloud.advance(500)
    assert [one.name for one in cloud.alive()] == [order.name]
    assert give_back(driver, order.name, within_s=300, clock=CloudClock(cloud)).is_gone
    assert cloud.alive() == []


def test_a_rate_limit_is_waited_out_for_as_long_as_the_provider_says() -> None:
    cloud = cloud_of()
    driver = reference(cloud)
    offer = first_offer(driver)
    cloud.fault("create", "rate limited", times=2, seconds=17)
    clock = CloudClock(cloud)
    place_order(driver, offer, spec(), clock=clock)
    assert clock.slept >= 34
    assert len(cloud.orders()) == 1


def test_a_provider_that_never_answers_is_given_up_after_a_few_orders_that_were_never_sent() -> None:
    cloud = cloud_of()
    driver = reference(cloud)
    offer = first_offer(driver)
    cloud.fault("create", "never sent", times=None)
    with pytest.raises(Transient):
        place_order(driver, offer, spec(), clock=CloudClock(cloud))
    assert cloud.orders() == []
    assert 2 <= len(cloud.calls("create")) <= 5


def test_a_refusal_is_the_answer_and_is_not_asked_again() -> None:
    cloud = cloud_of()
    driver = reference(cloud)
    offer = first_offer(driver)
    cloud.fault("create", "sold out", times=None)
    with pytest.raises(NoCapacity):
        place_order(driver, offer, spec(), clock=CloudClock(cloud))
    assert len(cloud.calls("create")) == 1


@pytest.mark.parametrize("refusal", ["bad credentials", "over quota", "sold out"])
@pytest.mark.parametrize("is_listed", [True, False])
def test_a_refusal_while_an_answer_is_open_says_nothing_of_the_open_order(refusal: str, is_listed: bool) -> None:
    """Where admission comes first, the order itself may fill the quota that its repetition is refused for."""
    cloud = cloud_of()
    driver = reference(cloud)
    offer, order = first_offer(driver), spec()
    cloud.fault("create", "lost")

    def refuse_from_now_on() -> None:
        if cloud.alive():
            cloud.fault("create", refusal, times=None)
            if not is_listed:
                cloud.fault("list", "bad credentials", times=None)

    if is_listed:
        placed = place_order(driver, offer, order, should_stop=refuse_from_now_on, clock=CloudClock(cloud))
        assert placed.name == order.name
    else:
        with pytest.raises(Owed):
            place_order(driver, offer, order, should_stop=refuse_from_now_on, clock=CloudClock(cloud))
    assert [one.name for one in cloud.alive()] == [order.name]
    cloud.mend()
    assert give_back(driver, order.name, within_s=10, clock=CloudClock(cloud)).is_gone


def test_a_refusal_after_a_lost_answer_waits_for_the_listing_lag_before_another_offer_may_be_tried() -> None:
    """One look at a list that lags sees nothing, and two machines would live side by side."""
    cloud = cloud_of(listing_lag_s=60)
    driver = reference(cloud, listing_lag_s=60)
    offer, order, clock = first_offer(driver), spec(), CloudClock(cloud)
    cloud.fault("create", "lost")

    def refuse_from_now_on() -> None:
        if cloud.orders():
            cloud.fault("create", "over quota", times=None)

    placed = place_order(driver, offer, order, should_stop=refuse_from_now_on, clock=clock)
    assert placed.name == order.name
    assert 55 <= clock.slept <= 90


def test_a_twin_that_cannot_be_ended_now_does_not_hide_the_order_that_was_found() -> None:
    cloud = cloud_of(is_repeatable=False)
    driver = reference(cloud, create_repeatable=None, listing_lag_s=60)
    cloud.fault("create", "twice")
    cloud.fault("create", "lost")
    cloud.fault("terminate", "server error")
    order = spec()
    instance = place_order(driver, first_offer(driver), order, clock=CloudClock(cloud))
    assert len(cloud.alive()) == 2
    assert instance.id in {one.id for one in cloud.alive()}
    assert give_back(driver, order.name, known_ids=(instance.id,), within_s=300, clock=CloudClock(cloud)).is_gone
    assert cloud.alive() == []


def test_an_order_that_a_signal_cut_off_is_looked_for_long_enough_to_arrive() -> None:
    cloud = cloud_of(is_repeatable=False)
    driver = reference(cloud)
    order = spec()
    cloud.fault("create", "late", seconds=1.5)
    with pytest.raises(Unconfirmed):
        driver.create_instance(first_offer(driver), order)
    assert give_back(driver, order.name, within_s=10, clock=CloudClock(cloud)).is_gone
    cloud.advance(60)
    assert [one.status for one in cloud.orders()] == ["ended"]


def test_without_time_to_confirm_an_open_order_is_looked_for_until_a_list_was_read() -> None:
    cloud = cloud_of()
    driver = reference(cloud)
    order = spec()
    driver.create_instance(first_offer(driver), order)
    cloud.fault("list", "server error")
    give_back(driver, order.name, within_s=8, confirm=False, clock=CloudClock(cloud))
    assert cloud.alive() == []


def test_of_many_only_what_is_still_there_is_owed() -> None:
    cloud = cloud_of()
    driver = reference(cloud)
    offer = first_offer(driver)
    cloud.fault("create", "never ends")
    stays, goes = (driver.create_instance(offer, spec(attempt)) for attempt in (0, 1))
    names, ids = frozenset({stays.name, goes.name}), (stays.id, goes.id)
    seen = give_back(driver, "pg-", names=names, known_ids=ids, within_s=5, clock=CloudClock(cloud))
    assert seen.owed == (stays.id,)


def test_who_must_stop_orders_nothing() -> None:
    cloud = cloud_of()
    driver = reference(cloud)
    with pytest.raises(Stopped, match="cancelled"):
        place_order(driver, first_offer(driver), spec(), should_stop=lambda: "cancelled", clock=CloudClock(cloud))
    assert cloud.orders() == []


def test_who_must_stop_while_an_answer_is_open_leaves_the_name_owed() -> None:
    cloud = cloud_of()
    driver = reference(cloud)
    offer = first_offer(driver)
    cloud.fault("create", "lost", times=None)
    with pytest.raises(Owed):
        place_order(
            driver,
            offer,
            spec(),
            should_stop=lambda: "cancelled" if cloud.calls("create") else None,
            clock=CloudClock(cloud),
        )


def test_of_two_instances_under_one_name_the_recorded_one_stays() -> None:
    cloud = cloud_of()
    driver = reference(cloud)
    cloud.fault("create", "twice")
    order = spec()
    place_order(driver, first_offer(driver), order, clock=CloudClock(cloud))
    both = driver.list_instances(order.name).named(order.name)
    assert len(both) == 2
    kept = keep_one(driver, both, recorded_id=both[1].id)
    assert [one.id for one in cloud.alive()] == [kept.id] == [both[1].id]


def test_giving_back_ends_everything_under_the_name_and_sees_it_gone() -> None:
    cloud = cloud_of(terminate_s=20)
    driver = reference(cloud)
    cloud.fault("create", "twice")
    cloud.fault("create", "leaves a disk")
    order = spec()
    place_order(driver, first_offer(driver), order, clock=CloudClock(cloud))
    absence = give_back(driver, order.name, within_s=60, clock=CloudClock(cloud))
    assert absence.is_gone, absence.evidence
    assert cloud.alive() == []
    assert cloud.disks() == []


def test_what_a_lagging_list_hides_is_ended_by_its_id() -> None:
    cloud = cloud_of(listing_lag_s=40)
    driver = reference(cloud, listing_lag_s=60)
    order = spec()
    instance = place_order(driver, first_offer(driver), order, clock=CloudClock(cloud))
    assert driver.list_instances(order.name).instances == ()
    assert give_back(driver, order.name, known_ids=(instance.id,), within_s=200, clock=CloudClock(cloud)).is_gone
    assert cloud.alive() == []


def test_an_empty_list_that_could_not_read_a_region_proves_nothing() -> None:
    cloud = cloud_of()
    driver = reference(cloud)
    order = spec()
    place_order(driver, first_offer(driver), order, clock=CloudClock(cloud))
    cloud.fault("list", "unread", times=None, region="north")
    absence = give_back(driver, order.name, within_s=30, clock=CloudClock(cloud))
    assert not absence.is_gone
    assert "north" in absence.evidence


def test_a_region_that_cannot_be_read_does_not_hide_that_an_instance_elsewhere_is_gone_by_its_id() -> None:
    cloud = cloud_of()
    driver = reference(cloud)
    order = spec()
    offer = next(offer for offer in driver.fetch_offers(Requirements()) if offer.region != "north")
    instance = place_order(driver, offer, order, clock=CloudClock(cloud))
    ordered_at = utc_now() - timedelta(hours=1)
    cloud.fault("list", "unread", times=None, region="north")
    absence = give_back(
        driver, order.name, known_ids=(instance.id,), ordered_at=ordered_at, within_s=60, clock=CloudClock(cloud)
    )
    assert absence.is_gone, absence.evidence
    assert cloud.alive() == []
    two = frozenset({order.name, spec(1).name})  # the other may be in the region that cannot be read
    again = give_back(
        driver,
        "pg-",
        names=two,
        known_ids=(instance.id,),
        ordered_at=ordered_at,
        within_s=30,
        clock=CloudClock(cloud),
    )
    assert not again.is_gone


def test_a_terminate_without_effect_is_sent_again_and_stays_owed_until_it_shows() -> None:
    cloud = cloud_of()
    driver = reference(cloud)
    cloud.fault("create", "never ends")
    order = spec()
    instance = place_order(driver, first_offer(driver), order, clock=CloudClock(cloud))
    absence = give_back(driver, order.name, within_s=100, clock=CloudClock(cloud))
    assert not absence.is_gone
    assert absence.owed == (instance.id,)
    assert len(cloud.calls("terminate")) >= 3
    cloud.mend()
    assert give_back(driver, order.name, within_s=100, clock=CloudClock(cloud)).is_gone


def test_refused_credentials_leave_it_owed_with_the_reason() -> None:
    cloud = cloud_of()
    driver = reference(cloud)
    order = spec()
    place_order(driver, first_offer(driver), order, clock=CloudClock(cloud))
    cloud.fault("terminate", "bad credentials", times=None)
    cloud.fault("list", "bad credentials", times=None)
    absence = give_back(driver, order.name, within_s=10, clock=CloudClock(cloud))
    assert not absence.is_gone
    assert "revoked" in absence.evidence


def test_without_confirming_the_requests_go_out_at_once_and_nothing_is_waited_for() -> None:
    cloud = cloud_of(terminate_s=20)
    driver = reference(cloud)
    order = spec()
    place_order(driver, first_offer(driver), order, clock=CloudClock(cloud))
    clock = CloudClock(cloud)
    absence = give_back(driver, order.name, within_s=8, confirm=False, clock=clock)
    assert not absence.is_gone
    assert clock.slept <= 0.1
    cloud.advance(20)
    assert cloud.alive() == []


def test_only_what_bears_one_of_the_names_is_ended() -> None:
    cloud = cloud_of()
    driver = reference(cloud)
    offer = first_offer(driver)
    mine, other = spec(0), spec(1)
    for order in (mine, other):
        place_order(driver, offer, order, clock=CloudClock(cloud))
    assert give_back(driver, "pg-", names=frozenset({mine.name}), within_s=10, clock=CloudClock(cloud)).is_gone
    assert [one.name for one in cloud.alive()] == [other.name]


def test_what_is_not_proved_to_be_ours_is_never_ended_and_holds_up_nothing() -> None:
    cloud = cloud_of()
    driver = reference(cloud)
    order = spec()
    instance = place_order(driver, first_offer(driver), order, clock=CloudClock(cloud))
    stranger = cloud.order_by_hand(order.name)
    assert stranger != instance.id
    absence = give_back(driver, order.name, within_s=60, clock=CloudClock(cloud))
    assert absence.is_gone, absence.evidence
    assert [one.id for one in cloud.alive()] == [stranger]
    assert [one.id for one in driver.list_instances(order.name).unproved] == [stranger]


class OrdersUnderFaults(RuleBasedStateMachine):
    """Random faults between random orders and give-backs."""

    def __init__(self) -> None:
        super().__init__()
        self.repeatable = True
        self.cloud = cloud_of(listing_lag_s=0)
        self.driver = reference(self.cloud)
        self.offer = first_offer(self.driver)
        self.attempt = 0
        self.accepted: dict[str, str] = {}

    @rule(
        on=st.sampled_from(["create", "get", "list", "terminate"]),
        what=st.sampled_from(["server error", "never sent", "lost", "rate limited", "no id", "sold out"]),
        times=st.integers(1, 4),
    )
    def something_goes_wrong(self, on: str, what: str, times: int) -> None:
        if what in {"no id", "sold out"} and on != "create":
            return
        self.cloud.fault(on, what, times=times)  # type: ignore[arg-type]

    @rule(fate=st.sampled_from(["leaves a disk", "fails at boot", "interrupted"]))
    def the_next_instance_has_a_fate(self, fate: str) -> None:
        self.cloud.fault("create", fate, seconds=30)  # type: ignore[arg-type]

    @rule()
    def time_passes(self) -> None:
        self.cloud.advance(30)

    @rule()
    def an_order(self) -> None:
        order = spec(self.attempt)
        self.attempt += 1
        try:
            self.accepted[order.name] = place_order(self.driver, self.offer, order, clock=CloudClock(self.cloud)).id
        except (ProviderError, RateLimited, AuthFailed):
            self.accepted[order.name] = ""

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def a_give_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.accepted)))
        known = (self.accepted[name],) if self.accepted[name] else ()
        absence = give_back(self.driver, name, known_ids=known, within_s=120, clock=CloudClock(self.cloud))
        if absence.is_gone:
            assert not self.cloud.alive(name)
            del self.accepted[name]

    @invariant()
    def what_lives_is_listed_by_its_name_and_lives_once(self) -> None:
        alive = [order.name for order in self.cloud.alive()]
        assert len(alive) == len(set(alive))
        assert set(alive) <= set(self.accepted)
        quiet = reference(self.cloud)
        for _ in range(12):  # past the faults that wait for a list call
            try:
                listing = quiet.list_instances(run_prefix("test", RUN))
            except ProviderError:
                continue
            if listing.is_complete:
                assert set(alive) <= {one.name for one in listing.instances}
                return

    def teardown(self) -> None:
        self.cloud.mend()
        for name in list(self.accepted):
            assert give_back(self.driver, name, within_s=120, clock=CloudClock(self.cloud)).is_gone
        assert self.cloud.alive() == []
        assert self.cloud.disks() == []


OrdersUnderFaults.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestOrdersUnderFaults = OrdersUnderFaults.TestCase
