"""POSIX scripts on a machine, over any Connection, whatever its login shell is and prints."""

from __future__ import annotations

import contextlib
import secrets
import shlex
import threading
from typing import Final, NamedTuple

from prefect_gpu.providers.core.contract import Channel, Connection
from prefect_gpu.providers.core.errors import InstanceFailed, LinkLost

MOST_BYTES: Final = 4 * 1024 * 1024  # what a script may print: none of ours prints a hundredth of it
_NOISE_BYTES = 1024 * 1024  # what a .bashrc may print before the script speaks


class WritesWithoutEnd(InstanceFailed):
    """A machine printed more than any script of ours does: nothing of it is believed, and it was told to stop."""


class Finished(NamedTuple):
    """A script that ended."""

    exit_code: int
    stdout: bytes
    stderr: str

    @property
    def problem(self) -> str:
        """What went wrong, in the machine's words, in one line."""
        return one_line(self.stderr, self.exit_code)


def one_line(stderr: str, exit_code: int) -> str:
    """What a script said about its failure, in one line of bounded length."""
    return plain("; ".join(stderr[:5000].split("\n")).strip("; "))[:500] or f"exit {exit_code}"


def plain(text: str) -> str:
    """A machine's words in one line of signs that can be shown: none of them moves a cursor or fills a clipboard."""
    return "".join(sign for sign in " ".join(text.split()) if sign.isprintable())


class ScriptChannel:
    """A running script: stdin, stdout and stderr are the script's own, without what the login shell printed before."""

    def __init__(self, channel: Channel, mark: bytes) -> None:
        self._channel = channel
        self._mark = mark
        self._is_past_mark = False
        self._rest = b""  # what came with the mark

    def sendall(self, data: bytes) -> None:
        """Feed the script, once it has spoken: what comes earlier may be eaten by the one who reads the script."""
        if not self._find_mark():
            raise LinkLost("the machine takes no more input")
        self._channel.sendall(data)

    def shutdown_write(self) -> None:
        self._channel.shutdown_write()

    def recv(self, size: int) -> bytes:
        if not self._find_mark():
            return b""
        if self._rest:
            data, self._rest = self._rest[:size], self._rest[size:]
            return data
        return self._channel.recv(size)

    def _find_mark(self) -> bool:
        seen, noise = b"", 0
        while not self._is_past_mark:
            data = self._channel.recv(65536)
            if not data:
                return False
            seen = seen[-len(self._mark) :] + data  # the mark may come in pieces
            _, mark, self._rest = seen.partition(self._mark)
            self._is_past_mark = bool(mark)
            noise += len(data)
            if not mark and noise > _NOISE_BYTES:
                raise WritesWithoutEnd("the machine's login shell prints without end, so no program runs there")
        return True

    def exit_status(self, timeout_s: float) -> int:
        return self._channel.exit_status(timeout_s)

    def error_text(self) -> str:
        text = self._channel.error_text()
        return text.rpartition(self._mark.decode())[2]

    def close(self) -> None:
        self._channel.close()


def start_script(connection: Connection, script: str) -> ScriptChannel:
    """Start a POSIX sh script; the caller may write to its stdin and reads its stdout.

    The script travels by stdin, so nothing of it stands in a process list, and as a function that is called in its last line, so
    a link that breaks on the way runs nothing of it.
    """
    mark = f"prefect-gpu-{secrets.token_hex(8)}\n"
    text = f"main() {{\nprintf %s {shlex.quote(mark)}\nprintf %s {shlex.quote(mark)} >&2\n{script}\n}}\nmain\n".encode()
    # `head -c` ends after so many bytes, but busybox's has read more by then if more was there: hence `ScriptChannel.sendall`.
    # Quoting that bash, dash, ash, fish and csh read alike.
    channel = connection.open(f"""exec sh -c 'eval "$(head -c {len(text)})"'""")
    try:
        channel.sendall(text)
    except BaseException:
        channel.close()
        raise
    return ScriptChannel(channel, mark.encode())


def run_script(
    connection: Connection,
    script: str,
    stdin: bytes = b"",
    *,
    timeout_s: float = 30.0,
    most_bytes: int = MOST_BYTES,
) -> Finished:
    """Run a script to its end. LinkLost when the link breaks or the time is over; WritesWithoutEnd when it prints too much."""
    channel = start_script(connection, script)
    is_late = threading.Event()

    def give_up() -> None:
        is_late.set()
        channel.close()

    timer = threading.Timer(timeout_s, give_up)
    timer.daemon = True
    timer.start()
    try:
        if stdin:
            with contextlib.suppress(LinkLost):  # or the script ended early, and its exit status tells why
                channel.sendall(stdin)
        channel.shutdown_write()
        output = bytearray()
        while data := channel.recv(65536):
            output += data
            if len(output) > most_bytes:
                raise WritesWithoutEnd(
                    f"the machine printed more than {most_bytes // 2**20} MB where it was asked for a few lines"
                )
        return Finished(channel.exit_status(timeout_s=10.0), bytes(output), channel.error_text())
    except LinkLost as error:
        if is_late.is_set():
            raise LinkLost(f"the machine did not finish within {timeout_s:g} s") from error
        raise
    finally:
        timer.cancel()
        with contextlib.suppress(LinkLost):
            channel.close()
