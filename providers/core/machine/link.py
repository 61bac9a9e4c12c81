"""What an SSH connection goes over: a TCP socket or a jump host's channel, which knows when it last heard something and how much it may hear."""

from __future__ import annotations

import contextlib
import socket
import time
from abc import ABC, abstractmethod
from typing import Any, Final

from prefect_gpu.providers.core.errors import NotReady

SILENCE_S: Final = 15.0  # a link that said nothing for so long is dead

# A login takes 5 KB; who sends a banner without end is no server.
_LOGIN_BYTES: Final = 1024 * 1024
_AT_ONCE: Final = 256 * 1024  # of what has come


class TooMuch(EOFError):
    """The other side sends more than it may. (paramiko's thread dies of an OSError with one argument.)"""


class Link(ABC):
    """How much was heard, and when."""

    def __init__(self) -> None:
        self.heard_at = time.monotonic()
        self.heard = 0
        self.is_logged_in = False

    def hear(self, data: bytes) -> bytes:
        self.heard_at = time.monotonic()
        self.heard += len(data)
        if self.heard > _LOGIN_BYTES and not self.is_logged_in:
            raise TooMuch(f"it sent more than {_LOGIN_BYTES // 2**20} MB before the login")
        return data

    @abstractmethod
    def recv(self, size: int) -> bytes:
        """As a socket's."""

    @abstractmethod
    def close(self) -> None:
        """As a socket's."""


class SocketLink(Link):
    """A TCP socket that acknowledges at once, and is asked once for what paramiko asks for in two pieces per packet."""

    def __init__(self, plain: socket.socket) -> None:
        super().__init__()
        self._socket = plain
        self._read: bytes = b""
        self._given = 0  # bytes of it

    def recv(self, size: int) -> bytes:
        if self._given == len(self._read):
            self._read, self._given = self._receive(), 0
        data = self._read[self._given : self._given + size]
        self._given += len(data)
        return data

    def _receive(self) -> bytes:
        data = self._socket.recv(_AT_ONCE)
        if hasattr(socket, "TCP_QUICKACK"):  # Linux; falls back to delayed acknowledgements by itself, so set again
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return self.hear(data)

    def close(self) -> None:
        self._socket.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class ChannelLink(Link):
    """The same over a jump host's channel; closing it lets go of the jump host."""

    def __init__(self, channel: Any, let_go: Any) -> None:
        super().__init__()
        self._channel = channel
        self._let_go = let_go

    def recv(self, size: int) -> bytes:
        data: bytes = self._channel.recv(size)
        return self.hear(data)

    def close(self) -> None:
        with contextlib.suppress(Exception):  # the jump host's own link may be gone already, in more ways than one
            self._channel.close()
        self._let_go()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


def dial(host: str, port: int, timeout_s: float) -> SocketLink:
    """A TCP connection; NotReady where nobody answers in time."""
    try:
        plain = socket.create_connection((host, port), timeout=timeout_s)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that IDNA does not know
        raise NotReady(f"{host}:{port} does not answer: {error}") from error
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # paramiko never sets it: 45 to 85 ms of every connect
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SILENCE_S * 1000))
    return SocketLink(plain)
