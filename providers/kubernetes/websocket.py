"""An exec websocket of the Kubernetes API: its bytes and frames, bounded, without a thought for what runs behind it.

Protocol: https://kubernetes.io/docs/reference/generated/kubernetes-api/ (pods/exec), subprotocol `v4.channel.k8s.io`: each message
begins with the number of its stream. Whoever uses a link holds a lock around each call but `wait`.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple, cast

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State

STDIN, STDOUT, STDERR, STATUS = 0, 1, 2, 3
READ: Final = 1 << 17  # bytes at a time
MOST_FRAME: Final = 4 << 20  # kubelets send 32 KB
_MOST_UNSENT: Final = 8 << 20  # a server that asks and asks, and reads none of the answers
_Selector = getattr(selectors, "PollSelector", selectors.DefaultSelector)  # select() knows no file above 1023


class Piece(NamedTuple):
    """What came on a stream; `is_last` of its message."""

    stream: int
    data: bytes
    is_last: bool


class Closed(Exception):
    """No more will come; the message says why."""


class Link:
    """One open websocket, its socket no longer blocking."""

    def __init__(self, sock: socket.socket, protocol: ClientProtocol, early: list[Frame]) -> None:
        self._sock = sock
        self._protocol = protocol
        self._early = early  # what came together with the answer to the upgrade
        self._unsent: deque[memoryview] = deque()
        self._stream: int | None = None  # of a message in pieces
        self._ear, self._bell = socket.socketpair()
        self._ear.settimeout(0)
        self._bell.settimeout(0)
        self._failed: str | None = None
        self.takes_no_more = False
        self.was_ponged = False

    @property
    def is_flushed(self) -> bool:
        return not self._unsent

    def send(self, data: bytes | memoryview) -> None:
        """Queue a message for the command's stdin."""
        if self._protocol.state is State.OPEN:  # else `read` says what happened
            self._protocol.send_binary(b"\0" + data)
            self._collect()

    def ping(self) -> None:
        self.was_ponged = False
        if self._protocol.state is State.OPEN:
            self._protocol.send_ping(b"")
            self._collect()

    def write(self) -> bool:
        """Send what can be sent now; whether anything moved."""
        moved = False
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent[0])
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                break
            except OSError:
                # The other side took no more: what it said before that (an exit status, perhaps) is still to be read.
                self._unsent.clear()
                self.takes_no_more = True
                return True
            moved = True
            if sent < len(self._unsent[0]):
                self._unsent[0] = self._unsent[0][sent:]
                break
            self._unsent.popleft()
        return moved

    def read(self) -> list[Piece] | None:
        """What has come; None where nothing has. Raises Closed when no more will."""
        if self._early:
            early, self._early = self._early, []
            return list(self._pieces(early))
        if self._failed:
            raise Closed(self._failed)
        try:
            data = self._sock.recv(READ)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        if not data:
            raise Closed("broke: the API server closed it")
        with contextlib.suppress(EOFError):  # bytes after the close frame
            self._protocol.receive_data(data)
        pieces = list(self._pieces(cast("list[Frame]", self._protocol.events_received())))
        self._collect()
        if self._protocol.parser_exc is not None:
            kind = type(self._protocol.parser_exc).__name__
            self._failed = f"broke: the API server does not speak the exec protocol ({kind})"
        elif sum(map(len, self._unsent)) > _MOST_UNSENT:
            self._failed = "broke: the API server reads nothing"
        return pieces

    def wait(self, *, is_reading: bool, timeout_s: float) -> None:
        """Until the socket can go on, somebody rings, or the time is over. The only call that needs no lock."""
        wanted = (selectors.EVENT_READ if is_reading else 0) | (selectors.EVENT_WRITE if self._unsent else 0)
        with _Selector() as selector:
            selector.register(self._ear, selectors.EVENT_READ)
            if wanted:
                selector.register(self._sock, wanted)
            selector.select(timeout_s)
        with contextlib.suppress(BlockingIOError):
            self._ear.recv(64)

    def ring(self) -> None:
        """Wake whoever waits."""
        with contextlib.suppress(OSError):  # it is full: rung already
            self._bell.send(b"!")

    def shut(self) -> None:
        """End the connection; whoever waits wakes."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(
                self._sock, socket.SHUT_RDWR
            )  # SSLSocket's own takes the TLS state away from the reader
        self.ring()

    def close(self) -> None:
        for one in (self._sock, self._ear, self._bell):
            one.close()

    def forget_unsent(self) -> None:
        self._unsent.clear()

    def _collect(self) -> None:
        self._unsent.extend(memoryview(data) for data in self._protocol.data_to_send() if data)

    def _pieces(self, frames: list[Frame]) -> Iterator[Piece]:
        for frame in frames:
            if frame.opcode is Opcode.PONG:
                self.was_ponged = True
            elif frame.opcode is Opcode.CLOSE:
                yield Piece(-1, b"", is_last=True)
            elif frame.opcode in {Opcode.BINARY, Opcode.TEXT, Opcode.CONT}:
                data = bytes(frame.data)
                if self._stream is None and data:
                    self._stream, data = data[0], data[1:]
                stream = self._stream
                if frame.fin:
                    self._stream = None
                if stream is not None:
                    yield Piece(stream, data, is_last=frame.fin)
