"""A way onto a pod: commands through the Kubernetes API's exec websocket, bytes exact in both directions.

Protocol: https://kubernetes.io/docs/reference/generated/kubernetes-api/ (pods/exec), subprotocol `v4.channel.k8s.io`: each message
begins with the number of its stream. That subprotocol cannot say that stdin has ended (`v5` can, from Kubernetes 1.30 on), and
the command's words would stand in the URL, where audit logs keep them. So a small `sh` script (`_WRAPPER`) takes all of
it from its stdin as counted chunks: first the command, then the command's stdin, then "0" for the end. It needs `sh`, `dd`, `cat`.

One websocket per command, one thread, no buffers that grow: what the caller does not read stays in the kernel and stops the sender.

The file is over 300 lines because the socket, the frames and the script that answers them are one protocol.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import secrets
import select
import socket
import ssl
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, cast

from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from providers.core.contract import Channel
from providers.core.errors import AuthFailed, InvalidRequest, LinkLost, NotFound, NotReady, ProviderError

STDIN, STDOUT, STDERR, STATUS = 0, 1, 2, 3
CHUNK: Final = 1 << 20  # bytes of stdin per `dd` on the pod
FRAME: Final = 1 << 17
READ: Final = 1 << 18
STDERR_KEPT: Final = 1 << 16
UNREAD_KEPT: Final = 1 << 20
PING_S: Final = 5.0
SILENCE_S: Final = 15.0  # a link that is silent for so long, a ping included, is dead
DOUBT_S: Final = 4.0  # a ping is unanswered for so long: ask the API about the pod
STALL_S: Final = 300.0  # a command that takes no byte of its stdin for so long is given up

# The wrapper reads the command and a mark, and runs the command with what the feeder (the second script) passes on of the counted
# chunks as its stdin. When the command has ended it writes the mark to stderr and swallows what still comes, until "0": a
# connection that is closed with bytes unread is reset, and a reset takes the exit status with it. When the link breaks before
# "0" came, the feeder hangs up on the command, as a terminal would: an idle `tail -f` does not stay behind. (-$1: only where the
# wrapper leads a process group. dash and busybox know no `kill -HUP -- -1`.) Jobs of their own session survive all of it.
# dd reads whole blocks and not a byte more: `head -c` of busybox reads more than it should.
_FEEDER: Final = """while IFS= read -r n; do
case $n in 0) exit 0;; ''|*[!0-9]*) break;; esac
dd bs="$n" count=1 iflag=fullblock 2>/dev/null || exit 1
done
trap '' HUP; kill -HUP "-$1" 2>/dev/null
"""
_WRAPPER: Final = """exec 3>&2 2>/dev/null
IFS=' ' read -r n m || exit 255
c=$(dd bs="$n" count=1 iflag=fullblock) || exit 255
sh -c "$1" feeder "$$" 3>&- | { sh -c "$c" 2>&3 3>&-; s=$?; printf %s "$m" >&3; cat >/dev/null; exit "$s"; }
"""


class Api(NamedTuple):
    """Where the API server is and how it is spoken to."""

    url: str  # https://host:port, and a path where a proxy serves several clusters
    tls: ssl.SSLContext | None
    server_name: str | None  # what the certificate must say, where it is not the host
    proxy: str | None  # http://, perhaps with user and password
    headers: Callable[[], Mapping[str, str]]  # authorization, fresh


class PodConnection:
    """The commands of one pod's container. `api` is asked for each; `is_running` asks it, within 5 s, whether the pod runs."""

    def __init__(
        self,
        api: Callable[[], Api],
        namespace: str,
        pod: str,
        container: str,
        is_running: Callable[[], bool],
        *,
        timeout_s: float = 10,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._pod = pod
        self._container = container
        self._is_running = is_running
        self._timeout_s = timeout_s
        self._is_closed = False

    def open(self, command: str) -> Channel:
        """Start a command by the pod's `sh`. NotFound: no such pod; NotReady: it does not run; LinkLost."""
        if self._is_closed:
            raise LinkLost(f"the connection to {self._pod} was closed")
        if "\0" in command:
            raise ValueError("a command cannot contain a NUL byte")
        query = urllib.parse.urlencode(
            [
                ("container", self._container),
                *(("command", word) for word in ("sh", "-c", _WRAPPER, "sh", _FEEDER)),
                *((stream, "true") for stream in ("stdin", "stdout", "stderr")),
            ]
        )
        path = f"/api/v1/namespaces/{self._namespace}/pods/{self._pod}/exec?{query}"
        sock, protocol = _websocket(self._api(), path, self._pod, self._timeout_s)
        return PodChannel(sock, protocol, self._pod, command.encode(), self._is_running)

    def is_alive(self) -> bool:
        if self._is_closed:
            return False
        try:
            return self._is_running()
        except ProviderError:
            return False

    def close(self) -> None:
        self._is_closed = True


class PodChannel:
    """One command on a pod, over one websocket."""

    def __init__(
        self, sock: socket.socket, protocol: ClientProtocol, pod: str, command: bytes, is_running: Callable[[], bool]
    ) -> None:
        self._sock = sock
        self._protocol = protocol
        self._pod = pod
        self._is_running = is_running
        self._in_turn = threading.Lock()
        self._out: deque[memoryview] = deque()
        self._unsent: deque[memoryview] = deque()
        self._stderr = bytearray()
        self._mark = secrets.token_hex(16).encode()
        self._tail = b""  # the last bytes of stderr: the mark may come in pieces
        self._status: bytes | None = None
        self._has_ended = False  # no more frames will come
        self._command_ended = False
        self._is_in_chunk = False
        self._stdin_ended = False
        self._takes_no_more = False
        self._broken: str | None = None
        self._heard_at = self._moved_at = time.monotonic()
        self._pinged_at: float | None = None
        self._sent_since_pong = 0
        self._sent_before_ping = 0
        try:
            self._send_chunk(b"%d %s\n" % (len(command), self._mark), command)
        except BaseException:
            self.close()
            raise

    def sendall(self, data: bytes) -> None:
        if self._stdin_ended and not self._command_ended:
            raise LinkLost(f"stdin of the command on {self._pod} has ended")
        view = memoryview(data)
        for at in range(0, len(view), CHUNK):
            if self._command_ended:
                return  # it ended without reading all of its stdin: no error of ours, its exit status tells
            piece = view[at : at + CHUNK]
            self._send_chunk(b"%d\n" % len(piece), piece)

    def shutdown_write(self) -> None:
        self._end_stdin()
        self._flush()

    def recv(self, size: int) -> bytes:
        while not self._out and not self._has_ended:
            self._turn(time.monotonic() + PING_S)
        if not self._out:
            if self._status is None:
                raise LinkLost(self._broken or f"the link to {self._pod} broke")
            return b""
        first = self._out.popleft()
        if len(first) > size:
            self._out.appendleft(first[size:])
        return bytes(first[:size])

    def exit_status(self, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s
        while not self._has_ended and time.monotonic() < deadline:
            # Output that nobody reads is kept up to a point, and then stops the command, as over SSH.
            has_room = sum(len(part) for part in self._out) < UNREAD_KEPT
            self._turn(min(deadline, time.monotonic() + PING_S), is_reading=has_room)
        if self._status is None:
            raise LinkLost(self._broken or f"no exit status came from {self._pod} within {timeout_s:g} s")
        return _exit_code(self._status, self._pod)

    def error_text(self) -> str:
        return bytes(self._stderr).replace(self._mark, b"").decode(errors="replace")

    def close(self) -> None:
        """May be called while another thread waits in recv or sendall: that raises LinkLost then."""
        if not self._has_ended:
            self._has_ended = True
            self._broken = f"the channel to {self._pod} was closed"
        with contextlib.suppress(OSError):
            socket.socket.shutdown(
                self._sock, socket.SHUT_RDWR
            )  # SSLSocket's own takes the TLS state away from the reader
        with self._in_turn:
            self._sock.close()

    # --- frames ------------------------------------------------------------------------------------------------------

    def _send_chunk(self, *parts: bytes | memoryview) -> None:
        self._is_in_chunk = True
        try:
            for part in parts:
                for at in range(0, len(part), FRAME):
                    if self._has_ended:
                        break
                    piece = part[at : at + FRAME]
                    self._protocol.send_binary(b"\0" + piece)
                    self._sent_since_pong += len(piece)
                    self._flush()
        finally:
            self._is_in_chunk = False
        if self._command_ended:
            self._end_stdin()
        if self._has_ended and self._status is None:
            raise LinkLost(self._broken or f"the link to {self._pod} broke")

    def _end_stdin(self) -> None:
        if not self._stdin_ended and not self._has_ended:
            self._protocol.send_binary(b"\x000\n")
            self._sent_since_pong += 2
            self._collect()
        self._stdin_ended = True

    def _flush(self) -> None:
        """Send all that is to be sent, reading what comes meanwhile."""
        self._collect()
        while (self._unsent or self._takes_no_more) and not self._has_ended:
            self._turn(time.monotonic() + PING_S)

    def _collect(self) -> None:
        self._unsent.extend(memoryview(data) for data in self._protocol.data_to_send() if data)

    def _turn(self, until: float, *, is_reading: bool = True) -> None:
        """Send and receive what is possible now, or wait until something is, at most until then."""
        with self._in_turn:
            if self._has_ended:
                return
            try:
                moved = self._write()
                if is_reading:
                    moved = self._read() or moved
                if moved or self._has_ended:
                    self._moved_at = time.monotonic()
                    return
                timeout_s = max(0.0, until - time.monotonic())
                readers, writers = [self._sock] if is_reading else [], [self._sock] if self._unsent else []
                if readers or writers:
                    select.select(readers, writers, [], timeout_s)
                else:
                    time.sleep(min(0.1, timeout_s))
            except (OSError, ValueError) as error:  # ValueError: more files than select can watch
                self._lose(f"the link to {self._pod} broke: {type(error).__name__}")
                return
            self._watch()

    def _write(self) -> bool:
        moved = False
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent[0])
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                break
            except OSError:
                # The other side took no more: what it said before that (an exit status, perhaps) is still to be read.
                self._unsent.clear()
                self._takes_no_more = True
                return True
            moved = True
            if sent < len(self._unsent[0]):
                self._unsent[0] = self._unsent[0][sent:]
                break
            self._unsent.popleft()
        return moved

    def _read(self) -> bool:
        try:
            data = self._sock.recv(READ)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        self._heard_at = time.monotonic()
        if not data:
            self._lose(f"the link to {self._pod} broke: the API server closed it")
            return True
        try:
            self._protocol.receive_data(data)
        except EOFError:
            return True  # bytes after the close frame
        for event in self._protocol.events_received():
            self._take(cast("Frame", event))
        self._collect()
        if self._protocol.parser_exc is not None:
            self._lose(f"the API server does not speak the exec protocol: {type(self._protocol.parser_exc).__name__}")
        return True

    def _take(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PONG:
            self._pinged_at = None
            self._sent_since_pong -= self._sent_before_ping
        elif frame.opcode is Opcode.CLOSE:
            self._lose(f"the link to {self._pod} was closed by the API server")
        elif frame.opcode in {Opcode.BINARY, Opcode.TEXT, Opcode.CONT} and frame.data:
            self._take_message(memoryview(frame.data))

    def _take_message(self, message: memoryview) -> None:
        stream, data = message[0], message[1:]
        if not data:
            return  # each stream is opened by an empty message
        if stream == STDOUT:
            self._out.append(data)
        elif stream == STDERR:
            self._take_stderr(bytes(data))
        elif stream == STATUS:
            # The last message: the kubelet sends it when all output has been sent.
            self._status = bytes(data)
            self._has_ended = True
            self._unsent.clear()

    def _take_stderr(self, data: bytes) -> None:
        self._stderr += data[: max(0, STDERR_KEPT - len(self._stderr))]
        seen = self._tail + data
        self._tail = seen[-len(self._mark) :]
        if self._mark in seen:
            self._command_ended = True
            if not self._is_in_chunk:  # else when it is through: the wrapper counts
                self._end_stdin()

    def _lose(self, reason: str) -> None:
        self._has_ended = True
        self._unsent.clear()
        if self._status is None:
            self._broken = self._broken or reason

    def _watch(self) -> None:
        now = time.monotonic()
        if now - self._heard_at >= PING_S and self._pinged_at is None:
            self._pinged_at = now
            self._sent_before_ping = self._sent_since_pong
            self._protocol.send_ping(b"")
            self._collect()
        if self._pinged_at is None or now - self._pinged_at < DOUBT_S:
            return
        # The server answers a ping when it has handed on the stdin before it: with stdin on its way no answer may only mean that
        # the command is slow to read, so the API is asked. Without, no answer means that the link is dead.
        if not self._sent_before_ping:
            if now - self._heard_at >= SILENCE_S:
                self._lose(f"the link to {self._pod} is dead: no answer for {SILENCE_S:g} s")
            return
        if now - self._moved_at >= STALL_S:
            self._lose(f"the command on {self._pod} took nothing of its stdin for {STALL_S:g} s")
            return
        try:
            is_running = self._is_running()
        except ProviderError:
            is_running = False
        if not is_running:
            self._lose(f"the link to {self._pod} is dead: the pod does not answer")
        self._pinged_at = now  # asked again in a while


def _websocket(api: Api, path: str, pod: str, timeout_s: float) -> tuple[socket.socket, ClientProtocol]:
    """An open exec websocket: its socket, no longer blocking, and the protocol's state."""
    base = urllib.parse.urlsplit(api.url)
    ws_url = f"{'wss' if base.scheme == 'https' else 'ws'}://{base.netloc}{base.path.rstrip('/')}{path}"
    protocol = ClientProtocol(parse_uri(ws_url), subprotocols=[Subprotocol("v4.channel.k8s.io")], max_size=None)
    try:
        sock = _connect(api, timeout_s)
    except (OSError, http.client.HTTPException) as error:
        raise LinkLost(f"the API server cannot be reached for a command on {pod}: {type(error).__name__}") from error
    try:
        request = protocol.connect()
        for key, value in api.headers().items():
            request.headers[key] = value
        protocol.send_request(request)
        for data in protocol.data_to_send():
            sock.sendall(data)
        response = _response(sock, protocol, time.monotonic() + timeout_s)
    except (OSError, WebSocketException) as error:
        sock.close()
        raise LinkLost(f"the API server did not open a command on {pod}: {type(error).__name__}") from error
    except BaseException:
        sock.close()
        raise
    if response.status_code != 101 or protocol.handshake_exc is not None:
        sock.close()
        raise _refusal(response, pod)
    sock.settimeout(0)
    return sock, protocol


def _connect(api: Api, timeout_s: float) -> socket.socket:
    base = urllib.parse.urlsplit(api.url)
    host, port = base.hostname or "", base.port or (443 if base.scheme == "https" else 80)
    if api.proxy:
        proxy = urllib.parse.urlsplit(api.proxy)
        tunnel = http.client.HTTPConnection(proxy.hostname or "", proxy.port or 80, timeout=timeout_s)
        tunnel.set_tunnel(host, port, headers=_login(proxy))
        tunnel.connect()
        sock = tunnel.sock
    else:
        sock = socket.create_connection((host, port), timeout=timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if base.scheme == "https" and api.tls is not None:
        return api.tls.wrap_socket(sock, server_hostname=api.server_name or host)
    return sock


def _login(proxy: urllib.parse.SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    user, password = (urllib.parse.unquote(part or "") for part in (proxy.username, proxy.password))
    return {"Proxy-Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


def _response(sock: socket.socket, protocol: ClientProtocol, deadline: float) -> Response:
    while True:
        if time.monotonic() > deadline:
            raise TimeoutError
        data = sock.recv(READ)
        if data:
            protocol.receive_data(data)
        else:
            protocol.receive_eof()
        for event in protocol.events_received():
            if isinstance(event, Response):
                return event
        if not data or protocol.handshake_exc is not None:
            raise ConnectionResetError


def _refusal(response: Response, pod: str) -> ProviderError:
    """What a refused upgrade means. The API server answers with a Status object, the kubelet with plain words."""
    body = bytes(response.body or b"").decode(errors="replace")
    try:
        words = str(json.loads(body).get("message", ""))
    except (ValueError, AttributeError):
        words = body.strip()
    words = words[:300]
    code = str(response.status_code)
    if response.status_code == 404 and "not found" in words and "container" not in words:
        return NotFound(f"the pod {pod} is gone", code=code)
    if response.status_code == 401:
        return AuthFailed("the cluster refuses these credentials", code=code)
    if response.status_code == 403:
        return AuthFailed(
            f"the cluster does not let us run commands in pods: grant get and create on pods/exec ({words})", code=code
        )
    if response.status_code in {101, 400} and not words:
        return InvalidRequest("the API server does not speak the exec protocol v4.channel.k8s.io", code=code)
    return NotReady(f"no command can be run on {pod} yet: {words or response.status_code}", code=code)


def _exit_code(status: bytes, pod: str) -> int:
    """The command's exit status from the Status object of the last message."""
    try:
        parsed: dict[str, Any] = json.loads(status)
        if parsed.get("status") == "Success":
            return 0
        for cause in parsed.get("details", {}).get("causes", []):
            if cause.get("reason") == "ExitCode":
                return int(cause["message"])
        words = str(parsed.get("message", ""))[:300]
    except (ValueError, AttributeError, KeyError, TypeError):
        words = "its last message is no status"
    raise LinkLost(f"the command on {pod} ended without an exit status: {words}")
