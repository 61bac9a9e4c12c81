"""A flow process outlives the worker that started it.

A worker reads its flow processes' stdout and stderr through pipes. When it dies, the next console line breaks a pipe and ends the
flow in the middle of a job that goes well: so between the flow and the worker's pipe stands one of our own, which never breaks. A
worker that is asked to end (SIGTERM) kills its flow processes itself: one that is to be replaced under running jobs is ended by SIGKILL.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import stat
import sys
import threading
from typing import Final

FLUSH_S: Final = 2.0  # so long the last lines may take when the process ends
CHUNK: Final = 65536


def outlive_worker() -> None:
    """Put a pipe of our own before stdout and stderr where a worker reads them. Again, or anywhere else, it does nothing."""
    global _is_done  # noqa: PLW0603 - once a process
    # Prefect's own sign of a process that a worker, or a runner, started for one flow run. In any other a broken pipe is news.
    if _is_done or "PREFECT__FLOW_RUN_ID" not in os.environ:
        return
    _is_done = True
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            number = stream.fileno()
            mode = os.fstat(number).st_mode
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                _Between(number)


class _Between:
    """A thread that carries what is written to a descriptor on to where it led before, for as long as somebody reads there."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_read = True
        self.out = os.dup(number)
        self.source, sink = os.pipe()
        os.dup2(sink, number)
        os.close(sink)
        self.thread = threading.Thread(target=self._carry, name=f"console-{number}", daemon=True)
        self.thread.start()
        atexit.register(self.end)

    def _carry(self) -> None:
        while chunk := os.read(self.source, CHUNK):
            while self.is_read and chunk:
                try:
                    chunk = chunk[os.write(self.out, chunk) :]
                except OSError:
                    self.is_read = False

    def end(self) -> None:
        """The last lines, before the process ends. What is written afterwards goes where it went before."""
        with contextlib.suppress(OSError, ValueError):
            (sys.stdout if self.number == 1 else sys.stderr).flush()
        end = self.out if self.is_read else os.open(os.devnull, os.O_WRONLY)
        os.dup2(end, self.number)  # the last writer of our own pipe is gone, and the thread comes to its end
        # A child that inherited the pipe may hold it open; what it says is no longer this run's.
        self.thread.join(FLUSH_S)


_is_done = False
