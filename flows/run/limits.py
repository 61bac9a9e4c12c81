"""What a run may cost, how long it waits for a machine and how often its job is tried: nonsense is refused in a sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from prefect_gpu.flows.run.request import Refused
from prefect_gpu.providers.core.models import JobResult, Model

MOST_RETRIES: Final = 100
LONGEST_WAIT: Final = timedelta(days=30)
_UNITS: Final = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
}
_PART = r"(\d{1,6}(?:\.\d{1,3})?)\s*([a-z]+)"


class Limits(Model):
    """As they were asked for, and checked."""

    max_cost: float | None = None  # USD
    wait: timedelta = timedelta(0)
    retries: int = 0
    retry_exit_codes: tuple[int, ...] = ()  # empty: all but 0
    resume: bool = True

    def is_retried(self, result: JobResult, tries: int) -> bool:
        """Whether a job that ended so after so many tries is tried again."""
        if result.outcome != "exited" or not result.exit_code or tries > self.retries:
            return False
        return not self.retry_exit_codes or result.exit_code in self.retry_exit_codes


def checked(
    max_cost: float | None = None,
    max_wait: str = "",
    retries: int = 0,
    retry_exit_codes: Sequence[int] = (),
    *,
    resume: bool = True,
) -> Limits:
    """The limits of a run. Raises Refused."""
    if max_cost is not None and not (math.isfinite(max_cost) and max_cost > 0):
        raise Refused(
            f"max_cost is {max_cost:g}: write USD for the whole run, more than 0, or leave it empty for no limit"
        )
    if not 0 <= retries <= MOST_RETRIES:
        raise Refused(f"retries is {retries}: write how often the job may be tried again, from 0 to {MOST_RETRIES}")
    for code in retry_exit_codes:
        if not 1 <= code <= 255:
            raise Refused(f"{code} in retry_exit_codes is not the exit code of a job that failed: write 1 to 255")
    if retry_exit_codes and not retries:
        raise Refused("retry_exit_codes says when the job is tried again, and retries is 0: write how often")
    return Limits(
        max_cost=max_cost,
        wait=_wait(max_wait),
        retries=retries,
        retry_exit_codes=tuple(dict.fromkeys(retry_exit_codes)),
        resume=resume,
    )


def _wait(text: str) -> timedelta:
    said = text.strip().lower()
    if said in ("", "0"):
        return timedelta(0)
    parts = re.findall(_PART, said, re.ASCII)
    if not re.fullmatch(rf"{_PART}(?:\s*{_PART})*", said, re.ASCII) or any(unit not in _UNITS for _, unit in parts):
        raise Refused(f"max_wait is {text!r}: write how long, for example 30m, 2h or 1d, or leave it empty")
    wait = timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
    if wait > LONGEST_WAIT:
        raise Refused(f"max_wait is {text!r}: write at most {LONGEST_WAIT.days}d")
    return wait
