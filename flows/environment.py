"""The processes around a run: a Prefect server of our own where none is configured, and a worker; started, found again, stopped.

`make up` keeps them, `make run` stops what it started itself. A process is known by a lock that it holds as long as it lives
(it inherits the locked file), so a recycled process id is never mistaken for ours. Nothing here imports Prefect: its settings
are read at import, and this module decides them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROJECT = Path(__file__).resolve().parent.parent
HOME = PROJECT / ".prefect-gpu"  # PREFECT_HOME of the server of our own: its SQLite database, logs, what runs
START_DEADLINE_S = 180  # a first start migrates the database: 6 s, on a loaded machine a minute
POOL = "prefect-gpu"


class Trouble(Exception):
    """What stands in the way, as one sentence for the person at the terminal."""


class Background(NamedTuple):
    """A process of ours that was found running."""

    pid: int
    kept: bool  # by `make up`; else it belongs to one `make run`
    url: str  # the server's address, or the server that the worker serves


class Daemon:
    """One kind of background process: where it is recorded, its lock and its log."""

    def __init__(self, name: str, home: Path = HOME) -> None:
        self.name = name
        self.record = home / f"{name}.json"
        self.lock = home / f"{name}.lock"
        self.log = home / f"{name}.log"

    def find(self) -> Background | None:
        """The running one, if there is one."""
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
        self, command: list[str], environment: dict[str, str], *, kept: bool, url: str
    ) -> subprocess.Popen[bytes]:
        """Start it in a session of its own (a terminal's Ctrl-C is not for it), stdin closed, output to its log."""
        with self.lock.open("wb") as lock, self.log.open("ab") as log:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Trouble(
                    f"A {self.name} of this project is starting or stopping: wait a moment and try again."
                ) from None
            process = subprocess.Popen(
                command,
                cwd=PROJECT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock.fileno(),),
            )
        write_whole(self.record, json.dumps(Background(process.pid, kept, url)._asdict()))
        return process

    def stop(self, *, grace_s: float = 15) -> None:
        """End it and wait until it is gone; ending what is not there is success."""
        found = self.find()
        if found is None:
            return
        for end, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(found.pid, end)
            deadline = time.monotonic() + wait_s
            while time.monotonic() < deadline:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(found.pid, os.WNOHANG)
                if self.find() is None:
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


def server(home: Path = HOME) -> Daemon:
    return Daemon("server", home)


def worker(home: Path = HOME) -> Daemon:
    return Daemon("worker", home)


def settings(home: Path = HOME) -> dict[str, str]:
    """The environment for everything of Prefect's: this process's own, and what a server of our own needs."""
    environment = dict(os.environ)
    environment.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")  # telemetry breaks first starts without network
    environment.setdefault("DO_NOT_TRACK", "1")
    environment.setdefault("PREFECT_CLI_PROMPT", "false")
    if not environment.get("PREFECT_API_URL"):
        environment["PREFECT_HOME"] = str(home)
    elif "PREFECT_HOME" not in environment and not os.access(Path.home(), os.W_OK):
        environment["PREFECT_HOME"] = str(home)
    return environment


def make_home(home: Path = HOME) -> None:
    """The folder for all of this; a sentence if it cannot be."""
    try:
        home.mkdir(exist_ok=True)
        (home / "x").touch()
        (home / "x").unlink()
    except OSError as error:
        raise Trouble(
            f"The folder {home} cannot be written ({error.strerror}): it holds the Prefect server's data."
        ) from None


@contextlib.contextmanager
def only_one(home: Path = HOME) -> Iterator[None]:
    """Hold this while starting or owning processes: two that own one database would trample."""
    with (home / "owner.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Trouble(
                "Another make is at work with this project's Prefect server: wait for it, "
                "or type `make up` once, and then run as many side by side as you like."
            ) from None
        yield


def start_server(*, kept: bool, home: Path = HOME) -> Callable[[], str]:
    """Start a Prefect server on SQLite; returns at once, and gives what waits until it answers and then says its API address."""
    port = free_port(4200 if kept else 0)
    url = f"http://127.0.0.1:{port}/api"
    environment = settings(home) | {
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_API_URL": url,  # without it the UI on another port than 4200 asks port 4200
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    daemon = server(home)
    daemon.log.unlink(missing_ok=True)
    process = daemon.start(command, environment, kept=kept, url=url)

    def wait() -> str:
        deadline = time.monotonic() + START_DEADLINE_S
        while not answers(url):
            if process.poll() is not None:
                raise Trouble(f"The Prefect server did not start ({daemon.log}): {daemon.last_words()}")
            if time.monotonic() > deadline:
                raise Trouble(f"The Prefect server does not answer after {START_DEADLINE_S} s: see {daemon.log}.")
            time.sleep(0.05)
        return url

    return wait


def start_worker(api_url: str, *, kept: bool, home: Path = HOME) -> subprocess.Popen[bytes]:
    """Start a worker for our pool. It works in the project's folder: `flows` is importable and `job.files` are found there."""
    environment = settings(home) | {"PREFECT_API_URL": api_url, "PYTHONUNBUFFERED": "1"}
    # Asked every second a server of our own is still idle, and a run starts when it is made; a shared one is spared.
    environment.setdefault("PREFECT_WORKER_QUERY_SECONDS", "1" if is_loopback(api_url) else "5")
    daemon = worker(home)
    daemon.log.unlink(missing_ok=True)
    name = f"make {'up' if kept else 'run'} on {socket.gethostname()}"
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", name]
    return daemon.start(command, environment, kept=kept, url=api_url)


def answers(api_url: str, timeout_s: float = 2.0) -> bool:
    """Whether a Prefect server answers there."""
    request = urllib.request.Request(api_url.rstrip("/") + "/health", headers=authorization())
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310 - the address is the user's own
            return response.status == 200
    except (OSError, urllib.error.URLError, ValueError):
        return False


def authorization() -> dict[str, str]:
    """The header of a server that asks for a key or a password, as Prefect's own client sends it."""
    key = os.environ.get("PREFECT_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def is_loopback(url: str) -> bool:
    return url.startswith(("http://127.", "http://localhost"))


def free_port(wished: int) -> int:
    """The wished port if nobody has it, else any free one."""
    for port in (wished, 0):
        with socket.socket(socket.AF_INET) as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise Trouble("No port is free on 127.0.0.1.")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new content, never half of it."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.write_text(text)
    new.replace(path)
