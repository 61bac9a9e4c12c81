"""Jobs on a machine: started at most once, followed by byte offset across lost links, ended with all that they started.

Works over any Connection. What runs on the machine is in supervisor.py; nothing here knows SSH or Prefect.

Longer than 300 lines: starting, following, cancelling and attaching again are one protocol with one state.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeVar

from pydantic import SecretStr

from providers.core import supervisor
from providers.core.aside import POLL_S, Aside, Stopped, attended, never
from providers.core.contract import Connection
from providers.core.errors import (
    AuthFailed,
    HostKeyMismatch,
    InstanceFailed,
    InvalidRequest,
    LinkLost,
    ProviderError,
    Transient,
)
from providers.core.models import MAX_WORD_BYTES, JobResult, JobSpec, utc_now
from providers.core.shell import Finished, ScriptChannel, run_script, start_script

DEFAULT_ROOT: Final = "~/.prefect-gpu"
GRACE_S: Final = 5  # between TERM and KILL
LOST_AFTER_S: Final = 900.0  # so long a machine may be out of reach before its job counts as lost

Outcome = Literal["exited", "timed out", "cancelled", "lost"]
ShouldStop = Callable[[], str | None]  # None, "cancelled" or "abandon"
Sink = Callable[[int, bytes], object]

T = TypeVar("T")

_CHUNK = 65536
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_STEADY_S = 30.0  # a step that went on for so long was not lost before
_OUTCOMES: dict[str, Outcome] = {"exited": "exited", "timed-out": "timed out", "cancelled": "cancelled", "lost": "lost"}
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}", re.ASCII)
_BY_SIGNAL = 128  # exit codes from here on: whoever was killed may have done its work before


class Wrap(NamedTuple):
    """How a job runs inside something else (a container): two POSIX sh scripts and what they need to know.

    `run` is executed in the place of the job, in the job's working directory, with the job's argv as "$@" and its environment
    set; its exit code is the job's. `clean_up` runs after the job, however it ended, and must bear being run twice. Variables of
    the job that are `withheld` are not set: the machine itself would run by them, and `run` hands them on otherwise.
    """

    run: str
    clean_up: str = ""
    variables: dict[str, SecretStr] = {}  # noqa: RUF012 - never changed; into the environment of `run`, beside the job's own
    withheld: frozenset[str] = frozenset()


class Ended(NamedTuple):
    """What the machine says about a job that is over."""

    outcome: Outcome
    exit_code: int | None
    started_at: datetime
    ended_at: datetime
    log_bytes: int


class Machine:
    """A machine that jobs run on, connected to again whenever the link was lost.

    `open_connection` opens a verified connection or raises ProviderError. `wrap` gives the container a job runs in, or None.
    `root` is where jobs live on the machine: absolute, or `~/...` (with an unwritable home: /var/tmp/prefect-gpu-<uid>).
    """

    def __init__(
        self,
        open_connection: Callable[[], Connection],
        connection: Connection | None = None,
        *,
        root: str = DEFAULT_ROOT,
        wrap: Callable[[JobSpec], Wrap | None] | None = None,
        grace_s: int = GRACE_S,
    ) -> None:
        if not root.startswith(("/", "~/")):
            raise ValueError(f"{root!r} is no place for jobs: give an absolute path or ~/...")
        self.root = root
        self._open_connection = open_connection
        self._connection = connection
        self._is_known = connection is not None  # connected once: from now on a wrong host key is an alarm
        self._wrap = wrap
        self._grace_s = grace_s
        self._lock = threading.Lock()

    def connection(self, should_stop: ShouldStop = never) -> Connection:
        """The connection, opened if there is none that lives. Raises what `open_connection` raises, and Stopped."""
        with self._lock:
            if self._connection is not None and self._connection.is_alive():
                return self._connection
        fresh = attended(self._open_connection, should_stop, discard=lambda late: late.close())
        with self._lock:
            stale, self._connection, self._is_known = self._connection, fresh, True
        if stale is not None:
            stale.close()
        return fresh

    @property
    def is_linked(self) -> bool:
        """Whether a connection is open and not known to be broken."""
        with self._lock:
            return self._connection is not None and self._connection.is_alive()

    def close(self) -> None:
        """Close the connection; jobs go on."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def execute(
        self, script: str, stdin: bytes = b"", *, timeout_s: float = 30.0, should_stop: ShouldStop = never
    ) -> Finished:
        """Run a POSIX sh script to its end, once. Raises LinkLost, Stopped, and what opening a connection raises."""
        return _execute(self.connection(should_stop), script, stdin, timeout_s, should_stop)

    def job_directory(self, job_id: str) -> str:
        """A piece of sh that sets $dir to the job's directory on the machine; `$dir/work` is where its files are."""
        return supervisor.locate(self.root, checked_id(job_id))

    def start(self, job: JobSpec, should_stop: ShouldStop = never) -> bool:
        """Start the job, or find that somebody else started it before: True or False. Repeated over lost links, since it starts once.

        Raises LinkLost when it may have been started and the machine is gone: it must not run a second time elsewhere. Whatever
        else is raised, it was not started: InstanceFailed when the machine cannot take it, or its lease is over.
        """
        limit_s = job.timeout_s
        if job.deadline is not None:
            limit_s = min(limit_s, int((job.deadline - utc_now()).total_seconds()))
        if limit_s <= 0:
            raise InstanceFailed("the lease is over before the job started")
        wrap = self._wrapped(job)
        program = supervisor.start_program(
            self.root,
            checked_id(job.id),
            job.command,
            exports=_variables(job, wrap),
            limit_s=limit_s,
            grace_s=self._grace_s,
            clock=time.time(),
            working_directory=job.working_directory or "",
            wrap=wrap.run if wrap else "",
            clean=wrap.clean_up if wrap else "",
        )
        may_run = False  # an answer was lost: what comes after it proves nothing

        def send(link: Connection) -> bool:
            nonlocal may_run
            try:
                done = _execute(link, program, b"", 30.0, should_stop)
            except Transient:
                may_run = True
                raise
            answer = done.stdout.decode(errors="replace").strip()
            if done.exit_code == 0 and answer in {"started", "attached"}:
                return answer == "started" or may_run
            may_run = may_run or done.exit_code >= _BY_SIGNAL
            raise InstanceFailed(f"the machine cannot start a job: {done.problem}")

        try:
            return self.persist(send, should_stop, LOST_AFTER_S, steady_s=math.inf)
        except HostKeyMismatch:
            raise
        except ProviderError as error:
            if may_run:
                raise LinkLost(f"the job may have been started, and then: {error.message}") from error
            if isinstance(error, LinkLost):
                raise InstanceFailed(f"the job was not started: {error.message}") from error
            raise

    def follow(
        self,
        job_id: str,
        sink: Sink,
        offset: int = 0,
        should_stop: ShouldStop = never,
        *,
        lost_after_s: float = LOST_AFTER_S,
        on_link: Callable[[str], object] | None = None,
    ) -> Ended:
        """Hand on the job's output from a byte offset until it ends; what it ended with.

        `sink` is called in another thread, in order, each byte once, whatever happens to the link; what it raises is raised here.
        Raises Stopped within about 0.1 s of a reason to stop, and then the job goes on; LinkLost when the machine was out of
        reach for `lost_after_s`; HostKeyMismatch when another machine answers at its address; what its provider says when it is
        gone (NotFound, InstanceFailed). Refused credentials may be mended: they are a machine out of reach.
        """
        follower = _Follower(sink, offset)

        def attach(connection: Connection) -> Ended:
            if follower.attempts and on_link is not None:
                on_link(f"attached to the job again at byte {follower.offset}")
            return follower.follow(
                connection,
                supervisor.follow_program(self.root, checked_id(job_id), follower.offset),
                should_stop,
            )

        return self.persist(attach, should_stop, lost_after_s, on_link, bears=(Transient, AuthFailed))

    def cancel(self, job: JobSpec, should_stop: ShouldStop = never, *, timeout_s: float = 20.0) -> Ended:
        """End the job and all that it started; one that never started will not start any more.

        Returns when nothing of it is left, after `grace_s` between TERM and KILL at most. Raises LinkLost when the machine is out
        of reach for `timeout_s`.
        """
        wrap = self._wrapped(job)
        program = supervisor.cancel_program(
            self.root, checked_id(job.id), grace_s=self._grace_s, clean=wrap.clean_up if wrap else ""
        )
        done = self.persist(
            lambda link: _execute(link, program, b"", self._grace_s + 60.0, should_stop),
            should_stop,
            timeout_s,
            steady_s=math.inf,
        )
        return _ended(done.stderr)

    def run(
        self,
        job: JobSpec,
        log_path: Path,
        on_output: Sink | None = None,
        should_stop: ShouldStop = never,
        *,
        output_from: int = 0,
        lost_after_s: float = LOST_AFTER_S,
        on_link: Callable[[str], object] | None = None,
        on_start: Callable[[bool], object] | None = None,
    ) -> JobResult | None:
        """Start the job or attach to it, and follow it to its end: its whole output to `log_path`, each chunk to `on_output` too.

        `on_start` is told whether this call started it. `log_path` is continued where an earlier call left off; `on_output` gets what comes from byte `output_from` on, in another
        thread, and should not block. `should_stop` is asked ten times a second: "cancelled" ends the job; anything else leaves it
        running and returns None, and another process attaches later. A machine out of reach for `lost_after_s`, or that lost
        the job, is the outcome "lost". What is raised says that the job was not started, so it may be tried elsewhere; whatever
        happens later is `trouble` of the result.
        """
        began = utc_now()
        is_started = False
        trouble = ""
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            offset = log.tell()

            def sink(at: int, data: bytes) -> None:
                log.write(data)
                log.flush()
                if on_output is not None and at + len(data) > output_from:
                    skip = max(0, output_from - at)
                    on_output(at + skip, data[skip:] if skip else data)

            try:
                is_new = self.start(job, should_stop)
                is_started = True
                if on_start is not None:
                    on_start(is_new)
                if on_output is not None:
                    _replay(log_path, output_from, offset, on_output)
                ended = self.follow(job.id, sink, offset, should_stop, lost_after_s=lost_after_s, on_link=on_link)
            except Stopped as stop:
                if stop.reason != "cancelled":
                    return None
                ended = self._cancel_and_drain(job, log_path, sink, began)
            except ProviderError as gone:
                if not is_started and not isinstance(gone, LinkLost | HostKeyMismatch):
                    raise
                trouble = gone.message  # the job was or may be started: as an error it would be run again
                ended = Ended("lost", None, began, utc_now(), log.tell())
        if ended.outcome == "lost":
            with contextlib.suppress(ProviderError, Stopped):
                self.cancel(job, timeout_s=1.0)  # without its supervisor a job may still have left something behind
        return JobResult(
            exit_code=ended.exit_code,
            outcome=ended.outcome,
            started_at=ended.started_at,
            ended_at=ended.ended_at,
            log_bytes=log_path.stat().st_size,
            trouble=trouble,
        )

    def _cancel_and_drain(self, job: JobSpec, log_path: Path, sink: Sink, began: datetime) -> Ended:
        ended = Ended("cancelled", None, began, utc_now(), log_path.stat().st_size)
        with contextlib.suppress(ProviderError):  # the instance goes anyway
            ended = self.cancel(job)
            deadline = time.monotonic() + 10
            with contextlib.suppress(Stopped):
                self.follow(
                    job.id,
                    sink,
                    log_path.stat().st_size,
                    lambda: "late" if time.monotonic() > deadline else None,
                    lost_after_s=10,
                )
        return ended

    def _wrapped(self, job: JobSpec) -> Wrap | None:
        return self._wrap(job) if self._wrap is not None else None

    def persist(
        self,
        step: Callable[[Connection], T],
        should_stop: ShouldStop,
        lost_after_s: float,
        on_link: Callable[[str], object] | None = None,
        *,
        steady_s: float | None = None,
        bears: tuple[type[ProviderError], ...] = (Transient,),
    ) -> T:
        """A step that may be repeated, repeated on new connections until it is through.

        A step that went on for `steady_s` (30) had reached the machine; math.inf for one that should take a moment, since a machine that
        hangs answers every connect. Raises what the step raises, but LinkLost, in the place of what it `bears`, only when the
        machine was out of reach for `lost_after_s`; Stopped.
        """
        lost_since: float | None = None
        pause = _FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            was_known = self._is_known
            try:
                return step(self.connection(should_stop))
            except bears as error:
                if isinstance(error, HostKeyMismatch) and was_known:
                    raise
                problem = error.message
            failed = time.monotonic()
            was_steady = failed - began > (_STEADY_S if steady_s is None else steady_s)
            if lost_since is None or was_steady:
                lost_since, pause = failed if was_steady else began, _FIRST_PAUSE_S
                if on_link is not None:
                    on_link(problem)
            if failed - lost_since + pause > lost_after_s:
                raise LinkLost(f"the machine is out of reach: {problem}")
            attended(lambda pause=pause: time.sleep(pause), should_stop)
            pause = min(_LONGEST_PAUSE_S, pause * 1.5)


def _execute(connection: Connection, script: str, stdin: bytes, timeout_s: float, should_stop: ShouldStop) -> Finished:
    return attended(lambda: run_script(connection, script, stdin, timeout_s=timeout_s), should_stop)


class _Follower:
    """Where following a job's output has come to."""

    def __init__(self, sink: Sink, offset: int) -> None:
        self.offset = offset
        self.attempts = 0
        self._sink = sink

    def follow(self, connection: Connection, program: str, should_stop: ShouldStop) -> Ended:
        self.attempts += 1
        channel = start_script(connection, program)
        reading = Aside(lambda: self._read(channel))
        try:
            while not reading.wait(POLL_S):
                if (reason := should_stop()) is not None:
                    raise Stopped(reason)
            reading.result()
            channel.exit_status(timeout_s=10.0)
            return _ended(channel.error_text())
        finally:
            channel.close()
            reading.wait(1.0)  # so that no byte comes after this

    def _read(self, channel: ScriptChannel) -> None:
        while data := channel.recv(_CHUNK):
            self._sink(self.offset, data)
            self.offset += len(data)


def checked_id(job_id: str) -> str:
    """The id, if it can name a directory."""
    if _JOB_ID.fullmatch(job_id) is None:
        raise InvalidRequest(f"{job_id!r} cannot name a job: use letters, digits, dots, dashes and underscores")
    return job_id


def _variables(job: JobSpec, wrap: Wrap | None) -> dict[str, str]:
    withheld = wrap.withheld if wrap else frozenset[str]()
    variables = {name: value for name, value in job.env.items() if name not in withheld}
    for secrets in (job.secrets, wrap.variables if wrap else {}):
        variables.update((name, value.get_secret_value()) for name, value in secrets.items())
    for name, value in variables.items():
        if not (name.isascii() and name.isidentifier()) or "\0" in value:
            raise InvalidRequest(f"{name!r} cannot be an environment variable: use letters, digits and _, and no NUL")
        if len(name) + len(value.encode()) + 1 > MAX_WORD_BYTES:
            raise InvalidRequest(f"the environment variable {name} is longer than 128 KB: upload a file instead")
    return variables


def _ended(report: str) -> Ended:
    """The line that follow and cancel programs write to stderr in their end."""
    fields = report.strip().rpartition("\n")[2].split()
    if len(fields) != 6:
        if fields == ["absent"]:
            return Ended("lost", None, utc_now(), utc_now(), 0)
        raise LinkLost(f"the machine told no end of the job: {report.strip()[-200:] or 'nothing'}")
    code, outcome, clock, up_start, up_end, size = fields
    started = datetime.fromtimestamp(float(clock), UTC) if float(clock) else utc_now()
    # The start by our clock, the length by the machine's: its calendar may be wrong.
    seconds = float(up_end) - float(up_start) if float(up_start) else 0.0  # 0: it never started
    ended = started + timedelta(seconds=max(0.0, seconds))
    name = _OUTCOMES[outcome]
    return Ended(name, int(code) if name == "exited" else None, started, ended, int(size))


def _replay(path: Path, start: int, end: int, on_output: Sink) -> None:
    """What an earlier call wrote to the log file and `on_output` wants too."""
    with path.open("rb") as log:
        log.seek(start)
        while start < end and (data := log.read(min(_CHUNK, end - start))):
            on_output(start, data)
            start += len(data)
