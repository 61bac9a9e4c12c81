"""`max_cost`: nothing is bought that it does not pay for, and a run is stopped before more can be billed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from prefect_gpu import providers as registry
from prefect_gpu.flows.run import budget as budgets
from prefect_gpu.flows.run import cards
from prefect_gpu.flows.run.attempt import Attempt
from prefect_gpu.flows.run.budget import Budget
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers.core.contract import Billing, Capabilities
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import Offer, utc_now
from prefect_gpu.providers.core.requests import Job
from tests.flows.rented import Rented

BY_SECOND = Billing(step_s=1, minimum_s=0)
BY_HOUR = Billing()
OFFER = Offer(provider="p", instance_type="m", region="r", price=36.0)  # a cent a second


class Clock:
    """The time of the budgets of a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        self.began = utc_now()
        monkeypatch.setattr(budgets, "_steady", lambda: self.seconds)
        monkeypatch.setattr(budgets, "utc_now", lambda: self.began)
        monkeypatch.setattr(budgets, "tell", lambda _run, what, facts: self.told.append({"event": what, **facts}))
        self.told: list[dict[str, Any]] = []

    def pass_by(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def billed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Billing]]:
    """By provider, how it bills; the lag of its listings is 15 s."""
    known = {"p": BY_SECOND}
    monkeypatch.setattr(
        registry,
        "library",
        lambda name: SimpleNamespace(capabilities=Capabilities(billing=known[str(name)], listing_lag_s=15)),
    )
    return known


def line(clock: Clock, **changes: Any) -> Attempt:
    whole = Attempt(
        attempt=0, name="n", provider="p", account="a", account_id="i", scope="s", machine="m", gpu="none", spot=False,
        price=36.0, ordered_at=clock.began, outcome="current", instance_id="i-1",
    )  # fmt: skip
    return whole.model_copy(update=changes)


def budget(limit: float | None, *attempts: Attempt, has_files: bool = False) -> tuple[Budget, list[str]]:
    said: list[str] = []
    return Budget(limit, Record(uuid4(), list(attempts)), said.append, has_files=has_files), said


@pytest.mark.usefixtures("billed")
class TestTheEnd:
    """RESERVE_S is 45 s, and the provider's listings lag 15 s: giving back takes 60 s."""

    def test_the_run_is_stopped_while_its_end_is_still_paid_for(self, clock: Clock) -> None:
        run, _ = budget(3.0, line(clock))  # 300 s
        clock.pass_by(239)
        assert run.stop_reason() is None
        clock.pass_by(2)
        assert run.stop_reason() == "max_cost of $3.00 is reached"
        assert run.used().bound + 60 * 0.01 == pytest.approx(3.0, abs=0.02)

    def test_time_for_files_is_left_where_there_are_any(self, clock: Clock) -> None:
        without, with_files = budget(3.0, line(clock))[0], budget(3.0, line(clock), has_files=True)[0]
        assert without.job_until() == clock.began + timedelta(seconds=240)
        assert with_files.job_until() == clock.began + timedelta(seconds=120)
        clock.pass_by(130)
        assert with_files.is_over(for_job=True)
        assert not with_files.is_over()

    def test_failed_attempts_count(self, clock: Clock) -> None:
        failed = line(clock, name="f", outcome="boot failed", gone_at=clock.began, cost=1.0)
        assert budget(3.0, failed, line(clock))[0].job_until() == clock.began + timedelta(seconds=140)

    def test_what_is_owed_goes_on_costing(self, clock: Clock) -> None:
        owed = line(clock, name="o", outcome="owed", instance_id=None)
        assert budget(3.0, owed, line(clock))[0].job_until() == clock.began + timedelta(seconds=90)

    def test_a_started_hour_is_used_to_its_end_and_not_beyond(self, clock: Clock, billed: dict[str, Billing]) -> None:
        billed["p"] = BY_HOUR
        assert budget(100.0, line(clock))[0].job_until() == clock.began + timedelta(seconds=7200 - 60)

    def test_what_was_bought_before_the_budget_was_over_is_stopped_at_once(self, clock: Clock) -> None:
        run, _ = budget(1.0, line(clock, ordered_at=clock.began - timedelta(hours=1)))
        assert run.stop_reason()

    def test_what_is_free_goes_on(self, clock: Clock) -> None:
        run, _ = budget(0.01, line(clock, price=0.0))
        clock.pass_by(300 * 24 * 3600)
        assert run.stop_reason() is None

    def test_without_a_limit_all_goes_on(self, clock: Clock) -> None:
        run, _ = budget(None, line(clock))
        clock.pass_by(1e7)
        assert (run.stop_reason(), run.job_until(), run.is_over(), run.why_not(OFFER)) == (None, None, False, None)

    def test_a_clock_that_is_set_back_buys_no_time(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        run, _ = budget(3.0, line(clock))
        monkeypatch.setattr(budgets, "utc_now", lambda: clock.began - timedelta(hours=5))
        clock.pass_by(300)
        assert run.stop_reason()


@pytest.mark.usefixtures("billed")
class TestTheWarning:
    def test_at_80_percent_once_with_the_time_of_the_end_then_at_the_end(self, clock: Clock) -> None:
        run, said = budget(3.0, line(clock))
        for _ in range(25):
            clock.pass_by(10)
            run.stop_reason()
        assert len(said) == 2
        assert said[0].startswith("$2.00 of max_cost $3.00 may be billed by now: the run is stopped at ")
        assert said[1] == "max_cost of $3.00 is reached: the job is ended and the machine is given back"
        assert [(one["event"], one["share"], one["is_stopped"]) for one in clock.told] == [
            ("cost.crossed", pytest.approx(0.66, abs=0.02), False),  # a fifth is kept for the end
            ("cost.crossed", pytest.approx(0.8, abs=0.02), True),
        ]
        assert clock.told[0]["max_cost"] == 3.0

    def test_at_80_percent_of_the_money_where_it_lasts_for_long(self, clock: Clock) -> None:
        run, said = budget(360.0, line(clock))  # ten hours
        clock.pass_by(28700)
        assert (run.stop_reason(), said) == (None, [])
        clock.pass_by(200)
        assert run.stop_reason() is None
        assert said[0].startswith("$289.00 of max_cost $360.00 ")


@pytest.mark.usefixtures("billed")
class TestAnOffer:
    def test_that_is_not_paid_for_long_enough_to_be_of_use_is_refused(self, clock: Clock) -> None:
        del clock
        assert budget(1.20)[0].why_not(OFFER) is None  # 60 s, and 60 s to give it back
        said = budget(1.15)[0].why_not(OFFER)
        assert said == (
            "max_cost is $1.15, $1.15 of it are left, and the least stay costs $1.20 (billed from the order, by the second)"
        )

    def test_of_which_an_hour_must_be_paid_is_refused_where_less_is_left(
        self, clock: Clock, billed: dict[str, Billing]
    ) -> None:
        billed["p"] = BY_HOUR
        spent = line(clock, outcome="boot failed", gone_at=clock.began, cost=10.0)
        assert budget(46.0, spent)[0].why_not(OFFER) is None
        assert "$35.00 of it are left, and the least stay costs $36.00" in (budget(45.0, spent)[0].why_not(OFFER) or "")

    def test_has_a_lease_that_ends_with_what_is_paid_for(self, clock: Clock) -> None:
        far = clock.began + timedelta(days=1)
        until = budget(10.0)[0].lease_until(OFFER, far)  # 1000 s, of which 60 are kept
        assert clock.began + timedelta(seconds=880) <= until <= clock.began + timedelta(seconds=940)
        lease = Lease(realm="abcd", run_id=uuid4(), deadline=until, run_count=1, attempt=0)
        assert lease.deadline == until
        assert budget(None)[0].lease_until(OFFER, far) == far

    @pytest.mark.parametrize("second", [0, 20, 40, 59])
    def test_has_a_lease_that_leaves_time_for_the_job_at_whatever_second_it_begins(
        self, clock: Clock, second: int
    ) -> None:
        clock.began = clock.began.replace(second=second, microsecond=0)
        until = budget(1.3)[0].lease_until(OFFER, clock.began + timedelta(days=1))  # 130 s, of which 60 are kept
        lease = Lease(realm="abcd", run_id=uuid4(), deadline=until, run_count=1, attempt=0)
        assert timedelta(seconds=60) <= lease.deadline - clock.began <= timedelta(seconds=130)


# --- whole runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prefect_api")
class TestARun:
    def test_is_stopped_by_its_budget_with_its_files_and_the_machine_gone(
        self, dear: Rented, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(budgets, "FILES_S", 2.0)
        job = Job(outputs=("so-far.txt",))
        message = dear.run("echo epoch 1; echo 1 >so-far.txt; sleep 60", max_cost=16.0, job=job)
        assert message.startswith("stopped by its budget (max_cost of $16.00 is reached) in ")
        assert dear.state.name == "OverBudget"
        assert dear.state.is_failed()
        assert dear.result.outcome == "over budget"
        assert dear.result.outputs == ("so-far.txt",)
        assert dear.result.cost == dear.record.cost <= 16.0
        dear.assert_nothing_is_left()
        assert dear["alpha"].cost() <= 16.0
        assert ", of max_cost $16.00, for 1 order: " in dear.artifact(cards.COST.key)
        lease = Lease.parse(dear.record.attempts[0].name)
        assert lease is not None
        assert (lease.deadline - dear.record.attempts[0].ordered_at).total_seconds() <= 61  # a whole minute, at most

    def test_is_stopped_while_prefects_api_is_down(self, dear: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
        from prefect_gpu.flows.run.ownership import Ownership, Standing

        original = Ownership.ask

        def ask(self: Ownership, within_s: float, *, fresh_s: float = 0.0) -> Standing:
            is_ordered = dear["alpha"].orders()
            return Standing.UNKNOWN if is_ordered else original(self, within_s, fresh_s=fresh_s)

        monkeypatch.setattr(Ownership, "ask", ask)
        monkeypatch.setattr("prefect_gpu.flows.run.execution.RESULT_PATIENCE_S", 0.5)
        assert dear.run("sleep 60", max_cost=10.0).startswith("stopped by its budget")
        dear.assert_nothing_is_left()

    def test_that_never_gets_ready_is_stopped_too(self, dear: Rented) -> None:
        for cloud in dear.clouds.values():
            cloud.fault("create", "never runs", times=None)
        message = dear.run(max_cost=8.0)
        assert message.startswith("stopped by its budget (max_cost of $8.00 is reached) before the job had ended, $")
        assert dear.state.name == "OverBudget"
        dear.assert_nothing_is_left()
        assert sum(cloud.cost() for cloud in dear.clouds.values()) <= 8.0

    def test_buys_nothing_that_its_budget_does_not_pay_for(self, dear: Rented) -> None:
        message = dear.run(max_cost=0.5)
        assert message.startswith(
            "No machine within the budget: max_cost is $0.50, $0.50 of it are left, and the least "
        )
        assert dear["alpha"].orders() == dear["beta"].orders() == []

    def test_takes_what_the_budget_pays_for_where_the_first_is_too_dear(self, dear: Rented) -> None:
        dear.libraries["alpha"].capabilities = dear.libraries["alpha"].capabilities.model_copy(
            update={"billing": Billing(step_s=600, minimum_s=0)}
        )
        assert dear.run("true", max_cost=400.0, order="given").startswith("exit 0 in ")
        assert len(dear["beta"].orders()) == 1
        assert "over budget" in dear.artifact(cards.TRIED.key)

    def test_in_which_the_job_s_own_time_was_over_says_so(self, dear: Rented) -> None:
        message = dear.run("sleep 60", max_cost=1000.0, job=Job(timeout_s=1))
        assert message.startswith("timed out in ")
        assert dear.state.name == "Failed"
