"""How a job ended, as its machine tells it, in words that help."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple

from prefect_gpu.providers.core.errors import LinkLost
from prefect_gpu.providers.core.machine.shell import plain
from prefect_gpu.providers.core.models import utc_now

Outcome = Literal["exited", "timed out", "cancelled", "lost"]

_OUTCOMES: Final[dict[str, Outcome]] = {
    "exited": "exited",
    "timed-out": "timed out",
    "cancelled": "cancelled",
    "lost": "lost",
}
RESTARTED: Final = "the machine was restarted while the job ran"
_WHY: Final = {
    "restarted": RESTARTED,
    "memory": "the machine ran out of memory while the job ran, and its kernel ended a process",
    "container": "the container ran out of memory while the job ran, and the kernel ended a process: ask for more memory",
    "killed": "somebody or something on the machine ended the process that watches over the job",
    "unstarted": "the machine took the job and never began it: its disk may be full, or it was restarted at that moment",
}
_LONGEST_S: Final = 10 * 365 * 86400.0  # of a job
_ABSENT: Final = "the machine does not know the job any more: its disk is another one, or was emptied"

# What the line of report.sh may hold; years and petabytes beyond any machine's.
_NUMBER = r"\d{1,12}(?:\.\d{1,6})?"
_REPORT = re.compile(rf"(-|\d{{1,3}}) ([a-z-]+) ({_NUMBER}) ({_NUMBER}) ({_NUMBER}) (\d{{1,18}}) (-|[a-z]+)", re.ASCII)


class Ended(NamedTuple):
    """What the machine says about a job that is over."""

    outcome: Outcome
    exit_code: int | None
    started_at: datetime
    ended_at: datetime
    log_bytes: int
    why: str = ""  # what the machine knows beside it, in a sentence


def ended(report: str) -> Ended:
    """The line that follow and cancel programs write to stderr in their end. LinkLost for anything else."""
    line = report.strip().rpartition("\n")[2].strip()
    if line == "absent":
        return Ended("lost", None, utc_now(), utc_now(), 0, _ABSENT)
    told = _REPORT.fullmatch(line)
    if told is None or told[2] not in _OUTCOMES:
        raise LinkLost(f"the machine did not say how the job ended: {plain(line[-200:]) or 'nothing'}")
    code, outcome, clock, up_start, up_end, size, why = told.groups()
    now = utc_now()
    started = now
    if float(clock):
        # Our own clock, as the machine kept it; what no clock of ours ever said is not believed.
        started = datetime.fromtimestamp(min(float(clock), now.timestamp()), UTC)
    # The start by our clock, the length by the machine's: its calendar may be wrong.
    seconds = float(up_end) - float(up_start) if float(up_start) else 0.0  # 0: it never started
    name = _OUTCOMES[outcome]
    return Ended(
        name,
        int(code) if name == "exited" and code != "-" else None,
        started,
        started + timedelta(seconds=min(max(0.0, seconds), _LONGEST_S)),
        int(size),
        _WHY.get(why, ""),
    )
