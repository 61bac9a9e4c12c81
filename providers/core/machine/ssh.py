"""Connections to machines over SSH: one accepted host key, one client key, a dead link noticed; the only import of paramiko.

Importing paramiko costs 0.15 s: whoever needs a connection imports this module while the machine still boots. Whatever a server
sends is bounded: bytes before its login, packets, data that nobody asked for, words that reach an error.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import paramiko
from paramiko.buffered_pipe import BufferedPipe, PipeTimeout
from paramiko.packet import Packetizer

from prefect_gpu.providers.core.contract import Connection
from prefect_gpu.providers.core.errors import AuthFailed, HostKeyMismatch, LoginRefused, NotReady
from prefect_gpu.providers.core.machine.channel_guard import ended_in_order, in_order, within_bounds
from prefect_gpu.providers.core.machine.channels import Logged, SshConnection, because, said
from prefect_gpu.providers.core.machine.keys import fingerprint
from prefect_gpu.providers.core.machine.link import ChannelLink, Link, TooMuch, dial
from prefect_gpu.providers.core.machine.shared import Shared
from prefect_gpu.providers.core.models import KeyPair, SshEndpoint, SshJump

_PACKET_BYTES = 300 * 1024  # OpenSSH's own limit is 256 KiB
_KNOCKS = 3  # sshd hangs up on some of those who come at once (MaxStartups)
_CIPHERS_FIRST = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")  # paramiko's own order puts the fastest last
_SIGNED_AS = {
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa")
}  # an RSA key signs in ways of other names (RFC 8332)
_Transport: Any = paramiko.Transport  # paramiko has no type hints
_BufferedPipe: Any = BufferedPipe
_TROUBLE = (paramiko.SSHException, EOFError, OSError)

# Its transport thread logs every refused connect with a traceback; what happened is raised, so nobody needs to read it twice.
_LOG = "prefect_gpu.providers.core.machine.ssh.paramiko"
logging.getLogger(_LOG).propagate = False
logging.getLogger(_LOG).addHandler(logging.NullHandler())

FirstUse = Callable[[str], None]


def connect(
    endpoint: SshEndpoint,
    client_key: KeyPair,
    host_key: str | None,
    *,
    timeout_s: float = 10.0,
    on_first_use: FirstUse | None = None,
) -> Connection:
    """A verified connection to a machine.

    `host_key` (else the endpoint's own) is the only one accepted. Without any, the key is pinned on first use if `on_first_use`
    is given, which is told the key (the jump host's first) before anything is sent; otherwise it is refused. Raises NotReady
    (refused, silent, no banner), HostKeyMismatch (with both fingerprints), LoginRefused, all of which are NotReady; AuthFailed
    for a private key that SSH does not know. Connections through one jump host share one login there.
    """
    deadline = time.monotonic() + timeout_s
    who = _Login(
        f"{endpoint.host}:{endpoint.port}",
        endpoint.user,
        client_key.private.get_secret_value(),
        host_key or endpoint.host_key,
    )
    jump = endpoint.jump
    if jump is None:
        return SshConnection(
            _logged_in(lambda: dial(endpoint.host, endpoint.port, _left(deadline)), who, deadline, on_first_use)
        )
    return SshConnection(
        _logged_in(lambda: _through(jump, endpoint, deadline, on_first_use), who, deadline, on_first_use)
    )


class _Login(NamedTuple):
    """Where to log in, as whom, and what is known."""

    where: str
    user: str
    private_key: str
    host_key: str | None


class _Packetizer(Packetizer):
    # paramiko asks for new keys every 512 MB, and a channel that closes meanwhile hangs the transport for good
    # (https://github.com/paramiko/paramiko/issues/822, seen with 5.1.0). AES-GCM is good for 64 GB under one key.
    REKEY_BYTES = 2**35
    REKEY_PACKETS = 2**30

    def read_all(self, n: int, check_rekey: bool = False) -> Any:
        # The length is the server's word, and paramiko would gather up to 4 GB for it.
        if not 0 <= n <= _PACKET_BYTES:
            raise TooMuch(f"it announced a packet of {n} bytes")
        read: Any = super()
        return read.read_all(n, check_rekey)


class _Pieces(_BufferedPipe):
    """What came and was not read yet, piece by piece as it came: paramiko's own copies each twice into one array."""

    def __init__(self) -> None:
        pipe: Any = super()
        pipe.__init__()
        self._arrival: Any = self._cv
        self._pieces: deque[bytes] = deque()
        self._size = 0

    def feed(self, data: bytes) -> None:
        with self._arrival:
            self._pieces.append(data)
            self._size += len(data)
            self._arrival.notify_all()

    def read_ready(self) -> bool:
        return bool(self._pieces)

    def read(self, nbytes: int, timeout: float | None = None) -> bytes:
        with self._arrival:
            if not self._arrival.wait_for(lambda: self._pieces or self._closed, timeout):
                raise PipeTimeout
            if not self._pieces:
                return b""
            piece = self._pieces.popleft()
            if len(piece) > nbytes:
                self._pieces.appendleft(piece[nbytes:])
                piece = piece[:nbytes]
            self._size -= len(piece)
            return piece

    def __len__(self) -> int:
        return self._size


class _BoundedTransport(_Transport):
    # By message of RFC 4254: SSH_MSG_CHANNEL_DATA, _EXTENDED_DATA, _CLOSE. Bounds put around a channel once it is open would come too
    # late: a machine behind a jump host speaks at once.
    _handlers: ClassVar[dict[int, Any]] = getattr(_Transport, "_channel_handler_table")  # noqa: B009 - paramiko's own
    _channel_handler_table: ClassVar[dict[int, Any]] = {
        **_handlers,
        94: within_bounds(_handlers[94]),
        95: within_bounds(_handlers[95]),
        97: ended_in_order(_handlers[97]),
    }

    def open_channel(self, *about: Any, **more: Any) -> Any:
        transport: Any = super()
        return in_order(transport.open_channel(*about, **more))

    def open_session(self, **more: Any) -> Any:
        transport: Any = super()
        channel = transport.open_session(**more)
        channel.in_buffer = _Pieces()  # nothing comes before a command was asked for
        return channel


# --- jump hosts -------------------------------------------------------------------------------------------------------

_jumps: Shared[Logged] = Shared(Logged.is_alive, Logged.hang_up)


def _through(jump: SshJump, endpoint: SshEndpoint, deadline: float, on_first_use: FirstUse | None) -> Link:
    """A link to the machine through its jump host, which many may share: sshd drops logins when many come at once."""
    where = f"the jump host {jump.host}:{jump.port}"
    who = _Login(where, jump.user, jump.private_key.get_secret_value(), jump.host_key)
    told = _told_below if on_first_use else None
    try:
        hop, let_go = _jumps.take(
            (*who, bool(told)),
            lambda: _logged_in(lambda: dial(jump.host, jump.port, _left(deadline)), who, deadline, told),
            deadline,
        )
    except TimeoutError:
        raise NotReady(f"{where} does not answer in time") from None
    try:
        if jump.host_key is None and on_first_use:
            on_first_use(hop.shown)
        channel = hop.transport.open_channel(
            "direct-tcpip", (endpoint.host, endpoint.port), ("127.0.0.1", 0), timeout=_left(deadline)
        )
    except _TROUBLE as error:
        let_go()
        raise NotReady(f"the jump host does not reach {endpoint.host}:{endpoint.port}: {said(error)}") from error
    except BaseException:
        let_go()
        raise
    return ChannelLink(channel, let_go)


def _told_below(_key: str) -> None:
    """Each who shares the jump host is told its key."""


# --- logging in -------------------------------------------------------------------------------------------------------


def _logged_in(reach: Callable[[], Link], who: _Login, deadline: float, on_first_use: FirstUse | None) -> Logged:
    key = _private_key(who.private_key)
    for knock in range(_KNOCKS):
        link = reach()
        try:
            transport = _shake_hands(link, who, _left(deadline))
        except NotReady:
            link.close()
            if link.heard or knock == _KNOCKS - 1 or time.monotonic() + 1 > deadline:
                raise
            time.sleep(random.uniform(0.1, 0.5))  # noqa: S311 - jitter, no secret
            continue
        except BaseException:
            link.close()
            raise
        try:
            shown = _verified(transport, who, on_first_use)
            transport.auth_timeout = _left(deadline)
            _authenticate(transport, who, key)
        except BaseException:
            transport.close()
            link.close()
            raise
        link.is_logged_in = True
        return Logged(transport, link, shown, _TROUBLE)
    raise AssertionError  # the last knock raised


def _private_key(text: str) -> Any:
    for kind in (paramiko.Ed25519Key, paramiko.RSAKey, paramiko.ECDSAKey):
        with contextlib.suppress(paramiko.SSHException, ValueError):
            key: Any = kind
            return key.from_private_key(io.StringIO(text))
    raise AuthFailed("the private key is not one that SSH knows: give an unencrypted ed25519, ECDSA or RSA key")


def _shake_hands(link: Link, who: _Login, timeout_s: float) -> Any:
    transport: Any = _BoundedTransport(link, packetizer_class=_Packetizer)
    try:
        transport.set_log_channel(_LOG)
        options = transport.get_security_options()
        options.ciphers = (*_CIPHERS_FIRST, *(c for c in options.ciphers if c not in _CIPHERS_FIRST))
        if who.host_key is not None:
            # Asked for first: a server with several kinds of host key shows the kind that is known.
            kind = who.host_key.split()[0]
            first = [k for k in _SIGNED_AS.get(kind, (kind,)) if k in options.key_types]
            options.key_types = (*first, *(k for k in options.key_types if k not in first))
        transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = timeout_s
        transport.start_client(timeout=timeout_s)
        transport.get_remote_server_key()  # raises when the time was over first
    except Exception as error:
        # Whatever a server's nonsense breaks in paramiko comes up here: struct.error, UnicodeError, IndexError ...
        transport.close()
        what = said(error) or "it closed the connection"
        raise NotReady(f"{who.where} answers, but not as an SSH server: {what}") from error
    except BaseException:
        transport.close()
        raise
    return transport


def _verified(transport: Any, who: _Login, on_first_use: FirstUse | None) -> str:
    key = transport.get_remote_server_key()
    shown = f"{key.get_name()} {key.get_base64()}"
    if who.host_key is None:
        if on_first_use is None:
            raise HostKeyMismatch(
                f"{who.where} shows the host key {fingerprint(shown)} and none is known: give the key that is right"
            )
        on_first_use(shown)
    elif shown.split()[:2] != who.host_key.split()[:2]:
        raise HostKeyMismatch(
            f"{who.where} shows the host key {fingerprint(shown)}, expected is {fingerprint(who.host_key)}: nothing was sent"
        )
    return shown


def _authenticate(transport: Any, who: _Login, key: Any) -> None:
    try:
        missing = transport.auth_publickey(who.user, key)
    except paramiko.AuthenticationException as error:
        if transport.is_active() and "timeout" not in str(error).lower():
            raise LoginRefused(f"{who.where} refuses the key of the user {who.user}") from error
        raise NotReady(f"{who.where} closed the connection during the login") from error
    except Exception as error:
        raise NotReady(f"{who.where} closed the connection during the login{because(transport)}") from error
    if missing:
        raise LoginRefused(f"{who.where} wants more than a key from the user {who.user}: {said(', '.join(missing))}")


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())
