"""Whether this process still owns its flow run. Prefect accepts a state from any process, so a run's state alone does not say.

Each process holds a token: the id of the RUNNING state that it set itself, and the run count it was set with. A thread of its
own compares it with the server every few seconds, and on demand before each create and terminate; it never blocks the flow,
because with the API down a call hangs for more than a minute.
"""

from __future__ import annotations

import contextvars
import random
import threading
import time
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import SyncClientContext
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow

from prefect_gpu.flows.run import resuming
from prefect_gpu.providers.core.models import utc_now

CHECK_EVERY_S: Final = 5.0
SHOWN_S: Final = 7.0  # a reading that is older says nothing any more of who may show output


class _Token(NamedTuple):
    state_id: UUID  # of a RUNNING state
    since: float  # when it had been set


_tokens: dict[UUID, _Token] = {}  # of each flow run, the one that this process set


class Standing(StrEnum):
    """What the server says about this process's claim to the run."""

    OWNER = "owner"
    SUPERSEDED = "superseded"  # another process runs it, or will: touch nothing
    ENDED = "ended"  # cancelled, failed, suspended, deleted: terminate, write no state
    UNKNOWN = "unknown"  # no answer: create nothing, go on with the job


_ENDED_TYPES = {
    StateType.CANCELLING,
    StateType.CANCELLED,
    StateType.FAILED,
    StateType.COMPLETED,
    StateType.CRASHED,  # where no other process takes it up
}


def remember_running_state(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """The `on_running` hook: the state's id is the token, known only here before anybody else may have set another."""
    del flow
    _tokens[flow_run.id] = _Token(state.id, _now())


def standing(run: FlowRun | None, run_count: int, state_id: UUID | None) -> tuple[Standing, str]:
    """What a reading of the flow run (None: deleted) means for the holder of a token, and the state in words."""
    if run is None:
        return Standing.ENDED, "deleted"
    state = run.state
    if state is None:
        return Standing.UNKNOWN, "without a state"
    if state.id == state_id:
        return Standing.OWNER, state.name or ""
    if run.run_count > run_count:
        return Standing.SUPERSEDED, f"run {run.run_count} of it has begun"
    if resuming.will_follow(run):
        return Standing.SUPERSEDED, "declared dead: another process goes on with it"
    if state.type in _ENDED_TYPES:
        return Standing.ENDED, (state.name or state.type.value).lower()
    if state.type is StateType.PAUSED:
        return (Standing.ENDED, "suspended") if state.name == "Suspended" else (Standing.OWNER, "paused")
    return Standing.SUPERSEDED, f"given to another process ({state.name})"


class Ownership:
    """The claim of this process to one flow run, watched by a thread from `start` to `close`.

    Prefect reads the run after this process has set its RUNNING state: that is the first reading.
    """

    def __init__(self, run: FlowRun, *, every_s: float = CHECK_EVERY_S) -> None:
        self.run_id = run.id
        self.run_count = run.run_count
        token = _tokens.get(run.id)
        self._state_id: UUID | None = token.state_id if token is not None else None
        self._every_s = every_s
        self._changed = threading.Condition()
        self._asked = 0  # questions put, and the highest of them that a reading has answered
        self._answered = 0
        self._read_at = float("-inf")  # when the last reading that came back began
        self._reading_since: float | None = None  # when the reading that is under way began
        self._standing, self._why = Standing.OWNER, ""
        if token is not None and standing(run, run.run_count, token.state_id)[0] is Standing.OWNER:
            self._read_at = token.since
        self.away_since: datetime | None = None  # when the API did not answer for the first time
        self._closed = False
        context = contextvars.copy_context()  # Prefect's settings and the flow's client live in it
        self._thread = threading.Thread(target=context.run, args=(self._watch,), name="ownership", daemon=True)

    def start(self) -> Self:
        """Begin to watch."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop watching."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def is_lost(self) -> bool:
        """Whether the last reading said that the run is no longer ours to go on with. Costs nothing."""
        return self._standing in (Standing.SUPERSEDED, Standing.ENDED)

    @property
    def why(self) -> str:
        """The server's word behind the standing: `cancelled`, `run 2 of it has begun`."""
        return self._why

    def still_speaks(self) -> bool:
        """Whether what this process has to show is still the run's: a process that was suspended asks first. Costs nothing most of the time."""
        return self.ask(within_s=10, fresh_s=SHOWN_S) is not Standing.SUPERSEDED

    def ask(self, within_s: float, *, fresh_s: float = 0.0) -> Standing:
        """A reading that began after this call, or UNKNOWN when none came within so many seconds.

        One that began at most `fresh_s` ago will do too, by a clock that goes on while process or machine are suspended.
        """
        until = _now() + within_s
        with self._changed:
            if (began := self._reading_since) is not None and _now() - began <= fresh_s:
                self._changed.wait_for(lambda: self._reading_since != began, timeout=within_s)
            if _now() - self._read_at <= fresh_s:
                return self._standing
            self._asked += 1
            question = self._asked
            self._changed.notify_all()
            answered = self._changed.wait_for(lambda: self._answered >= question, timeout=max(0.0, until - _now()))
            if answered or self.is_lost:
                return self._standing
            return Standing.UNKNOWN

    def _watch(self) -> None:
        question, pause = 0, self._pause() if self._read_at > float("-inf") else 0.0
        with SyncClientContext.get_or_create() as prefect:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda q=question: self._closed or self._asked > q, timeout=pause)
                    if self._closed:
                        return
                    question, began = self._asked, _now()
                    self._reading_since = began
                reading = self._read(prefect.client)
                with self._changed:
                    self._reading_since = None
                    if reading is not None:
                        self._answered, self._read_at = question, began
                        if not self.is_lost:  # what was lost is never won back
                            self._standing, self._why = reading
                    self._changed.notify_all()
                pause = self._pause() if reading is not None else 1.0
                if reading is None:
                    self.away_since = self.away_since or utc_now()
                    time.sleep(0.2)  # questions must not turn an outage into a busy loop

    def _pause(self) -> float:
        return self._every_s * random.uniform(0.8, 1.2)  # noqa: S311 - jitter

    def _read(self, client: Any) -> tuple[Standing, str] | None:
        try:
            run: FlowRun | None = client.read_flow_run(self.run_id)
        except ObjectNotFound:
            run = None
        except Exception:  # noqa: BLE001 - whatever stands between us and the API: it is no answer
            return None
        if run is not None and run.state is not None:
            try:
                self._renew_token(client, run, run.state)
            except Exception:  # noqa: BLE001 - the same
                return None
        return standing(run, self.run_count, self._state_id)

    def _renew_token(self, client: Any, run: FlowRun, state: State[Any]) -> None:
        # Whoever goes on after a pause has a RUNNING state that the server made, and counted as one more run.
        mine = self._state_id
        if state.type is not StateType.RUNNING or state.id == mine:
            return
        if mine is None:
            if run.run_count == self.run_count:
                self._state_id = state.id
        elif _was_resumed(client.read_flow_run_states(run.id), mine, state.id):
            self._state_id, self.run_count = state.id, run.run_count


def _was_resumed(states: list[State[Any]], mine: UUID, now: UUID) -> bool:
    """Whether nothing but pauses lies between one RUNNING state and another."""
    ids = [one.id for one in states]
    if mine not in ids or now not in ids:
        return False
    kinds = {
        "Paused" if one.type is StateType.PAUSED and one.name != "Suspended" else one.type
        for one in states[ids.index(mine) + 1 : ids.index(now)]
    }
    return "Paused" in kinds and kinds <= {"Paused", StateType.RUNNING}


def _now() -> float:
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))  # macOS counts sleep in the other
