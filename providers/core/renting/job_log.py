r"""A job's output in Prefect's log: posted directly, bounded, from a thread of its own that reads the log file.

One record a line would be 331 lines/s and 560 MB of SQLite for a million lines; here a record holds up to 16 KB and ends at a line
(Prefect Cloud takes 25,000 characters), and 50 go in one request. What follows the job only says how far the file has grown, so
a slow or absent API holds up nothing and costs no memory: posting goes on when it is back.

The logger's name says how far the output has been shown (`shown`). After `cap_bytes` one record says that the rest is in the log
file, then one a minute says how much there is, and the last lines come at the end. Decoded with replacement; of a line that
overwrites itself with `\r` (a progress bar) what would stay on a terminal is shown, and colours are all that a terminal would obey: `readable`.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Generator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

from prefect.runtime import flow_run, task_run

from prefect_gpu.providers.core.aside import always, never
from prefect_gpu.providers.core.machine import kept_log
from prefect_gpu.providers.core.models import utc_now
from prefect_gpu.providers.core.renting.plain_log import RECORD_BYTES, PlainLog, flush, logger, piece_of, readable
from prefect_gpu.providers.core.renting.shown import (
    ClientFactory,
    LogsClient,
    logger_name,
    no_repeats,
    own_client,
    shown_until,
)

CAP_BYTES: Final = 10_000_000
BATCH: Final = 50

_FIRST_PAUSE_S = 0.05  # between two requests; the first line after a silence waits for none
_LONGEST_PAUSE_S = 1.0
_PARTIAL_LINE_S = 1.0  # so long a line may take to end before it is shown as it is
_PROGRESS_S = 60.0
_LONGEST_RETRY_S = 15.0
_SETTLED_S = 1.0  # a busy server stores a request so long after its sender gave it up, or as long as that one waited
_log = logging.getLogger(__name__)


class _Said(NamedTuple):
    """What a log past its cap was told already."""

    cut: bool = False
    end: bool = False
    progress_at: float = 0.0


class JobLog:
    """Shows a growing log file in a run's log, from byte `start` on.

    `output` is an `on_output` of `Machine.run`: it only notes how far the file has grown. `close` must be called.
    """

    def __init__(
        self,
        path: Path,
        flow_run_id: UUID,
        task_run_id: UUID | None = None,
        *,
        start: int = 0,
        attempt: int = 0,
        tries: int = 1,
        cap_bytes: int = CAP_BYTES,
        note: Callable[[str], object] = _log.warning,
        client: ClientFactory = own_client,
        still_owns: Callable[[], bool] = always,
        before_first: Callable[[], object] = never,
    ) -> None:
        self._path = path
        self._run_id = flow_run_id
        self._is_attached = self._is_others = False
        self._unsure_s = 0.0  # a request was given up after so long: what it carries may be there, or come
        self._attempt, self._tries = attempt, tries
        self._run = {"flow_run_id": str(flow_run_id), "task_run_id": str(task_run_id) if task_run_id else None}
        self._client = client
        self._still_owns = still_owns
        self._before_first = before_first
        self.note = note  # an `on_link` of Machine.run
        self._cap = cap_bytes
        self._start = self._position = start  # shown up to here
        self._grown_to, self._grown_at = start, 0.0
        self._give_up_at: float | None = None
        self._closing, self._wake = threading.Event(), threading.Event()
        self._began = self._last_stamp = utc_now()
        self._said = _Said()
        self.unshown = 0  # bytes, at the end
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

    def started(self, is_new: bool) -> None:
        """Before any output, an `on_start` of `Machine.run`: a job that was attached to is shown from where the run's log ends."""
        self._is_attached = not is_new

    def output(self, offset: int, data: bytes) -> None:
        """The log file has grown."""
        self._grown_to = max(self._grown_to, offset + len(data))
        self._grown_at = time.monotonic()
        self._wake.set()

    def close(self, timeout_s: float = 5.0) -> int:
        """Show what is left; how many bytes could not be shown because Prefect's API did not answer in time, which is `unshown` too."""
        self._give_up_at = time.monotonic() + timeout_s
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s + 1.0)
        self.unshown = 0 if self._is_others else max(0, min(self._grown_to, self._cap) - self._position)
        if self.unshown:
            self.note(
                f"Prefect took no more log records: the last {self.unshown:,} bytes of output are in the log file"
            )
        return self.unshown

    # --- the thread -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        retry, shown = _FIRST_PAUSE_S, self._position
        while True:
            try:
                with self._client() as api, no_repeats():
                    self._show(api)
                    return
            except Exception as error:  # noqa: BLE001 - whatever Prefect's client raises, the job goes on
                _log.debug("Prefect's API takes no log records: %s", error)
            if self._position > shown:
                retry, shown = _FIRST_PAUSE_S, self._position
            if self._give_up_at is not None and time.monotonic() > self._give_up_at:
                return
            if self._closing.wait(retry):
                time.sleep(_FIRST_PAUSE_S)
            retry = min(_LONGEST_RETRY_S, retry * 2)

    def _show(self, api: LogsClient) -> None:
        """Post until closed. A line after a silence goes at once, a stream of them in ever larger batches."""
        pause = _FIRST_PAUSE_S
        while True:
            is_closing = self._closing.is_set()  # read first: what was written before is shown
            self._wake.clear()
            grown_to = self._grown_to  # read before it is known where to begin: `started` comes before any output
            if self._is_attached or self._unsure_s:
                self._go_on_where_the_log_ends(api)
            did_post = self._post(api, grown_to, is_final=is_closing)
            if self._is_others:
                return
            if did_post:
                self._closing.wait(pause)
                pause = min(_LONGEST_PAUSE_S, pause * 2) if self._grown_to > self._position else _FIRST_PAUSE_S
            elif is_closing:
                return
            elif self._position < self._cap:
                self._wake.wait(_PARTIAL_LINE_S if self._position < self._grown_to else None)
            else:
                self._closing.wait(_LONGEST_PAUSE_S)

    def _go_on_where_the_log_ends(self, api: LogsClient) -> None:
        """Looked at until it stays the same: a request may be carried out after its sender gave it up, or died."""
        own = contextlib.nullcontext(api)
        since = None if self._is_attached else self._began
        there = -1
        while (now_there := shown_until(self._run_id, lambda: own, self._attempt, self._tries, since)) != there:
            there = now_there
            if not self._has_waited(max(self._unsure_s, _SETTLED_S)):
                raise TimeoutError("whether Prefect's API took the last records is not known yet")
        self._position = max(self._start, there)
        self._said = _Said(cut=self._position >= self._cap)
        self._is_attached, self._unsure_s = False, 0.0

    def _has_waited(self, seconds: float) -> bool:
        """Not where `close` gives up before that."""
        end = time.monotonic() + seconds
        if self._closing.wait(seconds):
            time.sleep(max(0.0, min(end, self._give_up_at or end) - time.monotonic()))
        return time.monotonic() >= end

    def _post(self, api: LogsClient, grown_to: int, *, is_final: bool) -> bool:
        """Post one batch of what there is up to a byte; whether there was one."""
        end = min(grown_to, self._cap)
        records: list[dict[str, Any]] = []
        position = self._position
        if position < end:
            # A line that the cap cuts never ends here, and a busy job is never silent.
            is_cut = grown_to > self._cap
            takes_partial = is_final or is_cut or time.monotonic() - self._grown_at >= _PARTIAL_LINE_S
            with self._path.open("rb") as log:
                while len(records) < BATCH and position < end:
                    log.seek(position)
                    data = piece_of(log.read(min(RECORD_BYTES, end - position)), takes_partial=takes_partial)
                    if not data:
                        break
                    position += len(data)
                    records.append(self._record(position, readable(data)))
        said = self._said
        if position >= self._cap and grown_to > self._cap:
            more, said = self._after_the_cap(is_final=is_final)
            records += more
        if not records:
            return False
        self._before_first()
        self._before_first = never
        # Asked last: a process may be stopped at any line for as long as its run needs to go to another.
        if not self._still_owns():
            self._is_others = True  # which shows it from where the run's log ends
            return False
        began = time.monotonic()
        try:
            api.create_logs(records)
        except Exception:
            self._unsure_s = max(_SETTLED_S, time.monotonic() - began)
            raise
        self._position = position
        self._said = said
        return True

    def _after_the_cap(self, *, is_final: bool) -> tuple[list[dict[str, Any]], _Said]:
        now = time.monotonic()
        records: list[dict[str, Any]] = []
        said = self._said
        if not said.cut:
            said = said._replace(cut=True, progress_at=now + _PROGRESS_S)
            text = f"... cut here after {self._cap:,} bytes: the whole output is in the log file"
            records.append(self._record(self._cap, text))
        elif now >= said.progress_at and not is_final:
            said = said._replace(progress_at=now + _PROGRESS_S)
            text = f"... {self._grown_to:,} bytes of output in the log file so far"
            records.append(self._record(self._grown_to, text))
        if is_final and not said.end and self._position < self._grown_to:  # else an earlier process said it
            said = said._replace(end=True)
            left = self._grown_to - self._cap
            tail = kept_log.last(self._path, min(left, RECORD_BYTES))
            if left > RECORD_BYTES:
                tail = tail.partition(b"\n")[2] or tail  # from the beginning of a line
            text = f"... the end of {self._grown_to:,} bytes of output:\n{readable(tail)}"
            records.append(self._record(self._grown_to, text))
        return records, said

    def _record(self, until: int, message: str) -> dict[str, Any]:
        # Prefect sorts by time, so no two records have the same.
        self._last_stamp = max(utc_now(), self._last_stamp + timedelta(microseconds=1))
        stamp = self._last_stamp.isoformat()
        name = logger_name(until, self._attempt, self._tries)
        return {"name": name, "level": 20, "message": message, "timestamp": stamp, **self._run}


@contextlib.contextmanager
def posting(
    path: Path, attempt: int = 0, tries: int = 1, still_owns: Callable[[], bool] = always
) -> Generator[JobLog | PlainLog]:
    """A JobLog of the flow or task run that this is called in; closed at the end. `JobLog.started` is to be told.

    A task that is called outside of any flow has no run whose log this could be: its output goes to Python's own logging.
    """
    run_id, task_id = flow_run.get_id(), task_run.get_id()
    if run_id is None:
        with contextlib.closing(PlainLog(path)) as plain:
            yield plain
        return
    of = UUID(run_id), UUID(task_id) if task_id else None
    log = JobLog(
        path, *of, attempt=attempt, tries=tries, note=logger().warning, still_owns=still_owns, before_first=flush
    )
    try:
        yield log
    finally:
        log.close()
