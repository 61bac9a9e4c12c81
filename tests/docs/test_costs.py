"""The numbers on the page of costs are those that the code counts."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from prefect_gpu import providers as registry
from prefect_gpu.flows.report import text
from prefect_gpu.flows.run import budget
from prefect_gpu.flows.run.attempt import Attempt
from prefect_gpu.flows.run.budget import Budget
from prefect_gpu.flows.run.ledger import cost
from prefect_gpu.flows.run.record import Record
from tests.docs.pages import DOCS

PAGE = (DOCS / "costs.md").read_text()
ROWS = re.findall(
    r"^\| (\d) \| (\w+) \| ([\d.]+) \| ([\d:]+) \| ([\d:-]+) \| ([\d:]+) \| ([\d:]+) \| \$([\d.]+) \| \$([\d.]+) \|$",
    PAGE,
    re.MULTILINE,
)


def moment(clock: str) -> datetime | None:
    if clock == "-":
        return None
    hours, minutes, seconds = map(int, clock.split(":"))
    return datetime(2026, 3, 1, hours, minutes, seconds, tzinfo=UTC)


def line(row: tuple[str, ...]) -> Attempt:
    _, provider, price, ordered, runs, asked, gone = row[:7]
    return Attempt(
        attempt=0, name=f"n{ordered}", provider=provider, account="a", account_id="i", scope="s", machine="m", gpu="H100:1", spot=False,
        price=float(price), ordered_at=moment(ordered) or datetime.now(UTC), running_at=moment(runs), asked_at=moment(asked),
        gone_at=moment(gone), instance_id="i", outcome="gone",
    )  # fmt: skip


def test_the_example_is_there() -> None:
    assert len(ROWS) == 3


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[1]} {row[3]}")
def test_each_order_of_the_example_costs_what_the_page_says(row: tuple[str, ...]) -> None:
    known = registry.library(row[1]).capabilities
    counted = cost(line(row), known.billing, datetime.now(UTC), known.listing_lag_s)
    assert (f"{counted.bound:.2f}", f"{counted.estimate:.2f}") == row[7:]


def test_the_sum_is_that_of_the_rows() -> None:
    first, second = ROWS[:2]
    assert (
        f"**${float(first[7]) + float(second[7]):.2f} at most, probably ${float(first[8]) + float(second[8]):.2f}**"
        in PAGE
    )


def test_the_time_that_a_budget_leaves_is_what_the_code_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    failed, second = (line(row) for row in ROWS[:2])
    failed = failed.model_copy(update={"cost": float(ROWS[0][7])})
    running = second.model_copy(update={"gone_at": None, "asked_at": None, "outcome": "current"})
    monkeypatch.setattr(budget, "utc_now", lambda: running.ordered_at)
    until = Budget(10.0, Record(uuid4(), [failed, running]), lambda _: None).job_until()
    assert until is not None
    left = until - running.ordered_at
    said = re.search(r"it is given back (.+?) after its order", PAGE)
    assert said is not None
    assert said[1] == text.duration(left.total_seconds() // 60 * 60)
    assert f"For the end {budget.RESERVE_S:.0f} seconds are kept" in PAGE
