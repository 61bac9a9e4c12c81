"""The last line of a terminal while it waits: what for, how long so far; of a transfer a bar, its rate and the time left. It leaves no trace."""

from __future__ import annotations

import re
import time
from typing import Final, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from prefect_gpu.flows.report import text as said
from prefect_gpu.providers.core.machine.transfer import size_text

SHOWN_AFTER_S: Final = 1.0
AGAIN_S: Final = 0.5
UNITS: Final = {"bytes": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE: Final = r"([\d.,]+) (bytes|KB|MB|GB|TB)"
TRANSFER: Final = re.compile(rf"\s*((?:files|code) (?:up|down)): {_SIZE} of {_SIZE}, {_SIZE}/s(?:, .+ left)?")
WAITS: Final = re.compile(r"\s+(.{1,200}), (\d[^,]{0,20}) so far")
STEP: Final = re.compile(r"([1-6]) [a-z]")
# What comes after a step's line, by its number: a step is told when it is done, the fifth when it begins.
NEXT: Final = {
    "": "asking the providers",
    "1": "choosing",
    "2": "ordering the machine",
    "3": "the machine starts",
    "4": "the job is brought to the machine",
    "5": "the job begins",
    "6": "the run ends",
}
_RUNS: Final = "the job runs"
_LATER: Final = "the machine is given back"


class Transfer(NamedTuple):
    """How far one had come when that was told."""

    what: str
    done: float  # bytes
    total: float
    per_s: float
    at: float  # by our clock

    def now(self) -> float:
        """As far as it should be by now."""
        return min(self.total, self.done + self.per_s * (time.monotonic() - self.at))


def transfer(line: str) -> Transfer | None:
    """What a line of the log tells of one, or None."""
    match = TRANSFER.fullmatch(line)
    if match is None:
        return None
    what, *parts = match.groups()
    done, total, per_s = (float(parts[i].replace(",", "")) * UNITS[parts[i + 1]] for i in (0, 2, 4))
    return Transfer(what, done, total, per_s, time.monotonic())


class Status:
    """That line, on a terminal; elsewhere nobody makes one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._what = NEXT[""]
        self._since = self._quiet_since = time.monotonic()
        self._transfer: Transfer | None = None
        self._drawn_at = 0.0

    def begins(self, what: str) -> None:
        """From now on this is what is waited for."""
        if what != self._what:
            self._what, self._since = what, time.monotonic()

    def runs(self) -> None:
        """The job has said something."""
        self.begins(_RUNS)

    def takes(self, line: str) -> bool:
        """Whether this line of the story is one that is seen here, and is written nowhere else."""
        if (told := transfer(line)) is not None:
            self._transfer = told
            return True
        if (waits := WAITS.fullmatch(line)) is not None:
            self.begins(waits[1])
            self._transfer = None
            return True
        self._transfer = None
        if (step := STEP.match(line)) is not None:
            self.begins(NEXT[step[1]])
        elif re.match(r"\s+exit \d", line):
            self.begins(_LATER)
        elif line.startswith(("files up: ", "code up: ")):
            self.begins(_RUNS)
        return False

    def clear(self) -> None:
        """Before anything else is written."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._quiet_since = time.monotonic()

    def tick(self) -> None:
        """Draw it again, where nothing was written for a second."""
        now = time.monotonic()
        if now - self._quiet_since < SHOWN_AFTER_S or (self._live is not None and now - self._drawn_at < AGAIN_S):
            return
        self._drawn_at = now
        if self._live is None:
            self._live = Live(
                console=self._console, transient=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
        self._live.update(self._drawn(), refresh=True)

    def _drawn(self) -> Table | Text:
        now = time.monotonic()
        if self._transfer is None:
            return Text(f"{self._what} ... {_time(now - self._since)}", style="dim", no_wrap=True, overflow="ellipsis")
        one = self._transfer
        done = one.now()
        left = f", {_time((one.total - done) / one.per_s)} left" if one.per_s else ""
        line = Table.grid(padding=(0, 1))
        line.add_row(
            Text(one.what),
            ProgressBar(total=one.total, completed=done, width=30),
            Text(f"{done / one.total:.0%}, {size_text(one.per_s)}/s{left}" if one.total else ""),
        )
        return line


def _time(seconds: float) -> str:
    """Whole seconds: it is drawn again and again."""
    return f"{seconds:.0f} s" if seconds < 59.5 else said.duration(seconds)
