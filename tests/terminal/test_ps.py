"""`ps` and `stop`: what is at work, what it costs, and what remains when it was stopped."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Failed, Running, State

from prefect_gpu.flows.run import ledger
from prefect_gpu.flows.run.attempt import Attempt
from prefect_gpu.flows.run.record import Record
from prefect_gpu.flows.terminal import at_work, ps, runs, stop
from prefect_gpu.flows.terminal.messages import Trouble, Wrong
from prefect_gpu.flows.terminal.place import Place
from prefect_gpu.flows.terminal.running import WHO

NOW = datetime.now(UTC)


def run(name: str, state: State[Any], hours_ago: float = 1, **asked: Any) -> FlowRun:
    return FlowRun(
        id=uuid4(),
        flow_id=uuid4(),
        name=name,
        state=state,
        parameters={"command": ["python", "a b.py"], **asked},
        start_time=datetime.now(UTC) - timedelta(hours=hours_ago),
        labels={WHO: "ada@desk"},
    )


def attempt(**changes: Any) -> Attempt:
    return Attempt(
        **{
            "attempt": 0,
            "name": "pg-x",
            "provider": "vultr",
            "account": "team",
            "account_id": "1",
            "scope": "ewr",
            "machine": "vcg-h100",
            "gpu": "H100:8",
            "spot": False,
            "price": 20.0,
            "ordered_at": datetime.now(UTC) - timedelta(minutes=90),
            "outcome": "current",
            "instance_id": "i-1",
            **changes,
        }
    )


class Server:
    """A server with these runs and the records of some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *found: FlowRun, **records: list[Attempt]) -> None:
        self.runs = list(found)
        by_id = {one.id: Record(one.id, records[one.name]) for one in found if one.name in records}
        monkeypatch.setattr(ledger, "records", lambda ids: {one: by_id[one] for one in ids if one in by_id})
        monkeypatch.setattr(Record, "read", lambda run_id: by_id.get(run_id, Record(run_id)))
        self.place = cast("Place", SimpleNamespace(asked=lambda: nullcontext(self)))

    def read_flow_runs(self, flow_run_filter: Any = None, *, limit: int, offset: int = 0, **_: Any) -> list[FlowRun]:
        found = self.runs
        if flow_run_filter is not None and flow_run_filter.state is not None:
            found = [one for one in found if one.state and one.state.type in flow_run_filter.state.type.any_]
        if flow_run_filter is not None and flow_run_filter.name is not None:
            found = [one for one in found if one.name in flow_run_filter.name.any_]
        return found[offset : offset + limit]

    def read_flow_run(self, run_id: UUID) -> FlowRun:
        for one in self.runs:
            if one.id == run_id:
                return one
        raise ObjectNotFound(Exception())


def test_who_runs_what_where_since_when_for_how_much(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(monkeypatch, run("otter", Running()), run("done", Completed()), otter=[attempt()])
    assert ps.show(server.place, everything=False, as_json=False) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "state", "where", "gpu", "since", "so", "far", "who", "command"]
    pattern = r"otter +Running +vultr vcg-h100 ewr +H100:8 +1 h 0\d min ago +\$40\.00 +ada@desk +python 'a b\.py'"
    assert re.fullmatch(pattern, line)


def test_an_ended_run_whose_machine_may_still_cost_is_seen_without_asking_for_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = attempt(gone_at=NOW, cost=40.0, outcome="gone")
    server = Server(monkeypatch, run("left", Failed()), run("well", Completed()), left=[attempt()], well=[gone])
    ps.show(server.place, everything=False, as_json=False)
    shown = capsys.readouterr().out
    assert "well" not in shown
    assert "Ended, and not confirmed gone: left. `prefect-gpu reap` tries again now." in shown
    ps.show(server.place, everything=True, as_json=True)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["left"]["may_cost"], rows["well"]["may_cost"], rows["well"]["cost"]) == (1, 0, 40.0)


def test_all_runs_at_work_are_seen_also_beyond_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, *(run(f"r{number}", Running()) for number in range(450)))
    assert len(ps.of_all(cast("Any", server), everything=False)) == 450


def test_nothing_at_work_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ps.show(Server(monkeypatch).place, everything=False, as_json=False)
    assert capsys.readouterr().out == "Nothing is at work. `prefect-gpu ps --all` lists ended runs.\n"


# --- which run --------------------------------------------------------------------------------------------------------


def test_a_run_is_found_by_name_id_and_the_beginning_of_its_id(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, old = run("otter", Completed()), run("fox", Running()), run("fox", Completed())
    server = cast("Any", Server(monkeypatch, first, second, old))
    assert runs.find(server, str(first.id)) == first
    assert runs.find(server, str(first.id)[:8].upper()) == first
    assert runs.find(server, " otter ") == first
    assert runs.find(server, "fox") == second, "the one at work"
    assert f"2 runs are called fox; this is the one at work, {second.id}." in capsys.readouterr().err
    with pytest.raises(Trouble, match=r"^There is no run 'oter' on this Prefect server: did you mean otter\?$"):
        runs.find(server, "oter")
    server.runs.append(run("fox", Running()))
    with pytest.raises(Wrong, match=r"^2 runs at work are called fox: say which by its id, one of "):
        runs.find(server, "fox")


# --- stop -------------------------------------------------------------------------------------------------------------


def stopped(monkeypatch: pytest.MonkeyPatch, server: Server, ended: State[Any] | None = None) -> None:
    """Cancelling it ends it so, or never."""

    def end(_: Any, *, only: UUID, **__: Any) -> list[FlowRun]:
        at = next(number for number, one in enumerate(server.runs) if one.id == only)
        if ended is None:
            return [server.runs[at]]
        server.runs[at] = server.runs[at].model_copy(update={"state": ended})
        return []

    monkeypatch.setattr(at_work, "end", end)
    monkeypatch.setattr(stop, "GONE_S", 0.1)


def test_a_stopped_run_whose_machine_is_gone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(monkeypatch, run("otter", Running()), otter=[attempt(gone_at=NOW, cost=40.0)])
    stopped(monkeypatch, server, Cancelled())
    assert stop.stop(server.place, "otter", as_json=False) == 0
    assert capsys.readouterr().out == "otter is stopped (Cancelled): its machine is gone, $40.00.\n"


def test_what_remains_is_said_with_what_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(monkeypatch, run("otter", Running()), otter=[attempt()])
    stopped(monkeypatch, server, Cancelled())
    assert stop.stop(server.place, "otter", as_json=False) == 1
    said = capsys.readouterr().out
    assert said.startswith(
        "Not confirmed gone: vultr vcg-h100 i-1 in ewr (account team), $20.00/h. `prefect-gpu reap` tries"
    )


def test_a_run_that_nobody_ends_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(monkeypatch, run("otter", Running()), otter=[attempt()])
    stopped(monkeypatch, server)
    assert stop.stop(server.place, "otter", as_json=False) == 1
    assert "was told to stop, and is still Running after 120 s: no worker hears it." in capsys.readouterr().out


def test_a_run_that_had_ended_is_not_cancelled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(monkeypatch, run("otter", Completed()))
    monkeypatch.setattr(at_work, "end", pytest.fail)
    assert stop.stop(server.place, "otter", as_json=False) == 0
    assert capsys.readouterr().out == "otter had ended already (Completed): it had rented nothing, $0.00.\n"
