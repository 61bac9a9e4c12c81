"""One job on one ready machine, in order: the machine check, image and files up, the job and its output, files down."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from prefect.settings import get_current_settings

from prefect_gpu.providers.core.aside import Stopped, always, never
from prefect_gpu.providers.core.errors import InstanceFailed, ProviderError
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.machine import check, docker, kept_log
from prefect_gpu.providers.core.machine.job_end import RESTARTED
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.listing import printable
from prefect_gpu.providers.core.machine.tries import carry_on
from prefect_gpu.providers.core.models import Instance, JobResult, JobSpec, Offer, utc_now
from prefect_gpu.providers.core.renting import job_log, keeping, plain_log
from prefect_gpu.providers.core.requests import Job, Requirements

ASK_EVERY_S: Final = 15.0  # the provider, about a machine that is out of reach
LOG: Final = "job.log"  # the job's whole output
OUTPUTS: Final = "outputs"  # the folder beside it with the files it left: one of them may be called job.log too


def check_machine(
    machine: Machine,
    instance: Instance,
    offer: Offer,
    requirements: Requirements,
    own_check: Callable[[], str | None],
    should_stop: Callable[[], str | None] = never,
) -> dict[str, object]:
    """What the machine check found, for `JobResult.machine`. InstanceFailed when the machine is not what the offer promised."""
    report = check.check(
        machine.connection(should_stop), offer, requirements, devices=instance.env.get("CUDA_VISIBLE_DEVICES")
    )
    own = None if report.problem else own_check()
    if problem := report.problem or own:
        is_unfit = report.is_unfit or own is not None
        raise InstanceFailed(problem, category="machine_check", reach="host" if is_unfit else None)
    return {"machine": report}


class Watch:
    """Whether to go on with a job: until its caller says stop, or its machine is out of reach and its provider says why."""

    def __init__(
        self,
        machine: Machine,
        gone: Callable[[], str | None],
        should_stop: Callable[[], str | None] = never,
        noticed: Callable[[], str | None] = never,
    ) -> None:
        self._machine = machine
        self._ask = gone
        self._should_stop = should_stop
        self._noticed = noticed
        self._next = 0.0
        self.gone: str | None = None

    def __call__(self) -> str | None:
        if (reason := self._should_stop()) is not None:
            return reason
        now = time.monotonic()
        if self.gone is None and not self._machine.is_reached and now >= self._next:
            self._next = now + ASK_EVERY_S
            self.gone = self._ask() or self._noticed()
        return self.gone


class Course(NamedTuple):
    """What the job went through before, and what comes after it."""

    tries: int = 1  # this one included
    runs_already: bool = False  # another process started it
    is_retried: Callable[[JobResult], bool] = lambda _: False
    still_owns: Callable[[], bool] = always  # whether this process still speaks for the run
    store: keeping.Store | None = None  # of the files that it asked to keep
    is_spot: bool = False
    before_start: Callable[[], object] = never


def run_on(
    machine: Machine,
    spec: JobSpec,
    job: Job,
    folder: Path,
    gone: Callable[[], str | None] = never,
    should_stop: Callable[[], str | None] = never,
    course: Course | None = None,
) -> JobResult:
    """Run the job, its log and the files it made into `folder`; `gone` asks the provider why a silent machine is no more.

    Raises what stands in the way of starting it: InstanceFailed, InvalidRequest, AuthFailed; then it may be tried elsewhere. Once it
    may have started nothing of that kind is raised, or it would run twice: what went wrong is `trouble` of the result. Raises
    Stopped when `should_stop` gave a reason; then the job goes on there. A later one of its tries finds all as the one before it
    left it, and what is retried brings no files back: they stay where they are.
    """
    course = course or Course()
    if not course.runs_already:
        _prepare(machine, spec, job, course, should_stop)
        course.before_start()
    path = folder / LOG
    warn = plain_log.logger().warning
    keeper = keeping.Keeper(machine, spec.id, job, course.store, is_spot=course.is_spot)
    watch = Watch(machine, gone, should_stop, lambda: keeper.notice)
    began = utc_now()
    try:
        if course.runs_already:
            kept_log.make_own(path)
        lease = Lease.parse(spec.id.rpartition(".")[0])
        attempt = lease.attempt if lease is not None else 0
        with job_log.posting(path, attempt, course.tries, course.still_owns) as log, keeper:
            result = machine.run(spec, path, log.output, watch, on_link=warn, on_start=log.started)
    except OSError as full:
        return _lost(began, path, f"the worker cannot keep the job's log in {folder}: {full.strerror}")
    if result is None:
        if watch.gone is None:
            raise Stopped(should_stop() or "stopped")
        result = _lost(began, path, watch.gone, is_gone=True)
    keeper.keep_last(result)
    shown = {"log_cut_at": log.cut_at, "log_unshown": log.unshown}
    result = _taken_back(result, keeper.notice, gone).model_copy(update=shown)
    if result.outcome == "lost" or not job.outputs or course.is_retried(result):
        return result
    found = _bring_back(machine, spec, job, folder, watch, should_stop)
    trouble = "; ".join(filter(None, (result.trouble, found.trouble)))
    return result.model_copy(update={"outputs": found.outputs, "trouble": trouble})


def _taken_back(result: JobResult, notice: str | None, gone: Callable[[], str | None]) -> JobResult:
    """The result, as that of a job whose machine is gone: its provider says so, it was restarted, or notice was given and the job left with an error."""
    if result.outcome == "lost" and not result.is_gone:
        if result.trouble == RESTARTED:
            return result.model_copy(update={"is_gone": True})
        if why := gone():  # a machine that goes down ends its processes first, and answers to its last
            return result.model_copy(update={"is_gone": True, "trouble": f"{why} ({result.trouble})"})
    if notice is None or result.outcome != "exited" or not result.exit_code:
        return result
    said = f"its provider took the machine back ({notice}), and the job ended with exit code {result.exit_code}"
    return result.model_copy(update={"outcome": "lost", "exit_code": None, "is_gone": True, "trouble": said})


def _prepare(machine: Machine, spec: JobSpec, job: Job, course: Course, should_stop: Callable[[], str | None]) -> None:
    if spec.image is not None:
        docker.prepare(machine, spec, should_stop)
    if course.tries > 1:
        carry_on(machine, spec.id.rpartition(".")[0], course.tries, should_stop)
        return
    _send(machine, spec, job, should_stop)
    if course.store is not None and job.checkpoint:
        keeping.restore(machine, spec.id, course.store, should_stop)


def _send(machine: Machine, spec: JobSpec, job: Job, should_stop: Callable[[], str | None]) -> None:
    """Code and files to the job's directory; what went and what did not is a line each in the run's log."""
    say = plain_log.logger().info
    if job.code is not None:
        from prefect_gpu.providers.core.machine import git  # few jobs bring their code by it

        sent = git.upload(
            machine, spec.id, job.code, should_stop, on_progress=lambda progress: say(f"code up: {progress}")
        )
        say(f"code up: {sent}")
    if job.files:
        from prefect_gpu.providers.core.machine.upload import upload  # most jobs send none

        sent = upload(
            machine,
            spec.id,
            job.files,
            Path.cwd(),
            should_stop,
            secret=prefects_places(),
            on_progress=lambda progress: say(f"files up: {progress}"),
        )
        say(f"files up: {sent}")


class _Found(NamedTuple):
    """What a job left and what did not come of it."""

    outputs: tuple[str, ...]
    trouble: str


def _bring_back(
    machine: Machine, spec: JobSpec, job: Job, folder: Path, watch: Watch, should_stop: Callable[[], str | None]
) -> _Found:
    from prefect_gpu.providers.core.machine.download import download  # most jobs leave none

    log = plain_log.logger()
    try:
        brought = download(
            machine,
            spec.id,
            job.outputs,
            folder / OUTPUTS,
            watch,
            on_progress=lambda progress: log.info("files down: %s", progress),
        )
    except (ProviderError, Stopped) as trouble:
        if (reason := should_stop()) is not None:
            raise Stopped(reason) from trouble
        return _Found((), f"its files were not brought back: {trouble}")
    except OSError as full:
        return _Found((), f"its files could not be written to {folder} on the worker: {full.strerror}")
    for remark in brought.remarks():
        log.warning(remark)
    # What was asked for, is there and did not come goes with the machine: the run has not ended well.
    return _Found(tuple(printable(name) for name in brought.paths), "; ".join(brought.losses()))


def prefects_places() -> list[Path]:
    """Where Prefect, as this process is set up, keeps its data, credentials among them: never uploaded."""
    settings = get_current_settings()
    places = [settings.home]
    url = settings.server.database.connection_url
    if url is not None and (address := url.get_secret_value()).startswith("sqlite"):
        places.append(Path(address.partition(":///")[2].partition("?")[0]))
    return places


def _lost(began: datetime, path: Path, why: str, *, is_gone: bool = False) -> JobResult:
    size, now = path.stat().st_size if path.exists() else 0, utc_now()
    return JobResult(
        exit_code=None, outcome="lost", started_at=began, ended_at=now, log_bytes=size, trouble=why, is_gone=is_gone
    )
