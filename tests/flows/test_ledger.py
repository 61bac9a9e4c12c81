"""What runs cost, in two numbers, by their records; compared with what the vendor's own meter says."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from prefect_gpu.flows.run import ledger
from prefect_gpu.flows.run.attempt import Attempt
from prefect_gpu.flows.run.ledger import Line, Money, by_day, cost
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers.core.contract import Billing
from prefect_gpu.providers.core.models import utc_now
from tests.fakes.meter import Meter
from tests.flows.rented import Rented

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ONE = Attempt(
    attempt=0, name="n", provider="p", account="a", account_id="i", scope="s", machine="m", gpu="none", spot=False,
    price=3.6, ordered_at=NOON, outcome="current", instance_id="i-1",
)  # fmt: skip
BY_SECOND = Billing(step_s=1, minimum_s=0)
FROM_RUNNING = Billing(starts="running", step_s=1, minimum_s=60)


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def line(**changes: Any) -> Attempt:
    return ONE.model_copy(update=changes)


@pytest.mark.parametrize(
    ("changes", "billing", "until_s", "bound", "estimate"),
    [
        ({}, BY_SECOND, 100, 0.1, 0.1),
        ({}, Billing(), 1, 3.6, 3.6),
        ({}, Billing(hourly_extras=0.4), 3601, 8.0, 8.0),
        ({"asked_at": after(90), "gone_at": after(100)}, BY_SECOND, 9999, 0.1, 0.09),
        # It did not end for an hour: it was billed all the while.
        ({"asked_at": after(90), "gone_at": after(3690)}, BY_SECOND, 9999, 3.69, 3.69),
        ({"running_at": after(40)}, FROM_RUNNING, 140, 0.14, 0.1),
        ({"running_at": after(99)}, FROM_RUNNING, 100, 0.1, 0.06),
        ({}, FROM_RUNNING, 100, 0.1, 0.0),  # it never ran
        ({"machines": 2}, BY_SECOND, 100, 0.2, 0.2),
        ({"instance_id": None, "outcome": "owed"}, BY_SECOND, 100, 0.1, 0.0),  # never answered: perhaps
        ({"instance_id": None, "outcome": "gone", "gone_at": after(50)}, BY_SECOND, 100, 0.0, 0.0),
        ({"instance_id": None, "outcome": "sold out", "gone_at": after(1)}, Billing(), 100, 0.0, 0.0),
    ],
)
def test_an_order_costs_what_the_provider_bills_at_most_and_probably(
    changes: dict[str, Any], billing: Billing, until_s: float, bound: float, estimate: float
) -> None:
    counted = cost(line(**changes), billing, after(until_s))
    assert (counted.bound, counted.estimate) == (pytest.approx(bound), pytest.approx(estimate))


def test_a_machine_that_was_seen_only_when_it_was_given_back_is_paid_for_and_so_is_a_second_one() -> None:
    assert ledger.with_machines(line(instance_id=None), ["i-9"]).instance_id == "i-9"
    assert ledger.with_machines(line(instance_id=None), []).instance_id is None
    assert ledger.with_machines(line(), ["i-2"]).machines == 2
    assert ledger.with_machines(line(), ["i-1"]).machines == 1
    assert ledger.with_machines(line(machines=2), ["i-1"]).machines == 2


def test_a_cost_falls_on_the_days_that_the_order_lasted() -> None:
    told = Line(
        run_id=uuid4(), attempt=line(), money=Money(bound=48.0, estimate=24.0), until=NOON + timedelta(hours=48)
    )
    days = by_day(told)
    assert {day: money.bound for day, money in days.items()} == {
        date(2026, 3, 1): pytest.approx(12.0),
        date(2026, 3, 2): pytest.approx(24.0),
        date(2026, 3, 3): pytest.approx(12.0),
    }
    assert sum(money.estimate for money in days.values()) == pytest.approx(24.0)


# --- beside the vendor's meter ---------------------------------------------------------------------------------------------

METERS = {
    "by the second": Meter(),
    "by the hour": Meter(step_s=3600, minimum_s=3600, extras=0.03),
    "from running": Meter(starts="running", step_s=1, minimum_s=60),
}


def metered(rented: Rented, meter: Meter) -> None:
    for library in rented.libraries.values():
        library.capabilities = library.capabilities.model_copy(update={"billing": meter.declared})


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("meter", METERS.values(), ids=METERS.keys())
def test_the_ledger_is_what_the_vendor_bills_failed_attempts_and_lost_answers_included(
    rented: Rented, meter: Meter
) -> None:
    metered(rented, meter)
    alpha = rented["alpha"]
    alpha.fault("create", "lost")  # sent again, under the same name: one instance
    alpha.fault("create", "fails at boot")
    alpha.fault("create", "sold out", region="south")
    assert rented.run("sleep 1").startswith("exit 0 in ")
    rented.assert_nothing_is_left()
    bill = sum(meter.bill(cloud) for cloud in rented.clouds.values())
    assert bill > 0
    told = ledger.total(rented.record.attempts)
    assert told.bound >= bill - 1e-9
    slack = 0.0 if meter.step_s == 3600 else 10 * 0.05 / 3600 * len(alpha.orders())  # some seconds of each
    if meter.starts == "order":
        assert told.bound == pytest.approx(bill, abs=slack + 1e-9)
    assert told.estimate == pytest.approx(bill, abs=slack + 1e-9)
    assert ledger.so_far([rented.run_id, uuid4()]) == {rented.run_id: told}


@pytest.mark.usefixtures("prefect_api", "no_run_logger")
class TestReading:
    def test_all_runs_lines_of_a_time_are_found_what_ran_since_before_it_too(self, rented: Rented) -> None:
        del rented
        now = utc_now()
        since = now - timedelta(minutes=1)
        old, new, running = uuid4(), uuid4(), uuid4()
        hour = timedelta(hours=1)
        gone = {"outcome": "gone", "provider": "alpha"}
        Record(old, [line(**gone, ordered_at=now - 9 * hour, gone_at=now - 8 * hour, cost=1.0)]).write()
        Record(new, [line(**gone, ordered_at=now - hour, gone_at=now, cost=2.0, estimate=1.5)]).write()
        Record(running, [line(provider="alpha", ordered_at=now - 2 * hour)]).write()
        found = {one.run_id: one for one in ledger.lines(since, now) if one.run_id in (old, new, running)}
        assert found.keys() == {new, running}
        assert found[new].money == Money(bound=2.0, estimate=1.5)
        assert found[running].money.bound == pytest.approx(7.2)
        assert [one.run_id for one in ledger.lines(since, now, lambda one: one.cost == 2.0)].count(running) == 0

    def test_what_was_settled_from_outside_counts(self, rented: Rented) -> None:
        del rented
        run_id, now = uuid4(), utc_now()
        record = Record(run_id, [line(provider="alpha", ordered_at=now - timedelta(hours=2))])
        record.write()
        Record.read(run_id).settle(line(provider="alpha", outcome="gone", gone_at=now - timedelta(hours=1), cost=5.0))
        assert ledger.so_far([run_id])[run_id].bound == 5.0
        assert [one.money.bound for one in ledger.lines(now - timedelta(days=1)) if one.run_id == run_id] == [5.0]
