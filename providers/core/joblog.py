"""A job's output in Prefect's log: posted directly, bounded, from a thread of its own that reads the log file.

One record a line would be 331 lines/s and 560 MB of SQLite for a million lines; here a record holds up to 16 KB and ends at a line
(Prefect Cloud takes 25,000 characters), and 50 go in one request. What follows the job only says how far the file has grown, so
a slow or absent API holds up nothing and costs no memory: posting goes on when it is back.

The logger's name says how far the output has been shown: `job@1048576`. After `cap_bytes` one record says that the rest is in the log
file, then one a minute says how much there is, and the last lines come at the end. Decoded with replacement; of a line that
overwrites itself with `\\r` (a progress bar) what would stay on a terminal is shown.
"""

from __future__ import annotations

import contextvars
import logging
import re
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.sorting import LogSort

from providers.core.models import utc_now

CAP_BYTES: Final = 10_000_000
RECORD_BYTES: Final = 16_000  # a character is at most one byte longer when decoded, and Cloud's limit is 25,000
BATCH: Final = 50

_FIRST_PAUSE_S = 0.05  # between two requests; the first line after a silence waits for none
_LONGEST_PAUSE_S = 1.0
_PARTIAL_LINE_S = 1.0  # so long a line may take to end before it is shown as it is
_PROGRESS_S = 60.0
_LONGEST_RETRY_S = 15.0
_LOGGER = re.compile(r"job@(\d+)", re.ASCII)
_log = logging.getLogger(__name__)


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


def _prefect() -> AbstractContextManager[LogsClient]:
    return get_client(sync_client=True)


def shown_until(flow_run_id: UUID, client: ClientFactory = _prefect) -> int:
    """The byte offset up to which a run's job output stands in its log: where a resumed run goes on. 0 if there is none."""
    mine = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
    with client() as api:
        for page in range(50):  # a run's own lines after the job's last one are few
            records = api.read_logs(mine, limit=200, offset=page * 200, sort=LogSort.TIMESTAMP_DESC)
            for record in records:
                if (match := _LOGGER.fullmatch(record.name)) is not None:
                    return int(match[1])
            if len(records) < 200:
                break
    return 0


class JobLog:
    """Shows a growing log file in a run's log, from byte `start` on.

    `wrote` is an `on_output` of `Machine.run`: it only notes how far the file has grown. `close` must be called.
    """

    def __init__(
        self,
        path: Path,
        flow_run_id: UUID,
        task_run_id: UUID | None = None,
        *,
        start: int = 0,
        cap_bytes: int = CAP_BYTES,
        client: ClientFactory = _prefect,
    ) -> None:
        self._path = path
        self._run = {"flow_run_id": str(flow_run_id), "task_run_id": str(task_run_id) if task_run_id else None}
        self._client = client
        self._cap = cap_bytes
        self._position = start  # shown up to here
        self._grown_to = start
        self._grown_at = 0.0
        self._is_closing = False
        self._give_up_at: float | None = None
        self._wake = threading.Event()
        self._last_stamp = utc_now()
        self._has_said_cut = False
        self._next_progress = 0.0
        context = contextvars.copy_context()  # Prefect's settings live in it
        self._thread = threading.Thread(target=context.run, args=(self._work,), name="prefect-gpu job log", daemon=True)
        self._thread.start()

    @property
    def shown(self) -> int:
        """The output has been shown up to this byte."""
        return min(self._position, self._cap)

    @property
    def cut_at(self) -> int | None:
        """Where the cap cut the output, or None."""
        return self._cap if self._grown_to > self._cap else None

    def wrote(self, offset: int, data: bytes) -> None:
        """The log file has grown."""
        self._grown_to = max(self._grown_to, offset + len(data))
        self._grown_at = time.monotonic()
        self._wake.set()

    def close(self, timeout_s: float = 5.0) -> int:
        """Show what is left; how many bytes could not be shown because Prefect's API did not answer in time."""
        self._give_up_at = time.monotonic() + timeout_s
        self._is_closing = True
        self._wake.set()
        self._thread.join(timeout_s + 1.0)
        missing = max(0, min(self._grown_to, self._cap) - self._position)
        if missing:
            _log.warning(
                "Prefect's API did not answer: the last %d bytes of the job's output are in its log file only", missing
            )
        return missing

    # --- the thread -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        pause = _FIRST_PAUSE_S
        retry = _FIRST_PAUSE_S
        while True:
            try:
                with self._client() as api:
                    while True:
                        is_closing = self._is_closing  # before reading: what came until then is shown
                        posted = self._post(api, is_final=is_closing)
                        retry = _FIRST_PAUSE_S
                        if posted:
                            # Nothing new at the end of a pause: the next line is the first after a silence again.
                            self._wake.clear()
                            if self._grown_to <= self._position and not self._is_closing and not self._wake.wait(pause):
                                pause = _FIRST_PAUSE_S
                            elif not is_closing:
                                self._rest(pause)
                                pause = min(_LONGEST_PAUSE_S, pause * 2)
                        elif is_closing:
                            return
                        else:
                            self._wake.wait(self._patience())
                            self._wake.clear()
            except Exception as error:  # noqa: BLE001 - whatever Prefect's client raises, the job goes on
                _log.debug("Prefect's API takes no log records: %s", error)
                if self._give_up_at is not None and time.monotonic() > self._give_up_at:
                    return
                self._rest(retry)
                retry = min(_LONGEST_RETRY_S, retry * 2)
