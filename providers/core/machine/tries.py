"""The next try of a job on the machine where the one before it failed: a job of its own, in the same directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_gpu.providers.core.errors import InstanceFailed
from prefect_gpu.providers.core.machine import scripts
from prefect_gpu.providers.core.machine.jobs import checked_id
from prefect_gpu.providers.core.machine.reach import LOST_AFTER_S, execute_on

if TYPE_CHECKING:
    from prefect_gpu.providers.core.machine.jobs import Machine
    from prefect_gpu.providers.core.machine.reach import ShouldStop


def job_id(name: str, tries: int) -> str:
    """The id of one try of the job on the instance of this name."""
    return f"{name}.{tries}"


def carry_on(machine: Machine, name: str, tries: int, should_stop: ShouldStop) -> None:
    """Give the try the directory of the first one, as it stands. InstanceFailed where that is gone."""
    program = (
        machine.job_directory(job_id(name, tries))
        + scripts.assigned(first=checked_id(job_id(name, 1)))
        + scripts.text("carry_on")
    )
    done = machine.persist(lambda link: execute_on(link, program, b"", 30.0, should_stop), should_stop, LOST_AFTER_S)
    if done.exit_code != 0:
        raise InstanceFailed(f"the job cannot be tried again there: {done.problem}")
