"""The git program in an environment built for it: of the worker's own git it keeps how to log in and to connect, and nothing of where it stands.

A worker started from a git hook or a worktree has GIT_DIR, GIT_WORK_TREE, GIT_INDEX_FILE and more in its environment: with them any git
of ours would read and rewrite the user's own repository. Hooks, templates, file system monitors and background upkeep are off.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple

from prefect_gpu.providers.core.machine.destination import reserve

TIMEOUT_S: Final = 900.0
_TOLD_BYTES = 64 * 1024
_OUT_BYTES: Final = 512 * 1024 * 1024  # the names of five million files

# How the user's git logs in, connects and finds its configuration; every other GIT_* says where it stands or runs programs.
_KEPT = frozenset({
    "GIT_ASKPASS", "GIT_CONFIG_COUNT", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_NOSYSTEM", "GIT_CONFIG_SYSTEM", "GIT_CURL_VERBOSE",
    "GIT_HTTP_LOW_SPEED_LIMIT", "GIT_HTTP_LOW_SPEED_TIME", "GIT_HTTP_PROXY_AUTHMETHOD", "GIT_HTTP_USER_AGENT", "GIT_PROXY_COMMAND",
    "GIT_PROXY_SSL_CAINFO", "GIT_PROXY_SSL_CERT", "GIT_PROXY_SSL_CERT_PASSWORD_PROTECTED", "GIT_PROXY_SSL_KEY", "GIT_SSH",
    "GIT_SSH_COMMAND", "GIT_SSH_VARIANT", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH", "GIT_SSL_CERT", "GIT_SSL_CERT_PASSWORD_PROTECTED",
    "GIT_SSL_CIPHER_LIST", "GIT_SSL_KEY", "GIT_SSL_NO_VERIFY", "GIT_SSL_VERSION",
})  # fmt: skip
_KEPT_BEGIN = ("GIT_CONFIG_KEY_", "GIT_CONFIG_VALUE_")

_OFF = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.logAllRefUpdates=false",  # a log of a branch names where it came from
    "gc.auto=0",
    "maintenance.auto=false",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "advice.detachedHead=false",
)
OPTIONS: Final = tuple(word for option in _OFF for word in ("-c", option))


class Done(NamedTuple):
    """What came of one call."""

    code: int
    out: bytes
    told: str


class TooLong(Exception):
    """Git was still at it after TIMEOUT_S, or says more than any list has, and was ended."""


class NoRoom(Exception):
    """What git fetches fills this machine's disk; it was ended."""


def is_there() -> bool:
    return shutil.which("git") is not None


def environment() -> dict[str, str]:
    """The worker's environment without what says where git stands; nothing asks a question, since nobody would answer."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name in _KEPT or name.startswith(_KEPT_BEGIN)
    }
    return kept | {"GIT_TERMINAL_PROMPT": "0", "SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C", "GIT_TEMPLATE_DIR": ""}


def run(
    arguments: Sequence[str],
    folder: Path,
    env: dict[str, str],
    *,
    timeout_s: float = TIMEOUT_S,
    is_given_up: threading.Event | None = None,
    fetches: bool = False,
) -> Done:
    """Run git in a folder. Without a terminal (a session of its own): ssh asks for passwords there.

    Raises TooLong, and NoRoom where it `fetches` what fills the disk.
    """
    process = subprocess.Popen(
        ["git", *OPTIONS, *arguments], cwd=folder, env=env, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    until = time.monotonic() + timeout_s
    with process:
        # Not `communicate`: a server may talk without end, and all of it would be kept.
        out, told = _Heard(process.stdout, _OUT_BYTES), _Heard(process.stderr, _TOLD_BYTES)
        try:
            while not (out.is_over(0.25) and told.is_over(0.25)):
                _must_go_on(until, is_given_up, out, folder if fetches else None)
            code = process.wait(max(0.5, until - time.monotonic()))
        except BaseException as trouble:
            _end(process)
            for heard in (out, told):
                heard.is_over(1.0)
            if isinstance(trouble, subprocess.TimeoutExpired):
                raise TooLong from None
            raise
    return Done(code, out.kept(), told.kept().decode(errors="replace"))


def _must_go_on(until: float, is_given_up: threading.Event | None, out: _Heard, filled: Path | None) -> None:
    if time.monotonic() > until or (is_given_up is not None and is_given_up.is_set()) or out.is_too_much:
        raise TooLong
    if filled is not None and (usage := shutil.disk_usage(filled)).free < reserve(usage.total):
        raise NoRoom


class _Heard:
    """The last bytes of what comes out of a pipe, read in a thread of its own."""

    def __init__(self, pipe: IO[bytes] | None, most: int) -> None:
        self._pipe, self._most = pipe, most
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self.is_too_much = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while self._pipe is not None and (piece := os.read(self._pipe.fileno(), 64 * 1024)):
            self._pieces.append(piece)
            self._held += len(piece)
            while self._held - len(self._pieces[0]) >= self._most:
                self._held -= len(self._pieces.popleft())
                self.is_too_much = True

    def is_over(self, within_s: float) -> bool:
        self._thread.join(within_s)
        return not self._thread.is_alive()

    def kept(self) -> bytes:
        return b"".join(self._pieces)[-self._most :]


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
