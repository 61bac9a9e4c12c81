"""The record of a run's attempts: a table artifact that a person reads as its story and a later process settles from.

Each line is written before its order is sent and again with what came of it: at once where something may cost money; with the
next line, or at the end, where the order was refused, which saves a call to Prefect's API for each offer that fails. The newest
version of the artifact `attempts-<run id>` counts, with the lines that only an older one has; it is read back from any process and survives the run's deletion.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, cast
from uuid import UUID

from prefect.context import SyncClientContext
from pydantic import ConfigDict

from prefect_gpu.flows.report.artifacts import noted, publish
from prefect_gpu.providers.core.models import Instance, JobResult, Model, Offer, utc_now

ORDERED: Final = "ordered"  # sent, or about to be: the answer is open
CURRENT: Final = "current"  # the instance that the run uses
GONE: Final = "gone"  # its absence was observed
HIDDEN: Final = "result"  # of the kind that both UIs leave out: a person reads the three cards
PAGE: Final = 200  # the most that the API gives at once
_RESULT: Final = (
    "result"  # in the artifact's metadata too: how the job ended, for who goes on when its machine is given back
)
_NAMES: Final = 20_000  # characters of the names of its files that are kept there; all are in result storage
_OFFER: Final = "offer"  # in the artifact's metadata: what the last line ordered, for who settles that line
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


class Record:
    """All attempts of one flow run, oldest first: the flow's lines, joined with what was settled from outside."""

    def __init__(
        self,
        run_id: UUID,
        attempts: list[Attempt] | None = None,
        *,
        own: list[Attempt] | None = None,
        written_at: datetime | None = None,
    ) -> None:
        self.run_id = run_id
        self.attempts = attempts or []
        self.own = self.attempts if own is None else own  # as the flow's latest execution wrote them last
        self.is_written = True
        self.written_at = written_at  # by the flow
        self.offer: Offer | None = None  # what the last line ordered
        self.result: JobResult | None = None  # how the job ended on it
        self._artifact_id: UUID | None = None  # each execution of the run writes a version of its own

    @classmethod
    def read(cls, run_id: UUID) -> Record:
        """The record as last written, empty if there is none."""
        keys = [_key(run_id), _settled_key(run_id)]
        question = {"artifacts": {"key": {"any_": keys}}, "sort": "UPDATED_DESC", "limit": PAGE}
        rows: list[dict[str, Any]] = []
        with SyncClientContext.get_or_create() as prefect:  # the flow's own client: a new one takes 20 ms
            while True:
                response = prefect.client.request("POST", "/artifacts/filter", json={**question, "offset": len(rows)})
                page = cast("list[dict[str, Any]]", response.json())
                rows += page
                if len(page) < PAGE:
                    break
        versions = newest_first(row for row in rows if row["key"] == keys[0])
        flows = versions[0] if versions else None
        own = cls.parse(flows["data"]) if flows else []
        settled = [line for row in rows if row["key"] == keys[1] for line in _readable(row["data"])]
        record = cls(
            run_id,
            join(told_by_all(own, versions[1:]), settled),
            own=own,
            written_at=max((datetime.fromisoformat(row["updated"]) for row in versions), default=None),
        )
        metadata: dict[str, str] = {}
        with suppress(KeyError, TypeError, ValueError):
            metadata = noted(flows) if flows is not None else {}
        with suppress(KeyError, ValueError):  # an earlier version wrote none, a later one another
            record.offer = Offer.model_validate_json(metadata[_OFFER])
        with suppress(KeyError, ValueError):
            record.result = JobResult.model_validate_json(metadata[_RESULT])
        return record

    @staticmethod
    def parse(data: str) -> list[Attempt]:
        """The attempts in an artifact's data."""
        return [Attempt.model_validate(row) for row in json.loads(data)]

    def own_line(self, name: str) -> Attempt | None:
        """What the flow itself wrote last of the order under this name, or None: it never wrote of it."""
        return next((one for one in self.own if one.name == name), None)

    def line(self, name: str) -> Attempt | None:
        """What is known of the order under this name, whoever saw it."""
        return next((one for one in self.attempts if one.name == name), None)

    def open(self, attempt: Attempt, offer: Offer | None = None) -> Attempt:
        """A line for an order that is about to be sent. Raises when it could not be written: then nothing may be bought."""
        self.attempts.append(attempt)
        self.offer, self.result = offer, None
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

    def put(self, line: Attempt) -> None:
        """The line in place of the one of its name; not yet written."""
        self.attempts = [line if one.name == line.name else one for one in self.attempts]
        self.is_written = False

    def accepted(self, attempt: Attempt, instance: Instance) -> Attempt:
        """The order was accepted: its instance is the run's current one."""
        return self.note(attempt, outcome=CURRENT, instance_id=instance.id)

    def write(self) -> None:
        """Write the record as it stands, by its flow alone: one call, about 10 ms."""
        what = "Every order of this run, in order: where, what it cost, what came of it."
        data = _rows(self.attempts)
        metadata = {} if self.offer is None else {_OFFER: self.offer.model_dump_json()}
        if self.result is not None:
            metadata[_RESULT] = _short(self.result).model_dump_json()
        self._artifact_id = publish(
            _key(self.run_id), HIDDEN, data, self.run_id, what, over=self._artifact_id, metadata=metadata
        )
        self.own = self.attempts
        self.is_written = True

    def settle(self, *lines: Attempt) -> None:
        """Write what was seen of these lines from outside of the flow; nothing where all of it is known already."""
        news = [line for line in lines if (known := self.line(line.name)) is None or _is_news(line, known)]
        if not news:
            return
        what = "What was seen of these orders after their run had ended, or beside it."
        publish(_settled_key(self.run_id), HIDDEN, _rows(news), self.run_id, what)
        self.attempts = join(self.attempts, news)

    @property
    def next_attempt(self) -> int:
        return self.attempts[-1].attempt + 1 if self.attempts else 0

    @property
    def cost(self) -> float:
        """USD so far, failed attempts included."""
        return sum(attempt.cost or 0.0 for attempt in self.attempts)

    @property
    def estimate(self) -> float:
        """USD so far, as the providers will probably bill it."""
        return sum(attempt.estimate or 0.0 for attempt in self.attempts)


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


def newest_first(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The versions of a flow's record, one of each execution: that of the latest first, whoever of them wrote last.

    A process that was stopped while its run went to another may write once more when it wakes up.
    """
    return sorted(rows, key=lambda row: datetime.fromisoformat(row["created"]), reverse=True)


def told_by_all(newest: list[Attempt], older: Iterable[dict[str, Any]]) -> list[Attempt]:
    """The lines of the newest version, after those that it lacks: an execution may have ordered while the next one read its record."""
    lines = newest
    for row in older:
        known = {line.name for line in lines}
        lines = [*(line for line in _readable(row["data"]) if line.name not in known), *lines]
    return lines


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


def _is_news(line: Attempt, known: Attempt) -> bool:
    """An absence is, and that something is owed; not how much it costs by now."""
    if known.gone_at is not None:
        return False
    return line.gone_at is not None or (line.outcome, line.why) != (known.outcome, known.why)


def _rows(attempts: list[Attempt]) -> str:
    return json.dumps([json.loads(attempt.model_dump_json()) for attempt in attempts])


def _short(result: JobResult) -> JobResult:
    """The result with as many names of files as a record should carry."""
    names: list[str] = []
    for name in result.outputs:
        if sum(map(len, names)) + len(name) > _NAMES:
            break
        names.append(name)
    return result.model_copy(update={"outputs": tuple(names)})


def _readable(data: str) -> list[Attempt]:
    """What others wrote; a version that nobody can read hides no other."""
    try:
        return Record.parse(data)
    except (ValueError, TypeError):
        return []


def _key(run_id: UUID) -> str:
    return f"attempts-{run_id}"


def _settled_key(run_id: UUID) -> str:
    return f"settled-{run_id}"
