"""The record of a run's attempts: a table artifact that a person reads as its story and a later process settles from.

Each line is written before its order is sent and again with what came of it: at once where something may cost money; with the
next line, or at the end, where the order was refused, which saves a call to Prefect's API for each offer that fails. The newest
version of the artifact `attempts-<run id>` counts, with the lines that only an older one has; it is read back from any process and survives the run's deletion.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, Final
from uuid import UUID

from prefect.context import SyncClientContext

from prefect_gpu.flows.report.artifacts import noted, publish
from prefect_gpu.flows.report.rows import rows
from prefect_gpu.flows.run.attempt import CURRENT, Attempt, is_news, join
from prefect_gpu.providers.core.aside import Aside
from prefect_gpu.providers.core.models import Instance, JobResult, Offer

HIDDEN: Final = "result"  # of the kind that both UIs leave out: a person reads the three cards
_RESULT: Final = (
    "result"  # in the artifact's metadata too: how the job ended, for who goes on when its machine is given back
)
_NAMES: Final = 20_000  # characters of the names of its files that are kept there; all are in result storage
_OFFER: Final = "offer"  # in the artifact's metadata: what the last line ordered, for who settles that line


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
        self._is_written = True
        self._is_changed = False  # since `write_aside`
        self._writing: Aside[UUID] | None = None
        self.written_at = written_at  # by the flow
        self.offer: Offer | None = None  # what the last line ordered
        self.result: JobResult | None = None  # how the job ended on it
        self._artifact_id: UUID | None = None  # each execution of the run writes a version of its own

    @classmethod
    def read(cls, run_id: UUID) -> Record:
        """The record as last written, empty if there is none."""
        keys = [_key(run_id), _settled_key(run_id)]
        question = {"artifacts": {"key": {"any_": keys}}, "sort": "UPDATED_DESC"}
        with SyncClientContext.get_or_create() as prefect:  # the flow's own client: a new one takes 20 ms
            written = list(rows(prefect.client, "/artifacts/filter", question))
        versions = newest_first(row for row in written if row["key"] == keys[0])
        flows = versions[0] if versions else None
        own = cls.parse(flows["data"]) if flows else []
        settled = [line for row in written if row["key"] == keys[1] for line in _readable(row["data"])]
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
        self._is_written, self._is_changed = False, True
        return changed

    def put(self, line: Attempt) -> None:
        """The line in place of the one of its name; not yet written."""
        self.attempts = [line if one.name == line.name else one for one in self.attempts]
        self._is_written, self._is_changed = False, True

    def accepted(self, attempt: Attempt, instance: Instance) -> Attempt:
        """The order was accepted: its instance is the run's current one."""
        return self.note(attempt, outcome=CURRENT, instance_id=instance.id)

    @property
    def is_written(self) -> bool:
        """Whether it is written as it stands; once what `write_aside` began is through."""
        self._wait()
        return self._is_written

    def write(self) -> None:
        """Write the record as it stands, by its flow alone: one call, about 10 ms."""
        self._wait()
        self._artifact_id = self._written()()
        self.own, self._is_written = self.attempts, True

    def write_aside(self) -> None:
        """Begin to write it as it stands now; `is_written` tells what came of that."""
        self._wait()
        self._is_changed = False
        self._writing = Aside(self._written())

    def _wait(self) -> None:
        if self._writing is None:
            return
        with suppress(Exception):  # whatever Prefect's API says: it is written with the next fact
            self._artifact_id = self._writing.result()
            self.own, self._is_written = self.attempts, not self._is_changed
        self._writing = None

    def _written(self) -> Callable[[], UUID]:
        """The call that writes it as it stands now."""
        what = "Every order of this run, in order: where, what it cost, what came of it."
        metadata = {} if self.offer is None else {_OFFER: self.offer.model_dump_json()}
        if self.result is not None:
            metadata[_RESULT] = _short(self.result).model_dump_json()
        return partial(
            publish,
            _key(self.run_id),
            HIDDEN,
            _rows(self.attempts),
            self.run_id,
            what,
            over=self._artifact_id,
            metadata=metadata,
        )

    def settle(self, *lines: Attempt) -> None:
        """Write what was seen of these lines from outside of the flow; nothing where all of it is known already."""
        news = [line for line in lines if (known := self.line(line.name)) is None or is_news(line, known)]
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
