"""What runs cost, in two numbers, by their records: the most that providers may bill, and what they will probably bill.

The first counts from the order to observed absence, rounded up as the provider bills; an order that was never answered counts as
long as it may have bought something. The second counts from when the provider begins to bill until it was asked to end the machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from prefect.context import SyncClientContext

from prefect_gpu import providers as registry
from prefect_gpu.flows.report import last_reap
from prefect_gpu.flows.report.artifacts import newest, noted
from prefect_gpu.flows.report.rows import rows
from prefect_gpu.flows.run.attempt import Attempt, join
from prefect_gpu.flows.run.record import Record, newest_first, told_by_all
from prefect_gpu.providers.core.contract import Billing, Capabilities
from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.models import Model, utc_now

SETTLES_S: Final = 60.0  # a machine that took longer to end after it was asked to was billed on meanwhile
RECENTLY: Final = timedelta(days=1)  # what was written before and still stands, `reap` knows
MANY: Final = 50  # records asked for in one question


class Money(Model):
    """USD, in two numbers."""

    bound: float = 0.0  # at most
    estimate: float = 0.0  # probably

    def __add__(self, other: Money) -> Money:
        return Money(bound=self.bound + other.bound, estimate=self.estimate + other.estimate)

    def share(self, part: float) -> Money:
        return Money(bound=self.bound * part, estimate=self.estimate * part)


class Line(Model):
    """One order of a run, and what it has cost by `until`."""

    run_id: UUID
    attempt: Attempt
    money: Money
    until: datetime  # its end, or when it was looked at


def cost(line: Attempt, billing: Billing, until: datetime, lag_s: float = 0.0) -> Money:
    """What one order cost from its beginning to `until`, or to its end where that was seen."""
    until = line.gone_at or until
    bound = estimate = 0.0
    if line.instance_id is not None or line.may_cost:
        bound = billing.cost(line.price, _seconds(line.ordered_at, until)) * line.machines
    began = line.ordered_at if billing.starts == "order" else line.running_at
    if line.instance_id is not None and began is not None:
        asked = line.asked_at
        is_prompt = asked is not None and (until - asked).total_seconds() <= SETTLES_S + lag_s
        ended = asked if asked is not None and is_prompt else until
        estimate = billing.cost(line.price, _seconds(began, ended)) * line.machines
    return Money(bound=bound, estimate=min(estimate, bound))


def _seconds(began: datetime, ended: datetime) -> float:
    return max(1e-3, (ended - began).total_seconds())  # what was begun is billed, however short it was


def counted(line: Attempt, until: datetime) -> Attempt:
    """The line with what it has cost; as it is where this worker lacks the provider's extra."""
    try:
        known = registry.library(line.provider).capabilities
    except (ProviderError, ValueError):
        return line
    money = cost(line, known.billing, until, known.listing_lag_s)
    traffic = line.traffic or 0.0
    return line.model_copy(update={"cost": money.bound + traffic, "estimate": money.estimate + traffic})


def with_traffic(line: Attempt) -> Attempt:
    """The line with what its bytes have cost, where its provider bills them and tells; asked for once it is gone."""
    try:
        library = registry.library(line.provider)
        if library.capabilities.billing.traffic and line.instance_id is not None:
            cost = library.driver(line.account).traffic_cost(line.instance_id, line.ordered_at)
            return line if cost is None else line.model_copy(update={"traffic": cost})
    except Exception:  # noqa: BLE001, S110 - whatever a provider answers: what was given back is given back
        pass
    return line


def with_machines(line: Attempt, machines: Iterable[str]) -> Attempt:
    """The line with what was seen under its name: one whose answer was lost is paid for all the same, and so is a second one."""
    seen = set(machines)
    if line.instance_id is None and seen:
        line = line.model_copy(update={"instance_id": min(seen)})
    if line.instance_id is not None:
        seen.add(line.instance_id)
    return line.model_copy(update={"machines": max(line.machines, len(seen))})


def money(line: Attempt, now: datetime) -> Money:
    """What the order has cost by now; of one that is over, what was written when it ended."""
    if not line.may_cost and line.cost is not None:
        return Money(bound=line.cost, estimate=line.cost if line.estimate is None else line.estimate)
    line = counted(line, now)
    return Money(bound=line.cost or 0.0, estimate=line.estimate or 0.0)


def total(attempts: Iterable[Attempt], now: datetime | None = None) -> Money:
    """What all of these orders have cost by now."""
    moment = now or utc_now()
    return sum((money(one, moment) for one in attempts), Money())


def by_day(line: Line) -> dict[date, Money]:
    """The cost of an order by the days (UTC) that it lasted, each by its share of the time."""
    began = line.attempt.ordered_at
    whole = (line.until - began).total_seconds()
    if whole <= 0:
        return {began.date(): line.money}
    days: dict[date, Money] = {}
    at = began
    while at < line.until:
        next_day = at.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        end = min(next_day, line.until)
        days[at.date()] = line.money.share((end - at).total_seconds() / whole)
        at = end
    return days


# --- reading ----------------------------------------------------------------------------------------------------------


def so_far(run_ids: Iterable[UUID], now: datetime | None = None) -> dict[UUID, Money]:
    """What each of these runs has cost by now, failed attempts included; runs that ordered nothing are left out."""
    moment = now or utc_now()
    return {run_id: total(record.attempts, moment) for run_id, record in records(run_ids).items() if record.attempts}


def records(run_ids: Iterable[UUID]) -> dict[UUID, Record]:
    """The records of these runs, many in one question; what nobody can read is left out."""
    found: dict[UUID, Record] = {}
    ids = list(dict.fromkeys(run_ids))
    for start in range(0, len(ids), MANY):
        part = ids[start : start + MANY]
        keys = [f"{kind}-{run_id}" for run_id in part for kind in ("attempts", "settled")]
        found.update(_joined(artifacts({"any_": keys})))
    return found


def lines(since: datetime, now: datetime | None = None, keep: Callable[[Attempt], bool] | None = None) -> list[Line]:
    """Every order that cost anything after `since`, in all runs of this Prefect server, oldest first.

    Records written since then, and those that `reap` knows to hold something that may cost, however long ago they were written.
    """
    moment = now or utc_now()
    told: list[Line] = []
    for run_id, record in _written(since).items():
        for attempt in record.attempts:
            until = attempt.gone_at or moment
            if until < since or (keep is not None and not keep(attempt)):
                continue
            cost_of_it = money(attempt, moment)
            if cost_of_it.bound > 0 or attempt.may_cost:
                told.append(Line(run_id=run_id, attempt=attempt, money=cost_of_it, until=until))
    return sorted(told, key=lambda one: one.attempt.ordered_at)


def standing(now: datetime | None = None) -> list[Attempt]:
    """Every order of any run of this Prefect server that something may stand of now."""
    since = (now or utc_now()) - RECENTLY
    return [line for record in _written(since).values() for line in record.attempts if line.may_cost]


def _written(since: datetime) -> dict[UUID, Record]:
    """The records written since then, and those that `reap` knows to hold something that may cost."""
    found = _joined(artifacts({"like_": "attempts-%"}, since))
    settled = [_run_of(row) for row in artifacts({"like_": "settled-%"}, since)]
    others = {run_id for run_id in (*settled, *_open_runs()) if run_id is not None}
    # One that was settled from outside is read whole: what its flow wrote may be older, and what others wrote too.
    found.update(records(others))
    return found


def artifacts(key: dict[str, Any], since: datetime | None = None) -> Iterator[dict[str, Any]]:
    """Artifacts by their keys, the newest first, down to those last written before `since`."""
    question = {"artifacts": {"key": key}, "sort": "UPDATED_DESC"}
    with SyncClientContext.get_or_create() as prefect:
        for row in rows(prefect.client, "/artifacts/filter", question):
            if since is not None and datetime.fromisoformat(row["updated"]) < since:
                return
            yield row


def _joined(rows: Iterable[dict[str, Any]]) -> dict[UUID, Record]:
    """Records of the rows of any runs, the newest first: what the flow wrote, joined with all that was settled from outside."""
    versions: dict[UUID, list[dict[str, Any]]] = {}
    settled: dict[UUID, list[Attempt]] = {}
    for row in rows:
        run_id = _run_of(row)
        with suppress(ValueError, TypeError):  # what nobody can read hides no other
            if run_id is None:
                continue
            if row["key"].startswith("attempts-"):
                versions.setdefault(run_id, []).append(row)
            else:
                settled.setdefault(run_id, []).extend(Record.parse(row["data"]))
    return {run_id: _record(run_id, newest_first(mine), settled.get(run_id, [])) for run_id, mine in versions.items()}


def _record(run_id: UUID, versions: list[dict[str, Any]], settled: list[Attempt]) -> Record:
    own = told_by_all([], versions[:1])
    written_at = max(datetime.fromisoformat(row["updated"]) for row in versions)
    return Record(run_id, join(told_by_all(own, versions[1:]), settled), own=own, written_at=written_at)


def _run_of(row: dict[str, Any]) -> UUID | None:
    with suppress(ValueError):
        return UUID(row["key"].partition("-")[2])
    return None


def _open_runs() -> list[UUID]:
    """The runs that the last reap saw holding something that may cost."""
    with suppress(ValueError, TypeError, KeyError, AttributeError):
        row = newest(last_reap.KEY)
        if row is not None:
            return [UUID(one) for one in json.loads(noted(row)["memory"])["open_runs"]]
    return []


def billing_of(capabilities: Capabilities) -> str:
    """How a provider bills, in words: `from the order, by the started hour, at least 1 h`."""
    known = capabilities.billing
    starts = {"order": "the order", "boot": "its end of booting", "running": "when it runs"}[known.starts]
    step = "by the second" if known.step_s == 1 else f"by the started {_time(known.step_s)}"
    least = f", at least {_time(known.minimum_s)}" if known.minimum_s > known.step_s or known.minimum_s >= 3600 else ""
    extras = f", and ${known.hourly_extras:g}/h for disk and address" if known.hourly_extras else ""
    traffic = ", and bytes in both directions" if known.traffic else ""
    return f"from {starts}, {step}{least}{extras}{traffic}"


def _time(seconds: int) -> str:
    if seconds % 3600 == 0:
        return "hour" if seconds == 3600 else f"{seconds // 3600} h"
    return f"{seconds // 60} min" if seconds % 60 == 0 else f"{seconds} s"
