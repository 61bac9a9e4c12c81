"""Whether a run whose process is gone goes on in another one: the one rule that flow, hook, `reap` and terminal share.

Who takes it up again: the automations that set-up makes, `reap`, or a person (`prefect flow-run retry`, *Retry* in the UI).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Scheduled

MOST_RESUMES: Final = 5  # after so many crashes a run is not taken up again by itself
BY_ITSELF: Final = "its process is gone: another one goes on with its machine and its job"


def may_follow(run: FlowRun) -> bool:
    """Whether a run that crashes now is taken up again: nobody else would pick up one that belongs to no deployment."""
    return run.deployment_id is not None and wants(run.parameters) and run.run_count <= MOST_RESUMES


def wants(parameters: dict[str, Any] | None) -> bool:
    """Whether a run was asked to be resumed, which is the default."""
    return bool((parameters or {}).get("resume", True))


def will_follow(run: FlowRun) -> bool:
    """Whether the run has crashed and is taken up again: its instance is its own until then."""
    return run.state is not None and run.state.type is StateType.CRASHED and may_follow(run)


def scheduled() -> State[Any]:
    """The state that has a run taken up again."""
    return Scheduled(message=BY_ITSELF)


def before(states: Sequence[State[Any]]) -> State[Any] | None:
    """What the run was when it was scheduled the last time, by its states in their order; None where it had never run."""
    begun = [at for at, state in enumerate(states) if state.type is StateType.SCHEDULED]
    waiting = (StateType.SCHEDULED, StateType.PENDING)
    return next((one for one in reversed(states[: begun[-1]] if begun else []) if one.type not in waiting), None)


def may_adopt(states: Sequence[State[Any]]) -> bool:
    """Whether nobody is giving back what the run had: where it had crashed, or was taken from a process that ran it."""
    was = before(states)
    return was is None or was.type in (StateType.CRASHED, StateType.RUNNING)


def why_not(states: Sequence[State[Any]], count: int, *, wanted: bool) -> str | None:
    """Why this execution of a run must not go on, in a sentence, by the run's states in their order; None where it may.

    A person who starts a run again knows what it was; an automation may fire late, over an end of another kind.
    """
    last = next((state for state in reversed(states) if state.type is StateType.SCHEDULED), None)
    if last is None or last.message != BY_ITSELF:
        return None
    was = before(states)
    if was is not None and was.is_final() and was.type is not StateType.CRASHED:
        return f"the run had ended ({was.name}) when it was started again by itself: {was.message or 'no word of it'}"
    if not wanted:
        return "the process of the run was gone, and it was asked not to be resumed"
    if count > MOST_RESUMES + 1:
        return f"the process of the run was gone for the {MOST_RESUMES + 1}th time: it is not resumed any more"
    return None
