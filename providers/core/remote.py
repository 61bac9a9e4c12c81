"""Connections to machines over SSH: one accepted host key, one client key, a dead link noticed; the only import of paramiko.

Importing paramiko costs 0.15 s: whoever needs a connection imports this module while the machine still boots.

Longer than 300 lines: nothing else may import paramiko.
"""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import paramiko
from paramiko.packet import Packetizer

from providers.core.contract import Connection
from providers.core.errors import AuthFailed, HostKeyMismatch, LinkLost, LoginRefused, NotReady
from providers.core.keys import fingerprint
from providers.core.models import KeyPair, SshEndpoint, SshJump

KEEPALIVE_S: Final = 5.0
SILENCE_S: Final = 15.0  # a link that said nothing for so long is dead

_ERROR_TEXT_BYTES = 64 * 1024
_CIPHERS_FIRST = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")  # paramiko's own order puts the fastest last
_SIGNED_AS = {
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa")
}  # an RSA key signs in ways of other names (RFC 8332)
_Transport: Any = paramiko.Transport  # paramiko has no type hints

# Its transport thread logs every refused connect with a traceback; what happened is raised, so nobody needs to read it twice.
_LOG = "providers.core.remote.paramiko"
logging.getLogger(_LOG).propagate = False
logging.getLogger(_LOG).addHandler(logging.NullHandler())


def connect(
    endpoint: SshEndpoint,
    client_key: KeyPair,
    host_key: str | None,
    *,
    timeout_s: float = 10.0,
    on_first_use: Callable[[str], None] | None = None,
) -> Connection:
    """A verified connection to a machine.

    `host_key` (else the endpoint's own) is the only one accepted. Without any, the key is pinned on first use if `on_first_use`
    is given, which is told the key before anything is sent; otherwise it is refused. Raises NotReady (refused, silent, no banner),
    HostKeyMismatch (with both fingerprints), LoginRefused, all of which are NotReady; AuthFailed for a private key that is none.
    """
    deadline = time.monotonic() + timeout_s
    jump = _jump(endpoint.jump, deadline, on_first_use) if endpoint.jump else None
    try:
        link = _dial(endpoint.host, endpoint.port, deadline, jump)
        transport = _log_in(
            link,
            f"{endpoint.host}:{endpoint.port}",
            endpoint.user,
            client_key.private.get_secret_value(),
            host_key or endpoint.host_key,
            deadline,
            on_first_use,
        )
    except BaseException:
        if jump is not None:
            _hang_up(*jump)
        raise
    return SshConnection(transport, link, jump)


class SshConnection:
    """A logged-in connection, watched: within 20 s of the last sign of life it closes itself, and its channels end."""

    def __init__(self, transport: Any, link: _Link | _JumpedLink, jump: _Hop | None = None) -> None:
        self._transport = transport
        self._link = link
        self._jump = jump
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="prefect-gpu keepalive", daemon=True).start()

    def open(self, command: str) -> SshChannel:
        try:
            channel = self._transport.open_session(timeout=SILENCE_S)
            channel.exec_command(command)
        except (paramiko.SSHException, EOFError, OSError) as error:
            if self.is_alive():
                raise LinkLost(f"the machine opened no channel: {error}") from error
            raise LinkLost("the link to the machine is lost") from error
        return SshChannel(channel, self._transport)

    def is_alive(self) -> bool:
        return bool(self._transport.is_active()) and not self._closed.is_set()

    def close(self) -> None:
        self._closed.set()
        _hang_up(self._transport, self._link)
        if self._jump is not None:
            _hang_up(*self._jump)

    def _watch(self) -> None:
        # paramiko's set_keepalive wants no answer, so it never notices that none comes; a request that wants one blocks, so
        # each has a thread of its own. A frozen link acknowledges nothing, yet TCP keeps it open for many minutes.
        asked = time.monotonic()
        ping: threading.Thread | None = None
        while not self._closed.wait(1.0) and self._transport.is_active():
            now = time.monotonic()
            if now - self._link.heard_at > SILENCE_S:
                self.close()
            elif now - asked >= KEEPALIVE_S and (ping is None or not ping.is_alive()):
                asked = now
                ping = threading.Thread(target=self._ping, name="prefect-gpu ping", daemon=True)
                ping.start()

    def _ping(self) -> None:
        with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
            self._transport.global_request("keepalive@openssh.com", wait=True)


class SshChannel:
    """A command that runs on the machine."""

    def __init__(self, channel: Any, transport: Any) -> None:
        self._channel = channel
        self._transport = transport
        self._errors = bytearray()
        self._is_closed = False

    def sendall(self, data: bytes) -> None:
        try:
            self._channel.sendall(data)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise LinkLost("the machine takes no more input") from error

    def shutdown_write(self) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):  # a lost link shows in recv and exit_status
            self._channel.shutdown_write()

    def recv(self, size: int) -> bytes:
        try:  # reading widens the window, which writes
            self._drain_errors()
            data: bytes = self._channel.recv(size)
        except (OSError, EOFError, paramiko.SSHException):
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
        raise LinkLost("the link to the machine is lost")

    def error_text(self) -> str:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._drain_errors()
        return bytes(self._errors).decode(errors="replace")

    def close(self) -> None:
        self._is_closed = True
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.close()

    def _drain_errors(self) -> None:
        # Unread stderr would fill the channel's window and stop stdout too.
        while self._channel.recv_stderr_ready():
            data: bytes = self._channel.recv_stderr(65536)
            self._errors += data[: _ERROR_TEXT_BYTES - len(self._errors)]


class _Packetizer(Packetizer):
    # paramiko asks for new keys every 512 MB, and a channel that closes meanwhile hangs the transport for good
    # (https://github.com/paramiko/paramiko/issues/822, seen with 5.1.0). AES-GCM is good for 64 GB under one key.
    REKEY_BYTES = 2**35
    REKEY_PACKETS = 2**30


class _Link(socket.socket):
    """A TCP socket that acknowledges at once and knows when it last heard something."""

    heard_at = 0.0

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        data = super().recv(bufsize, flags)
        self.heard_at = time.monotonic()
        if hasattr(socket, "TCP_QUICKACK"):  # Linux; falls back to delayed acknowledgements by itself, so set again
            with contextlib.suppress(OSError):
                self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return data


class _JumpedLink:
    """The same over a jump host's channel."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.heard_at = time.monotonic()

    def recv(self, size: int) -> bytes:
        data: bytes = self._channel.recv(size)
        self.heard_at = time.monotonic()
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


_Hop = tuple[Any, _Link | _JumpedLink]  # a logged-in transport and what it goes over


def _hang_up(transport: Any, link: _Link | _JumpedLink) -> None:
    transport.close()
    link.close()  # a transport that has ended by itself leaves it open


def _dial(host: str, port: int, deadline: float, jump: _Hop | None) -> _Link | _JumpedLink:
    if jump is not None:
        try:
            return _JumpedLink(
                jump[0].open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=_left(deadline))
            )
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise NotReady(f"the jump host does not reach {host}:{port}: {error}") from error
    try:
        plain = socket.create_connection((host, port), timeout=_left(deadline))
    except OSError as error:
        raise NotReady(f"{host}:{port} does not answer: {error}") from error
    link = _Link(plain.family, plain.type, plain.proto, plain.detach())
    link.heard_at = time.monotonic()
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # paramiko never sets it: 45 to 85 ms of every connect
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SILENCE_S * 1000))
    return link


def _jump(jump: SshJump, deadline: float, on_first_use: Callable[[str], None] | None) -> _Hop:
    link = _dial(jump.host, jump.port, deadline, None)
    where = f"the jump host {jump.host}:{jump.port}"
    private_key = jump.private_key.get_secret_value()
    return _log_in(link, where, jump.user, private_key, jump.host_key, deadline, on_first_use), link


def _log_in(
    link: _Link | _JumpedLink,
    where: str,
    user: str,
    private_key: str,
    host_key: str | None,
    deadline: float,
    on_first_use: Callable[[str], None] | None,
) -> Any:
    try:
        key = _private_key(private_key)
        transport = _Transport(link, packetizer_class=_Packetizer)
    except BaseException:
        link.close()
        raise
    try:
        transport.set_log_channel(_LOG)
        options = transport.get_security_options()
        options.ciphers = (*_CIPHERS_FIRST, *(c for c in options.ciphers if c not in _CIPHERS_FIRST))
        if host_key is not None:
            # Asked for first: a server with several kinds of host key shows the kind that is known.
            kind = host_key.split()[0]
            first = [k for k in _SIGNED_AS.get(kind, (kind,)) if k in options.key_types]
            options.key_types = (*first, *(k for k in options.key_types if k not in first))
        transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = _left(deadline)
        _shake_hands(transport, where, _left(deadline))
        _verify(transport, where, host_key, on_first_use)
        transport.auth_timeout = _left(deadline)
        _authenticate(transport, where, user, key)
    except BaseException:
        _hang_up(transport, link)
        raise
    return transport


def _private_key(text: str) -> Any:
    for kind in (paramiko.Ed25519Key, paramiko.RSAKey, paramiko.ECDSAKey):
        with contextlib.suppress(paramiko.SSHException, ValueError):
            key: Any = kind
            return key.from_private_key(io.StringIO(text))
    raise AuthFailed("the private key is none that SSH knows: give an unencrypted ed25519, ECDSA or RSA key")


def _shake_hands(transport: Any, where: str, timeout_s: float) -> None:
    try:
        transport.start_client(timeout=timeout_s)
        transport.get_remote_server_key()  # raises when the time was over first
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise NotReady(f"{where} answers, but not as an SSH server: {error or 'it closed the connection'}") from error


def _verify(transport: Any, where: str, host_key: str | None, on_first_use: Callable[[str], None] | None) -> None:
    shown = transport.get_remote_server_key()
    shown_line = f"{shown.get_name()} {shown.get_base64()}"
    if host_key is None:
        if on_first_use is None:
            raise HostKeyMismatch(
                f"{where} shows the host key {fingerprint(shown_line)} and none is known: give the key that is right"
            )
        on_first_use(shown_line)
    elif shown_line.split()[:2] != host_key.split()[:2]:
        raise HostKeyMismatch(
            f"{where} shows the host key {fingerprint(shown_line)}, expected is {fingerprint(host_key)}: nothing was sent"
        )


def _authenticate(transport: Any, where: str, user: str, key: Any) -> None:
    try:
        missing = transport.auth_publickey(user, key)
    except paramiko.AuthenticationException as error:
        if transport.is_active() and "timeout" not in str(error).lower():
            raise LoginRefused(f"{where} refuses the key of the user {user}") from error
        raise NotReady(f"{where} closed the connection during the login") from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise NotReady(f"{where} closed the connection during the login") from error
    if missing:
        raise LoginRefused(f"{where} wants more than a key from the user {user}: {', '.join(missing)}")


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())
