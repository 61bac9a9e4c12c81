"""The exception of a run that did not do what it was asked for: one sentence, and the job's result where there is one."""

from __future__ import annotations

import logging
from typing import Any, Final

from prefect.client.schemas.objects import State
from prefect.states import Failed

from prefect_gpu.providers.core.models import JobResult, Model


class RunFailed(Exception):
    """What the state of a failed run carries: `state.result()` raises it, `raise_on_failure=False` returns it.

    `result` is the job's, in the process that ran the flow; elsewhere it is in result storage, as `result.json` beside the job's log.
    `found` is what a flow without a job found: the data of its final state if that were a good one.
    """

    def __init__(self, message: str, result: JobResult | None = None, found: Model | None = None) -> None:
        super().__init__(message)
        self.result = result
        self.found = found


OVER_BUDGET: Final = "OverBudget"  # the name of the final state of a run that its budget stopped


def failed(
    message: str, result: JobResult | None = None, name: str = "Failed", *, found: Model | None = None
) -> State[Any]:
    """The final state of a run that went wrong: its message and its exception say the same sentence."""
    return Failed(name=name, message=message, data=RunFailed(message, result, found))


class _SaidAlready(logging.Filter):
    """The run's state and its log say the sentence: Prefect's traceback of 30 lines would add nothing for a user."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], RunFailed))


for _name in ("prefect.flow_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(_SaidAlready())
