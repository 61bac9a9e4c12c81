"""A flow run followed on a terminal, through the Prefect API alone: it may be on any server and any worker.

The lines of its steps and the job's output are its log records; the rest is its state and its record of attempts.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

import httpx
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterTimestamp
from prefect.client.schemas.objects import FlowRun, Log
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import ObjectNotFound
from rich.console import Console
from rich.text import Text

from flows import story
from flows.terminal import NobodyReads, Trouble, waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from prefect.client.orchestration import SyncPrefectClient
    from rich.console import RenderableType

    from flows.record import Record

STEPS: Final = ".steps"  # the loggers that tell the story end so
OUTPUT: Final = "job@"  # the loggers of the job's output begin so
MARGIN: Final = "  | "
QUIET_S: Final = 0.6  # after the final state the last records may take so long
OVERLAP: Final = timedelta(seconds=1)  # records of two senders arrive out of order by less
PAGE: Final = 200  # the most that the API gives at once


class Records:
    """The log records of one flow run, each once."""

    def __init__(self, client: SyncPrefectClient, run_id: UUID) -> None:
        self._client = client
        self._filter = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
        self._seen: set[UUID] = set()

    def new(self) -> Iterator[Log]:
        """What arrived since the last call, in the order of its time stamps."""
        offset, newest = 0, None
        while True:
            page = self._client.read_logs(self._filter, limit=PAGE, offset=offset, sort=LogSort.TIMESTAMP_ASC)
            for log in page:
                if log.id not in self._seen:
                    self._seen.add(log.id)
                    yield log
                newest = log.timestamp
            if len(page) < PAGE:
                break
            offset += len(page)
        if newest is not None:
            self._filter = self._filter.model_copy(update={"timestamp": LogFilterTimestamp(after_=newest - OVERLAP)})


class NotStarted(Trouble):
    """Trouble while no process of the run was at work yet: nothing is bought, and nobody minds if it is cancelled."""


class Terminal(Console):
    """A console that leaves it to its display what a broken pipe means; rich ends the program."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Display:
    """The terminal, or whatever stdout is: colours and redrawing only where a person looks.

    Raises NobodyReads, once, when that is gone; what is shown afterwards goes nowhere.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Terminal(highlight=False, soft_wrap=True, markup=False, emoji=False)
        self.must_be_read = True  # else nobody is told that nobody reads

    def record(self, log: Log) -> None:
        """One log record: a line of the story, or the job's output as it is; anything else is Prefect's own talk."""
        if log.name.startswith(OUTPUT):
            self._output(log.message)
        elif log.name.endswith(STEPS):
            self.line(log.message)

    def line(self, text: str = "", style: str = "") -> None:
        self.print(Text(text, style=style))

    def print(self, what: RenderableType) -> None:
        """A text or a table."""
        with self._shown() as out:
            out.print(what)

    def _output(self, text: str) -> None:
        with self._shown() as out:
            for line in text.removesuffix("\n").split("\n"):
                # Not through rich: it would take the job's own colours and carriage returns apart.
                out.file.write(f"{MARGIN}{line}\n")
            out.file.flush()

    @contextlib.contextmanager
    def _shown(self) -> Generator[Console]:
        try:
            yield self.console
        except OSError:  # a closed pipe; a closed terminal
            stdout = self.console.file
            self.console = Console(file=io.StringIO())
            with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), stdout.fileno())  # what is still buffered is flushed when Python ends
            if self.must_be_read:
                raise NobodyReads from None

    def closing(self, run: FlowRun, record: Record) -> None:
        """`Completed  2.9 s   cost $0.00   instances left behind: 0`; what went wrong stands above it."""
        state = run.state
        name = state.name if state and state.name else "Unknown"
        left = sum(attempt.may_cost for attempt in record.attempts)
        is_good = state is not None and state.is_completed()
        self.line()
        if state is not None and state.message and not is_good and not state.is_cancelled():
            self.line(first_line(state.message), "bold")
        text = Text(name, "bold green" if is_good else "bold red")
        text.append(
            f"  {story.duration(run.total_run_time.total_seconds())}   cost {story.dollars(record.cost)}   ", "default"
        )
        text.append(f"instances left behind: {left}", "default" if left == 0 else "bold red")
        self.print(text)


def first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""


def follow(
    client: SyncPrefectClient,
    run_id: UUID,
    display: Display,
    *,
    every_s: float,
    check: Callable[[], None] = lambda: None,
    within_s: float | None = None,
    pick_up_s: float = 120.0,
    start_s: float = 300.0,
) -> FlowRun:
    """Show a run until its final state and return it.

    `check` is called now and then and may raise; `within_s` bounds the whole, `pick_up_s` the time until a worker takes the run, and
    `start_s` what its process may take to start. Raises Trouble, NotStarted before the run runs, and NobodyReads.
    """
    began = time.monotonic()
    records = Records(client, run_id)
    try:
        with waiting("a worker picks the run up"):
            run = _started(client, run_id, min(every_s, 0.2), check, pick_up_s, start_s)
    except httpx.TransportError as error:
        raise NotStarted(f"The Prefect server stopped answering ({type(error).__name__}).") from error
    except Trouble as trouble:
        raise NotStarted(str(trouble)) from trouble
    quiet_since = None
    while quiet_since is None or time.monotonic() - quiet_since < QUIET_S:
        is_final = run.state is not None and run.state.is_final()
        news = False
        for log in records.new():
            display.record(log)
            news = True
        if is_final:
            quiet_since = time.monotonic() if news or quiet_since is None else quiet_since
        if within_s is not None and time.monotonic() - began > within_s:
            break
        time.sleep(0.1 if is_final else every_s)
        check()
        run = _read(client, run_id)
    return run


def _started(
    client: SyncPrefectClient,
    run_id: UUID,
    every_s: float,
    check: Callable[[], None],
    pick_up_s: float,
    start_s: float,
) -> FlowRun:
    """The run as soon as its process runs, or it ended without one."""
    began, taken_at = time.monotonic(), None
    while True:
        run = _read(client, run_id)
        is_taken = run.state is not None and run.state.is_pending()
        if not is_taken and not (run.state is None or run.state.is_scheduled()):
            return run
        check()
        now = time.monotonic()
        taken_at = (taken_at or now) if is_taken else None
        if taken_at is None and now - began > pick_up_s:
            raise Trouble(f"No worker picked the run up in {pick_up_s:.0f} s: is one of its work pool running?")
        if taken_at is not None and now - taken_at > start_s:
            raise Trouble(f"A worker took the run, and started no process for it in {start_s:.0f} s: see its log.")
        time.sleep(every_s)


def _read(client: SyncPrefectClient, run_id: UUID) -> FlowRun:
    try:
        return client.read_flow_run(run_id)
    except ObjectNotFound:
        raise Trouble("The run was deleted; what it had rented is given back by its process, or by reap.") from None
