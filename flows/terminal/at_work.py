"""The `provision` runs at work on a Prefect server, and how they are ended before what they need is stopped."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final
from uuid import UUID

if TYPE_CHECKING:
    from datetime import datetime

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, StateType

PAGE: Final = 200  # the most that the API gives at once


def runs(
    client: SyncPrefectClient,
    worker: str | None = None,
    since: datetime | None = None,
    states: tuple[StateType, ...] = (),
) -> list[FlowRun]:
    """The `provision` runs that may hold a machine now: all, or those of one worker, or those whose state is not older."""
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    at_work = list(states) or [StateType.RUNNING, StateType.CANCELLING, StateType.PENDING]
    found: dict[UUID, FlowRun] = {}
    offset = 0
    while True:
        page = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=["provision"])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=at_work))),
            sort=FlowRunSort.ID_DESC,  # the only order that does not change while pages are read
            limit=PAGE,
            offset=offset,
        )
        found |= {run.id: run for run in page}
        if len(page) < PAGE:
            break
        offset += PAGE // 2  # one that ends meanwhile moves the others up: each page overlaps the one before
    return [run for run in found.values() if _is_of(run, worker) and _is_since(run, since)]


def crashed(client: SyncPrefectClient, worker: str | None = None, since: datetime | None = None) -> list[FlowRun]:
    """The runs whose process is gone and that would be taken up again by a worker."""
    from prefect.client.schemas.objects import StateType

    from prefect_gpu.flows.run import resuming

    return [run for run in runs(client, worker, since, (StateType.CRASHED,)) if resuming.will_follow(run)]


def give_back_crashed(client: SyncPrefectClient, found: list[FlowRun]) -> None:
    """Give back what crashed runs have that nobody will take up again, because their worker is ended: from here, and they stay ended."""
    from prefect.states import Cancelled

    from prefect_gpu.flows.run import resuming
    from prefect_gpu.flows.run.giving_back import give_back_left
    from prefect_gpu.flows.run.record import Record

    for run in found:
        if not resuming.will_follow(run):
            continue
        record = Record.read(run.id)
        if any(line.may_cost for line in record.attempts):
            client.set_flow_run_state(run.id, Cancelled(message="its worker was ended"), force=True)
            for _ in give_back_left(record):
                pass


def end(
    client: SyncPrefectClient,
    *,
    worker: str | None = None,
    since: datetime | None = None,
    only: UUID | None = None,
    within_s: float = 60.0,
) -> list[FlowRun]:
    """Cancel what is at work, or only the run of this id, in any state, and wait until each has given its machine back.

    Those that did not in time.
    """
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Cancelling

    deadline = time.monotonic() + within_s
    cancelled: set[UUID] = set()
    while True:
        found = runs(client, worker, since) if only is None else _run(client, only)
        left = {run.id: run for run in found}
        for one in left.keys() - cancelled:
            try:
                client.set_flow_run_state(one, Cancelling())
            except ObjectNotFound:
                continue  # deleted meanwhile: its process gives back what it has
            cancelled.add(one)
        if not left or time.monotonic() > deadline:
            return list(left.values())
        time.sleep(0.3)


def _run(client: SyncPrefectClient, run_id: UUID) -> list[FlowRun]:
    """The run while it is not over."""
    from prefect.exceptions import ObjectNotFound

    try:
        run = client.read_flow_run(run_id)
    except ObjectNotFound:
        return []
    return [] if run.state is not None and run.state.is_final() else [run]


def _is_of(run: FlowRun, worker: str | None) -> bool:
    return worker is None or (run.labels or {}).get("prefect.worker.name") == worker


def _is_since(run: FlowRun, since: datetime | None) -> bool:
    return since is None or run.state is None or run.state.timestamp >= since
