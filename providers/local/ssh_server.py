"""The SSH server of a loopback machine: one client key, one user, commands by /bin/sh; loaded by keeper.py and nobody else.

asyncssh speaks the protocol; the bytes are pumped here, with back-pressure both ways (its own `redirect()` drops connections under
back-pressure, see shared ssh-facts; measured with 2.24.1). No terminal, no forwarding, no SFTP: nothing of ours needs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes.util
import fcntl
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

# What asyncssh tries to import and does without costs a fifth of the start: OpenSSL for X.509, hardware tokens, Kerberos, and
# searches for libraries, each a process of its own.
for _optional in ("OpenSSL", "fido2", "gssapi", "pkcs11", "sspi", "uvloop"):
    sys.modules.setdefault(_optional, None)  # type: ignore[arg-type]  # None makes an import fail, by the language's definition
ctypes.util.find_library = lambda name: None  # type: ignore[assignment]  # noqa: ARG005  # of the same call

import asyncssh  # noqa: E402  # only after the above

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK: Final = 256 * 1024
_PIPE: Final = 1024 * 1024
_HIGH_WATER: Final = 1024 * 1024
# Bytes, seconds: paramiko loses a channel that closes during a rekey (its issue 822), and no machine of ours lives so long.
_NO_REKEY: Final = 1 << 50
_F_SETPIPE_SZ: Final = 1031
_STDERR: Final = 1  # SSH_EXTENDED_DATA_STDERR, RFC 4254 section 5.2


def serve(order: dict[str, Any], end_rest: Callable[[], object]) -> None:
    """Serve until SIGTERM, which comes when the keeper was killed: then `end_rest` ends what it would have."""
    asyncio.run(_serve(order, end_rest))


async def _serve(order: dict[str, Any], end_rest: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    loop.add_signal_handler(signal.SIGCHLD, _Command.reap)
    allowed = asyncssh.import_public_key(order["client_key"])
    host_key = asyncssh.import_private_key(order["host_key"])
    await asyncssh.create_server(
        lambda: _Server(order, allowed),
        sock=socket.socket(fileno=order["socket"]),
        server_host_keys=[host_key],
        server_version="prefect-gpu",
        kex_algs=["curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256"],
        encryption_algs=["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr"],
        compression_algs=None,
        allow_pty=False,
        agent_forwarding=False,
        x11_forwarding=False,
        gss_host=None,
        encoding=None,
        rekey_bytes=_NO_REKEY,
        rekey_seconds=_NO_REKEY,
        login_timeout=30,
        keepalive_interval=0,
        window=4 * 1024 * 1024,
    )  # fmt: skip
    await ended.wait()
    if os.getppid() != order["keeper"]:
        end_rest()


class _Server(asyncssh.SSHServer):
    """Who may log in: the holder of one key."""

    def __init__(self, order: dict[str, Any], allowed: asyncssh.SSHKey) -> None:
        self._order = order
        self._allowed = allowed

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        transport = conn.get_extra_info("socket")
        if transport is not None:
            transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def begin_auth(self, username: str) -> bool:  # noqa: ARG002  # asyncssh's signature
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == self._order["user"] and key == self._allowed

    def session_requested(self) -> _Command:
        return _Command(self._order)


class _Command(asyncssh.SSHServerSession[bytes]):
    """One command: a process in a session of its own, its pipes, and the channel they are pumped to and from."""

    _by_pid: dict[int, _Command] = {}  # noqa: RUF012  # of this process, on purpose

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes] | None = None
        self._status: int | None = None  # as waitpid gives it
        self._open: dict[int, int | None] = {}  # our ends of stdout and stderr -> the channel's data type
        self._stdin: int | None = None
        self._unwritten = bytearray()
        self._has_all_input = False
        self._is_closed = False

    # --- the channel's events ----------------------------------------------------------------------------------------

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel: Any = chan  # its type hints are partly missing
        chan.set_write_buffer_limits(_HIGH_WATER, _HIGH_WATER // 2)

    def shell_requested(self) -> bool:
        return self._start(["/bin/sh"])

    def exec_requested(self, command: str) -> bool:
        return "\0" not in command and self._start(["/bin/sh", "-c", command])

    def data_received(self, data: bytes, datatype: int | None) -> None:  # noqa: ARG002  # asyncssh's signature
        if self._stdin is None:
            return  # the command closed it, or ended: what comes now is for nobody
        if not self._unwritten:
            written = self._write(data)
            if written is None or written == len(data):
                return
            data = data[written:]
            self._loop.add_writer(self._stdin, self._feed)
            self._channel.pause_reading()
        self._unwritten += data

    def eof_received(self) -> bool:
        self._has_all_input = True
        if not self._unwritten:
            self._close_stdin()
        return True

    def pause_writing(self) -> None:
        for descriptor in self._open:
            self._loop.remove_reader(descriptor)

    def resume_writing(self) -> None:
        for descriptor in self._open:
            self._loop.add_reader(descriptor, self._pump, descriptor)

    def signal_received(self, signal: str) -> None:
        number = _SIGNALS.get(signal)
        if number is not None:
            self._signal_group(number)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncssh's signature
        """The channel is closed. What still runs in the foreground ends; what left for a session of its own goes on."""
        self._is_closed = True
        self._close_stdin()
        for descriptor in list(self._open):
            self._close_output(descriptor)
        if self._status is None and self._process is not None:
            self._signal_group(signal.SIGHUP)
            self._signal_group(signal.SIGCONT)

    # --- the process -------------------------------------------------------------------------------------------------

    @classmethod
    def reap(cls) -> None:
        """Some child ended: find whose it was."""
        for pid, command in list(cls._by_pid.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del cls._by_pid[pid]
                command.process_ended(status)

    def _start(self, argv: list[str]) -> bool:
        sent = {name: value for name, value in self._channel.get_environment().items() if name.isidentifier()}
        try:
            process = subprocess.Popen(  # running what the client says is what it is for
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self._order["home"],
                env={**self._order["environment"], **sent, **self._order["mark"]},
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            sys.stderr.write(f"could not start a command: {error}\n")
            return False
        if process.stdin is None or process.stdout is None or process.stderr is None:
            raise RuntimeError("Popen made no pipes")
        self._process = process
        self._by_pid[process.pid] = self
        self._stdin = os.dup(process.stdin.fileno())
        for stream, datatype in ((process.stdout, None), (process.stderr, _STDERR)):
            descriptor = os.dup(stream.fileno())
            os.set_blocking(descriptor, False)
            self._open[descriptor] = datatype
            self._loop.add_reader(descriptor, self._pump, descriptor)
        os.set_blocking(self._stdin, False)
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # the user's share of big pipes is used up
                fcntl.fcntl(stream, _F_SETPIPE_SZ, _PIPE)
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
        return True

    def _pump(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            with contextlib.suppress(OSError):  # the client is leaving: connection_lost comes next
                self._channel.write(data, self._open[descriptor])
            return
        self._close_output(descriptor)
        self._finish()

    def _write(self, data: bytes | bytearray) -> int | None:
        """How much of it the command's stdin took; None if nobody reads it any more."""
        if self._stdin is None:
            return None
        try:
            return os.write(self._stdin, data)
        except BlockingIOError:
            return 0
        except OSError:
            self._close_stdin()
            return None

    def _feed(self) -> None:
        written = self._write(self._unwritten)
        del self._unwritten[:written]
        if self._unwritten or written is None or self._stdin is None:
            return
        self._loop.remove_writer(self._stdin)
        if self._has_all_input:
            self._close_stdin()
        else:
            self._channel.resume_reading()

    def _close_stdin(self) -> None:
        if self._stdin is None:
            return
        was_full = bool(self._unwritten)
        if was_full:
            self._loop.remove_writer(self._stdin)
            self._unwritten.clear()
        os.close(self._stdin)
        self._stdin = None
        if was_full and not self._is_closed:
            self._channel.resume_reading()  # so that the client's EOF and close are still heard

    def _close_output(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        del self._open[descriptor]
        os.close(descriptor)

    def process_ended(self, status: int) -> None:
        self._status = status
        if self._process is not None:
            self._process.returncode = os.waitstatus_to_exitcode(status)  # Popen must not wait for it again
        self._finish()

    def _finish(self) -> None:
        """When the process has ended and both pipes have: the status goes last."""
        if self._status is None or self._open or self._is_closed:
            return
        code = os.waitstatus_to_exitcode(self._status)
        self._close_stdin()
        if code >= 0:
            self._channel.exit(code)
        else:
            name = signal.Signals(-code).name.removeprefix("SIG")
            self._channel.exit_with_signal(name, os.WCOREDUMP(self._status))

    def _signal_group(self, number: int) -> None:
        """To the command and its foreground; not after it ended: its number may be another's by then."""
        if self._process is not None and self._status is None:
            try:
                os.killpg(self._process.pid, number)
            except (ProcessLookupError, PermissionError):
                return


_SIGNALS: Final = {
    name: getattr(signal, f"SIG{name}")
    for name in ("HUP", "INT", "QUIT", "KILL", "TERM", "USR1", "USR2", "CONT", "STOP")
}
