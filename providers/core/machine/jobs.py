"""Jobs on a machine: started at most once, followed by byte offset across lost links, ended with all that they started.

Works over any Connection. What runs on the machine is in supervisor.py; nothing here knows SSH or Prefect.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from prefect_gpu.providers.core.aside import Stopped, never
from prefect_gpu.providers.core.contract import Connection
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    HostKeyMismatch,
    InstanceFailed,
    InvalidRequest,
    LinkLost,
    ProviderError,
    Transient,
)
from prefect_gpu.providers.core.machine import reach, supervisor
from prefect_gpu.providers.core.machine.following import Follower, Sink, replay
from prefect_gpu.providers.core.machine.job_end import Ended, ended
from prefect_gpu.providers.core.machine.kept_log import KeptLog
from prefect_gpu.providers.core.machine.reach import LOST_AFTER_S, Reach, ShouldStop, execute_on
from prefect_gpu.providers.core.machine.shell import WritesWithoutEnd
from prefect_gpu.providers.core.machine.wrap import Wrap, environment
from prefect_gpu.providers.core.models import JobResult, JobSpec, utc_now

DEFAULT_ROOT: Final = "~/.prefect-gpu"
GRACE_S: Final = 5  # between TERM and KILL

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}", re.ASCII)
_BY_SIGNAL = 128  # exit codes from here on: whoever was killed may have done its work before
_KILLED_STARTS = (
    3  # so often one that was killed is sent again: a machine that is taken away ends its processes before its links
)


class Machine(Reach):
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
            raise ValueError(f"{root!r} is not a place for jobs: give an absolute path or ~/...")
        super().__init__(open_connection, connection)
        self.root = root
        self._wrap = wrap
        self._grace_s = grace_s

    def job_directory(self, job_id: str) -> str:
        """A piece of sh that sets $dir to the job's directory on the machine; `$dir/work` is where its files are."""
        return supervisor.locate(self.root, checked_id(job_id))

    def has_started(self, job_id: str, should_stop: ShouldStop = never) -> bool:
        """Whether the job was started there, by whomever. LinkLost when the machine is out of reach for too long."""
        program = self.job_directory(job_id) + '[ -e "$dir/claim" ] && [ ! -L "$dir/claim" ] && echo started\n'
        done = self.persist(
            lambda link: execute_on(link, program, b"", 30.0, should_stop),
            should_stop,
            reach.LOST_AFTER_S,
            steady_s=math.inf,
        )
        return done.stdout.strip() == b"started"

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
            exports=environment(job, wrap),
            limit_s=limit_s,
            grace_s=self._grace_s,
            clock=time.time(),
            working_directory=job.working_directory or "",
            wrap=wrap.run if wrap else "",
            clean=wrap.clean_up if wrap else "",
            notice_signal=job.notice_signal,
        )
        may_run = False  # an answer was lost: what comes after it proves nothing
        killed = 0

        def send(link: Connection) -> bool:
            nonlocal may_run, killed
            try:
                done = execute_on(link, program, b"", 30.0, should_stop)
            except (Transient, WritesWithoutEnd):
                may_run = True
                raise
            answer = done.stdout.decode(errors="replace").strip()
            if done.exit_code == 0 and answer in {"started", "attached"}:
                return answer == "started" or may_run
            if done.exit_code >= _BY_SIGNAL:
                may_run, killed = True, killed + 1
                if killed <= _KILLED_STARTS:
                    raise LinkLost(f"what starts the job was killed: {done.problem}")
            raise InstanceFailed(f"the machine cannot start a job: {done.problem}")

        try:
            return self.persist(send, should_stop, reach.LOST_AFTER_S, steady_s=math.inf)
        except ProviderError as error:
            if may_run and not isinstance(error, HostKeyMismatch):
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
        follower = Follower(sink, offset)

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
            lambda link: execute_on(link, program, b"", self._grace_s + 60.0, should_stop),
            should_stop,
            timeout_s,
            steady_s=math.inf,
        )
        return ended(done.stderr)

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

        `on_start` is told whether this call started it. `log_path` is continued where an earlier call left off; `on_output` gets what
        comes from byte `output_from` on, in another thread, and should not block. `should_stop` is asked ten times a second:
        "cancelled" ends the job; anything else leaves it running and returns None. A machine out of reach for `lost_after_s`, or that
        lost the job, is the outcome "lost". What is raised says that the job was not started; what happens later is `trouble`.
        """
        began = utc_now()
        is_started = False
        trouble = ""
        log = KeptLog(log_path, on_link)
        with contextlib.closing(log):
            offset = log.position

            def sink(at: int, data: bytes) -> None:
                log.write(data)
                if on_output is not None and at + len(data) > output_from:
                    skip = max(0, output_from - at)
                    on_output(at + skip, data[skip:] if skip else data)

            try:
                is_new = self.start(job, should_stop)
                is_started = True
                if on_start is not None:
                    on_start(is_new)
                if on_output is not None:
                    replay(log_path, output_from, offset, on_output)
                end = self.follow(job.id, sink, offset, should_stop, lost_after_s=lost_after_s, on_link=on_link)
            except Stopped as stop:
                if stop.reason != "cancelled":
                    return None
                end = self._cancel_and_drain(job, log, sink, began)
            except ProviderError as gone:
                if not is_started and not isinstance(gone, LinkLost | HostKeyMismatch):
                    raise
                trouble = gone.message  # the job was or may be started: as an error it would be run again
                end = Ended("lost", None, began, utc_now(), log.position)
            log.finish()
        if end.outcome == "lost":
            with contextlib.suppress(ProviderError, Stopped):
                self.cancel(job, timeout_s=1.0)  # without its supervisor a job may still have left something behind
        return JobResult(
            exit_code=end.exit_code,
            outcome=end.outcome,
            started_at=end.started_at,
            ended_at=end.ended_at,
            log_bytes=log.position,
            trouble=trouble or end.why,
        )

    def _cancel_and_drain(self, job: JobSpec, log: KeptLog, sink: Sink, began: datetime) -> Ended:
        end = Ended("cancelled", None, began, utc_now(), log.position)
        with contextlib.suppress(ProviderError):  # the instance goes anyway
            end = self.cancel(job)
            deadline = time.monotonic() + 10
            with contextlib.suppress(Stopped):
                self.follow(
                    job.id,
                    sink,
                    log.position,
                    lambda: "late" if time.monotonic() > deadline else None,
                    lost_after_s=10,
                )
        return end

    def _wrapped(self, job: JobSpec) -> Wrap | None:
        return self._wrap(job) if self._wrap is not None else None


def checked_id(job_id: str) -> str:
    """The id, if it can name a directory."""
    if _JOB_ID.fullmatch(job_id) is None:
        raise InvalidRequest(f"{job_id!r} cannot name a job: use letters, digits, dots, dashes and underscores")
    return job_id
