"""A run by what a person calls it: its name, its id, or the beginning of its id."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from prefect_gpu.flows.terminal.messages import Trouble, Wrong, tell
from prefect_gpu.providers.core.typed import typed

PAGE: Final = 200  # the most that the API gives at once
OURS: Final = FlowFilter(name=FlowFilterName(any_=["provision"]))
SHORT: Final = 8  # letters of an id that `ps` shows


def find(client: SyncPrefectClient, wanted: str) -> FlowRun:
    """The run that is meant; of several with its name the one that is at work, else the newest, which is said."""
    wanted = wanted.strip()
    try:
        return client.read_flow_run(UUID(wanted))
    except (ValueError, ObjectNotFound):
        pass
    named = FlowRunFilter(name=FlowRunFilterName(any_=[wanted]))
    found = client.read_flow_runs(flow_run_filter=named, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=PAGE)
    if found:
        return _one_of(found, wanted)
    recent = client.read_flow_runs(flow_filter=OURS, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=PAGE)
    begun = [run for run in recent if len(wanted) >= 4 and str(run.id).startswith(wanted.lower())]
    if begun:
        return _one_of(begun, wanted)
    close = difflib.get_close_matches(wanted, [run.name for run in recent], n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else f"`{typed('ps', all=True)}` lists them."
    raise Trouble(f"There is no run {wanted!r} on this Prefect server: {hint}")


def _one_of(found: Sequence[FlowRun], wanted: str) -> FlowRun:
    at_work = [run for run in found if run.state is None or not run.state.is_final()]
    if len(at_work) > 1:
        ids = ", ".join(str(run.id)[:SHORT] for run in at_work[:10])
        raise Wrong(f"{len(at_work)} runs at work are called {wanted}: say which by its id, one of {ids}.")
    chosen = (at_work or list(found))[0]
    if len(found) > 1:
        tell(
            f"{len(found)} runs are called {wanted}; this is {'the one at work' if at_work else 'the newest'}, {chosen.id}."
        )
    return chosen
