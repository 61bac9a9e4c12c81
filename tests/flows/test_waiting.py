"""`max_wait`: offers are looked at again while nothing is to be had; and what was sold out is passed over by every run of the server."""

from __future__ import annotations

import itertools
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from prefect_gpu import providers as registry
from prefect_gpu.flows.run import cards, sold_out, waiting
from prefect_gpu.flows.run.attempt import Attempt
from prefect_gpu.flows.run.limits import Limits
from prefect_gpu.flows.run.record import Record
from prefect_gpu.flows.run.waiting import Search
from prefect_gpu.providers import ProviderName
from prefect_gpu.providers.core.aside import Stopped
from prefect_gpu.providers.core.contract import Capabilities
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InstanceFailed,
    NoCapacity,
    OverBudget,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Transient,
)
from prefect_gpu.providers.core.models import Availability, Offer, utc_now
from prefect_gpu.providers.core.requests import Requirements
from tests.flows.rented import Rented

pytestmark = [pytest.mark.usefixtures("prefect_api"), pytest.mark.timeout(180)]


@pytest.fixture
def rented(rented: Rented) -> Rented:
    """Each cloud has one kind of machine, in three zones."""
    for cloud in rented.clouds.values():
        cloud.change(types=[cloud.terms.types[0].model_dump()])
    return rented


@pytest.fixture
def eager(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> Rented:
    """Offers are looked at again several times a second, and nothing is remembered for longer than that."""
    monkeypatch.setattr(waiting, "FIRST_PAUSE_S", 0.3)
    monkeypatch.setattr(waiting, "LONGEST_PAUSE_S", 0.3)
    monkeypatch.setattr(waiting, "LEAST_COOL_S", 0.1)
    for library in rented.libraries.values():
        library.capabilities = library.capabilities.model_copy(update={"sold_out_s": 0.2})
    return rented


def sell_out(rented: Rented, times: int | None = None) -> None:
    for cloud in rented.clouds.values():
        cloud.fault("create", "sold out", times=times)


class TestARunThatWaits:
    def test_gets_its_machine_when_there_is_one(self, eager: Rented) -> None:
        sell_out(eager, times=4)
        message = eager.run(max_wait="1m")
        assert message.startswith("exit 0 in ")
        assert "alpha sold out 4 times" in message
        assert len([order for cloud in eager.clouds.values() for order in cloud.orders()]) == 1
        eager.assert_nothing_is_left()

    def test_ends_when_its_time_is_over_and_says_how_long_it_waited(self, eager: Rented) -> None:
        sell_out(eager)
        message = eager.run(max_wait="2s")
        assert message.startswith("No machine: ")
        assert " Waited " in message
        assert "for a machine (max_wait), looked again " in message
        assert eager.state.is_failed()
        looked = len(eager["alpha"].calls("offers"))
        assert 2 <= looked <= 12
        assert eager.artifact(cards.TRIED.key).startswith("# What did it try?")

    def test_does_not_wait_for_what_never_comes(self, eager: Rented) -> None:
        for cloud in eager.clouds.values():
            cloud.fault("create", "bad credentials", times=None)
        message = eager.run(max_wait="10m")
        assert message.endswith(" Waiting would not help.")
        assert eager.run(gpu="B200:64", max_wait="10m").endswith(" Waiting would not help.")

    def test_asks_only_those_again_that_could_have_something(self, eager: Rented) -> None:
        eager["alpha"].fault("create", "sold out", times=4)
        eager["beta"].fault("create", "bad credentials", times=None)
        assert eager.run(max_wait="1m").startswith("exit 0 in ")
        assert len(eager["beta"].calls("offers")) == 1
        assert len(eager["alpha"].calls("offers")) > 1

    def test_a_provider_that_did_not_answer_is_asked_again(self, eager: Rented) -> None:
        eager["alpha"].fault("offers", "server error", times=2)  # and the task's own retry
        eager["beta"].fault("offers", "server error", times=2)
        assert eager.run(max_wait="1m").startswith("exit 0 in ")

    def test_a_machine_that_failed_is_not_bought_again(self, eager: Rented) -> None:
        for cloud in eager.clouds.values():
            cloud.fault("create", "fails at boot", times=None)
        message = eager.run(max_wait="10m")
        assert message.endswith(" Waiting would not help.")
        assert len(eager["alpha"].orders()) == 3


class TestAllRunsOfAServer:
    def test_pass_over_what_was_sold_out_to_one_of_them_and_the_page_says_so(self, rented: Rented) -> None:
        rented["alpha"].fault("create", "sold out", times=None)
        rented.run()
        asked = len(rented["alpha"].calls("create"))
        assert asked == 3
        rented["alpha"].mend()
        assert rented.run().startswith("exit 0 in ")
        assert len(rented["alpha"].calls("create")) == asked
        page = rented.artifact(cards.TRIED.key)
        assert page.count("as a run of this server was told: passed over until ") == 3

    def test_say_until_when_where_nothing_else_is_left(self, rented: Rented) -> None:
        sell_out(rented)
        rented.run()
        asked = len(rented["alpha"].calls("create"))
        message = rented.run()
        assert message.startswith("No machine: all 6 offers were sold out to a run of this server a moment ago")
        assert message.endswith("on: max_wait='10m' waits for it.")
        assert len(rented["alpha"].calls("create")) == asked

    def test_try_own_machines_at_once(self, rented: Rented) -> None:
        for library in rented.libraries.values():
            library.capabilities = library.capabilities.model_copy(update={"sold_out_s": 0.0})
        sell_out(rented, times=3)
        rented.run(providers=["alpha"])
        for cloud in rented.clouds.values():
            cloud.mend()
        rented.run()
        assert len(rented["alpha"].orders()) == 1

    def test_of_another_account_ask_for_themselves(self, rented: Rented) -> None:
        sell_out(rented)
        rented.run()
        for cloud in rented.clouds.values():
            cloud.mend()
            cloud.change(account="another")
        rented.run()
        assert len(rented["alpha"].orders()) == 1


@pytest.mark.usefixtures("no_run_logger")
class TestWhatWasSoldOut:
    def told(self, **changes: Any) -> Attempt:
        now = utc_now()
        line = Attempt(
            attempt=0, name="n", provider=f"p{uuid4().hex[:6]}", account="a", account_id="i", scope="s", machine="m", gpu="none",
            spot=False, price=1.0, ordered_at=now, outcome="sold out", gone_at=now,
        )  # fmt: skip
        line = line.model_copy(update=changes)
        Record(uuid4(), [line]).write()
        return line

    def when(self, line: Attempt) -> Any:
        return next((seen[1] for place, seen in sold_out.lately().items() if place.provider == line.provider), None)

    def test_is_known_by_the_newest_word(self) -> None:
        first = self.told(gone_at=utc_now() - timedelta(minutes=4))
        assert self.when(first) == first.gone_at
        assert self.when(self.told(provider=first.provider)) > first.gone_at

    def test_is_no_other_failure_and_nothing_that_is_yet_to_come(self) -> None:
        assert self.when(self.told(outcome="over quota")) is None
        assert self.when(self.told(gone_at=utc_now() + timedelta(days=1))) is None

    def test_by_a_clock_that_is_ahead_is_kept_no_longer(self) -> None:
        ahead = self.told(gone_at=utc_now() + timedelta(seconds=90))
        assert self.when(ahead) <= utc_now()

    def test_that_nobody_can_read_hides_no_other(self) -> None:
        from prefect_gpu.flows.report.artifacts import publish

        line = self.told()
        publish(f"attempts-{uuid4()}", "table", '[{"what": "is this"}]', None)
        assert self.when(line) is not None


# --- by a clock of its own --------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds


def search(
    monkeypatch: pytest.MonkeyPatch, wait: timedelta, zones: int
) -> tuple[Search, SimpleNamespace, list[Offer], Clock]:
    offers = [
        Offer(provider="aws", instance_type="m", region="r", zone=f"r-{n}", price=1 + n, gpu_name="H100", gpu_count=8)
        for n in range(zones)
    ]
    monkeypatch.setattr(registry, "library", lambda _: SimpleNamespace(capabilities=Capabilities()))
    monkeypatch.setattr(sold_out, "lately", dict)
    monkeypatch.setattr(waiting, "ask_again", lambda *_: (offers, {}))
    run = SimpleNamespace(
        limits=Limits(wait=wait), record=SimpleNamespace(next_attempt=0, attempts=[]), requirements=Requirements(),
        order="price", providers=[ProviderName.AWS], account="default", failed=[], troubles={}, ranked=[], waited="",
        is_again=False, say=lambda *_: None, stop_reason=lambda: None, budget=SimpleNamespace(why_not=lambda _: None),
    )  # fmt: skip
    clock = Clock()
    return Search(run, clock=clock), run, offers, clock  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wait", "zones"), [(timedelta(hours=2), 40), (timedelta(days=30), 40), (timedelta(days=3), 1)]
)
def test_a_long_wait_asks_seldom_and_never_uses_up_the_names(
    monkeypatch: pytest.MonkeyPatch, wait: timedelta, zones: int
) -> None:
    looking, run, offers, clock = search(monkeypatch, wait, zones)
    asked: list[float] = []
    for offer in looking.offers(offers):
        asked.append(clock.now())
        run.failed.append((offer, NoCapacity("none left")))
        run.record.next_attempt += 1
    assert clock.now() == pytest.approx(wait.total_seconds(), abs=1.0)
    assert "for a machine (max_wait), looked again " in run.waited
    assert run.record.next_attempt <= 1295 - waiting.KEPT_ORDERS
    assert looking.looks <= wait.total_seconds() / 200 + 20
    assert max(b - a for a, b in itertools.pairwise(asked)) <= max(2 * 3600.0, wait.total_seconds() / 20)


def test_an_offer_is_not_asked_for_again_within_the_minutes_in_which_others_pass_it_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looking, run, offers, clock = search(monkeypatch, timedelta(hours=2), 2)
    asked: dict[str | None, list[float]] = {}
    for offer in looking.offers(offers):
        asked.setdefault(offer.zone, []).append(clock.now())
        run.failed.append((offer, NoCapacity("none left")))
        run.record.next_attempt += 1
    for times in asked.values():
        assert len(times) > 5
        assert min(b - a for a, b in itertools.pairwise(times)) >= 300


def test_a_cancel_ends_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    looking, run, offers, clock = search(monkeypatch, timedelta(hours=2), 1)
    run.stop_reason = lambda: "cancelled" if clock.now() > 40 else None

    def wait() -> None:
        for offer in looking.offers(offers):
            run.failed.append((offer, NoCapacity("none left")))

    with pytest.raises(Stopped, match="cancelled"):
        wait()
    assert clock.now() < 45


def test_a_price_that_may_fall_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looking, run, offers, _ = search(monkeypatch, timedelta(hours=1), 1)
    run.requirements = Requirements(max_price=0.5)
    cheap = [offers[0].model_copy(update={"price": 0.4})]
    looks: list[int] = []

    def look(*_: Any) -> tuple[list[Offer], dict[str, ProviderError]]:
        looks.append(1)
        return (cheap if len(looks) == 3 else offers), {}

    monkeypatch.setattr(waiting, "ask_again", look)
    assert [offer.price for offer in looking.offers(offers)][:1] == [0.4]


def test_what_is_shown_as_not_available_is_looked_at_and_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looking, run, offers, _ = search(monkeypatch, timedelta(hours=1), 1)
    gone = [offers[0].model_copy(update={"availability": Availability.UNAVAILABLE})]
    monkeypatch.setattr(waiting, "ask_again", lambda *_: (gone, {}))
    assert list(looking.offers(gone)) == []
    assert looking.looks > 5
    assert run.waited


@pytest.mark.parametrize(
    ("error", "comes_back"),
    [
        (NoCapacity(""), True),
        (QuotaExceeded(""), True),
        (RateLimited(""), True),
        (Transient(""), True),
        (OverBudget("", reach="provider"), True),  # of the account: tomorrow is another day
        (OverBudget(""), False),
        (AuthFailed(""), False),
        (InstanceFailed(""), False),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, ProviderError) else str(one),
)
def test_what_may_be_had_later_is_told_from_what_may_not(error: ProviderError, comes_back: bool) -> None:
    assert waiting.comes_back(error) is comes_back
