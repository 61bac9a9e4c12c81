"""`stop`: a run is cancelled, and its machine seen gone; what remains is said."""

from __future__ import annotations

import time
from typing import Final

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun

from prefect_gpu.flows.report import text
from prefect_gpu.flows.run import ledger
from prefect_gpu.flows.run.attempt import Attempt
from prefect_gpu.flows.run.record import Record
from prefect_gpu.flows.terminal import at_work, runs
from prefect_gpu.flows.terminal.follow import Display
from prefect_gpu.flows.terminal.messages import waiting
from prefect_gpu.flows.terminal.place import Place
from prefect_gpu.providers.core.typed import typed

END_S: Final = 120.0  # so long a run may take to end its job and give its machine back
GONE_S: Final = 60.0  # after its end its hook, or reap, may take so long


def stop(place: Place, wanted: str, *, as_json: bool) -> int:
    """Cancel it and wait until its machine is gone; 0 where that was seen."""
    with place.asked() as client:
        run = runs.find(client, wanted)
        was_over = run.state is not None and run.state.is_final()
        with waiting(f"{run.name} ends its job and gives its machine back"):
            left = [] if was_over else at_work.end(client, only=run.id, within_s=END_S)
            record = _settled(run, within_s=0.0 if was_over or left else GONE_S)
        run = _now(client, run)
    remains = [attempt for attempt in record.attempts if attempt.may_cost]
    state = (run.state.name or "") if run.state else "deleted"
    cost = ledger.total(record.attempts).bound
    display = Display()
    if as_json:
        display.document(
            {
                "id": str(run.id),
                "name": run.name,
                "state": state,
                "was_over": was_over,
                "cost": cost,
                "remains": [attempt.model_dump(mode="json") for attempt in remains],
            }
        )
    elif left:
        display.line(
            f"{run.name} was told to stop, and is still {state} after {END_S:.0f} s: no worker hears it. "
            f"`{typed('reap')}` ends what it rented.",
            "bold red",
        )
    elif not remains:
        gone = "its machine is gone" if record.attempts else "it had rented nothing"
        display.line(
            f"{run.name} {'had ended already' if was_over else 'is stopped'} ({state}): {gone}, {text.dollars(cost)}."
        )
    for attempt in [] if as_json else remains:
        display.line(_remains(attempt), "bold red")
    return 1 if left or remains else 0


def _settled(run: FlowRun, within_s: float) -> Record:
    """Its record once nothing of it may cost money any more, or when time is up."""
    deadline = time.monotonic() + within_s
    while True:
        record = Record.read(run.id)
        if time.monotonic() >= deadline or not any(attempt.may_cost for attempt in record.attempts):
            return record
        time.sleep(1.0)


def _now(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_flow_run(run.id)
    except ObjectNotFound:
        return run.model_copy(update={"state": None})


def _remains(attempt: Attempt) -> str:
    what = attempt.instance_id or attempt.name
    return (
        f"Not confirmed gone: {attempt.provider} {attempt.machine} {what} in {attempt.scope} (account {attempt.account}), "
        f"{text.dollars(attempt.price)}/h. `{typed('reap')}` tries again now; a reap every five minutes does so by itself."
    )
