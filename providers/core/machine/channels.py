"""Logged-in connections and the commands that run over them: what is silent too long is closed, what a machine writes is bounded."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any, Final, NamedTuple

from prefect_gpu.providers.core.errors import LinkLost
from prefect_gpu.providers.core.machine.link import SILENCE_S, Link, TooMuch

KEEPALIVE_S: Final = 5.0
OPEN_WITHIN_S: Final = 15.0
WINDOW_BYTES: Final = 4 * 1024 * 1024  # what may be on its way: at 100 ms of distance 40 MB/s
_PACKET_BYTES: Final = 128 * 1024  # a server that can fills it: a quarter of the packets of paramiko's own 32 KB

_ERROR_TEXT_BYTES = 64 * 1024


class Logged(NamedTuple):
    """A logged-in transport, what it goes over and the host key that was shown."""

    transport: Any
    link: Link
    shown: str
    trouble: tuple[type[Exception], ...]  # what the transport raises: only ssh.py knows the library

    def hang_up(self) -> None:
        self.transport.close()
        self.link.close()  # a transport that has ended by itself leaves it open

    def is_alive(self) -> bool:
        return bool(self.transport.is_active()) and time.monotonic() - self.link.heard_at < SILENCE_S


def _hang_up(channel: Any) -> None:
    with contextlib.suppress(Exception):  # the link is gone already, and nobody reads what this thread raises
        channel.close()


class SshConnection:
    """A logged-in connection, watched: within 20 s of the last sign of life it closes itself, and its channels end."""

    def __init__(self, logged: Logged) -> None:
        self._logged = logged
        self._transport = logged.transport
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="prefect-gpu keepalive", daemon=True).start()

    def open(self, command: str) -> SshChannel:
        try:
            channel = self._transport.open_session(
                window_size=WINDOW_BYTES, max_packet_size=_PACKET_BYTES, timeout=OPEN_WITHIN_S
            )
            # A server that never answers the request would hold this thread for as long as it answers anything else.
            late = threading.Timer(OPEN_WITHIN_S, _hang_up, (channel,))
            late.daemon = True
            late.start()
            try:
                channel.exec_command(command)
            finally:
                late.cancel()
        except self._logged.trouble as error:
            if self.is_alive():
                raise LinkLost(f"the machine opened no channel: {said(error)}") from error
            raise LinkLost(f"the link to the machine is lost{because(self._transport)}") from error
        return SshChannel(channel, self._logged)

    def is_alive(self) -> bool:
        return bool(self._transport.is_active()) and not self._closed.is_set()

    def close(self) -> None:
        self._closed.set()
        self._logged.hang_up()

    def _watch(self) -> None:
        # paramiko's set_keepalive wants no answer, so it never notices that none comes; a request that wants one blocks, so
        # each has a thread of its own. A frozen link acknowledges nothing, yet TCP keeps it open for many minutes.
        asked = time.monotonic()
        ping: threading.Thread | None = None
        while not self._closed.wait(1.0) and self._transport.is_active():
            now = time.monotonic()
            if now - self._logged.link.heard_at > SILENCE_S:
                self.close()
            elif now - asked >= KEEPALIVE_S and (ping is None or not ping.is_alive()):
                asked = now
                ping = threading.Thread(target=self._ping, name="prefect-gpu ping", daemon=True)
                ping.start()

    def _ping(self) -> None:
        with contextlib.suppress(*self._logged.trouble):
            self._transport.global_request("keepalive@openssh.com", wait=True)


class SshChannel:
    """A command that runs on the machine."""

    def __init__(self, channel: Any, logged: Logged) -> None:
        self._channel = channel
        self._transport = logged.transport
        self._trouble = logged.trouble
        self._errors = bytearray()
        self._is_closed = False

    def sendall(self, data: bytes) -> None:
        try:
            self._channel.sendall(data)
        except self._trouble as error:
            raise LinkLost("the machine takes no more input") from error

    def shutdown_write(self) -> None:
        with contextlib.suppress(*self._trouble):  # a lost link shows in recv and exit_status
            self._channel.shutdown_write()

    def recv(self, size: int) -> bytes:
        try:  # reading widens the window, which writes
            self._drain_errors()
            data: bytes = self._channel.recv(size)
        except self._trouble:
            return b""
        return data

    def exit_status(self, timeout_s: float) -> int:
        if not self._channel.status_event.wait(timeout_s):
            raise LinkLost(f"no exit status within {timeout_s:g} s")
        status = int(self._channel.exit_status)
        if status >= 0:
            return status
        if self._transport.is_active() and not self._is_closed:
            return 255  # ended by a signal: paramiko does not tell which
        raise LinkLost(f"the link to the machine is lost{because(self._transport)}")

    def error_text(self) -> str:
        with contextlib.suppress(*self._trouble):
            self._drain_errors()
        return bytes(self._errors).decode(errors="replace")

    def close(self) -> None:
        self._is_closed = True
        with contextlib.suppress(*self._trouble):
            self._channel.close()

    def _drain_errors(self) -> None:
        # Unread stderr would fill the channel's window and stop stdout too.
        while self._channel.recv_stderr_ready():
            data: bytes = self._channel.recv_stderr(65536)
            self._errors += data[: _ERROR_TEXT_BYTES - len(self._errors)]


def said(error: object) -> str:
    """What a server or paramiko said, in one short line."""
    return "".join(c if c.isprintable() else " " for c in str(error)[:400]).strip()[:200]


def because(transport: Any) -> str:
    """Why we ended the link ourselves, as the end of a sentence."""
    why = transport.saved_exception
    return f": {why}" if isinstance(why, TooMuch) else ""
