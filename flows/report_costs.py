"""What all runs of this Prefect server cost, day by day: the scheduled flow `report`, which writes the page `costs` anew."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, NamedTuple, cast
from uuid import UUID

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import SyncClientContext
from prefect.logging import get_run_logger
from prefect.states import Completed
from pydantic import Field

from prefect_gpu.flows.report import costs
from prefect_gpu.flows.report.artifacts import newest, publish
from prefect_gpu.flows.report.costs import Share
from prefect_gpu.flows.report.rows import PAGE
from prefect_gpu.flows.run import ledger, outliving
from prefect_gpu.flows.run.failure import failed
from prefect_gpu.providers.core.models import utc_now

KEY: Final = "costs"
LONGEST_DAYS: Final = 400


class _Run(NamedTuple):
    """What a flow run is called, and whose it is."""

    name: str = "(deleted)"
    flow: str = "(deleted)"
    deployment: str = ""
    tags: tuple[str, ...] = ()


@flow(name="report")
def report(
    days: Annotated[int, Field(title="Days", description="How far back, today included.")] = 30,
) -> State[dict[str, Any]]:
    """Sum what all runs cost: by day, provider, account, flow, deployment and tag, at most and probably.

    Args:
        days: How far back, today included.
    """
    outliving.outlive_worker()
    if not 1 <= days <= LONGEST_DAYS:
        return failed(f"days is {days}: write how far back, from 1 to {LONGEST_DAYS}")
    now = utc_now()
    today = now.astimezone(UTC).date()
    since = today - timedelta(days=days - 1)
    shares = shares_since(datetime(since.year, since.month, since.day, tzinfo=UTC), now)
    message = costs.sentence(shares, since, today)
    before = newest(KEY)
    publish(
        KEY, "markdown", costs.markdown(shares, since, today), None, "What all runs cost.",
        over=UUID(before["id"]) if before else None,
    )  # fmt: skip
    get_run_logger().info(message)
    everything = costs.whole(shares)
    data = {"at_most": round(everything.bound, 6), "probably": round(everything.estimate, 6), "runs": everything.runs}
    return Completed(message=message, data=data)


def shares_since(since: datetime, now: datetime) -> list[Share]:
    """Every order's cost since then, by day, with what is known of its run."""
    lines = ledger.lines(since, now)
    runs = _runs({line.run_id for line in lines})
    shares: list[Share] = []
    for line in lines:
        run, attempt = runs.get(line.run_id, _Run()), line.attempt
        for day, money in ledger.by_day(line).items():
            if day >= since.date():
                whose = (attempt.provider, attempt.account, run.flow, run.deployment, run.tags, attempt.machine)
                shares.append(Share(day, f"{run.name} ({line.run_id})", *whose, money.bound, money.estimate))
    return shares


def _runs(run_ids: set[UUID]) -> dict[UUID, _Run]:
    """What each is called; the flow of a run that another flow called is that other's."""
    rows = _rows("flow_runs", [str(one) for one in run_ids])
    parents = _parents([row["parent_task_run_id"] for row in rows.values() if row.get("parent_task_run_id")])
    callers = {key: parents.get(row.get("parent_task_run_id") or "", row) for key, row in rows.items()}
    flows = _rows("flows", [row["flow_id"] for row in callers.values()])
    deployments = _rows("deployments", [row["deployment_id"] for row in callers.values() if row.get("deployment_id")])
    found: dict[UUID, _Run] = {}
    for key, row in rows.items():
        caller = callers[key]
        name = str(flows.get(caller["flow_id"], {}).get("name", "(deleted)"))
        deployment = str(deployments.get(caller.get("deployment_id") or "", {}).get("name", ""))
        found[UUID(key)] = _Run(str(row["name"]), name, deployment, tuple(sorted({*row["tags"], *caller["tags"]})))
    return found


def _parents(task_run_ids: list[str]) -> dict[str, dict[str, Any]]:
    """The flow runs that called others, by the task run that stands for the call."""
    tasks = _rows("task_runs", task_run_ids)
    runs = _rows("flow_runs", [row["flow_run_id"] for row in tasks.values() if row.get("flow_run_id")])
    return {key: runs[row["flow_run_id"]] for key, row in tasks.items() if row.get("flow_run_id") in runs}


def _rows(kind: str, ids: list[str]) -> dict[str, dict[str, Any]]:
    """Objects of Prefect's by their ids, as the API gives them."""
    found: dict[str, dict[str, Any]] = {}
    wanted = sorted(set(ids))
    with SyncClientContext.get_or_create() as prefect:
        for start in range(0, len(wanted), PAGE):
            question = {kind: {"id": {"any_": wanted[start : start + PAGE]}}, "limit": PAGE}
            answer = prefect.client.request("POST", f"/{kind}/filter", json=question)  # type: ignore[arg-type]
            found.update({row["id"]: row for row in cast("list[dict[str, Any]]", answer.json())})
    return found
