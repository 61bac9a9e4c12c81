"""What is waited for, said while it is waited for: nothing of ours is silent for longer than ten seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

FIRST_S: Final = 10.0
THEN_S: Final = 15.0

OnProgress = Callable[[str, float], None]  # what is waited for, and for how many seconds already


class _Clock(Protocol):
    def now(self) -> float: ...


def silent(what: str, seconds: float) -> None:
    """For who has nobody to tell."""
    del what, seconds


class Waiting:
    """One thing that is waited for, from now on."""

    def __init__(self, on_progress: OnProgress, clock: _Clock, *, first_s: float = FIRST_S) -> None:
        self._on_progress = on_progress
        self._clock = clock
        self._began = clock.now()
        self._next = self._began + first_s

    def on(self, what: str) -> None:
        """Say what it is that is waited for, if it is time to."""
        now = self._clock.now()
        if now >= self._next:
            self._on_progress(what, now - self._began)
            self._next = now + THEN_S
