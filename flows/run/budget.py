"""A run's own budget, `max_cost`: the last moment at which its money still pays for the end, and what is said on the way there.

What counts is the most that providers may bill (ledger.py), failed attempts included. It is judged by this process and its record alone, so
it holds while Prefect's API is down; the machine knows the moment too (the job's limit, the lease in the name), so it holds without this process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from prefect_gpu import providers as registry
from prefect_gpu.flows.report import text
from prefect_gpu.flows.run import ledger
from prefect_gpu.flows.run.attempt import Attempt, new_attempt
from prefect_gpu.flows.run.giving_back import tell
from prefect_gpu.flows.run.ledger import Money
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers.core.contract import Capabilities
from prefect_gpu.providers.core.errors import OverBudget
from prefect_gpu.providers.core.models import Offer, utc_now

RESERVE_S: Final = (
    45.0  # for the job's end, the give-back and the sight of its absence, beside the provider's listing lag
)
FILES_S: Final = 120.0  # for the files that are brought back, where a job has any
LEAST_S: Final = 60.0  # nothing is bought that could be used for less
WARN_AT: Final = 0.8
LOOK_EVERY_S: Final = 2.0
_LONGEST_S: Final = 366 * 24 * 3600


class Budget:
    """Of one run, over all of its attempts; without a limit it lets everything pass."""

    def __init__(
        self, limit: float | None, record: Record, warn: Callable[[str], object], *, has_files: bool = False
    ) -> None:
        self.limit = limit
        self.reached: str | None = None  # why the run was stopped
        self._record = record
        self._warn = warn
        self._files_s = FILES_S if has_files else 0.0
        self._began = utc_now(), _steady()
        self._is_warned = False
        self._next_look = 0.0
        self._ends_at: datetime | None = None

    def now(self) -> datetime:
        """By a clock that nobody sets while the run lasts."""
        began, steady = self._began
        return began + timedelta(seconds=_steady() - steady)

    def used(self) -> Money:
        """What the run has cost by now, failed attempts included."""
        return ledger.total(self._record.attempts, self.now())

    def why_not(self, offer: Offer) -> str | None:
        """Why what is left does not pay for this offer, in a sentence; None where it does."""
        if self.limit is None:
            return None
        now, capabilities = self.now(), _capabilities(offer.provider)
        paid = self._pays_until((*self._record.attempts, _wanted(offer, now)), now)
        useful_s = (paid - now).total_seconds() - _reserve_s(capabilities)
        if useful_s >= LEAST_S:
            return None
        least = capabilities.billing.cost(offer.price, _reserve_s(capabilities) + LEAST_S)
        left = max(0.0, self.limit - self.used().bound)
        return (
            f"max_cost is {text.dollars(self.limit)}, {text.dollars(left)} of it are left, and the least stay costs"
            f" {text.dollars(least)} (billed {ledger.billing_of(capabilities)})"
        )

    def must_pay_for(self, offer: Offer) -> None:
        """Raise OverBudget where what is left does not pay for this offer."""
        if why := self.why_not(offer):
            raise OverBudget(why)

    def lease_until(self, offer: Offer, deadline: datetime) -> datetime:
        """The lease of an order placed now: as asked, or to the last whole minute that is paid for and leaves time to use it."""
        if self.limit is None:
            return deadline
        now = self.now()
        ends = self._ends((*self._record.attempts, _wanted(offer, now)), now)
        whole = ends.replace(second=0, microsecond=0)  # a lease is written in whole minutes, rounded up
        return min(deadline, whole if whole - now >= timedelta(seconds=LEAST_S) else ends)

    def job_until(self) -> datetime | None:
        """When the machine itself ends the job, so that time is left for its files; None without a limit."""
        ends = self._ends_now()
        return None if ends is None else ends - timedelta(seconds=self._files_s)

    def stop_reason(self) -> str | None:
        """Why the run must stop, or None; asked ten times a second. The first time beyond 80 % is told."""
        if self.limit is None:
            return None
        if self.reached is None and _steady() >= self._next_look:
            self._next_look = _steady() + LOOK_EVERY_S
            self._ends_at = self._ends(self._record.attempts, self.now())
            self._warn_once(self.limit)
        if self.reached is None and self._ends_at is not None and self.now() >= self._ends_at:
            self.stop()
        return self.reached

    def is_over(self, *, for_job: bool = False) -> bool:
        """Whether the run must stop now; for a job, that its machine has ended it for that."""
        ends = self.job_until() if for_job else self._ends_now()
        return self.reached is not None or (ends is not None and self.now() >= ends)

    def stop(self) -> str:
        """The run is stopped by its budget: told once; the reason."""
        if self.reached is None and self.limit is not None:
            self.reached = f"max_cost of {text.dollars(self.limit)} is reached"
            self._cross(f"{self.reached}: the job is ended and the machine is given back", self.limit)
        return self.reached or ""

    def _warn_once(self, limit: float) -> None:
        used, ends = self.used().bound, self._ends_at
        costing = [one.ordered_at for one in self._record.attempts if one.may_cost]
        if self._is_warned or not costing:
            return
        # Of a small budget much is kept for the end: then it is 80 % of the time until that.
        is_late = ends is not None and self.now() - min(costing) >= WARN_AT * (ends - min(costing))
        if used < WARN_AT * limit and not is_late:
            return
        self._is_warned = True
        at = f"at {text.clock_time(ends)}" if ends is not None else "then"
        said = f"{text.dollars(used)} of max_cost {text.dollars(limit)} may be billed by now: the run is stopped {at}"
        self._cross(said, limit)

    def _cross(self, said: str, limit: float) -> None:
        """A warning in the run's log, and an event."""
        self._warn(said)
        used, ends = self.used(), self._ends_at
        facts = {
            "max_cost": limit,
            "cost": used.bound,
            "estimate": used.estimate,
            "share": round(used.bound / limit, 3),
            "ends_at": ends.isoformat() if ends is not None else "",
            "is_stopped": self.reached is not None,
        }
        tell(self._record.run_id, "cost.crossed", facts)

    def _ends_now(self) -> datetime | None:
        return None if self.limit is None else self._ends(self._record.attempts, self.now())

    def _ends(self, attempts: Sequence[Attempt], now: datetime) -> datetime:
        """When giving back must begin, so that it is over while it is paid for."""
        costing = [one for one in attempts if one.may_cost]
        reserve_s = max((_reserve_s(_capabilities(one.provider)) for one in costing), default=0.0)
        return self._pays_until(attempts, now) - timedelta(seconds=reserve_s)

    def _pays_until(self, attempts: Sequence[Attempt], now: datetime) -> datetime:
        """The last second at which all of these orders together are within the limit; in the past where none is."""
        limit = (self.limit or 0.0) + 1e-9
        settled = ledger.total((one for one in attempts if not one.may_cost), now).bound
        costing = [one for one in attempts if one.may_cost]
        if not costing:
            return now + timedelta(seconds=_LONGEST_S) if settled < limit else now
        first = min(one.ordered_at for one in costing)

        def is_paid(seconds: int) -> bool:
            return settled + ledger.total(costing, first + timedelta(seconds=seconds)).bound <= limit

        if not is_paid(1):
            return first
        low, high = 1, _LONGEST_S + math.ceil(max(0.0, (now - first).total_seconds()))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if is_paid(middle) else (low, middle)
        return first + timedelta(seconds=low)


def _wanted(offer: Offer, now: datetime) -> Attempt:
    line = new_attempt(0, "", offer, "", "")
    return line.model_copy(update={"ordered_at": now})


def _capabilities(provider: str) -> Capabilities:
    library: Any = registry.library(provider)
    return library.capabilities


def _reserve_s(capabilities: Capabilities) -> float:
    return RESERVE_S + capabilities.listing_lag_s


def _steady() -> float:
    return time.clock_gettime(
        getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    )  # it goes on while a machine sleeps
