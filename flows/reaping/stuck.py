"""Runs that nobody runs any more: Running without a sign of life, or taken by a worker that died before it started them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, StateType
from prefect.context import SyncClientContext
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.states import Crashed, Failed, Scheduled

from prefect_gpu.flows.report.rows import rows
from prefect_gpu.flows.run import resuming
from prefect_gpu.flows.run.attempt import Attempt
from prefect_gpu.flows.run.giving_back import read_run
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers.core.lease import Lease

FLOWS: Final = ("provision", "plan", "reap", "refresh-catalog")
HEARTBEAT: Final = "prefect.flow-run.heartbeat"
FREQUENCY: Final = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"  # in the environment of a flow process: seconds
USUAL: Final = timedelta(seconds=180)  # Prefect's own, where nobody set another one
# Of the time that a run was silent: two heartbeats and more, for the server may have been away itself, and what lives is heard
# again as soon as it is back.
SECOND_LOOK: Final = 0.7
TAKEN: Final = timedelta(minutes=2)  # so long a worker that is gone may have needed to start a process
RESUMED: Final = timedelta(seconds=30)  # so long an automation may need
LATELY: Final = timedelta(hours=1)  # what crashed before, with no reap that looked, is for a person to start
HOPELESS: Final = (
    f"its process ended {resuming.MOST_RESUMES + 1} times before the run began: the worker's own log says why"
)
STARTING: Final = timedelta(minutes=5)  # so long one that reports may need


def schedule_again(now: datetime) -> list[FlowRun]:
    """Schedule anew what a worker took and no process of it started; those that were."""
    again: list[FlowRun] = []
    with SyncClientContext.get_or_create() as prefect:
        is_gone = _WorkersGone(prefect.client)
        for run in _runs(prefect.client, FLOWS, "PENDING"):
            if run.state is None or run.deployment_id is None or run.work_pool_name is None:
                continue
            patience = TAKEN if is_gone.of(run) else STARTING
            if now - run.state.timestamp < patience:
                continue
            seen = read_run(prefect.client, run.id)
            if seen is None or seen.state is None or seen.state.id != run.state.id:
                continue
            with suppress(Exception):  # the next reap comes
                said = "the worker that took it started no process for it: scheduled again"
                prefect.client.set_flow_run_state(run.id, Scheduled(message=said))
                again.append(run)
    return again


def resume(records: Iterable[Record], now: datetime, after: timedelta | None = None) -> list[FlowRun]:
    """Schedule anew the crashed runs that own an instance, and without `after` all that crashed lately, where nobody else did in so long.

    The automations only make it faster: one came 15 minutes late after its server was started anew, another one never. Those that were.
    """
    again: list[FlowRun] = []
    with SyncClientContext.get_or_create() as prefect:
        ids = [record.run_id for record in records if any(_is_worth_it(line) for line in record.attempts)]
        if after is None:
            ids += [run.id for run in _runs(prefect.client, ("provision",), "CRASHED", since=now - LATELY)]
        for run_id in dict.fromkeys(ids):
            run = read_run(prefect.client, run_id)
            if run is None or run.state is None or not resuming.will_follow(run):
                continue
            never_begins = _never_begins(prefect.client, run)
            if not never_begins and now - run.state.timestamp < (RESUMED if after is None else after):
                continue
            with suppress(Exception):  # the next reap comes
                prefect.client.set_flow_run_state(
                    run.id, Failed(message=HOPELESS) if never_begins else resuming.scheduled()
                )
                again += [] if never_begins else [run]
    return again


def _never_begins(client: Any, run: FlowRun) -> bool:
    """Whether its process ended so often before the run began that nobody counted: it would go on for ever."""
    if run.run_count:
        return False
    states = client.read_flow_run_states(run.id)
    return sum(state.type is StateType.CRASHED for state in states) > resuming.MOST_RESUMES


def _is_worth_it(line: Attempt) -> bool:
    lease = Lease.parse(line.name)
    return line.may_cost and lease is not None and not lease.is_over


def silent(now: datetime, missing: timedelta) -> dict[UUID, datetime]:
    """Running `provision` runs that gave no sign of life for so long, and when the last one was.

    Where none ever came, as the server was away itself when the process died, that it began to run is its last. Then it takes two
    more to call it dead: its worker is gone too, and others were heard since, for where no event gets through all seem silent.
    """
    found: dict[UUID, datetime] = {}
    with SyncClientContext.get_or_create() as prefect:
        is_gone = _WorkersGone(prefect.client)
        for run in _runs(prefect.client, ("provision",), "RUNNING"):
            beats = _heartbeats(prefect.client, now, run.id)
            last = _last_sign(run, beats)
            if last is None or now - last <= max(missing, 3 * _interval(prefect.client, run, beats)):
                continue
            if beats or (is_gone.of(run) and _heartbeats(prefect.client, now, since=last)):
                found[run.id] = last
    return found


def _interval(client: Any, run: FlowRun, beats: list[datetime]) -> timedelta:
    """How far apart a run's signs of life are: as it sent them, or, of one that just began, as its deployment says. Else Prefect's own."""
    if len(beats) > 2:  # of two, one may be an earlier process's
        return max(beats[0] - beats[1], beats[1] - beats[2])
    told = [run.job_variables]
    if run.deployment_id is not None:
        with suppress(Exception):  # not known: then it is given the longer time
            told.append(client.read_deployment(run.deployment_id).job_variables)
    for variables in told:
        with suppress(AttributeError, KeyError, TypeError, ValueError):
            return timedelta(seconds=int(str((variables or {})["env"][FREQUENCY])))
    return USUAL


def crash(
    silent_since: dict[UUID, datetime], within_s: float, wait: Callable[[float], object] = time.sleep
) -> list[UUID]:
    """Crash those of which nothing is heard in another `within_s` either, and that are still Running; those that were.

    Only what this process reads at the end decides: a run that was suspended or ended meanwhile is left alone, whatever
    heartbeat of it came late.
    """
    left, deadline = dict(silent_since), time.monotonic() + within_s
    crashed: list[UUID] = []
    with SyncClientContext.get_or_create() as prefect:
        while left and time.monotonic() < deadline:
            wait(5.0)
            left = {run_id: last for run_id, last in left.items() if _is_silent(prefect.client, run_id, last)}
        for run_id, last in left.items():
            if not _is_silent(prefect.client, run_id, last):
                continue
            with suppress(Exception):  # the next reap comes
                said = f"No sign of life since {last:%H:%M:%S} UTC: its worker or host died, or is cut off."
                prefect.client.set_flow_run_state(run_id, Crashed(message=said))
                crashed.append(run_id)
    return crashed


def _is_silent(client: Any, run_id: UUID, since: datetime) -> bool:
    """Whether a run is still Running and nothing was heard of it."""
    run = read_run(client, run_id)
    if run is None or run.state is None or run.state.type is not StateType.RUNNING:
        return False
    return _last_sign(run, _heartbeats(client, datetime.now().astimezone(), run_id)) == since


def _last_sign(run: FlowRun, beats: list[datetime]) -> datetime | None:
    """The last heartbeat, or later than that: that this process began to run."""
    signs = [*beats[:1], *([run.state.timestamp] if run.state is not None else [])]
    return max(signs, default=None)


def _heartbeats(
    client: Any, now: datetime, run_id: UUID | None = None, *, since: datetime | None = None
) -> list[datetime]:
    """The last three of a run, or of all runs, the newest first."""
    around = {"since": since or now - timedelta(days=2), "until": now + timedelta(days=2)}
    wanted = EventFilter(
        occurred=EventOccurredFilter.model_validate(around),
        event=EventNameFilter(name=[HEARTBEAT]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run_id}"]) if run_id is not None else None,
    )
    return [event.occurred for event in client.read_events(wanted, limit=3).events]


class _WorkersGone:
    """Whether the worker that took a run reports no more; each pool is asked once."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._online: dict[str, set[str] | None] = {}

    def of(self, run: FlowRun) -> bool:
        """False also where nobody says."""
        worker, pool = (run.labels or {}).get("prefect.worker.name"), run.work_pool_name
        if worker is None or pool is None:
            return False
        if pool not in self._online:
            try:
                workers = self._client.read_workers_for_work_pool(pool)
                self._online[pool] = {one.name for one in workers if one.status == "ONLINE"}
            except Exception:  # noqa: BLE001 - not known: then the run is given the longer time
                self._online[pool] = None
        online = self._online[pool]
        return online is not None and worker not in online


def _runs(client: Any, flows: tuple[str, ...], state: str, since: datetime | None = None) -> list[FlowRun]:
    """Those in this state, which ended after `since`."""
    ended = {} if since is None else {"end_time": {"after_": since.isoformat()}}
    question = {
        "flows": {"name": {"any_": list(flows)}},
        "flow_runs": {"state": {"type": {"any_": [state]}}, **ended},
    }
    return [FlowRun.model_validate(row) for row in rows(client, "/flow_runs/filter", question)]
