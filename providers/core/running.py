"""One job on one ready machine, in order: the machine check, image and files up, the job and its output, files down."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from prefect.logging import get_run_logger

from providers.core import files, git, images, joblog, machine_check
from providers.core.aside import Stopped, never
from providers.core.errors import InstanceFailed, ProviderError
from providers.core.jobs import Machine
from providers.core.models import Instance, Job, JobResult, JobSpec, Offer, Requirements, utc_now

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
    report = machine_check.check(
        machine.connection(should_stop), offer, requirements, devices=instance.env.get("CUDA_VISIBLE_DEVICES")
    )
    if problem := report.problem or own_check():
        raise InstanceFailed(problem)
    return {"machine": report}


class Watch:
    """Whether to go on with a job: until its caller says stop, or its machine is out of reach and its provider says why."""

    def __init__(
        self, machine: Machine, gone: Callable[[], str | None], should_stop: Callable[[], str | None] = never
    ) -> None:
        self._machine = machine
        self._ask = gone
        self._should_stop = should_stop
        self._next = 0.0
        self.gone: str | None = None

    def __call__(self) -> str | None:
        if (reason := self._should_stop()) is not None:
            return reason
        now = time.monotonic()
        if self.gone is None and not self._machine.is_linked and now >= self._next:
            self._next = now + ASK_EVERY_S
            self.gone = self._ask()
        return self.gone


def run_on(
    machine: Machine,
    spec: JobSpec,
    job: Job,
    folder: Path,
    gone: Callable[[], str | None] = never,
    should_stop: Callable[[], str | None] = never,
) -> JobResult:
    """Run the job, its log and the files it made into `folder`; `gone` asks the provider why a silent machine is no more.

    Raises what stands in the way of starting it: InstanceFailed, InvalidRequest, AuthFailed; then it may be tried elsewhere. Once it
    may have started nothing of that kind is raised, or it would run twice: what went wrong is `trouble` of the result. Raises
    Stopped when `should_stop` gave a reason; then the job goes on there.
    """
    if spec.image is not None:
        images.prepare(machine, spec, should_stop)
    if job.code is not None:
        git.upload(machine, spec.id, job.code, should_stop)
    files.upload(machine, spec.id, job.files, Path.cwd(), should_stop)
    path = folder / LOG
    warn = get_run_logger().warning
    watch = Watch(machine, gone, should_stop)
    began = utc_now()
    try:
        with joblog.posting(path) as log:
            result = machine.run(spec, path, log.output, watch, on_link=warn, on_start=log.started)
    except OSError as full:
        return _lost(began, path, f"the worker cannot keep the job's log in {folder}: {full.strerror}")
    if result is None:
        if watch.gone is None:
            raise Stopped(should_stop() or "stopped")
        result = _lost(began, path, watch.gone)
    result = result.model_copy(update={"log_cut_at": log.cut_at})
    if result.outcome == "lost" or not job.outputs:
        return result
    try:
        brought = files.download(machine, spec.id, job.outputs, folder / OUTPUTS, watch)
    except (ProviderError, Stopped) as trouble:
        if (reason := should_stop()) is not None:
            raise Stopped(reason) from trouble
        return result.model_copy(update={"trouble": f"its files were not brought back: {trouble}"})
    except OSError as full:
        return result.model_copy(
            update={"trouble": f"its files could not be written to {folder} on the worker: {full.strerror}"}
        )
    for remark in brought.remarks():
        warn(remark)
    return result.model_copy(update={"outputs": brought.paths})


def _lost(began: datetime, path: Path, why: str) -> JobResult:
    size = path.stat().st_size if path.exists() else 0
    return JobResult(exit_code=None, outcome="lost", started_at=began, ended_at=utc_now(), log_bytes=size, trouble=why)
