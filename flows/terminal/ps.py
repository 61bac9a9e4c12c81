"""`ps`: who runs what, where, since when, for how much so far, by the Prefect server's runs and their records."""

from __future__ import annotations

import shlex
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

from prefect_gpu.flows.report import text
from prefect_gpu.flows.run import ledger
from prefect_gpu.flows.run.record import Record
from prefect_gpu.flows.terminal.follow import Display
from prefect_gpu.flows.terminal.place import Place
from prefect_gpu.flows.terminal.running import WHO
from prefect_gpu.flows.terminal.runs import OURS, PAGE
from prefect_gpu.providers.core.models import Model
from prefect_gpu.providers.core.typed import typed

ENDED: Final = 50  # so many of them are shown
LOOKED_AT: Final = 200  # so many ended runs are asked whether something of theirs still costs money
OPEN: Final = [
    one
    for one in StateType
    if one not in {StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED}
]
LONGEST: Final = 40  # letters of a command


class Row(Model):
    """One run."""

    id: UUID
    name: str
    state: str
    is_over: bool
    who: str
    command: str
    gpu: str
    provider: str = ""
    machine: str = ""
    scope: str = ""
    since: datetime | None = None
    cost: float = 0.0  # USD at most, as the provider bills
    may_cost: int = 0  # instances that may still cost money


def show(place: Place, *, everything: bool, as_json: bool) -> int:
    """The table, or the same as JSON."""
    with place.asked() as client:
        rows = of_all(client, everything=everything)
    display = Display()
    if as_json:
        display.document([row.model_dump(mode="json") for row in rows])
    elif not rows:
        display.line(
            "There are no runs yet."
            if everything
            else f"Nothing is at work. `{typed('ps', all=True)}` lists ended runs."
        )
    else:
        for line in _table(rows):
            display.line(line)
        if owed := [row.name for row in rows if row.is_over and row.may_cost]:
            display.line()
            display.line(
                f"Ended, and not confirmed gone: {', '.join(owed)}. `{typed('reap')}` tries again now.", "yellow"
            )
    return 0


def of_all(client: SyncPrefectClient, *, everything: bool) -> list[Row]:
    """The runs at work, then ended ones whose machine may still cost money, or with `everything` the newest ended ones."""
    at_work = _read(client, OPEN, None)
    ended = _read(client, [one for one in StateType if one not in OPEN], LOOKED_AT)
    records = ledger.records([run.id for run in (*at_work, *ended)])
    rows = [_row(run, records.get(run.id)) for run in at_work]
    rows += [row for row in (_row(run, records.get(run.id)) for run in ended[: ENDED if everything else None])
             if everything or row.may_cost]  # fmt: skip
    return rows


def _read(client: SyncPrefectClient, types: list[StateType], most: int | None) -> list[FlowRun]:
    """The runs in states of these types, the newest first."""
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types)))
    found: dict[UUID, FlowRun] = {}
    offset = 0
    while most is None or offset < most:
        page = client.read_flow_runs(
            flow_filter=OURS,
            flow_run_filter=wanted,
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=PAGE,
            offset=offset,
        )
        found |= {run.id: run for run in page}
        if len(page) < PAGE:
            break
        offset += PAGE // 2  # one that is made or ends meanwhile moves the others: each page overlaps the one before
    return list(found.values())


def _row(run: FlowRun, record: Record | None) -> Row:
    asked: dict[str, Any] = run.parameters or {}
    attempts = record.attempts if record else []
    last = attempts[-1] if attempts else None
    state = run.state
    return Row(
        id=run.id,
        name=run.name,
        state=(state.name or state.type.value.capitalize()) if state else "Unknown",
        is_over=state is not None and state.is_final(),
        who=_who(run),
        command=_line(asked.get("command", "")),
        gpu=(last.gpu if last else "") or str(asked.get("gpu") or ""),
        provider=last.provider if last else "",
        machine=last.machine if last else "",
        scope=last.scope if last else "",
        since=run.start_time or run.expected_start_time,
        cost=ledger.total(attempts).bound if attempts else 0.0,
        may_cost=sum(attempt.may_cost for attempt in attempts),
    )


def _who(run: FlowRun) -> str:
    """Who made it: as the server knows them, else as the command that made it said."""
    made_by = run.created_by
    said = (run.labels or {}).get(WHO)
    if said:
        return str(said)
    return (made_by.display_value or made_by.type or "") if made_by else ""


def _line(command: object) -> str:
    return " ".join(shlex.quote(str(word)) for word in command) if isinstance(command, list) else str(command)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _table(rows: list[Row]) -> list[str]:
    """In columns that no terminal's width takes apart."""
    cells = [("run", "state", "where", "gpu", "since", "so far", "who", "command")]
    for row in rows:
        where = " ".join(
            part for part in (row.provider, row.machine, row.scope if row.provider != "local" else "") if part
        )
        command = row.command if len(row.command) <= LONGEST else f"{row.command[: LONGEST - 3]}..."
        since = text.ago(row.since) if row.since else ""
        cells.append(
            (row.name, row.state, where or "-", row.gpu or "-", since, text.dollars(row.cost), row.who, command)
        )
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
