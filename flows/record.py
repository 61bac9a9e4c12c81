"""The record of a run's attempts: a table artifact that a person reads as its story and a later process settles from.

Each line is written before its order is sent and again with what came of it: at once where something may cost money; with the
next line, or at the end, where the order was refused, which saves a call to Prefect's API for each offer that fails. The newest
version of the artifact `attempts-<run id>` counts; it is read back from any process and survives the run's deletion.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Final, cast
from uuid import UUID

from prefect.context import SyncClientContext
from pydantic import ConfigDict

from flows.artifacts import publish
from providers.core.contract import Billing
from providers.core.models import Instance, Model, Offer, utc_now

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
    gone_at: datetime | None = None
    cost: float | None = None  # USD, from accepted order to observed absence

    @property
    def may_cost(self) -> bool:
        """Whether something under this name may still cost money."""
        return self.gone_at is None


class Record:
    """All attempts of one flow run, oldest first."""

    def __init__(self, run_id: UUID, attempts: list[Attempt] | None = None) -> None:
        self.run_id = run_id
        self.attempts = attempts or []
        self.is_written = True

    @classmethod
    def read(cls, run_id: UUID) -> Record:
        """The record as last written, empty if there is none."""
        question = {"artifacts": {"key": {"any_": [_key(run_id)]}}, "limit": 1}
        with (
            SyncClientContext.get_or_create() as prefect
        ):  # the flow's own client where there is one: a new one takes 20 ms
            response = prefect.client.request("POST", "/artifacts/latest/filter", json=question)
        answer = cast("list[dict[str, Any]]", response.json())
        if not answer:
            return cls(run_id)
        return cls(run_id, cls.parse(answer[0]["data"]))

    @staticmethod
    def parse(data: str) -> list[Attempt]:
        """The attempts in an artifact's data."""
        return [Attempt.model_validate(row) for row in json.loads(data)]

    def open(self, attempt: Attempt) -> Attempt:
        """A line for an order that is about to be sent. Raises when it could not be written: then nothing may be bought."""
        self.attempts.append(attempt)
        try:
            self.write()
        except BaseException:
            self.attempts.remove(attempt)
            raise
        return attempt

    def note(self, attempt: Attempt, **changes: Any) -> Attempt:
        """The line with these changes, in place; not yet written."""
        changed = attempt.model_copy(update=changes)
        self.attempts[self.attempts.index(attempt)] = changed
        self.is_written = False
        return changed

    def accepted(self, attempt: Attempt, instance: Instance) -> Attempt:
        """The order was accepted: its instance is the run's current one."""
        return self.note(attempt, outcome=CURRENT, instance_id=instance.id)

    def write(self) -> None:
        """Write the record as it stands: one call, about 10 ms."""
        rows = [json.loads(attempt.model_dump_json()) for attempt in self.attempts]
        publish(
            _key(self.run_id),
            "table",
            json.dumps(rows),
            self.run_id,
            "Every order of this run, in order: where, what it cost, what came of it.",
        )
        self.is_written = True

    @property
    def next_attempt(self) -> int:
        return self.attempts[-1].attempt + 1 if self.attempts else 0

    @property
    def cost(self) -> float:
        """USD so far, failed attempts included."""
        return sum(attempt.cost or 0.0 for attempt in self.attempts)


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


def cost_until(attempt: Attempt, billing: Billing, end: datetime) -> float:
    """USD from the order to `end`, rounded as the provider bills; an order that was refused costs nothing."""
    if attempt.instance_id is None:
        return 0.0
    return billing.cost(attempt.price, (end - attempt.ordered_at).total_seconds())


def _key(run_id: UUID) -> str:
    return f"attempts-{run_id}"
