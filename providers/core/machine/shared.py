"""Things that are dear to open, shared by all in this process who want the same one, and closed when the last lets go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """One open thing per key. Who comes while it is being opened waits for it, and is told the same where that fails."""

    def __init__(self, is_usable: Callable[[T], bool], close: Callable[[T], None]) -> None:
        self._is_usable = is_usable
        self._close = close
        self._lock = threading.Lock()
        self._current: dict[Hashable, Future[T]] = {}
        self._users: dict[Future[T], int] = {}

    def take(self, key: Hashable, open_it: Callable[[], T], deadline: float) -> tuple[T, Callable[[], None]]:
        """The thing, and what lets go of it (once is enough). TimeoutError where it takes longer than `deadline` (monotonic)."""
        with self._lock:
            known = self._current.get(key)
            if known is not None and known.done() and (known.exception() or not self._is_usable(known.result())):
                known = None
            is_first = known is None
            opening: Future[T] = Future() if known is None else known
            self._current[key] = opening
            self._users[opening] = self._users.get(opening, 0) + 1
        if is_first:
            try:
                opening.set_result(open_it())
            except BaseException as failure:
                opening.set_exception(failure if isinstance(failure, Exception) else TimeoutError("it was given up"))
                self._let_go(key, opening)
                raise
        try:
            thing = opening.result(max(0.0, deadline - time.monotonic()))
        except TookTooLong:
            self._let_go(key, opening)
            raise TimeoutError("it takes too long") from None
        except BaseException:
            self._let_go(key, opening)
            raise
        is_held = threading.Lock()  # taken by whoever lets go first
        return thing, lambda: self._let_go(key, opening) if is_held.acquire(blocking=False) else None

    def _let_go(self, key: Hashable, opening: Future[T]) -> None:
        with self._lock:
            self._users[opening] -= 1
            if self._users[opening]:
                return
            del self._users[opening]
            if self._current.get(key) is opening:
                del self._current[key]
        if opening.done() and not opening.exception():
            self._close(opening.result())
