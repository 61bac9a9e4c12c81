"""How far the output of a job has been shown in its run's log, told by the name of a record's logger.

`job@1048576` is up to that byte. A run may show the output of several jobs: `job@512/2` is of a second try on the same machine,
`job@512+1` of the run's next machine, `job@512+1/2` of the second try there. Attempts count from 0 and tries from 1.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterTimestamp
from prefect.client.schemas.sorting import LogSort
from prefect.context import SettingsContext, SyncClientContext, get_settings_context

_LOGGER = re.compile(r"job@(\d+)(?:\+(\d+))?(?:/(\d+))?", re.ASCII)
_PAGE = 200
_MOST_PAGES = 50  # a run's own lines after the job's last one are few


class LogsClient(Protocol):
    """The part of Prefect's synchronous client that is needed."""

    def create_logs(self, logs: list[Any]) -> None: ...

    def read_logs(
        self,
        log_filter: LogFilter | None = None,
        limit: int | None = None,
        offset: int | None = None,
        sort: LogSort | None = None,
    ) -> list[Any]: ...


ClientFactory = Callable[[], AbstractContextManager[LogsClient]]


@contextlib.contextmanager
def own_client() -> Generator[LogsClient]:
    """The client of the run around this call, which its threads may use too; a new one takes 20 ms."""
    with SyncClientContext.get_or_create() as prefect:
        yield prefect.client


@contextlib.contextmanager
def no_repeats() -> Generator[None]:
    """Prefect's client sends each request once: of one whose answer was lost it does not know whether it was carried out."""
    context = get_settings_context()
    settings = context.settings
    once = settings.client.model_copy(update={"max_retries": 0})
    with SettingsContext(profile=context.profile, settings=settings.model_copy(update={"client": once})):
        yield


def logger_name(offset: int, attempt: int = 0, tries: int = 1) -> str:
    """The logger of a record that shows a job's output up to this byte."""
    return f"job@{offset}" + (f"+{attempt}" if attempt else "") + (f"/{tries}" if tries > 1 else "")


def shown_until(
    flow_run_id: UUID,
    client: ClientFactory = own_client,
    attempt: int = 0,
    tries: int = 1,
    since: datetime | None = None,
) -> int:
    """The byte offset up to which the output of a job's try stands in its run's log, posted `since` or ever: where it is gone on with. 0 if there is none."""
    mine = LogFilter(
        flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]),
        timestamp=LogFilterTimestamp.model_validate({"after_": since}) if since is not None else None,
    )
    with client() as api:
        for page in range(_MOST_PAGES):
            records = api.read_logs(mine, limit=_PAGE, offset=page * _PAGE, sort=LogSort.TIMESTAMP_DESC)
            for record in records:
                match = _LOGGER.fullmatch(record.name)
                if match is not None and (int(match[2] or 0), int(match[3] or 1)) == (attempt, tries):
                    return int(match[1])
            if len(records) < _PAGE:
                break
    return 0
