"""What is looked after while a job runs: the files that it asked to keep, and its provider's notice that the machine is taken back.

The notice is in a file that a service on the machine writes (toolkit/notice.py): the job's supervisor tells the job then, and its files are
brought once more, again and again until the machine is gone. A checkpoint that has come whole takes the place of the one before it.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from prefect_gpu.providers.core.aside import Stopped
from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.machine import supervisor
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.models import JobResult
from prefect_gpu.providers.core.renting.plain_log import logger
from prefect_gpu.providers.core.requests import Job
from prefect_gpu.providers.core.toolkit import notice

LOOK_EVERY_S: Final = 5.0
LAST_S: Final = 60.0  # so long the files of a job that failed may take to come a last time
_CALL_S: Final = 30.0


class Store(NamedTuple):
    """Where checkpoints are kept beyond their machine."""

    folder: Path  # of which `whole` is the last that came whole, and `before` the one before it
    put: Callable[[], object] = lambda: None  # called when there is a new one

    @property
    def whole(self) -> Path:
        return self.folder / "whole"

    def newest(self) -> Path | None:
        """The last checkpoint that came whole, or None."""
        return next((one for one in (self.whole, self.folder / "before") if one.is_dir()), None)


def restore(machine: Machine, job_id: str, store: Store, should_stop: Callable[[], str | None]) -> None:
    """Give a job that begins anew what an earlier one of its run kept."""
    from prefect_gpu.providers.core.machine.upload import send  # most jobs keep none

    found = store.newest()
    if found is None or not (names := sorted(_names(found))):
        return
    # Exactly these: they came from a machine of this run, and lie where nobody's own files do.
    sent = send(machine, job_id, names, found, should_stop)
    logger().info(f"checkpoint up: {sent}")


def _names(folder: Path) -> Iterator[str]:
    """All files and links, and empty folders."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir()):
            yield str(path.relative_to(folder))


class Keeper:
    """Looks after one job in a thread of its own, from `with` to its end."""

    def __init__(self, machine: Machine, job_id: str, job: Job, store: Store | None, *, is_spot: bool) -> None:
        self.notice: str | None = None
        self._machine = machine
        self._job_id = job_id
        self._job = job
        self._store = store if job.checkpoint else None
        self._is_spot = is_spot
        self._log = logger()
        self._seen: bytes | None = None  # what the files looked like when they came last
        self._next = time.monotonic() + job.checkpoint_every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._work,), name="prefect-gpu keeper", daemon=True
        )

    def __enter__(self) -> Self:
        if self._store is not None or self._is_spot:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(_CALL_S)

    def keep_last(self, result: JobResult | None) -> None:
        """The files of a job that failed, once more: who starts the run again goes on from them."""
        has_failed = result is not None and result.outcome in ("exited", "timed out") and result.exit_code != 0
        if self._store is None or not has_failed or not self._machine.is_linked:
            return
        deadline = time.monotonic() + LAST_S
        with suppress(ProviderError, Stopped, OSError):
            self._keep(self._store, lambda: "late" if time.monotonic() > deadline else None)

    def _work(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            if not self._machine.is_linked:  # whoever follows the job connects again
                continue
            with suppress(ProviderError, Stopped, OSError):  # the next look comes
                if self._is_spot and self.notice is None:
                    self._listen()
                if self._store is not None and (self.notice or time.monotonic() >= self._next):
                    self._keep(self._store, lambda: "ended" if self._ended.is_set() else None)
                    self._next = time.monotonic() + self._job.checkpoint_every_s

    def _listen(self) -> None:
        self.notice = notice.heard(self._machine.connection())
        if self.notice is None:
            return
        self._log.warning(f"the machine is about to be taken back: {self.notice}")
        if name := self._job.notice_signal:
            self._log.info(f"its supervisor sends SIG{name} to those of the job's processes that handle it")

    def _keep(self, store: Store, should_stop: Callable[[], str | None]) -> None:
        """Bring the files where they are others than the last time."""
        from prefect_gpu.providers.core.machine.download import download  # most jobs keep none

        looks = self._machine.execute(
            self._machine.job_directory(self._job_id) + supervisor.looks_program(self._job.checkpoint),
            timeout_s=_CALL_S,
            should_stop=should_stop,
        ).stdout
        if looks == self._seen:
            return
        coming = store.folder / "coming"
        shutil.rmtree(coming, ignore_errors=True)
        coming.mkdir(parents=True)
        brought = download(self._machine, self._job_id, self._job.checkpoint, coming, should_stop, lost_after_s=LAST_S)
        if not brought.paths and brought.unlisted:
            return
        for name in brought.lost:  # of a file that never holds still the one before is kept
            old, new = store.whole / name, coming / name
            if old.is_file() and not new.exists():
                new.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(old, new)
        before = store.folder / "before"
        if store.whole.exists():
            shutil.rmtree(before, ignore_errors=True)
            store.whole.replace(before)
        coming.replace(store.whole)
        self._seen = looks
        store.put()
        self._log.info(f"checkpoint kept: {len(brought.paths):,} files")
