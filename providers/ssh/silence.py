"""Machines that do not answer: which they are is remembered for a while, and a command of ours that does not speak is noticed."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Final

from prefect_gpu.providers.core.contract import Channel, Connection
from prefect_gpu.providers.core.errors import LinkLost
from prefect_gpu.providers.core.machine.channels import said
from prefect_gpu.providers.core.models import SshEndpoint

REMEMBERED_S: Final = 300.0
SHORT_S: Final = 3.0  # the patience with a machine that is known not to answer

_MARK = b"prefect-gpu-"  # of a script's own output
_NOISE_BYTES = 2000


class _Silent:
    """The machines that did not answer lately: each listing of this process would wait for them again."""

    def __init__(self) -> None:
        self._since: dict[SshEndpoint, float] = {}
        self._lock = threading.Lock()

    def patience(self, endpoint: SshEndpoint, full_s: float) -> float:
        """For how long to wait: as long as ever at first and after a while, in between a moment."""
        with self._lock:
            since = self._since.get(endpoint)
            if since is None or time.monotonic() - since > REMEMBERED_S:
                self._since.pop(endpoint, None)
                return full_s
        return min(full_s, SHORT_S)

    def remember(self, endpoint: SshEndpoint) -> None:
        with self._lock:
            self._since.setdefault(endpoint, time.monotonic())

    def forget(self, endpoint: SshEndpoint) -> None:
        with self._lock:
            self._since.pop(endpoint, None)


silent: Final = _Silent()


class Listening:
    """A connection that hears whether a command of ours speaks, and what speaks instead."""

    def __init__(self, connection: Connection, patience_s: float) -> None:
        self._connection = connection
        self._channel: Channel | None = None
        self.patience_s = patience_s
        self.noise = b""
        self.has_spoken = False
        self.is_mute = False

    def open(self, command: str) -> Channel:
        self._channel = self._connection.open(command)
        return _Heard(self._channel, self)

    @property
    def words(self) -> str:
        """What spoke instead, in one line."""
        errors = self._channel.error_text() if self._channel else ""
        return said(self.noise.decode(errors="replace") + " " + errors)

    @property
    def end(self) -> str:
        """The same, or else how a command ended that never spoke."""
        if self.words or self._channel is None:
            return self.words
        try:
            return f"exit {self._channel.exit_status(1.0)}"
        except LinkLost:
            return ""

    def is_alive(self) -> bool:
        return self._connection.is_alive()

    def close(self) -> None:
        self._connection.close()


class _Heard:
    """A command's channel, closed when it does not speak in time."""

    def __init__(self, channel: Channel, listening: Listening) -> None:
        self._channel = channel
        self._listening = listening
        self._timer = threading.Timer(listening.patience_s, self._give_up)
        self._timer.daemon = True
        self._timer.start()

    def _give_up(self) -> None:
        if not self._listening.has_spoken:
            self._listening.is_mute = True
            self._channel.close()

    def recv(self, size: int) -> bytes:
        data = self._channel.recv(size)
        if not self._listening.has_spoken:
            seen = self._listening.noise[-len(_MARK) :] + data
            self._listening.noise = (self._listening.noise + data)[:_NOISE_BYTES]
            if _MARK in seen:
                self._listening.has_spoken = True
                self._timer.cancel()
        return data

    def sendall(self, data: bytes) -> None:
        try:
            self._channel.sendall(data)
        except LinkLost:  # who takes no input may have said why before it ended
            with suppress(LinkLost):
                while len(self._listening.noise) < _NOISE_BYTES and self.recv(_NOISE_BYTES):
                    pass
            raise

    def shutdown_write(self) -> None:
        self._channel.shutdown_write()

    def exit_status(self, timeout_s: float) -> int:
        return self._channel.exit_status(timeout_s)

    def error_text(self) -> str:
        return self._channel.error_text()

    def close(self) -> None:
        self._timer.cancel()
        self._channel.close()
