"""Whose run it is: every answer of the server, and none at all."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound

from prefect_gpu.flows.provision import provision
from prefect_gpu.flows.run import ownership
from prefect_gpu.flows.run.ownership import Ownership, Standing, standing
from tests.stack import wait_until

MINE = uuid4()


def run(
    state_type: StateType,
    name: str = "",
    *,
    count: int = 1,
    state_id: UUID | None = None,
    resume: bool = False,
    deployment: UUID | None = MINE,
) -> Any:
    state = SimpleNamespace(id=state_id or uuid4(), type=state_type, name=name or state_type.value.title())
    return SimpleNamespace(
        id=MINE, run_count=count, state=state, deployment_id=deployment, parameters={"resume": resume}
    )


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (run(StateType.RUNNING, state_id=MINE), Standing.OWNER),
        (run(StateType.RUNNING), Standing.SUPERSEDED),
        (run(StateType.RUNNING, count=2), Standing.SUPERSEDED),
        (run(StateType.SCHEDULED), Standing.SUPERSEDED),
        (run(StateType.PENDING), Standing.SUPERSEDED),
        (run(StateType.COMPLETED, count=2), Standing.SUPERSEDED),
        (run(StateType.PAUSED, "Paused"), Standing.OWNER),
        (run(StateType.PAUSED, "Suspended"), Standing.ENDED),
        (run(StateType.CANCELLING), Standing.ENDED),
        (run(StateType.CANCELLED), Standing.ENDED),
        (run(StateType.FAILED), Standing.ENDED),
        (run(StateType.COMPLETED), Standing.ENDED),
        (run(StateType.CRASHED), Standing.ENDED),
        (run(StateType.CRASHED, resume=True), Standing.SUPERSEDED),  # declared dead
        (run(StateType.CRASHED, resume=True, count=6), Standing.ENDED),
        (run(StateType.CRASHED, resume=True, deployment=None), Standing.ENDED),
        (run(StateType.FAILED, resume=True), Standing.ENDED),
        (None, Standing.ENDED),
    ],
)
def test_what_the_server_says_decides_what_the_process_may_do(seen: Any, expected: Standing) -> None:
    assert standing(seen, seen.run_count if seen and seen.run_count > 5 else 1, MINE)[0] is expected


class Server:
    """What a reading answers: a run, None for deleted, an exception for no answer."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.states = [answer.state]
        self.asked = 0
        self._pause_s = 0.0

    def read_flow_run_states(self, _: UUID) -> list[Any]:
        return self.states

    def answers_after(self, seconds: float) -> None:
        self._pause_s = seconds

    def read_flow_run(self, run_id: UUID) -> Any:
        self.asked += 1
        time.sleep(self._pause_s)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is None:
            raise ObjectNotFound(Exception(str(run_id)))
        return self.answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server(run(StateType.RUNNING, state_id=MINE))
    context = contextlib.nullcontext(SimpleNamespace(client=server))
    monkeypatch.setattr(ownership.SyncClientContext, "get_or_create", lambda: context)
    return server


def owned(server: Server) -> Ownership:
    """Of a run that was read at some time that nobody knows."""
    mine = run(StateType.RUNNING, state_id=MINE)
    mine.id = uuid4()
    ownership._tokens[mine.id] = ownership._Token(MINE, float("-inf"))
    return Ownership(mine, every_s=0.05).start()


def began_now(state: Any) -> Any:
    """A run whose Running state this process has set just now, as Prefect read it afterwards."""
    begun = run(StateType.RUNNING, state_id=MINE)
    begun.id = uuid4()
    ownership.remember_running_state(provision, begun, SimpleNamespace(id=MINE))  # type: ignore[arg-type]
    return SimpleNamespace(**{**vars(begun), "state": state})


def test_what_prefect_read_as_the_run_began_is_the_first_reading(server: Server) -> None:
    claim = Ownership(began_now(run(StateType.RUNNING, state_id=MINE).state)).start()
    assert claim.ask(within_s=5, fresh_s=60) is Standing.OWNER
    assert server.asked == 0
    assert claim.ask(within_s=5) is Standing.OWNER
    assert server.asked == 1
    claim.close()


def test_a_run_that_is_given_away_as_it_begins_is_asked_for(server: Server) -> None:
    server.answer = run(StateType.CANCELLING)
    claim = Ownership(began_now(server.answer.state)).start()
    assert claim.ask(within_s=5, fresh_s=60) is Standing.ENDED
    assert server.asked == 1
    claim.close()


def test_a_process_that_was_stopped_as_it_began_asks_anew(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = began_now(run(StateType.RUNNING, state_id=MINE).state)
    later = ownership._now() + 25
    monkeypatch.setattr(ownership, "_now", lambda: later)
    claim = Ownership(begun).start()
    claim.ask(within_s=5, fresh_s=1)
    assert server.asked == 1
    claim.close()


def test_the_owner_is_told_so_by_a_reading_that_began_after_the_question(server: Server) -> None:
    claim = owned(server)
    assert claim.ask(within_s=5) is Standing.OWNER
    server.answer = run(StateType.CANCELLING)
    assert claim.ask(within_s=5) is Standing.ENDED
    assert claim.why == "cancelling"
    claim.close()


def test_a_fresh_reading_will_do_where_the_caller_says_so_and_a_stale_one_will_not(server: Server) -> None:
    claim = owned(server)
    claim._every_s = 60
    assert claim.ask(within_s=5) is Standing.OWNER
    server.answer = run(StateType.CANCELLING)
    assert claim.ask(within_s=5, fresh_s=30) is Standing.OWNER
    claim._read_at -= 31  # the process was stopped meanwhile
    assert claim.ask(within_s=5, fresh_s=30) is Standing.ENDED
    claim.close()


def test_a_reading_that_is_under_way_will_do_where_a_fresh_one_does(server: Server) -> None:
    claim = owned(server)
    claim._every_s = 60
    assert claim.ask(within_s=5) is Standing.OWNER
    claim._read_at -= 31
    server.answers_after(0.3)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(claim.ask, within_s=5)
        wait_until(lambda: claim._reading_since is not None, 5, "the reading")
        before = server.asked
        assert claim.ask(within_s=5, fresh_s=30) is Standing.OWNER
        assert first.result() is Standing.OWNER
    assert server.asked == before
    claim.close()


def test_a_reading_under_way_that_fails_answers_nobody(server: Server) -> None:
    claim = owned(server)
    claim._every_s = 60
    assert claim.ask(within_s=5) is Standing.OWNER
    claim._read_at -= 31
    server.answers_after(0.3)
    server.answer = RuntimeError("connection refused")
    with ThreadPoolExecutor() as pool:
        pool.submit(claim.ask, within_s=0.1)
        wait_until(lambda: claim._reading_since is not None, 5, "the reading")
        assert claim.ask(within_s=0.5, fresh_s=30) is Standing.UNKNOWN
    claim.close()


def test_without_an_answer_nothing_is_known_and_nothing_is_lost(server: Server) -> None:
    server.answer = RuntimeError("connection refused")
    claim = owned(server)
    assert claim.ask(within_s=0.3) is Standing.UNKNOWN
    assert not claim.is_lost
    server.answer = run(StateType.RUNNING, state_id=MINE)
    assert claim.ask(within_s=5) is Standing.OWNER
    claim.close()


def test_the_thread_notices_by_itself_that_the_run_was_deleted(server: Server) -> None:
    claim = owned(server)
    server.answer = None
    deadline = time.monotonic() + 5
    while not claim.is_lost and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (claim.is_lost, claim.why) == (True, "deleted")
    claim.close()


def test_what_was_lost_is_never_won_back(server: Server) -> None:
    server.answer = run(StateType.RUNNING, count=2)
    claim = owned(server)
    assert claim.ask(within_s=5) is Standing.SUPERSEDED
    server.answer = run(StateType.RUNNING, state_id=MINE)
    assert claim.ask(within_s=5) is Standing.SUPERSEDED
    claim.close()


PAUSED = run(StateType.PAUSED, "Paused").state


@pytest.mark.parametrize("is_seen", [True, False], ids=["the pause is seen", "it is over before anybody looks"])
def test_a_run_that_was_paused_and_resumed_is_still_this_process_s(server: Server, *, is_seen: bool) -> None:
    """The server then makes a RUNNING state of its own and counts one more run."""
    claim = owned(server)
    if is_seen:
        server.answer = run(StateType.PAUSED, "Paused")
        assert claim.ask(within_s=5) is Standing.OWNER
    server.answer = run(StateType.RUNNING, count=2)
    server.states += [PAUSED, server.answer.state]
    assert claim.ask(within_s=5) is Standing.OWNER
    assert claim.ask(within_s=5) is Standing.OWNER
    server.answer = run(StateType.RUNNING, count=3)
    server.states += [run(StateType.SCHEDULED).state, server.answer.state]
    assert claim.ask(within_s=5) is Standing.SUPERSEDED
    claim.close()


@pytest.mark.parametrize(
    "between",
    [
        [],
        [run(StateType.PAUSED, "Suspended").state],
        [PAUSED, run(StateType.SCHEDULED).state, run(StateType.PENDING).state],
        [run(StateType.CRASHED).state],
    ],
    ids=["nothing", "Suspended", "scheduled after a pause", "crashed"],
)
def test_a_run_that_another_process_took_meanwhile_is_not(server: Server, between: list[Any]) -> None:
    claim = owned(server)
    server.answer = run(StateType.RUNNING, count=2)
    server.states += [*between, server.answer.state]
    assert claim.ask(within_s=5) is Standing.SUPERSEDED
    claim.close()


def test_a_process_without_a_token_takes_none_of_a_run_that_is_not_running(server: Server) -> None:
    server.answer = run(StateType.CANCELLING)
    stranger = run(StateType.CANCELLING)
    stranger.id = uuid4()
    claim = Ownership(stranger, every_s=0.05).start()
    assert claim.ask(within_s=0.5) is Standing.ENDED
    claim.close()


def test_an_outage_does_not_become_a_busy_loop(server: Server) -> None:
    readings = 0

    def refuse(_: UUID) -> Any:
        nonlocal readings
        readings += 1
        raise RuntimeError

    server.read_flow_run = refuse  # type: ignore[method-assign]
    claim = owned(server)
    for _ in range(5):
        claim.ask(within_s=0.1)
    claim.close()
    assert readings <= 6
