"""`run` and its run: neither outlives the other by accident."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun, Log
from prefect.states import Cancelled, Running, Scheduled

from prefect_gpu.flows.run.record import Record
from prefect_gpu.flows.terminal import follow as following
from prefect_gpu.flows.terminal import running
from prefect_gpu.flows.terminal.follow import Display, Terminal, follow
from prefect_gpu.flows.terminal.messages import Trouble
from prefect_gpu.flows.terminal.place import Place, what_is_left
from tests.terminal.test_follow import GONE, RUN, Api, Unread, display, log

# --- make run: the run does not outlive it ------------------------------------------------------------------------------


class Server(Api):
    """The same with what `make run` does to the run."""

    def __init__(self, states: list[Any], logs: list[Log]) -> None:
        super().__init__(states, logs)
        self.cancelled = 0
        self.read_trouble: list[BaseException] = []
        self.create_trouble: list[BaseException] = []
        self.keys: list[str] = []

    def create_flow_run_from_deployment(self, *_: Any, idempotency_key: str, **__: Any) -> FlowRun:
        self.keys.append(idempotency_key)
        if self.create_trouble:
            raise self.create_trouble.pop()
        return FlowRun(id=RUN, name="brave-otter", flow_id=uuid4())

    def read_flow_run(self, run_id: UUID) -> FlowRun:
        if self.read_trouble and len(self.states) == 1:
            raise self.read_trouble.pop()
        return super().read_flow_run(run_id)

    def set_flow_run_state(self, _: UUID, state: Any) -> None:
        assert state.is_cancelling()
        self.cancelled += 1
        self.states = [Cancelled()]


MakeRun = Callable[..., int]


@pytest.fixture
def place() -> Place:
    """A configured server."""
    return Place("http://127.0.0.1:1/api", Path(), is_own=False)


@pytest.fixture
def make_run(monkeypatch: pytest.MonkeyPatch, place: Place) -> MakeRun:
    """`make run` at a server, on this terminal, with a worker that was started here or somebody else's."""

    def run(server: Server, shown: Display, *, works_here: bool = False) -> int:
        def soon(*what: Any, **how: Any) -> FlowRun:
            return follow(*what, **{**how, "every_s": 0, "pick_up_s": 0.05})

        place.started = [SimpleNamespace(find=lambda: True)] if works_here else []  # type: ignore[list-item]
        monkeypatch.setattr(Place, "asked", lambda _: nullcontext(server))
        monkeypatch.setattr(running, "refuse_paused", lambda *_: None)
        monkeypatch.setattr(running, "provision_deployment", lambda _: uuid4())
        monkeypatch.setattr(running, "has_online_worker", lambda _: True)
        monkeypatch.setattr(running, "Display", lambda: shown)
        monkeypatch.setattr(running, "follow", soon)
        monkeypatch.setattr(following, "QUIET_S", 0.02)
        monkeypatch.setattr(Record, "read", lambda _: Record(RUN))
        return running.run(place, {"command": "true"})

    return run


@pytest.mark.parametrize("trouble", GONE, ids=["pipe", "terminal"])
def test_make_run_whose_output_nobody_reads_any_more_cancels_and_sees_the_end(
    make_run: MakeRun, place: Place, trouble: OSError
) -> None:
    server = Server([Running()], [log("1 offers")])
    code = make_run(server, Display(Terminal(file=Unread(trouble))))
    assert (code, server.cancelled, place.run_id) == (130, 1, None)


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), httpx.ReadTimeout("no answer")])
def test_a_run_whose_making_was_cut_off_does_not_buy_later(make_run: MakeRun, trouble: BaseException) -> None:
    server = Server([Scheduled()], [])
    server.create_trouble = [trouble]
    with pytest.raises(type(trouble)):
        make_run(server, display()[0])
    assert server.cancelled == 1
    assert len(server.keys) == 2
    assert len(set(server.keys)) == 1


def test_ctrl_c_cancels_also_where_it_ended_who_reads(make_run: MakeRun, place: Place) -> None:  # make run | tee log
    server = Server([Running(), Running()], [])
    server.read_trouble = [KeyboardInterrupt()]
    code = make_run(server, Display(Terminal(file=Unread(GONE[0]))))
    assert (code, server.cancelled, place.run_id) == (130, 1, None)


def test_ctrl_c_shows_nothing_a_second_time(make_run: MakeRun) -> None:
    """20,000 lines of a job stood there again."""
    server = Server([Running(), Running()], [log("1 offers"), log("42\n", "job@3", second=1)])
    server.read_trouble = [KeyboardInterrupt()]
    shown, out = display()
    assert make_run(server, shown) == 130
    assert out.getvalue().count("1 offers") == 1
    assert out.getvalue().count("| 42") == 1


def test_a_second_ctrl_c_leaves_a_run_that_is_not_known_to_be_over(make_run: MakeRun, place: Place) -> None:
    server = Server([Running(), Running()], [])
    server.read_trouble = [KeyboardInterrupt(), KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        make_run(server, display()[0])
    assert server.cancelled == 1
    assert (
        what_is_left(place) == f" before the run {RUN} was seen to end: `prefect-gpu reap` gives back what it leaves."
    )


def test_a_run_that_nobody_picks_up_does_not_buy_later(make_run: MakeRun, place: Place) -> None:
    server = Server([Scheduled()], [])
    with pytest.raises(Trouble, match=r"^No worker picked the run up in 0 s: .*\? The run was cancelled\.$"):
        make_run(server, display()[0])
    assert (server.cancelled, place.run_id) == (1, None)


def test_a_connection_lost_before_the_run_runs_cancels_it(make_run: MakeRun) -> None:
    server = Server([Scheduled()], [])
    server.read_trouble = [httpx.ConnectError("refused")]
    with pytest.raises(
        Trouble, match=r"^The Prefect server stopped answering \(ConnectError\)\. The run was cancelled\.$"
    ):
        make_run(server, display()[0])
    assert server.cancelled == 1


def test_a_connection_lost_later_leaves_the_run_to_another_machines_worker(make_run: MakeRun) -> None:
    server = Server([Running(), Running()], [])
    server.read_trouble = [httpx.ConnectError("refused")]
    with pytest.raises(Trouble, match=rf"stopped answering \(ConnectError\)\. The run goes on: http.*/flow-run/{RUN}$"):
        make_run(server, display()[0])
    assert server.cancelled == 0


@pytest.mark.parametrize("trouble", [httpx.ConnectError("refused"), RuntimeError("a bug")])
def test_no_run_outlives_a_worker_that_make_run_started(make_run: MakeRun, trouble: Exception) -> None:
    server = Server([Running(), Running()], [])
    server.read_trouble = [trouble]
    with pytest.raises((Trouble, RuntimeError), match=r"The run was cancelled\.$|^a bug$"):
        make_run(server, display()[0], works_here=True)
    assert server.cancelled == 1
