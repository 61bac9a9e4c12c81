"""The Prefect server that a subcommand works with, and the worker beside it: shared by all commands that run at the same time.

Who comes first starts them, who leaves last stops them, unless `up` keeps them. Each command holds a lock that says "in use".
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final
from uuid import UUID

from prefect_gpu.flows.terminal import api, at_work, homes
from prefect_gpu.flows.terminal.daemon import Daemon, private_file
from prefect_gpu.flows.terminal.messages import Trouble, waiting
from prefect_gpu.providers.core.typed import typed

if TYPE_CHECKING:
    from collections.abc import Generator

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

POOL: Final = "gpu-flows"  # names that begin with "prefect" are reserved by the server
GIVE_BACK_S: Final = 60.0  # so long cancelled jobs may take to end and give their machines back
START_DEADLINE_S: Final = 180.0  # a first start migrates the database: 5 s, on a loaded machine a minute
EVENTS_S: Final = 5.0  # so long what was told may take to arrive
PATIENCE_S: Final = 5.0  # so long a server that others run may be away


@dataclass
class Place:
    """A Prefect server, and what runs for it here."""

    api_url: str
    home: Path
    is_own: bool  # a server of our own, not one that the user configured
    password: str | None = None  # of a server of our own
    named_by: str = "PREFECT_API_URL"  # what names a configured server
    started: list[Daemon] = field(default_factory=list[Daemon])
    needed: list[Daemon] = field(default_factory=list[Daemon])  # what this command cannot go on without
    server: subprocess.Popen[bytes] | None = None  # if it was started here
    run_id: UUID | None = None  # the run that was made here, until it is known to be over
    users: IO[bytes] | None = None  # the lock that says "in use"

    @property
    def ui_url(self) -> str:
        return os.environ.get("PREFECT_UI_URL") or self.api_url.removesuffix("/api")

    @property
    def folder(self) -> Path:
        """Where the records of its processes are. The worker for a configured server stands beside our own server's."""
        return self.home if self.is_own else self.home / "configured"

    @property
    def worker(self) -> Daemon:
        return Daemon("worker", self.folder)

    @property
    def daemons(self) -> list[Daemon]:
        """In the order in which they are stopped: a worker needs its server to the end."""
        return [self.worker, Daemon("server", self.home)] if self.is_own else [self.worker]

    def wait_for_server(self) -> None:
        """Until the server answers; a sentence if it does not."""
        deadline = time.monotonic() + (START_DEADLINE_S if self.is_own else PATIENCE_S)
        what = "the Prefect server starts" if self.is_own else f"asking the Prefect server at {self.api_url}"
        with waiting(what):
            while (problem := self._problem()) is not None:
                if self.is_own:
                    self.must_run()
                is_wrong = "answers" in problem  # something else is there, and waiting will not change it
                if time.monotonic() > deadline or (is_wrong and not self.is_own):
                    hint = api.meant(self.api_url)
                    raise Trouble(
                        f"The Prefect server at {self.api_url} {problem}. "
                        + (f"Did you mean {hint}?" if hint and not self.is_own else f"Is {self.named_by} right?")
                    )
                time.sleep(0.05)

    @contextlib.contextmanager
    def asked(self) -> Generator[SyncPrefectClient]:
        """A client of the server, once it answers; what the server says against it becomes a sentence."""
        self.wait_for_server()
        try:
            with api.asked(self.api_url, self.password) as client:
                yield client
        except Trouble:
            self.must_run()
            raise

    def _problem(self) -> str | None:
        if not self.is_own:
            return api.unusable(self.api_url)
        if (owner := listener(self._port)) is None:
            return "does not answer"
        if owner != os.geteuid():  # somebody took the port before our server could: it is told nothing
            return "is another user's"
        return api.unusable(self.api_url, self.password, str(self.home))

    @property
    def _port(self) -> int:
        return int(self.api_url.removesuffix("/api").rpartition(":")[2])

    def start_worker(self) -> None:
        """A worker for our pool, unless there is one. It works in the folder where the command was typed: `job.files` are found there."""
        daemon = self.worker
        with starting(self.folder):
            if (found := daemon.find()) is not None:
                if found.url == self.api_url:
                    if self.is_own:
                        self.needed.append(daemon)
                    return
                if found.kept:
                    raise Trouble(f"Your worker here serves {found.url}: `{typed('down')}` it first.")
                raise Trouble(f"Another command is at work with {found.url}: wait for it.")
            environment = {"PYTHONUNBUFFERED": "1", **os.environ}
            # Asked every second a server of our own is still idle, and a run starts when it is made; a shared one is spared.
            environment.setdefault("PREFECT_WORKER_QUERY_SECONDS", "1" if self.is_own else "5")
            arguments = ["-m", "prefect_gpu.flows.terminal.worker", worker_name(self.home, self.is_own)]
            self.started.append(daemon)
            self.needed.append(daemon)
            daemon.start(arguments, environment, kept=False, url=self.api_url)

    def must_run(self) -> None:
        """A sentence if something that this command needs has ended."""
        for daemon in self.needed:
            if daemon.find() is None:
                raise Trouble(f"The {daemon.name} ended: {daemon.last_words()} (all of it: {daemon.log})")

    def keep(self) -> None:
        """What runs here stays when this command ends, and when others do."""
        with starting(self.folder):
            for daemon in self.daemons:
                daemon.keep()

    def leave(self) -> None:
        """End what this command made, and stop server and worker if nobody else uses them and nobody keeps them."""
        try:
            if self.run_id is not None:
                self._end(run_id=self.run_id)
        finally:
            with starting(self.folder):
                if self.users is not None:
                    self.users.close()
                    self.users = None
                if is_free(self.folder):
                    self._stop()
                self.started.clear()

    def _stop(self) -> None:
        running = [(daemon, found) for daemon in self.daemons if (found := daemon.find()) is not None]
        if any(found.kept for _, found in running):
            return
        try:
            if any(daemon.name == "worker" for daemon, _ in running):
                self._end(everything=True)
        finally:
            with waiting("server and worker end"):
                _deliver_events()
                for daemon, _ in running:
                    daemon.stop()
                if self.is_own:
                    homes.forget_password(self.home)

    def _end(self, *, run_id: UUID | None = None, everything: bool = False) -> None:
        """Cancel one run, or all of this worker's, and wait until their machines are given back."""
        if self.is_own and listener(self._port) is None:
            return  # nobody can be told
        # A server of our own may remember runs of a command that was killed: nobody would hear that they are cancelled.
        found = self.worker.find()
        since = datetime.fromtimestamp(found.since, UTC) if self.is_own and found is not None else None
        worker = None if self.is_own else worker_name(self.home, is_own=False)
        with waiting("the jobs end and their machines are given back"):
            try:
                with api.asked(self.api_url, self.password) as client:
                    if everything:
                        left = at_work.end(client, worker=worker, since=since, within_s=GIVE_BACK_S)
                        at_work.give_back_crashed(client, at_work.crashed(client, worker, since))
                    else:
                        left = at_work.end(client, only=run_id, within_s=GIVE_BACK_S)
            except Trouble:
                return  # its server is gone: nobody can be told
        if left:
            raise Trouble(left_behind(left))
        if run_id is not None:
            self.run_id = None


@contextlib.contextmanager
def entered(place: Place) -> Generator[Place]:
    """Among those who use the place; what was started here is stopped at the end, unless somebody keeps or uses it."""
    try:
        yield place
    except BaseException:
        place.leave()
        raise
    place.leave()


def _deliver_events() -> None:
    """What this process has told Prefect arrives while the server is there: afterwards Prefect tries for seconds, and says on the terminal that it is lost."""
    if (worker := sys.modules.get("prefect.events.worker")) is not None:
        logging.getLogger(worker.EventsWorker.__name__).setLevel(logging.ERROR)  # else it counts them on the terminal
        worker.EventsWorker.drain_all(timeout=EVENTS_S)


def worker_name(home: Path, is_own: bool) -> str:
    """How the worker calls itself: on a server that many share, by its home too, so that its runs can be told from others'."""
    whose = "" if is_own else f" {hashlib.sha256(str(home).encode()).hexdigest()[:4]}"
    return f"prefect-gpu on {socket.gethostname()}{whose}"


def left_behind(runs: list[FlowRun]) -> str:
    names = ", ".join(run.name for run in runs[:5])
    return f"Cancelled, and not seen to end within {GIVE_BACK_S:.0f} s: {names}. `{typed('reap')}` gives back what is left of them."


def what_is_left(place: Place | None) -> str:
    """The end of the sentence `Interrupted`: as much as is known."""
    if place is None:
        return "."
    if place.run_id is not None:
        return f" before the run {place.run_id} was seen to end: `{typed('reap')}` gives back what it leaves."
    if place.started:
        names = " and ".join(daemon.name for daemon in place.started)
        return f" while {names} were ended: the next command ends what is left of them."
    return ": nothing was left running."


# --- who uses it -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def starting(folder: Path) -> Generator[None]:
    """Held by who starts or stops: two would start two servers on one database."""
    folder.mkdir(mode=0o700, exist_ok=True)
    with private_file(folder / "owner.lock") as lock:
        with waiting("another command starts or stops the server"):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_free(folder: Path) -> bool:
    """Whether no command uses what runs there. To be asked by who holds `starting`."""
    with private_file(folder / "users.lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def in_use(folder: Path) -> IO[bytes]:
    """The lock that says so, until it is closed or this process ends, however it ends."""
    lock = private_file(folder / "users.lock")
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def listener(port: int) -> int | None:
    """The user whose process listens there on 127.0.0.1, or None where nobody does."""
    wanted = f"0100007F:{port:04X}" if sys.byteorder == "little" else f"7F000001:{port:04X}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1] in (wanted, f"00000000:{port:04X}") and fields[3] == "0A":
                return int(fields[7])
    return None
