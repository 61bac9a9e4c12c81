"""Quotas of a team, over all runs of a Prefect server: how many machines or GPUs may stand at once, looked at before each order.

An operator sets one as a global concurrency limit of Prefect, by its name:

    prefect-gpu quota machines              all machines
    prefect-gpu quota machines on aws       of one provider
    prefect-gpu quota H100                  GPUs of this model, wherever they are
    prefect-gpu quota H100 on aws           of this model, at one provider

Nothing takes a slot of it: a slot that a dead worker holds, or that a restarted server forgot to give back, would stop everybody. What
counts is what stands by the runs' own records, so a machine counts from before its order until it is seen gone. Two orders at once cannot
both pass, as with an account's budget: each is on its record before it looks, and steps back where they are only in each other's way.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from prefect.context import SyncClientContext
from typing_extensions import override

from prefect_gpu.flows.report import text
from prefect_gpu.flows.report.rows import rows
from prefect_gpu.flows.run import account_budget, ledger
from prefect_gpu.flows.run.attempt import ORDERED, Attempt
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers.core.aside import Aside
from prefect_gpu.providers.core.errors import QuotaExceeded
from prefect_gpu.providers.core.models import Offer, utc_now

PREFIX: Final = "prefect-gpu quota "
MACHINES: Final = "machines"
FRESH_S: Final = 1.0
LOOKS: Final = 3
PAUSE_S: Final = 2.0  # at most, before another look
_NAME: Final = re.compile(rf"{PREFIX}(?P<what>\S+)(?: on (?P<provider>\S+))?", re.IGNORECASE)


class Quota(NamedTuple):
    """So many of this may stand at once."""

    name: str
    what: str  # "machines", or a GPU's model
    provider: str  # empty: everywhere
    limit: int

    def weight(self, provider: str, gpu: str) -> int:
        """How much of it a machine takes, whose GPUs are written as `H100:8`."""
        if self.provider and self.provider != provider.lower():
            return 0
        if self.what == MACHINES:
            return 1
        model, _, count = gpu.partition(":")
        return int(count or 0) if model.lower() == self.what else 0


class NoRoom(QuotaExceeded):
    """A quota has no room for it; what takes less of it, or nothing, may still be ordered."""

    def __init__(self, message: str, quota: Quota) -> None:
        super().__init__(message)
        self.quota = quota

    @override
    def rules_out(self, failed: Offer, other: Offer) -> bool:
        needs = self.quota.weight(other.provider, other.gpu)
        return needs > 0 and needs >= self.quota.weight(failed.provider, failed.gpu)


def quota_of(name: str, limit: int) -> Quota | None:
    """The quota that a global concurrency limit of this name is, if it is one."""
    named = _NAME.fullmatch(name.strip())
    return None if named is None else Quota(name, named["what"].lower(), (named["provider"] or "").lower(), limit)


def set_here() -> list[Quota]:
    """The quotas that are set on this Prefect server and switched on."""
    with SyncClientContext.get_or_create() as prefect:
        limits = list(rows(prefect.client, "/v2/concurrency_limits/filter", {}))
    quotas = (quota_of(row["name"], row["limit"]) for row in limits if row["active"])
    return [quota for quota in quotas if quota is not None]


class Asked:
    """The quotas, asked for while a run begins; asked for again where that answer is old, or is none."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._early = Aside(set_here)

    def now(self) -> list[Quota]:
        """The quotas as they were set at most FRESH_S ago."""
        if time.monotonic() - self._at <= FRESH_S:
            with suppress(Exception):  # whatever stood between us and the API then
                return self._early.result()
        return set_here()


def must_allow(record: Record, line: Attempt, limits: list[Quota], max_cost: float | None = None) -> None:
    """All that a team set against an order: NoRoom by a quota, OverBudget by the account's budget."""
    must_have_room(record, line, limits)
    account_budget.must_pay_for(record, record.attempts[-1], max_cost)


def must_have_room(
    record: Record, line: Attempt, limits: list[Quota], *, wait: Callable[[float], object] = time.sleep
) -> None:
    """Raise NoRoom where one of these quotas has no room for the order of this line, which is on the record already."""
    quotas = [one for one in limits if one.weight(line.provider, line.gpu)]
    if not quotas:
        return
    for looks_left in reversed(range(LOOKS)):
        others = [one for one in ledger.standing() if one.name != line.name]
        refusal = _refusal(line, quotas, others)
        if refusal is None:
            return
        decided = [one for one in others if one.outcome != ORDERED or one.instance_id is not None]
        if _refusal(line, quotas, decided) is not None or not looks_left:
            raise refusal
        line = record.note(line, gone_at=utc_now(), cost=0.0)  # out of the others' way
        record.write()
        wait(random.uniform(0.2, 1.0) * PAUSE_S)  # noqa: S311 - so that not both look again at once
        line = record.note(line, gone_at=None, cost=None)
        record.write()


def _refusal(line: Attempt, quotas: Iterable[Quota], others: Iterable[Attempt]) -> NoRoom | None:
    standing = list(others)
    for quota in quotas:
        needs = quota.weight(line.provider, line.gpu)
        used = sum(quota.weight(one.provider, one.gpu) * one.machines for one in standing)
        if used + needs > quota.limit:
            unit = "machine" if quota.what == MACHINES else "GPU"
            return NoRoom(
                f"the quota {quota.name!r} of this Prefect server is {text.counted(quota.limit, unit)}, {used} of it in use, "
                f"and this order takes {needs}: wait for them, or raise the global concurrency limit of that name",
                quota,
            )
    return None
