"""Blocking calls in a thread of their own, so that whoever asked stays attentive: to a cancel, a signal, a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Generic, TypeVar

T = TypeVar("T")

POLL_S = 0.1  # how late a wish to stop may be noticed


class Stopped(Exception):
    """`should_stop` said so; `reason` is what it said."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def never() -> str | None:
    """A `should_stop` that lets everything run."""
    return None


def always() -> bool:
    """Yes, to whatever may be asked."""
    return True


class Aside(Generic[T]):
    """A call that runs in a daemon thread of its own, with the context of whoever began it: Prefect's settings, client and run."""

    def __init__(self, call: Callable[[], T], discard: Callable[[T], object] | None = None) -> None:
        self._call = call
        self._discard = discard
        self._lock = threading.Lock()
        self._is_abandoned = False
        self._done = threading.Event()
        self._result: list[T] = []
        self._error: BaseException | None = None
        run = copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,), name="prefect-gpu aside", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Whether the call has ended."""
        return self._done.wait(timeout_s)

    def result(self) -> T:
        """What the call returned or raised; only after it has ended."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result[0]

    def abandon(self) -> None:
        """Nobody waits any more: a result that still comes is discarded."""
        with self._lock:
            self._is_abandoned = True
            late = list(self._result)
        if self._discard is not None:
            for result in late:
                self._discard(result)

    def _run(self) -> None:
        try:
            result = self._call()
            with self._lock:
                self._result.append(result)
                is_late = self._is_abandoned
            if is_late and self._discard is not None:
                self._discard(result)
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            self._error = error
        finally:
            self._done.set()


def attended(
    call: Callable[[], T],
    should_stop: Callable[[], str | None] = never,
    *,
    discard: Callable[[T], object] | None = None,
) -> T:
    """What `call` returns; Stopped within 0.1 s of a reason to stop, with the call left behind and its result discarded.

    Left behind too when an exception (a signal's, say) reaches the thread that waits.
    """
    running = Aside(call, discard)
    try:
        while not running.wait(POLL_S):
            reason = should_stop()
            if reason is not None:
                raise Stopped(reason)  # noqa: TRY301 - abandoned below like any other exception
    except BaseException:
        running.abandon()
        raise
    return running.result()
