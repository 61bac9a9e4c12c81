"""Pace: requests of one process that keep a distance, for vendors that refuse what comes sooner.

Limits of an account, over all its workers, are `Capabilities.rate_limits`; they count calls of a driver, and one call may be several requests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager


class Pace:
    """One account's turns. Whoever asks waits until it is `every_s` after the turn before, and after the last answer that came."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._next = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def turn(self) -> Generator[None, None, None]:
        """Wait for a turn; what is sent in it has arrived when it ends, however long it took on its way."""
        if self._every_s <= 0:
            yield
            return
        with self._lock:
            now = time.monotonic()
            mine = max(now, self._next)
            self._next = mine + self._every_s
        if mine > now:
            time.sleep(mine - now)
        try:
            yield
        finally:
            with self._lock:
                self._next = max(self._next, time.monotonic() + self._every_s)
