"""Reaps beside each other: none waits for a slot, a late one ends at once when a newer one has looked, at most one waits."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.context import SyncClientContext
from prefect.states import Completed

from prefect_gpu.flows.reaping.clock import APART
from prefect_gpu.flows.report.rows import rows

SKIPPED: Final = "Skipped"  # the name of the final state of a reap that had nothing to add


def called_at(run: FlowRun) -> datetime | None:
    """When this reap was called for: what happened later is another one's to see."""
    if run.auto_scheduled:
        return run.expected_start_time
    return run.created


def has_looked_since(looked_at: datetime | None, run: FlowRun) -> bool:
    """Whether a reap that completed began to list after this one was called for."""
    called = called_at(run)
    return looked_at is not None and called is not None and looked_at - APART > called


def has_a_wish(parameters: Mapping[str, Any]) -> bool:
    """Whether a reap was called for with more than to look: that is done, whoever has looked."""
    return any(parameters.get(name) for name in ("dry_run", "realm", "trust_server"))


def skip_waiting(own_id: UUID, looked_at: datetime) -> int:
    """End the reaps that wait and were called for before one began to list: how many."""
    skipped = 0
    with SyncClientContext.get_or_create() as prefect:
        for run in _waiting(prefect.client):
            called = called_at(run)
            if run.id == own_id or called is None or called >= looked_at - APART or has_a_wish(run.parameters or {}):
                continue
            with suppress(Exception):  # then it starts, and finds by itself that it has nothing to add
                said = "another reap has looked since this one was called for"
                prefect.client.set_flow_run_state(run.id, Completed(name=SKIPPED, message=said), force=True)
                skipped += 1
    return skipped


def _waiting(client: Any) -> list[FlowRun]:
    question = {
        "flows": {"name": {"any_": ["reap"]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    return [FlowRun.model_validate(row) for row in rows(client, "/flow_runs/filter", question)]
