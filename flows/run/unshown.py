"""The end of a job's output that Prefect's log lacks, as its API did not answer when the job ended: shown later, from the log that was kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import NamedTuple
from uuid import UUID

from prefect_gpu.flows.run import outputs
from prefect_gpu.providers.core.renting.job_log import JobLog

PATIENCE_S = 30.0  # for one log; its lines are sent in batches


class Unshown(NamedTuple):
    """A try of the run's job whose output may not stand in the run's log as a whole."""

    attempt: int
    tries: int


def show(run_id: UUID, missing: Sequence[Unshown], still_owns: Callable[[], bool]) -> list[Unshown]:
    """Go on with each where the run's log ends; those that Prefect's API still did not take. One that is there already costs a request."""
    left: list[Unshown] = []
    for one in missing:
        with (
            suppress(OSError),
            outputs.log_file(run_id, one.attempt, one.tries) as path,
        ):  # the job ended well all the same
            if path is None:
                continue
            size = path.stat().st_size
            with closing(JobLog(path, run_id, attempt=one.attempt, tries=one.tries, still_owns=still_owns)) as log:
                log.started(is_new=False)
                log.output(size, b"")
                if log.close(PATIENCE_S):
                    left.append(one)
    return left
