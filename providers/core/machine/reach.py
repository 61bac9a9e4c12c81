"""One machine and the way to it: connected to again whenever the link was lost, and given up when it is out of reach for too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from prefect_gpu.providers.core.aside import attended, never
from prefect_gpu.providers.core.contract import Connection
from prefect_gpu.providers.core.errors import HostKeyMismatch, LinkLost, ProviderError, Transient
from prefect_gpu.providers.core.machine.shell import Finished, run_script

LOST_AFTER_S: Final = 900.0  # so long a machine may be out of reach before its job counts as lost

ShouldStop = Callable[[], str | None]  # None, "cancelled" or "abandon"

T = TypeVar("T")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_STEADY_S = 30.0  # a step that went on for so long was not lost before


class Reach:
    """A machine, reached over one connection that is made again when it is lost."""

    def __init__(self, open_connection: Callable[[], Connection], connection: Connection | None = None) -> None:
        """`open_connection` opens a verified connection or raises ProviderError."""
        self._open_connection = open_connection
        self._connection = connection
        self._is_known = connection is not None  # connected once: from now on a wrong host key is an alarm
        self._lock = threading.Lock()
        self._failed_at = float("-inf")  # when a step came to nothing for the last time

    def connection(self, should_stop: ShouldStop = never) -> Connection:
        """The connection, opened if there is none that lives. Raises what `open_connection` raises, and Stopped."""
        with self._lock:
            if self._connection is not None and self._connection.is_alive():
                return self._connection
        fresh = attended(self._open_connection, should_stop, discard=lambda late: late.close())
        with self._lock:
            stale, self._connection, self._is_known = self._connection, fresh, True
        if stale is not None:
            stale.close()
        return fresh

    @property
    def is_linked(self) -> bool:
        """Whether a connection is open and not known to be broken."""
        with self._lock:
            return self._connection is not None and self._connection.is_alive()

    @property
    def is_reached(self) -> bool:
        """Whether what is asked of the machine comes through: a link can stand to one that is no more, and then every step fails at once."""
        return self.is_linked and time.monotonic() - self._failed_at > _STEADY_S

    def close(self) -> None:
        """Close the connection; jobs go on."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def execute(
        self, script: str, stdin: bytes = b"", *, timeout_s: float = 30.0, should_stop: ShouldStop = never
    ) -> Finished:
        """Run a POSIX sh script to its end, once. Raises LinkLost, Stopped, and what opening a connection raises."""
        return execute_on(self.connection(should_stop), script, stdin, timeout_s, should_stop)

    def persist(
        self,
        step: Callable[[Connection], T],
        should_stop: ShouldStop,
        lost_after_s: float,
        on_link: Callable[[str], object] | None = None,
        *,
        steady_s: float | None = None,
        bears: tuple[type[ProviderError], ...] = (Transient,),
    ) -> T:
        """A step that may be repeated, repeated on new connections until it is through.

        A step that went on for `steady_s` (30) had reached the machine; math.inf for one that should take a moment, since a machine that
        hangs answers every connect. Raises what the step raises, but LinkLost, in the place of what it `bears`, only when the
        machine was out of reach for `lost_after_s`; Stopped.
        """
        lost_since: float | None = None
        pause = _FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            was_known = self._is_known
            try:
                return step(self.connection(should_stop))
            except bears as error:
                if isinstance(error, HostKeyMismatch) and was_known:
                    raise
                problem = error.message
            failed = self._failed_at = time.monotonic()
            was_steady = failed - began > (_STEADY_S if steady_s is None else steady_s)
            if lost_since is None or was_steady:
                lost_since, pause = failed if was_steady else began, _FIRST_PAUSE_S
                if on_link is not None:
                    on_link(problem)
            if failed - lost_since + pause > lost_after_s:
                raise LinkLost(f"the machine is out of reach: {problem}")
            attended(lambda pause=pause: time.sleep(pause), should_stop)
            pause = min(_LONGEST_PAUSE_S, pause * 1.5)


def execute_on(
    connection: Connection, script: str, stdin: bytes, timeout_s: float, should_stop: ShouldStop
) -> Finished:
    return attended(lambda: run_script(connection, script, stdin, timeout_s=timeout_s), should_stop)
