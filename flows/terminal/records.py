"""The log records of a run as the Prefect API gives them: each once, from the beginning or its last lines; which of them are shown."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterTimestamp
from prefect.client.schemas.objects import Log
from prefect.client.schemas.sorting import LogSort

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

STEPS: Final = ".steps"  # the loggers that tell the story end so
OUTPUT: Final = "job@"  # the loggers of the job's output begin so
OVERLAP: Final = timedelta(seconds=1)  # records of two senders arrive out of order by less
PAGE: Final = 200  # the most that the API gives at once
TOLD: Final = ("files up: ", "files down: ", "code up: ")


class Records:
    """The log records of one flow run, each once."""

    def __init__(self, client: SyncPrefectClient, run_id: UUID) -> None:
        self.client = client
        self.run_id = run_id
        self._filter = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
        self._seen: set[UUID] = set()

    def new(self) -> Iterator[Log]:
        """What arrived since the last call, in the order of its time stamps."""
        offset, newest = 0, None
        while True:
            page = self.client.read_logs(self._filter, limit=PAGE, offset=offset, sort=LogSort.TIMESTAMP_ASC)
            for log in page:
                if log.id not in self._seen:
                    self._seen.add(log.id)
                    yield log
                newest = log.timestamp
            if len(page) < PAGE:
                break
            offset += len(page)
        if newest is not None:
            self._after(newest)

    def last(self, lines: int) -> list[Log]:
        """The records that make up the last so many lines; `new` goes on after them."""
        found: list[Log] = []
        offset = seen = 0
        while seen < lines or offset == 0:
            page = self.client.read_logs(self._filter, limit=PAGE, offset=offset, sort=LogSort.TIMESTAMP_DESC)
            for log in page:
                if log.id in self._seen:  # others arrived, and this one moved to the next page
                    continue
                self._seen.add(log.id)
                if seen < lines and (kept := _last_lines(log, lines - seen)):
                    found.append(kept)
                    seen += kept.message.removesuffix("\n").count("\n") + 1
            if page and offset == 0:
                self._after(page[0].timestamp)
            offset += len(page)
            if len(page) < PAGE:
                break
        return found[::-1]

    def _after(self, newest: datetime) -> None:
        since = LogFilterTimestamp.model_validate({"after_": newest - OVERLAP})
        self._filter = self._filter.model_copy(update={"timestamp": since})


def _last_lines(log: Log, most: int) -> Log | None:
    """The record, or its end; None where nobody would be shown any of it."""
    if not (log.name.startswith(OUTPUT) or log.name.endswith(STEPS) or is_ours(log)):
        return None
    lines = log.message.removesuffix("\n").split("\n")
    return log if len(lines) <= most else log.model_copy(update={"message": "\n".join(lines[-most:])})


def is_ours(log: Log) -> bool:
    """Of what Prefect's loggers of a run carry: our warnings, and what is told of files. Prefect's own talk is not."""
    if not log.name.startswith(("prefect.flow_runs", "prefect.task_runs")):
        return False
    return log.level == logging.WARNING or log.message.startswith(TOLD)
