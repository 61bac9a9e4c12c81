"""Why an instance must end, or that its run has a right to it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, StateType
from prefect.context import SyncClientContext
from prefect.logging import get_run_logger

from prefect_gpu.flows.reaping.found import Found, by_name, named
from prefect_gpu.flows.run import ledger, resuming
from prefect_gpu.flows.run.attempt import CURRENT, ORDERED
from prefect_gpu.flows.run.giving_back import FINAL, read_runs
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import Instance, Listing

CANCELLING_S: Final = 60.0  # a worker that cancels is done by then; nobody else will
SECOND_LOOK: Final = timedelta(hours=1)  # so long a run that nobody knows may be another server's that bears our realm
UNKNOWN: Final = "its run is not known here: ended when its lease is over, or if nobody knows it in an hour either"


class Bench(NamedTuple):
    """What is judged by: whose realm, at what time, and what the last reap did not know."""

    realm: str
    now: datetime  # the earliest of all clocks that were asked: nothing ends because one is ahead
    also: str | None = None  # a realm that the operator named
    unknown: Mapping[str, datetime] = {}  # names whose run nobody knew, and since when


Runs = dict[UUID, tuple[FlowRun | None, Record | None]]


def judged(listings: dict[tuple[str, str], Listing | str], bench: Bench) -> list[Found]:
    """All of our realm, and of another what ends, each once, with the reason to end it or none."""
    found: dict[tuple[str, str], Found] = {}
    with SyncClientContext.get_or_create() as prefect:
        runs = _runs_of(prefect.client, listings, bench.realm)
        for (provider, account), listing in listings.items():
            if isinstance(listing, str):
                continue
            for name, things in by_name(listing).items():
                lease = Lease.parse(name)
                if lease is None:
                    continue
                remark = ""
                if lease.realm == bench.realm:
                    why = why_end(lease, name, *runs[lease.run_id], bench)
                    if why is None and is_unknown(name, *runs[lease.run_id]):
                        remark = UNKNOWN
                elif (why := _why_end_foreign(lease, name, named(provider, account), bench)) is None:
                    continue
                if (provider, name) in found and account != _account_of(runs.get(lease.run_id), name):
                    continue  # two blocks hold credentials of one account: each instance counts once
                found[provider, name] = Found(
                    provider=provider,
                    account=account,
                    ids=tuple(one.id for one in things),
                    machines=tuple(one.id for one in things if isinstance(one, Instance)),
                    name=name,
                    price=next((one.price for one in things if isinstance(one, Instance)), None),
                    end_because=why,
                    remark=remark,
                )
    return list(found.values())


def _runs_of(client: Any, listings: Mapping[tuple[str, str], Listing | str], realm: str) -> Runs:
    """The runs whose names are listed, with their records: asked for together, for there may be hundreds."""
    names = {name for listing in listings.values() if not isinstance(listing, str) for name in by_name(listing)}
    leases = [lease for name in sorted(names) if (lease := Lease.parse(name)) is not None and lease.realm == realm]
    runs = read_runs(client, [lease.run_id for lease in leases])
    records = ledger.records(runs)
    # What is not among them was never written, or nobody can read it: asked for by itself, which says so.
    return {run_id: (run, records.get(run_id) or _read_record(run_id)) for run_id, run in runs.items()}


def _account_of(run: tuple[FlowRun | None, Record | None] | None, name: str) -> str | None:
    line = run[1].line(name) if run and run[1] else None
    return line.account if line else None


def _why_end_foreign(lease: Lease, name: str, where: str, bench: Bench) -> str | None:
    if lease.deadline > bench.now:
        return None
    if lease.realm == bench.also:
        return "its lease is over, and the operator named its realm"
    get_run_logger().warning(
        "%s on %s is overdue but of realm %s: reap it with realm=%s", name, where, lease.realm, lease.realm
    )
    return None


def _read_record(run_id: UUID) -> Record | None:
    """A run's record, None where nobody can read it: then the run's state and its leases decide alone."""
    try:
        return Record.read(run_id)
    except (ValueError, TypeError):
        get_run_logger().warning("the record of run %s cannot be read", run_id)
        return None


def is_unknown(name: str, run: FlowRun | None, record: Record | None) -> bool:
    """Whether this server knows neither the run nor, from its record, that there was one and this was its own."""
    return run is None and (record is None or record.own_line(name) is None)


def why_end(lease: Lease, name: str, run: FlowRun | None, record: Record | None, bench: Bench) -> str | None:
    """Why an instance of our realm must end, in words; None while its run has a right to it or nobody knows yet."""
    if lease.deadline <= bench.now:
        return "its lease is over"
    if run is None:
        if not is_unknown(name, run, record):
            return "its run was deleted"
        since = bench.unknown.get(name)
        return (
            None
            if since is None or bench.now - since < SECOND_LOOK
            else "for an hour no run of this server is known to have it"
        )
    state = run.state
    if state is None:
        return None
    # A flow of a user's own keeps no record, and nobody resumes it.
    is_resumed = record is not None and bool(record.own) and resuming.will_follow(run)
    if (state.type in FINAL and not is_resumed) or state.name == "Suspended":
        return f"its run is {(state.name or state.type.value).lower()}"
    if state.type is StateType.CANCELLING:
        since_s = (bench.now - state.timestamp).total_seconds()
        return "its run is in Cancelling and nobody ends it" if since_s > CANCELLING_S else None
    is_retry = state.name == "AwaitingRetry"  # its process sleeps and goes on by itself
    if state.type is StateType.SCHEDULED and run.deployment_id is None and run.run_count > 0 and not is_retry:
        return "its run has lost its deployment: nobody will take it up"
    if record is None or not record.own:  # a flow of a user's own keeps none
        return None
    # What others settled does not count here: the flow alone knows what it still uses.
    line = record.own_line(name)
    if line is None:
        # It is written before the order, but a stale process may have written its own copy over the owner's: what bears the
        # count of the execution that runs now is the owner's, and is on its next copy again.
        return None if lease.run_count == run.run_count else "its run's record does not know it"
    if line.outcome in (ORDERED, CURRENT):
        return None
    return f"its run has done with it ({line.outcome})"
