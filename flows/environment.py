"""The processes around a run: a Prefect server of our own where none is configured, and a worker; started, found again, stopped.

`make up` keeps them, everything else stops what it started itself. A process is known by a lock that it holds as long as it
lives (it inherits the locked file), so a recycled process id is never mistaken for ours. Nothing here imports Prefect: its
settings are read at import, and this module decides them. Longer than 300 lines: what starts, what finds and what stops is read as one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from flows import at_work
from flows.terminal import Trouble, tell, waiting

if TYPE_CHECKING:
    from collections.abc import Generator

PROJECT: Final = Path(__file__).resolve().parent.parent
HOME: Final = PROJECT / ".prefect-gpu"  # PREFECT_HOME of the server of our own: its SQLite database, logs, what runs
POOL: Final = "gpu-flows"  # names that begin with "prefect" are reserved by the server
GIVE_BACK_S: Final = 60.0  # so long cancelled jobs may take to end and give their machines back
START_DEADLINE_S: Final = 180.0  # a first start migrates the database: 5 s, on a loaded machine a minute


class Background(NamedTuple):
    """A process of ours that was found running."""

    pid: int
    kept: bool  # by `make up`; else it belongs to one make
    url: str  # the API's address: the server's own, or the one that the worker serves


class Daemon:
    """One kind of background process: its record, its lock and its log."""

    def __init__(self, name: str, home: Path = HOME) -> None:
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
        with self.lock.open("wb") as lock, self.log.open("wb") as log:
            if not _locked(lock, within_s=1):  # who looks whether it runs holds the lock for a moment
                raise Trouble(f"The {self.name} of this project is still ending: wait a moment and type it again.")
            self._process = process = subprocess.Popen(
                [sys.executable, *arguments],
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


@dataclass
class Place:
    """The Prefect server that a subcommand works with, and what was started for it here."""

    api_url: str
    home: Path
    is_own: bool  # a server of this project, not one that the user configured
    kept: bool = False  # what is started stays: `make up`
    started: list[Daemon] = field(default_factory=list[Daemon])
    server: subprocess.Popen[bytes] | None = None  # if it was started here
    worker_since: datetime | None = None  # when a worker was started here
    run_id: str | None = None  # the run that was made here, until it is known to be over

    @property
    def ui_url(self) -> str:
        return os.environ.get("PREFECT_UI_URL") or self.api_url.removesuffix("/api")

    def wait_for_server(self) -> None:
        """Until the server answers; a sentence if it does not."""
        deadline = time.monotonic() + (START_DEADLINE_S if self.server else 10)
        with waiting("the Prefect server starts"):
            while (problem := self._problem()) is not None:
                if self.server is not None and self.server.poll() is not None:
                    daemon = Daemon("server", self.home)
                    raise Trouble(f"The Prefect server did not start: {daemon.last_words()} (all of it: {daemon.log})")
                if time.monotonic() > deadline or (self.server is None and "answers" in problem):
                    raise Trouble(f"The Prefect server at {self.api_url} {problem}. Is PREFECT_API_URL right?")
                time.sleep(0.05)

    def _problem(self) -> str | None:
        problem = at_work.unreachable(self.api_url)
        if problem is None and self.server is not None and not at_work.is_of(self.api_url, os.environ["PREFECT_HOME"]):
            return "is another project's"  # two took the same free port: ours ends when it finds it taken
        return problem

    @property
    def worker(self) -> Daemon:
        """This project's worker for this server: for its own, or for the one that the user configured."""
        return _worker(self.home, self.is_own)

    def start_worker(self) -> None:
        """A worker for our pool, unless this project has one. It works in the project's folder: `job.files` are found there."""
        daemon = self.worker
        if (found := daemon.find()) is not None:
            if found.url == self.api_url:
                return
            if found.kept:
                raise Trouble(f"The worker of this project serves {found.url}: `make down` it first.")
            raise Trouble(f"Another make is at work with {found.url}: wait for it.")
        environment = {"PYTHONUNBUFFERED": "1", **os.environ}
        # Asked every second a server of our own is still idle, and a run starts when it is made; a shared one is spared.
        environment.setdefault("PREFECT_WORKER_QUERY_SECONDS", "1" if self.is_own else "5")
        arguments = ["-m", "flows.worker", worker_name(self.home, self.kept, self.is_own)]
        daemon.record.parent.mkdir(exist_ok=True)
        self.worker_since = datetime.now(UTC)
        self.started.append(daemon)
        daemon.start(arguments, environment, kept=self.kept, url=self.api_url)

    def must_run(self) -> None:
        """A sentence if something that was started here has ended."""
        for daemon in self.started:
            if daemon.find() is None:
                raise Trouble(f"The {daemon.name} ended: {daemon.last_words()} (all of it: {daemon.log})")

    def stop(self) -> None:
        """What was started here, the worker before its server; not before the jobs of this worker gave their machines back."""
        try:
            self._end_jobs()
        finally:
            with waiting("server and worker end"):
                while self.started:
                    self.started[-1].stop()
                    self.started.pop()

    def _end_jobs(self) -> None:
        if self.worker_since is None:
            return  # whatever is at work is another worker's
        # A server of our own may remember runs of a make that was killed: nobody would hear that they are cancelled.
        since = self.worker_since if self.is_own else None
        worker = None if self.is_own else worker_name(self.home, self.kept, is_own=False)
        with waiting("the jobs end and their machines are given back"):
            try:
                left = at_work.end(self.api_url, worker=worker, since=since, run_id=self.run_id, within_s=GIVE_BACK_S)
            except Trouble:
                return  # its server is gone: nobody can be told
        if left:
            raise Trouble(_left_behind(left))
        self.run_id = None


@contextlib.contextmanager
def reached(*, kept: bool, configured_only: bool = False, home: Path = HOME) -> Generator[Place]:
    """The server that PREFECT_API_URL names, else the one that `make up` keeps, else one that is started here.

    Sets this process's environment accordingly, and stops at the end what was started, unless it is to be kept.
    """
    os.environ.setdefault("DO_NOT_TRACK", "1")  # a newcomer's first command tells nobody
    os.environ.setdefault("PREFECT_CLI_PROMPT", "false")
    configured = os.environ.get("PREFECT_API_URL")
    if configured_only and not configured:
        raise Trouble(
            "Set PREFECT_API_URL to the server that shall get the deployments; `make up` serves one of its own."
        )
    if not configured or not os.access(os.environ.get("PREFECT_HOME", Path.home()), os.W_OK):
        make_home(home)
        os.environ["PREFECT_HOME"] = str(home)
    if configured:
        make_home(home)
        place = Place(configured.rstrip("/"), home, is_own=False, kept=kept)
        with _stopping_at_end(place):
            yield place
        return
    running = Daemon("server", home).find()
    if running is not None and running.kept:
        os.environ["PREFECT_API_URL"] = running.url
        place = Place(running.url, home, is_own=True, kept=kept)
        with _stopping_at_end(place):
            yield place
        return
    with _only_owner(home):
        for left in (Daemon("worker", home), Daemon("server", home)):
            left.stop()  # of a make that was killed: its owner's lock is free, so nobody uses it
        place = Place(f"http://127.0.0.1:{free_port(4200 if kept else 0)}/api", home, is_own=True, kept=kept)
        os.environ["PREFECT_API_URL"] = place.api_url
        with _stopping_at_end(place):
            _start_server(place)
            yield place


@contextlib.contextmanager
def _stopping_at_end(place: Place) -> Generator[None]:
    try:
        yield
    except BaseException:
        place.stop()  # also what was to be kept: half of it is of no use
        raise
    if not place.kept:
        place.stop()


def _start_server(place: Place) -> None:
    port = place.api_url.removesuffix("/api").rpartition(":")[2]
    environment = {
        **os.environ,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # its telemetry breaks first starts without network
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_UI_API_URL": place.api_url,  # without it the UI on another port than 4200 asks port 4200
        "PYTHONUNBUFFERED": "1",
    }
    daemon = Daemon("server", place.home)
    place.started.append(daemon)
    arguments = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
    place.server = daemon.start(arguments, environment, kept=place.kept, url=place.api_url)


@contextlib.contextmanager
def _only_owner(home: Path) -> Generator[None]:
    """Held by who owns a server that is not kept: two on one database would trample."""
    with (home / "owner.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Trouble(
                "Another make is at work with this project's Prefect server: wait for it, "
                "or type `make up` once, and then run as many side by side as you like."
            ) from None
        yield


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


def make_home(home: Path) -> None:
    """The folder for all of this; a sentence if it cannot be."""
    try:
        home.mkdir(exist_ok=True)
        (home / "owner.lock").touch()
    except OSError as error:
        raise Trouble(f"{home} holds the Prefect server's data and cannot be written: {error.strerror}.") from None


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


def what_is_left(place: Place | None) -> str:
    """The end of the sentence `Interrupted`: as much as is known."""
    if place is None:
        return "."
    if place.run_id is not None:
        return f" before the run {place.run_id} was seen to end: `make reap` gives back what it leaves."
    if place.started:
        names = " and ".join(daemon.name for daemon in place.started)
        return f" while {names} were ended: the next make ends what is left of them."
    return ": nothing was left running."


def worker_name(home: Path, kept: bool, is_own: bool) -> str:
    """How the worker calls itself: on a server that many share, by its project too, so that its runs can be told from others'."""
    project = "" if is_own else f" {hashlib.sha256(str(home).encode()).hexdigest()[:4]}"
    return f"make {'up' if kept else 'run'} on {socket.gethostname()}{project}"


def _worker(home: Path, is_own: bool) -> Daemon:
    """The two stand beside each other: one for the server of our own, one for a server that the user configured."""
    return Daemon("worker", home if is_own else home / "configured")


def down(home: Path = HOME) -> int:
    """`make down`: stop what `make up` keeps, the workers first; not under running jobs, unless it is forced."""
    server, own, other = Daemon("server", home), _worker(home, is_own=True), _worker(home, is_own=False)
    is_forced = os.environ.get("FORCE", "") not in ("", "0")
    # What was found, whose runs count, what is stopped.
    kept: list[tuple[Background, str | None, tuple[Daemon, ...]]] = []
    if (found := server.find() or own.find()) is not None and found.kept:
        kept.append((found, None, (own, server)))
    if (found := other.find()) is not None and found.kept:
        kept.append((found, worker_name(home, kept=True, is_own=False), (other,)))
    if not kept:
        print("Nothing is up.")  # noqa: T201
        return 0
    at = [(found, worker, _at_work(found.url, worker, is_forced)) for found, worker, _ in kept]
    if (running := [run for *_, runs in at for run in runs]) and not is_forced:
        names = ", ".join(run["name"] for run in running[:5])
        raise Trouble(
            f"{len(running)} {'job is' if len(running) == 1 else 'jobs are'} at work ({names}): wait, "
            "or end them and give their machines back with `make down FORCE=1`."
        )
    with waiting("the jobs end and their machines are given back"):
        for found, worker, runs in at:
            if runs and (left := at_work.end(found.url, worker=worker, within_s=GIVE_BACK_S)):
                tell(_left_behind(left))
    with waiting("server and worker end"):
        for *_, daemons in kept:
            for daemon in daemons:
                daemon.stop()
    for found, worker, _ in kept:
        if worker is None:
            print("Server and worker are stopped. Earlier runs are kept; `make up` shows them again.")  # noqa: T201
        else:
            print(f"The worker for {found.url} is stopped.")  # noqa: T201
    return 0


def _at_work(api_url: str, worker: str | None, is_forced: bool) -> list[dict[str, Any]]:
    """The runs under which nothing may be stopped. A server of our own that has died is asked nothing."""
    if worker is None and at_work.unreachable(api_url):
        return []
    try:
        return at_work.runs(api_url, worker)
    except Trouble as trouble:
        if not is_forced:
            raise Trouble(
                f"{trouble} Whether a job is at work is not known, and nothing was stopped: "
                "`make down FORCE=1` stops the worker all the same."
            ) from None
        tell(f"{trouble} Whether a job was at work is not known: `make reap` gives back what it may have left.")
        return []


def _left_behind(runs: list[dict[str, Any]]) -> str:
    names = ", ".join(run["name"] for run in runs[:5])
    return f"Cancelled, and not seen to end within {GIVE_BACK_S:.0f} s: {names}. `make reap` gives back what is left of them."
