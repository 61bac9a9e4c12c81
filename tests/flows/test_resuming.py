"""Who may go on with a run whose process is gone, by what the server says of it."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running, Scheduled, Suspended

from prefect_gpu.flows.run import resuming

BY_HAND = Scheduled(message="Retried via CLI")
ALONE = resuming.scheduled()


@pytest.mark.parametrize(
    ("states", "count", "wanted", "said"),
    [
        ([Scheduled(), Pending(), Running()], 1, True, None),
        ([Scheduled(), Running(), Crashed(), ALONE, Pending(), Running()], 2, True, None),
        ([Running(), Crashed(), ALONE, Pending(), ALONE, Running()], 6, True, None),
        ([Running(), Crashed(), ALONE, Running()], 7, True, "6th time"),
        ([Running(), Crashed(), ALONE, Running()], 2, False, "asked not to be resumed"),
        ([Running(), Crashed(), BY_HAND, Running()], 2, False, None),  # a person knows what it was
        ([Running(), Crashed(), BY_HAND, Running()], 9, True, None),
        # An automation that fires late must not run again what had ended.
        ([Running(), Failed(message="exit 3"), ALONE, Running()], 3, True, "had ended (Failed)"),
        ([Running(), Cancelled(), ALONE, Running()], 3, True, "had ended (Cancelled)"),
        ([Running(), Completed(), ALONE, Running()], 3, True, "had ended (Completed)"),
    ],
    ids=["first", "resumed", "fifth", "sixth", "off", "hand-off", "hand-often", "failed", "cancelled", "completed"],
)
def test_an_execution_that_must_not_go_on_says_why(
    states: list[Any], count: int, wanted: bool, said: str | None
) -> None:
    why = resuming.why_not(states, count, wanted=wanted)
    assert why is None if said is None else said in (why or "")


@pytest.mark.parametrize(
    ("states", "adopts"),
    [
        ([Running(), Crashed(), ALONE, Pending(), Running()], True),
        ([Running(), Crashed(), ALONE, Pending(), Scheduled(), Pending(), Running()], True),
        ([Running(), Scheduled(), Running()], True),
        (
            [Running(), Suspended(timeout_seconds=9), Scheduled(), Running()],
            False,
        ),  # its process gives back what it has
        ([Running(), Failed(), BY_HAND, Running()], False),
    ],
    ids=["crashed", "taken twice", "given away", "suspended", "failed"],
)
def test_what_somebody_gives_back_at_that_moment_is_not_taken_over(states: list[Any], adopts: bool) -> None:
    assert resuming.may_adopt(states) is adopts
