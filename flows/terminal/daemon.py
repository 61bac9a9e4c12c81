"""One kind of background process: started, found again, stopped.

A process is known by a lock that it holds as long as it lives (it inherits the locked file), so a recycled process id is never
mistaken for ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, NamedTuple

from prefect_gpu.flows.terminal.messages import Trouble


class Background(NamedTuple):
    """A process of ours that was found running."""

    pid: int
    kept: bool  # by `make up`; else it belongs to one make
    url: str  # the API's address: the server's own, or the one that the worker serves
    folder: str = ""  # where it works
    since: float = 0.0  # when it was started, in seconds since 1970


class Daemon:
    """One kind of background process: its record, its lock and its log."""

    def __init__(self, name: str, home: Path) -> None:
        self.name = name
        self.record = home / f"{name}.json"
        self.lock = home / f"{name}.lock"
        self.log = home / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None  # if it is a child of this process

    def find(self) -> Background | None:
        """The running one, or None."""
        try:
            with self.lock.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.suppress(OSError, ValueError, TypeError):
                return Background(**json.loads(self.record.read_text()))
        except OSError:
            pass
        return None

    def start(
        self, arguments: list[str], environment: dict[str, str], *, kept: bool, url: str
    ) -> subprocess.Popen[bytes]:
        """Start it in a session of its own (a terminal's Ctrl-C is not for it), stdin closed, output to its log."""
        with private_file(self.lock) as lock, private_file(self.log) as log:
            if not _locked(lock, within_s=1):  # who looks whether it runs holds the lock for a moment
                raise Trouble(f"The {self.name} of this project is still ending: wait a moment and type it again.")
            self._process = process = subprocess.Popen(
                [sys.executable, *arguments],
                env=environment,
                umask=0o077,  # its database, its logs and its results are nobody else's
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock.fileno(),),
            )
            write_whole(
                self.record, json.dumps(Background(process.pid, kept, url, str(Path.cwd()), time.time())._asdict())
            )
        return process

    def keep(self) -> None:
        """The running one stays until it is stopped."""
        if (found := self.find()) is not None:
            write_whole(self.record, json.dumps(found._replace(kept=True)._asdict()))

    def stop(self, *, grace_s: float = 20) -> None:
        """End it and wait until it is gone; what is not there is gone already."""
        found = self.find()
        if found is None:
            return
        for end, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(found.pid, end)
            deadline = time.monotonic() + wait_s
            while time.monotonic() < deadline:
                if self._process is not None:
                    self._process.poll()  # so that it does not stay a zombie
                if self.find() is None:
                    if self._process is not None:  # it lets go of its files before it has ended
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            self._process.wait(5)
                    self.record.unlink(missing_ok=True)
                    return
                time.sleep(0.02)
        raise Trouble(f"The {self.name} (process {found.pid}) does not end: end it by hand.")

    def last_words(self) -> str:
        """The last line of its log, for a message."""
        try:
            lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            lines = []
        return lines[-1] if lines else "it said nothing"


def _locked(file: IO[bytes], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True


def private_file(path: Path) -> IO[bytes]:
    """A new or emptied file that only this user reads."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new content, never half of it."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    with private_file(new) as file:
        file.write(text.encode())
    new.replace(path)
