"""The budget of an account, over all runs of a Prefect server: looked at before each order, against the records of all of them.

Two orders at once cannot both pass. Each is on its run's record before it looks, with what it may cost in its first hour, so of two at
least one sees the other; where they are only in each other's way, each steps back, waits a moment and looks again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from prefect_gpu import providers as registry
from prefect_gpu.blocks.budget import AccountBudget
from prefect_gpu.flows.report import text
from prefect_gpu.flows.run import ledger
from prefect_gpu.flows.run.attempt import ORDERED, Attempt
from prefect_gpu.flows.run.ledger import Line
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers.core.errors import OverBudget
from prefect_gpu.providers.core.models import utc_now

FIRST_S: Final = 3600.0  # a machine that runs counts with at least so much time
LOOKS: Final = 3
PAUSE_S: Final = 2.0  # at most, before another look


class _Used(NamedTuple):
    """USD on one account, this order included."""

    day: float
    month: float
    undecided: float  # of orders that are being looked at like this one


def budget_of(provider: str, account: str) -> AccountBudget:
    """The budget on the account's block; none where it has no block."""
    driver: Any = registry.library(provider).driver(account)
    budget = getattr(driver.credentials, "budget", None)
    return budget if isinstance(budget, AccountBudget) else AccountBudget()


def promised(line: Attempt, max_cost: float | None) -> float:
    """What an order counts with before it has cost as much: its first hour, or the run's whole budget where that is less."""
    hour = registry.library(line.provider).capabilities.billing.cost(line.price, FIRST_S)
    return hour if max_cost is None else min(hour, max_cost)


def must_pay_for(
    record: Record,
    line: Attempt,
    max_cost: float | None = None,
    *,
    wait: Callable[[float], object] = time.sleep,
) -> None:
    """Raise OverBudget where the account's budget does not pay for the order of this line, which is on the record already."""
    budget = budget_of(line.provider, line.account)
    if not budget.is_set:
        return
    line = record.note(line, promised=promised(line, max_cost))
    for looks_left in reversed(range(LOOKS)):
        try:
            record.write()
            now = utc_now()
            used = _used(line, now)
        except Exception as trouble:
            said = (
                f"the budget of {_named(line)} could not be looked at ({type(trouble).__name__}): nothing was ordered"
            )
            raise OverBudget(said, reach="provider") from trouble
        refusal = _refusal(line, budget, used, now)
        if refusal is None:
            return
        alone = used._replace(day=used.day - used.undecided, month=used.month - used.undecided)
        is_contested = _refusal(line, budget, alone, now) is None
        if not is_contested or not looks_left:
            raise OverBudget(refusal, reach="provider")
        line = record.note(line, gone_at=now, cost=0.0)  # out of the other's way
        record.write()
        wait(random.uniform(0.2, 1.0) * PAUSE_S)  # noqa: S311 - so that not both look again at once
        line = record.note(line, gone_at=None, cost=None)


def _used(order: Attempt, now: datetime) -> _Used:
    today = now.date()
    lines = ledger.lines(
        now.replace(day=1, hour=0, minute=0, second=0, microsecond=0),
        now,
        lambda one: (one.provider, one.account) == (order.provider, order.account),
    )
    day = month = undecided = 0.0
    for line in lines:
        for when, money in ledger.by_day(line).items():
            if (when.year, when.month) == (today.year, today.month):
                month += money.bound
                day += money.bound if when == today else 0.0
        if line.attempt.may_cost:  # what it may still cost falls on today
            more = max(0.0, _promised(line) - line.money.bound)
            day, month = day + more, month + more
            is_other = line.attempt.name != order.name
            if is_other and line.attempt.outcome == ORDERED and line.attempt.instance_id is None:
                undecided += _promised(line)
    return _Used(day, month, undecided)


def _promised(line: Line) -> float:
    known = line.attempt.promised
    return promised(line.attempt, None) if known is None else known


def _refusal(line: Attempt, budget: AccountBudget, used: _Used, now: datetime) -> str | None:
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    tomorrow = f"wait until 00:00 UTC, {text.duration((midnight - now).total_seconds())} from now"
    own = line.promised or 0.0
    for limit, amount, period, field, patience in (
        (budget.per_day, used.day, "a day", "per_day", tomorrow),
        (budget.per_month, used.month, "a month", "per_month", "wait until the first of the month (UTC)"),
    ):
        if limit is not None and amount > limit + 1e-9:
            others = max(0.0, amount - own)
            return (
                f"the budget of {_named(line)} is {text.dollars(limit)} {period}, {text.dollars(others)} of it are used up or promised to"
                f" what runs, and this order counts with {text.dollars(own)}: {patience}, or raise budget.{field} in the block"
                f" gpu-{line.provider}/{line.account}"
            )
    return None


def _named(line: Attempt) -> str:
    return f"{line.provider} ({line.account})"
