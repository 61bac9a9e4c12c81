"""A job's output, handed on by byte offset, each byte once, whatever becomes of the link."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prefect_gpu.providers.core.aside import POLL_S, Aside, Stopped
from prefect_gpu.providers.core.contract import Connection
from prefect_gpu.providers.core.machine.job_end import Ended, ended
from prefect_gpu.providers.core.machine.reach import ShouldStop
from prefect_gpu.providers.core.machine.shell import ScriptChannel, start_script

Sink = Callable[[int, bytes], object]

_CHUNK = 65536


class Follower:
    """Where following a job's output has come to."""

    def __init__(self, sink: Sink, offset: int) -> None:
        self.offset = offset
        self.attempts = 0
        self._sink = sink

    def follow(self, connection: Connection, program: str, should_stop: ShouldStop) -> Ended:
        self.attempts += 1
        channel = start_script(connection, program)
        reading = Aside(lambda: self._read(channel))
        try:
            while not reading.wait(POLL_S):
                if (reason := should_stop()) is not None:
                    raise Stopped(reason)
            reading.result()
            channel.exit_status(timeout_s=10.0)
            return ended(channel.error_text())
        finally:
            channel.close()
            reading.wait(1.0)  # so that no byte comes after this

    def _read(self, channel: ScriptChannel) -> None:
        while data := channel.recv(_CHUNK):
            self._sink(self.offset, data)
            self.offset += len(data)


def replay(path: Path, start: int, end: int, on_output: Sink) -> None:
    """What an earlier call wrote to the log file and `on_output` wants too."""
    with path.open("rb") as log:
        log.seek(start)
        while start < end and (data := log.read(min(_CHUNK, end - start))):
            on_output(start, data)
            start += len(data)
