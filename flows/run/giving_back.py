"""The one way an attempt is given back and settled, by its flow, by the hook of another process or by `reap`; and that hook."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, cast
from uuid import UUID

from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import SyncClientContext
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger

from prefect_gpu import providers as registry
from prefect_gpu.blocks.realm import GpuRealm
from prefect_gpu.flows.report.rows import PAGE
from prefect_gpu.flows.run import ledger, resuming, story
from prefect_gpu.flows.run.attempt import GONE, OWED, Attempt
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import utc_now
from prefect_gpu.providers.core.renting.give_back import Absence
from prefect_gpu.providers.core.renting.plain_log import told_in_the_log
from prefect_gpu.providers.core.renting.progress import OnProgress

FINAL: Final = {StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED}
API_PATIENCE_S: Final = 15 * 60.0  # so long the hook waits for Prefect's API
_HOOK_S: Final = 15.0


def end(
    run_id: UUID,
    attempt: Attempt,
    *,
    confirm: bool = True,
    within_s: float | None = None,
    is_ours: bool = False,
    as_task: bool = False,
    on_progress: OnProgress = told_in_the_log,
) -> Absence:
    """Give back what was ordered under an attempt's name; as a task only where the story of a run shall show it.

    `is_ours`: this very process had the order's answer. Else a record's row is no proof: its name must be a whole lease of this
    realm and run, and its id is ended only when it was seen under that name. It never raises: whatever a provider, its driver or the
    account's block does, the next attempt's turn comes, and what could not be done is owed.
    """
    ids = (attempt.instance_id,) if attempt.instance_id else ()
    try:
        lease = Lease.parse(attempt.name)
        if lease is None or lease.run_id != run_id or lease.realm != GpuRealm.current().realm:
            return _owed(
                f"{attempt.name or 'an empty name'} is not a name of this run, and nothing was touched", attempt
            )
        library = registry.library(attempt.provider)
        if (here := library.driver(attempt.account).account_id()) != attempt.account_id:
            return _owed(f"it was ordered on {attempt.account_id}, and from here {here} is seen", attempt)
        if as_task:
            try:
                return library.give_back_as_task(
                    attempt.name, ids, attempt.account, attempt.ordered_at, are_seen=is_ours, on_progress=on_progress
                )
            except Exception:  # noqa: BLE001, S110 - a task that Prefect broke: done again without one
                pass
        return library.give_back(
            attempt.name,
            ids,
            attempt.account,
            attempt.ordered_at,
            confirm=confirm,
            within_s=within_s,
            are_seen=is_ours,
            on_progress=on_progress,
        )
    except Exception as trouble:  # noqa: BLE001 - see above
        said = trouble.message if isinstance(trouble, ProviderError) else f"{type(trouble).__name__} in the driver"
        return _owed(said, attempt)


def _owed(evidence: str, attempt: Attempt) -> Absence:
    return Absence(is_gone=False, evidence=evidence, owed=(attempt.instance_id or attempt.name,))


def settled(
    run_id: UUID,
    line: Attempt,
    absence: Absence,
    outcome: str = GONE,
    why: str = "",
    costs_until: datetime | None = None,
) -> Attempt:
    """The attempt's line with what came of giving its instance back and its cost until now or then; told as an event."""
    line = ledger.with_machines(line, absence.machines)
    now = costs_until or utc_now()
    if absence.is_gone:
        line = ledger.with_traffic(line.model_copy(update={"outcome": outcome, "why": why, "gone_at": now}))
    else:
        line = line.model_copy(update={"outcome": OWED, "why": absence.evidence})
    line = ledger.counted(line, now)
    facts = {
        "name": line.name,
        "provider": line.provider,
        "evidence": absence.evidence,
        "cost": line.cost,
        "estimate": line.estimate,
    }
    tell(run_id, "instance.gone" if absence.is_gone else "termination.owed", facts)
    return line


def tell(run_id: UUID, what: str, facts: dict[str, Any]) -> None:
    """An event `prefect-gpu.<what>`, for any automation."""
    emit_event(
        f"prefect-gpu.{what}",
        resource={"prefect.resource.id": f"prefect-gpu.run.{run_id}", "prefect.resource.name": str(run_id)},
        related=[{"prefect.resource.id": f"prefect.flow-run.{run_id}", "prefect.resource.role": "flow-run"}],
        payload=facts,
    )


def end_run(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """The `on_cancellation` and `on_crashed` hook: give back what the run still has, unless another process runs it now.

    A worker calls it after its flow process was killed, by keyword; everything comes from `flow_run`. While Prefect's API is down it
    goes on trying, in the thread that it is called in: nobody else may know what the run holds.
    """
    del state
    log: Any = flow_run_logger(flow_run, flow).getChild("steps")
    deadline, pause = time.monotonic() + API_PATIENCE_S, 1.0
    while True:
        try:
            with SyncClientContext.get_or_create() as prefect:
                now = read_run(prefect.client, flow_run.id)
                if now is not None and not is_over(
                    now
                ):  # `flow_run` may be old: another process runs it by now, or will
                    return
                record = Record.read(flow_run.id)
            break
        except (TypeError, ValueError):  # a record that nobody can read: `reap` finds by name what it held
            log.warning("the record of this run cannot be read: reap gives back what it holds")
            return
        except Exception as trouble:  # noqa: BLE001 - whatever stands between us and the API
            if time.monotonic() > deadline:
                log.warning(
                    "Prefect's API does not answer (%s): reap gives back what this run holds", type(trouble).__name__
                )
                return
        time.sleep(pause)
        pause = min(pause * 1.5, 15.0)
    for absence in give_back_left(record):
        log.info(story.step(6, "give back", story.absence(absence)))


def give_back_left(record: Record) -> Iterator[Absence]:
    """Give back from outside, one after the other, what a run that nobody runs any more still has."""
    for attempt in [one for one in record.attempts if one.may_cost]:
        absence = end(record.run_id, attempt, within_s=_HOOK_S)
        line = settled(record.run_id, attempt, absence)
        with suppress(Exception):  # whatever Prefect's API says, the next instance's turn comes
            record.settle(line)
        yield absence


def is_over(run: FlowRun) -> bool:
    """Whether the run holds its instances no more, or is ending."""
    state = run.state
    if resuming.will_follow(run):
        return False
    return state is not None and (
        state.type in FINAL or state.type is StateType.CANCELLING or state.name == "Suspended"
    )


def read_run(client: Any, run_id: UUID) -> FlowRun | None:
    """The run as the server has it, None where it was deleted; without a deployment where that was deleted."""
    try:
        run: FlowRun = client.read_flow_run(run_id)
    except ObjectNotFound:
        return None
    return _with_deployment(client, run)


def read_runs(client: Any, run_ids: Iterable[UUID]) -> dict[UUID, FlowRun | None]:
    """The same of many runs, of which a question asks for hundreds."""
    ids = list(dict.fromkeys(run_ids))
    found: dict[UUID, FlowRun | None] = dict.fromkeys(ids)
    for start in range(0, len(ids), PAGE):
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=ids[start : start + PAGE]))
        for run in cast("list[FlowRun]", client.read_flow_runs(flow_run_filter=wanted, limit=PAGE)):
            found[run.id] = _with_deployment(client, run)
    return found


def _with_deployment(client: Any, run: FlowRun) -> FlowRun:
    if resuming.will_follow(run):
        try:  # a run may name one that is not there any more
            client.read_deployment(run.deployment_id)
        except ObjectNotFound:
            return run.model_copy(update={"deployment_id": None})
    return run
