"""Wait until a machine answers: every 0.1 s for the first 30 s, then more slowly."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from datetime import datetime

from providers.core.aside import Stopped, attended, never
from providers.core.contract import Connection
from providers.core.errors import AuthFailed, NotReady, Transient
from providers.core.models import utc_now

_EAGER_FOR_S = 30.0
_EAGER_S = 0.1
_SLOWEST_S = 0.5
_GROWTH = 1.5
_NOTICE_S = 0.1


def wait_until_ready(
    open_connection: Callable[[], Connection],
    deadline: datetime,
    should_stop: Callable[[], str | None] = never,
) -> Connection:
    """The first connection that opens.

    Raises NotReady with what the machine said last when the deadline passes, Stopped at most 0.1 s after `should_stop` gives a
    reason. A refused login counts as not ready: cloud-init installs the key minutes after sshd answers. The caller closes it.
    """
    ends = time.monotonic() + (deadline - utc_now()).total_seconds()
    problem = "it was never asked"
    for pause in _pauses():
        try:
            return attended(open_connection, should_stop, discard=lambda late: late.close())
        except (Transient, AuthFailed) as error:
            problem = error.message
        if time.monotonic() + pause >= ends:
            raise NotReady(f"the machine does not answer: {problem}")
        _sleep(pause, should_stop)
    raise AssertionError("pauses never end")


def _pauses() -> Iterator[float]:
    began = time.monotonic()
    pause = _EAGER_S
    while True:
        if time.monotonic() - began > _EAGER_FOR_S:
            pause = min(_SLOWEST_S, pause * _GROWTH)
            yield pause * random.uniform(0.8, 1.2)  # noqa: S311 - spreads a thousand machines, guards no secret
        else:
            yield pause


def _sleep(seconds: float, should_stop: Callable[[], str | None]) -> None:
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        if (reason := should_stop()) is not None:
            raise Stopped(reason)
        time.sleep(min(left, _NOTICE_S))
