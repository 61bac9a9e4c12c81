"""What both directions of files share: a channel that is attended, and progress that is said."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from prefect_gpu.providers.core.aside import POLL_S, Aside, Stopped
from prefect_gpu.providers.core.contract import Channel, Connection
from prefect_gpu.providers.core.errors import InstanceFailed
from prefect_gpu.providers.core.machine import scripts
from prefect_gpu.providers.core.machine.reach import ShouldStop
from prefect_gpu.providers.core.machine.shell import ScriptChannel, start_script

T = TypeVar("T")

CHUNK = 128 * 1024
# So long nothing may move: the machine's own work after the last byte (unpacking, hashing) takes longest.
STEP_S = 900.0
PROGRESS_S = 10.0


class Progress(NamedTuple):
    """How far a transfer has come."""

    done: int  # bytes
    total: int
    seconds: float

    @property
    def bytes_per_s(self) -> float:
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        return (self.total - self.done) / self.bytes_per_s if self.bytes_per_s else None

    def __str__(self) -> str:
        """`0.6 GB of 1.5 GB, 42 MB/s, 21 s left`."""
        left = f", {_duration(self.left_s)} left" if self.left_s is not None else ""
        return f"{size_text(self.done)} of {size_text(self.total)}, {size_text(self.bytes_per_s)}/s{left}"


OnProgress = Callable[[Progress], object]


class Meter:
    """Counts the bytes of a transfer and tells of them, at most once in PROGRESS_S: a short one says nothing."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self._total = total
        self._on_progress = on_progress
        self._done = 0
        self._began = self._said = time.monotonic()

    def add(self, count: int) -> None:
        self._done += count
        if self._on_progress is not None and (now := time.monotonic()) - self._said >= PROGRESS_S:
            self._said = now
            self._on_progress(Progress(min(self._done, self._total), self._total, now - self._began))

    def take_back(self, count: int) -> None:
        """So many bytes did not arrive after all, and come again."""
        self._done -= count


def program(place: str, script: str, /, **variables: str) -> str:
    """The program sh/<script>.sh with $dir, $part (a name that nobody else has) and these variables set."""
    return f"{place}\n{scripts.assigned(part=secrets.token_hex(6), **variables)}{scripts.text(script)}"


def size_text(count: float) -> str:
    """`1.5 GB`, `340 MB`, `12 KB`, `7 bytes`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}" if count < 10 * size else f"{count / size:,.0f} {unit}"
    return f"{count:.0f} bytes"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:,.0f} min"


def attended(link: Connection, script: str, work: Callable[[ScriptChannel], T], should_stop: ShouldStop) -> T:
    """Work with a script's channel in a thread; closed when somebody wants to stop, or the machine hangs.

    Hanging is no lost link (its sshd answers), and another connection would hang as long: InstanceFailed.
    """
    clocked = _Clocked(link)
    channel = start_script(clocked, script)
    working = Aside(lambda: work(channel))
    try:
        while not working.wait(POLL_S):
            if (reason := should_stop()) is not None:
                raise Stopped(reason)
            if time.monotonic() - clocked.moved_at > STEP_S:
                raise InstanceFailed(f"the machine hangs: no byte of the files moved for {STEP_S / 60:.0f} min")
        return working.result()
    finally:
        channel.close()
        working.wait(1.0)  # so that nothing is written after this


class _Clocked:
    """A connection, for one channel, that knows when a byte last moved over it."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self.moved_at = time.monotonic()

    def open(self, command: str) -> Channel:
        return _ClockedChannel(self._link.open(command), self)

    def is_alive(self) -> bool:
        return self._link.is_alive()

    def close(self) -> None:
        self._link.close()


class _ClockedChannel:
    def __init__(self, channel: Channel, clock: _Clocked) -> None:
        self._channel = channel
        self._clock = clock

    def sendall(self, data: bytes) -> None:
        self._channel.sendall(data)
        self._clock.moved_at = time.monotonic()

    def shutdown_write(self) -> None:
        self._channel.shutdown_write()

    def recv(self, size: int) -> bytes:
        data = self._channel.recv(size)
        self._clock.moved_at = time.monotonic()
        return data

    def exit_status(self, timeout_s: float) -> int:
        return self._channel.exit_status(timeout_s)

    def error_text(self) -> str:
        return self._channel.error_text()

    def close(self) -> None:
        self._channel.close()
