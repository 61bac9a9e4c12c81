"""A flow run followed on a terminal, through the Prefect API alone: it may be on any server and any worker.

The lines of its steps and the job's output are its log records; the rest is its state and its record of attempts.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

import httpx
from prefect.client.schemas.objects import FlowRun, Log
from prefect.exceptions import ObjectNotFound
from rich.console import Console
from rich.text import Text

from prefect_gpu.flows.report import text as said
from prefect_gpu.flows.run import resuming
from prefect_gpu.flows.terminal.messages import NobodyReads, Trouble, as_text, plain, waiting
from prefect_gpu.flows.terminal.records import OUTPUT, STEPS, Records, is_ours
from prefect_gpu.flows.terminal.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from prefect.client.orchestration import SyncPrefectClient
    from rich.console import RenderableType

    from prefect_gpu.flows.run.record import Record

MARGIN: Final = "  | "
INDENT: Final = " " * 13  # of what belongs to a step
RESUME_S: Final = 90.0  # so long a crashed run may take to be taken up again
QUIET_S: Final = 0.6  # after the final state the last records may take so long


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

    def __init__(self, console: Console | None = None, *, to_stderr: bool = False) -> None:
        self.console = console or Terminal(highlight=False, soft_wrap=True, markup=False, emoji=False, stderr=to_stderr)
        self.must_be_read = True  # else nobody is told that nobody reads
        self._status = Status(self.console) if self.console.is_terminal else None

    def record(self, log: Log) -> None:
        """One log record: a line of the story, or the job's output with its colours; anything else is Prefect's own talk."""
        if log.name.startswith(OUTPUT):
            if self._status is not None:
                self._status.runs()
            self._output(log.message)
            return
        is_step = log.name.endswith(STEPS)
        if (is_step or is_ours(log)) and (self._status is None or not self._status.takes(log.message)):
            self.line(
                log.message if is_step else INDENT + log.message, "yellow" if log.level >= logging.WARNING else ""
            )

    def waits(self) -> None:
        """Nothing new: on a terminal what is waited for is seen."""
        if self._status is not None:
            with self._shown(is_status=True):
                self._status.tick()

    def line(self, text: str = "", style: str = "") -> None:
        self.print(Text(plain(text), style=style))

    def print(self, what: RenderableType) -> None:
        """A text or a table."""
        with self._shown() as out:
            out.print(what)

    def document(self, data: object) -> None:
        """One JSON document, for programs."""
        with self._shown() as out:
            out.file.write(json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n")
            out.file.flush()

    def _output(self, text: str) -> None:
        with self._shown() as out:
            for line in text.removesuffix("\n").split("\n"):
                # Not through rich: it would take the job's own colours apart.
                out.file.write(f"{MARGIN}{as_text(line)}\n")
            out.file.flush()

    def begins(self) -> None:
        if self._status is not None:  # what was waited for before is over
            self._status = Status(self.console)

    def quiet(self) -> None:
        """Nothing is waited for any more."""
        if self._status is not None:
            self._status.clear()

    @contextlib.contextmanager
    def _shown(self, *, is_status: bool = False) -> Generator[Console]:
        try:
            if self._status is not None and not is_status:
                self._status.clear()
            yield self.console
        except OSError:  # a closed pipe; a closed terminal
            stdout = self.console.file
            self.console, self._status = Console(file=io.StringIO()), None
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
            f"  {said.duration(run.total_run_time.total_seconds())}   cost {said.dollars(record.cost)}   ", "default"
        )
        text.append(f"instances left behind: {left}", "default" if left == 0 else "bold red")
        self.print(text)


def first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""


def follow(
    records: Records,
    display: Display,
    *,
    every_s: float,
    check: Callable[[], None] = lambda: None,
    within_s: float | None = None,
    pick_up_s: float = 120.0,
    start_s: float = 300.0,
) -> FlowRun:
    """Show a run until its final state and return it; of its records those that were not shown before.

    `check` is called now and then and may raise; `within_s` bounds the whole, `pick_up_s` the time until a worker takes the run, and
    `start_s` what its process may take to start. Raises Trouble, NotStarted before the run runs, and NobodyReads.
    """
    began = time.monotonic()
    client, run_id = records.client, records.run_id
    try:
        with waiting("a worker picks the run up"):
            run = _started(client, run_id, min(every_s, 0.2), check, pick_up_s, start_s)
    except httpx.TransportError as error:
        raise NotStarted(f"The Prefect server stopped answering ({type(error).__name__}).") from error
    except Trouble as trouble:
        raise NotStarted(str(trouble)) from trouble
    try:
        return _followed(run, records, display, every_s, check, None if within_s is None else began + within_s)
    finally:
        display.quiet()


def _followed(
    run: FlowRun, records: Records, display: Display, every_s: float, check: Callable[[], None], until: float | None
) -> FlowRun:
    client, run_id = records.client, records.run_id
    display.begins()
    quiet_since = crashed_at = None
    while quiet_since is None or time.monotonic() - quiet_since < QUIET_S:
        is_final = run.state is not None and run.state.is_final()
        if resuming.will_follow(run):
            is_final = time.monotonic() - (crashed_at := crashed_at or time.monotonic()) > RESUME_S
        news = False
        for log in records.new():
            display.record(log)
            news = True
        if is_final:
            quiet_since = time.monotonic() if news or quiet_since is None else quiet_since
        if not news and not is_final:
            display.waits()
        if until is not None and time.monotonic() > until:
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
