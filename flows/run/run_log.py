"""The story's lines in Prefect's log, sent again where the API was away."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterTimestamp
from prefect.context import SyncClientContext
from prefect.logging import get_run_logger

from prefect_gpu.flows.report.rows import PAGE


def tell_again(run_id: UUID, told: list[tuple[datetime, str]], away_since: datetime) -> None:
    """Write the lines of the story that are not in the run's log."""
    since = away_since - timedelta(minutes=1)
    mine = LogFilter(
        flow_run_id=LogFilterFlowRunId(any_=[run_id]), timestamp=LogFilterTimestamp.model_validate({"after_": since})
    )
    there: set[str] = set()
    with SyncClientContext.get_or_create() as prefect:
        for page in range(50):
            logs = prefect.client.read_logs(mine, limit=PAGE, offset=page * PAGE)
            there |= {log.message for log in logs if log.name.endswith(".steps")}
            if len(logs) < PAGE:
                break
        lost = [(when, line) for when, line in told if when > since and line not in there]
        if lost:
            prefect.client.create_logs(
                [
                    {
                        "name": "prefect.flow_runs.steps",
                        "level": logging.INFO,
                        "message": line,
                        "timestamp": when.isoformat(),
                        "flow_run_id": str(run_id),
                    }
                    for when, line in lost
                ]
            )


def steps() -> Any:
    logger: Any = get_run_logger()  # typed as logging's adapter, which lacks getChild
    return logger.getChild("steps")
