"""One job on one ready machine, in order: the machine check, image and files up, the job and its output, files down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from prefect.logging import get_run_logger

from providers.core import files, git, images, joblog, machine_check
from providers.core.aside import Stopped, never
from providers.core.errors import InstanceFailed, ProviderError
from providers.core.jobs import Machine
from providers.core.models import Instance, Job, JobResult, JobSpec, Offer, Requirements

LOG: Final = "job.log"  # the job's whole output, beside the files it brought back


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


def run_on(
    machine: Machine,
    spec: JobSpec,
    job: Job,
    folder: Path,
    should_stop: Callable[[], str | None] = never,
) -> JobResult:
    """Run the job, its log and the files it made into `folder`.

    Raises Stopped when `should_stop` gave a reason (then the job goes on there), and what stands in the way of starting it:
    InstanceFailed, InvalidRequest, AuthFailed; OSError when this machine cannot keep its log. An exit code is a result, not an
    error, and so is a job whose files did not come back: whoever sees an error may run the job again elsewhere.
    """
    if spec.image is not None:
        images.prepare(machine, spec, should_stop)
    if job.code is not None:
        git.upload(machine, spec.id, job.code, should_stop)
    files.upload(machine, spec.id, job.files, Path.cwd(), should_stop)
    path = folder / LOG
    warn = get_run_logger().warning
    try:
        with joblog.posting(path) as log:
            result = machine.run(spec, path, log.output, should_stop, on_link=warn)
    except OSError as full:
        raise OSError(
            full.errno,
            f"the worker cannot keep the job's log ({full.strerror}): make room, or use another result storage",
        ) from full
    if result is None:
        raise Stopped(should_stop() or "stopped")
    result = result.model_copy(update={"log_cut_at": log.cut_at})
    try:
        brought = files.download(machine, spec.id, job.outputs, folder, should_stop)
    except ProviderError as trouble:
        return result.model_copy(update={"not_kept": f"the job's files were not brought back: {trouble.message}"})
    except OSError as full:
        return result.model_copy(
            update={"not_kept": f"the worker could not write the job's files to {folder}: {full.strerror}"}
        )
    for pattern in brought.missing:
        warn("the job left nothing that %s matches", pattern)
    return result.model_copy(update={"outputs": brought.paths})
