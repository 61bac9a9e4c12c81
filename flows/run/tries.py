"""The tries of one job on one machine: each has its own log, exit code and place in result storage; the directory is the same."""

from __future__ import annotations

from collections.abc import Callable

from prefect_gpu import providers as registry
from prefect_gpu.flows.run import outputs, story
from prefect_gpu.flows.run.execution import Run
from prefect_gpu.flows.run.unshown import Unshown
from prefect_gpu.providers import account_of
from prefect_gpu.providers.core.aside import Stopped
from prefect_gpu.providers.core.errors import InstanceFailed
from prefect_gpu.providers.core.models import Instance, JobResult, Offer, utc_now

IsRetried = Callable[[JobResult], bool]


def of_job(run: Run, offer: Offer, instance: Instance) -> JobResult:
    """Run the job, and again while it fails with an exit code that is retried, its machine is healthy, and time and money are left.

    What is asked of the machine before each try is the machine check: InstanceFailed where it is not healthy any more. The job's timeout
    is for all tries together.
    """
    if run.lost is not None:
        now = utc_now()
        return JobResult(exit_code=None, outcome="lost", started_at=now, ended_at=now, trouble=run.lost.message)
    before = sum(one.tries for one in run.record.attempts[:-1] if one.tries > 1)  # on other machines
    line = run.record.attempts[-1]
    left_s = float(run.job.timeout_s)
    while True:
        tries, limit_s = line.tries, left_s

        def is_retried(result: JobResult, tries: int = tries, limit_s: float = limit_s) -> bool:
            has_time = result.duration_s < limit_s - 1 and not run.budget.is_over(for_job=True)
            return has_time and run.limits.is_retried(result, before + tries)

        result = _one_try(run, offer, instance, tries, limit_s, is_retried)
        ended = f"exit {result.exit_code}" if result.outcome == "exited" else result.outcome
        run.say(story.more(ended, result.duration_s))
        if not is_retried(result):
            return result
        left_s -= result.duration_s
        line = run.record.note(run.record.attempts[-1], tries=tries + 1)
        run.write_record()  # before it begins: who goes on after this process looks for it
        run.say(story.more(f"try {before + line.tries} of {run.limits.retries + 1}, where the last one left off"))


def _one_try(
    run: Run, offer: Offer, instance: Instance, tries: int, limit_s: float, is_retried: IsRetried
) -> JobResult:
    library, account = registry.library(offer.provider), account_of(run.account, offer.provider)
    attempt, began = run.record.attempts[-1].attempt, utc_now()
    if run.record.attempts[-1].began_at is None and run.budget.is_over(for_job=True):
        raise Stopped(run.budget.stop())  # what was begun has left something, and is asked how it ended
    job = run.job.model_copy(update={"timeout_s": max(1, int(limit_s))})
    is_resumed = run.record.attempts[-1].name not in run.answered  # by this process: its job may run already
    if run.record.attempts[-1].began_at is None:
        run.record.note(run.record.attempts[-1], began_at=utc_now())
        run.record.write_aside()
    result: JobResult | None = None
    try:
        with outputs.kept(run.id, attempt, tries) as folder:
            result = library.run_job(
                instance,
                offer,
                run.command,
                job,
                folder,
                run.requirements,
                tries=tries,
                account=account,
                should_stop=run.stop_reason,
                until=run.budget.job_until(),
                is_retried=is_retried,
                is_resumed=is_resumed,
                still_owns=run.ownership.still_speaks,
                before_start=run.record_is_written,  # nobody starts it a second time elsewhere
                store=outputs.checkpoints(run.id) if run.job.checkpoint else None,
            )
            result = _by_budget(run, result, limit_s)
            result = result.model_copy(update={"stored_under": outputs.place(run.id, attempt, tries)})
            if result.log_unshown:
                run.unshown.append(Unshown(attempt, tries))
            (folder / outputs.RESULT).write_text(result.model_dump_json(indent=1))
    except Stopped:
        run.unshown.append(Unshown(attempt, tries))  # how far it was shown, nobody says
        raise
    except InstanceFailed as failed:  # there was no time left to start it in
        if run.budget.is_over(for_job=True):
            raise Stopped(run.budget.stop()) from failed
        raise
    except (OSError, outputs.NotStored) as trouble:  # this worker's disk, or its storage: no other machine would help
        lost = JobResult(exit_code=None, outcome="lost", started_at=began, ended_at=utc_now())
        said = f"its log and files could not be kept: {trouble}"
        result = (result or lost).model_copy(update={"trouble": said})
    return result


def _by_budget(run: Run, result: JobResult, limit_s: float) -> JobResult:
    """The result, told apart from one whose own time was over."""
    if result.outcome != "timed out" or run.limits.max_cost is None or result.duration_s >= limit_s - 1:
        return result
    run.budget.stop()
    return result.model_copy(update={"outcome": "over budget"})
