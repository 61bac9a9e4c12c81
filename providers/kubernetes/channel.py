"""One command on a pod: bytes exact in both directions, at the same time.

One thread may read while another writes: whoever comes first watches the socket for both. What the caller
does not read stays in the kernel, beyond a bound, and stops the sender.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable
from typing import Final

from prefect_gpu.providers.core.errors import LinkLost, ProviderError
from prefect_gpu.providers.kubernetes import exits
from prefect_gpu.providers.kubernetes.websocket import STATUS, STDERR, STDOUT, Closed, Link, Piece

CHUNK: Final = 1 << 20  # bytes of stdin per `dd` on the pod
FRAME: Final = 1 << 17
STDERR_KEPT: Final = 1 << 16
STATUS_KEPT: Final = 1 << 16
UNREAD_KEPT: Final = 1 << 20  # of stdout
WHILE_SENDING: Final = (
    16 << 20
)  # the same, for who writes first and reads then: a command stops reading when its output stands
PING_S: Final = 5.0
SILENCE_S: Final = 15.0  # a link that is silent for so long, a ping included, is dead
DOUBT_S: Final = 4.0  # a ping is unanswered for so long: ask the API about the pod
STALL_S: Final = 300.0  # a command that takes no byte of its stdin for so long is given up


class PodChannel:
    """One command on a pod, over one websocket."""

    def __init__(self, link: Link, pod: str, command: bytes, is_running: Callable[[], bool], image: str = "") -> None:
        self._link = link
        self._pod = pod
        self._image = image
        self._is_running = is_running
        self._told = threading.Condition(threading.Lock())  # holds all that follows
        self._is_watched = False  # a thread is at the socket, for all
        self._out = bytearray()
        self._stderr = bytearray()
        self._mark = secrets.token_hex(16).encode()
        self._tail = b""  # the last bytes of stderr: the mark may come in pieces
        self._status_so_far = bytearray()
        self._status: bytes | None = None
        self._has_ended = False  # no more will come
        self._is_closed = self._is_disposed = False
        self._command_ended = False
        self._is_sending = False
        self._stdin_ended = False
        self._broken: str | None = None
        self._heard_at = self._moved_at = time.monotonic()
        self._pinged_at: float | None = None
        self._sent_since_pong = self._sent_before_ping = 0
        try:
            with self._told:
                self._send_chunk(b"%d %s\n" % (len(command), self._mark), command)
        except BaseException:
            self.close()
            raise

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        with self._told:
            if self._stdin_ended and not self._command_ended:
                raise LinkLost(f"stdin of the command on {self._pod} has ended")
            for at in range(0, len(view), CHUNK):
                if self._command_ended:
                    return  # it ended without reading all of its stdin: no error of ours, its exit status tells
                piece = view[at : at + CHUNK]
                self._send_chunk(b"%d\n" % len(piece), piece)

    def shutdown_write(self) -> None:
        with self._told:
            self._end_stdin()
            self._is_sending = True
            try:
                self._pump(self._is_flushed)
            finally:
                self._is_sending = False

    def recv(self, size: int) -> bytes:
        with self._told:
            self._pump(lambda: bool(self._out))
            if not self._out:
                if self._status is None:
                    self._must_have_run()
                    raise LinkLost(self._broken or f"the link to {self._pod} broke")
                return b""
            had_room = self._has_room()
            with memoryview(self._out) as whole:
                data = bytes(whole[:size])
            del self._out[:size]
            if not had_room and self._has_room():
                self._tell_watcher()
            return data

    def exit_status(self, timeout_s: float) -> int:
        """The command's; InstanceFailed where it was not run, for want of a tool in the image."""
        with self._told:
            # Output that nobody reads is kept up to a point, and then stops the command, as over SSH.
            self._pump(lambda: False, time.monotonic() + timeout_s)
            self._must_have_run()
            if self._status is None:
                raise LinkLost(self._broken or f"no exit status came from {self._pod} within {timeout_s:g} s")
            return exits.code(self._status, self._pod)

    def error_text(self) -> str:
        with self._told:
            return bytes(self._stderr).replace(self._mark, b"").decode(errors="replace")

    def close(self) -> None:
        """May be called while another thread waits in recv or sendall: that raises LinkLost then."""
        with self._told:
            if not self._has_ended:
                self._has_ended = True
                self._broken = f"the channel to {self._pod} was closed"
            if not self._is_closed:
                self._is_closed = True
                self._link.shut()
            self._told.notify_all()
            self._dispose()

    # --- the lock is held from here on -----------------------------------------------------------------------------------

    def _dispose(self) -> None:
        if self._is_closed and not self._is_watched and not self._is_disposed:
            self._is_disposed = True
            self._link.close()

    def _send_chunk(self, *parts: bytes | memoryview) -> None:
        self._is_sending = True
        try:
            for part in parts:
                for at in range(0, len(part), FRAME):
                    if self._has_ended:
                        break
                    piece = part[at : at + FRAME]
                    self._link.send(piece)
                    self._sent_since_pong += len(piece)
                    self._pump(self._is_flushed)
        finally:
            self._is_sending = False
        if self._command_ended:
            self._end_stdin()
        if self._has_ended and self._status is None:
            self._must_have_run()
            raise LinkLost(self._broken or f"the link to {self._pod} broke")

    def _must_have_run(self) -> None:
        exits.must_have_run(self._stderr, self._mark, self._image or f"of {self._pod}")

    def _end_stdin(self) -> None:
        if not self._stdin_ended and not self._has_ended:
            self._link.send(b"0\n")
            self._sent_since_pong += 2
            self._tell_watcher()
        self._stdin_ended = True

    def _is_flushed(self) -> bool:
        return self._link.is_flushed and not self._link.takes_no_more

    def _has_room(self) -> bool:
        return len(self._out) < (WHILE_SENDING if self._is_sending else UNREAD_KEPT)

    def _tell_watcher(self) -> None:
        if self._is_watched:
            self._link.ring()

    def _pump(self, done: Callable[[], bool], until: float = math.inf) -> None:
        """Send and receive until `done`, the end or the time: this thread at the socket, or told by the one that is."""
        if self._is_watched and not self._link.is_flushed:
            self._link.write()  # at once; what does not go now is the watcher's
            self._tell_watcher()
        while not done() and not self._has_ended and (left_s := until - time.monotonic()) > 0:
            if self._is_watched:
                self._told.wait(min(left_s, PING_S))
                continue
            self._is_watched = True
            try:
                self._turn(min(left_s, PING_S))
            finally:
                self._is_watched = False
                self._told.notify_all()
                self._dispose()

    def _turn(self, timeout_s: float) -> None:
        """Send and receive what is possible now, or wait until something is."""
        has_room = self._has_room()
        try:
            moved = self._link.write()
            if has_room:
                moved = self._read() or moved
        except Closed as closed:
            self._lose(f"the link to {self._pod} {closed}")
            return
        except OSError as error:
            self._lose(f"the link to {self._pod} broke: {type(error).__name__}")
            return
        if moved or self._has_ended:
            self._moved_at = time.monotonic()
            return
        self._told.release()
        try:
            self._link.wait(is_reading=has_room, timeout_s=timeout_s)
        finally:
            self._told.acquire()
        self._watch(has_room)

    def _read(self) -> bool:
        pieces = self._link.read()
        if pieces is None:
            return False
        self._heard_at = time.monotonic()
        if self._link.was_ponged and self._pinged_at is not None:
            self._pinged_at = None
            self._sent_since_pong -= self._sent_before_ping
        for piece in pieces:
            self._take(piece)
        return True

    def _take(self, piece: Piece) -> None:
        if piece.stream == STDOUT:
            self._out += piece.data
        elif piece.stream == STDERR:
            self._take_stderr(piece.data)
        elif piece.stream == STATUS and (
            piece.data or self._status_so_far
        ):  # each stream is opened by an empty message
            self._status_so_far += piece.data[: STATUS_KEPT - len(self._status_so_far)]
            if piece.is_last:
                # The last message: the kubelet sends it when all output has been sent.
                self._status = bytes(self._status_so_far)
                self._has_ended = True
                self._link.forget_unsent()
        elif piece.stream < 0:
            self._lose(f"the link to {self._pod} was closed by the API server")

    def _take_stderr(self, data: bytes) -> None:
        self._stderr += data[: max(0, STDERR_KEPT - len(self._stderr))]
        seen = self._tail + data
        self._tail = seen[-len(self._mark) :]
        if self._mark in seen:
            self._command_ended = True
            if not self._is_sending:  # else when it is through: the script counts
                self._end_stdin()

    def _lose(self, reason: str) -> None:
        self._has_ended = True
        self._link.forget_unsent()
        if self._status is None:
            self._broken = self._broken or reason

    def _watch(self, has_room: bool) -> None:
        """Whether the link still lives: asked by a ping, and where that may wait behind stdin, asked of the API."""
        now = time.monotonic()
        if not has_room:  # what is not read cannot be heard
            self._heard_at, self._pinged_at = now, None
        elif now - self._heard_at >= PING_S and self._pinged_at is None:
            self._pinged_at = now
            self._sent_before_ping = self._sent_since_pong
            self._link.ping()
        if self._is_sending and now - self._moved_at >= STALL_S:
            self._lose(f"the command on {self._pod} took nothing of its stdin for {STALL_S:g} s")
        elif self._pinged_at is None or now - self._pinged_at < DOUBT_S:
            return
        # The server answers a ping when it has handed on the stdin before it: with stdin on its way no answer may only mean that
        # the command is slow to read, so the API is asked. Without, no answer means that the link is dead.
        elif not self._sent_before_ping:
            if now - self._heard_at >= SILENCE_S:
                self._lose(f"the link to {self._pod} is dead: no answer for {SILENCE_S:g} s")
        elif now - self._moved_at >= STALL_S:
            self._lose(f"the command on {self._pod} took nothing of its stdin for {STALL_S:g} s")
        elif not self._pod_runs():
            self._lose(f"the link to {self._pod} is dead: the pod does not answer")
        else:
            self._pinged_at = now  # asked again in a while

    def _pod_runs(self) -> bool:
        self._told.release()
        try:
            return self._is_running()
        except ProviderError:
            return False
        finally:
            self._told.acquire()
