"""One line of a run's record: an order under one name, and what came of it; and what several told of it, joined."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from pydantic import ConfigDict

from prefect_gpu.providers.core.models import Model, Offer, utc_now

ORDERED: Final = "ordered"  # sent, or about to be: the answer is open
CURRENT: Final = "current"  # the instance that the run uses
GONE: Final = "gone"  # its absence was observed
OWED: Final = "owed"  # a give-back that was not observed yet, or an order never answered


class Attempt(Model):
    """One order under one name and what came of it. `outcome` is one of the constants above or an error's two words."""

    model_config = ConfigDict(extra="ignore")  # a worker of a newer version may have written more

    attempt: int
    name: str
    provider: str
    account: str
    account_id: str
    scope: str
    machine: str
    gpu: str
    spot: bool
    price: float  # USD per hour
    ordered_at: datetime
    outcome: str = ORDERED
    why: str = ""  # the provider's words, where it failed
    instance_id: str | None = None
    promised: float | None = None  # USD that it counts with in its account's budget, until it has cost as much
    tries: int = 1  # of the job there: the last that was begun
    began_at: datetime | None = None  # from when on the job may have been started there
    running_at: datetime | None = None  # when its provider first said that it runs
    asked_at: datetime | None = None  # when its end was first asked for
    gone_at: datetime | None = None
    traffic: float | None = None  # USD for bytes, as its provider had booked them when it was gone
    machines: int = 1  # that were seen under its name: an order may have bought two
    cost: float | None = None  # USD at most: from the order to observed absence, rounded up as the provider bills
    estimate: float | None = None  # USD probably: from when the provider begins to bill until it was asked to end it

    @property
    def may_cost(self) -> bool:
        """Whether something under this name may still cost money."""
        return self.gone_at is None


def new_attempt(number: int, name: str, offer: Offer, account: str, account_id: str) -> Attempt:
    """The line of an order for this offer under this name."""
    return Attempt(
        attempt=number,
        name=name,
        provider=offer.provider,
        account=account,
        account_id=account_id,
        scope=offer.scope,
        machine=offer.instance_type,
        gpu=offer.gpu,
        spot=offer.spot,
        price=offer.price,
        ordered_at=utc_now(),
    )


def join(own: list[Attempt], settled: list[Attempt]) -> list[Attempt]:
    """The flow's lines with what others saw: an absence that was seen beats all else, of two the earlier; then the newest word."""
    return [_joined(line, [one for one in settled if one.name == line.name]) for line in own]


def _joined(line: Attempt, told: list[Attempt]) -> Attempt:
    """One line; what was told of it stands with the newest first."""
    gone = [one for one in (line, *told) if one.gone_at is not None]
    if gone:
        first = min(gone, key=lambda one: one.gone_at or utc_now())
        return first if first.cost is not None else first.model_copy(update={"cost": line.cost})
    return told[0] if told and line.outcome in (ORDERED, CURRENT, OWED) else line


def is_news(line: Attempt, known: Attempt) -> bool:
    """An absence is, and that something is owed; not how much it costs by now."""
    if known.gone_at is not None:
        return False
    return line.gone_at is not None or (line.outcome, line.why) != (known.outcome, known.why)
