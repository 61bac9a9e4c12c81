"""What the judge goes by: a run's lines are put together from its log's records, and what is missing or twice is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.judge import Verdict, of_output
from tests.chaos.schedule import schedule
from tests.stack import lines_of


def test_a_line_that_came_in_two_pieces_is_one_line() -> None:
    records = [
        ("prefect.flow_runs", "Beginning flow run"),
        ("job@14", "line a 1\nline "),
        ("prefect.flow_runs.steps", "4 ready"),
        ("job@18", "a 2"),
        ("job@9+1", "line b 1"),  # of the run's next machine
        ("job@18+1/2", "line c 1\nline c 2"),
    ]
    assert lines_of(records) == ["line a 1", "line a 2", "line b 1", "line c 1", "line c 2"]


@pytest.mark.parametrize(
    ("lines", "faults"),
    [
        (["line a 1", "line a 2", "end a"], {}),
        (["line a 1", "line b 1", "line b 2", "end b"], {}),  # a's machine was taken back
        (["line a 2", "end a"], {"lines_lost": ["1 of 2 lines of a, the first is 1"]}),
        (["line a 1", "line a 2"], {"lines_lost": ["the last line"]}),
        (["line a 1", "line a 1", "line a 2", "end a"], {"lines_doubled": ["1 of 3 lines of a"]}),
        (["line a 2", "line a 1", "end a"], {"lines_doubled": ["lines of a are not in their order"]}),
    ],
)
def test_what_is_missing_or_twice_is_found(lines: list[str], faults: dict[str, list[str]]) -> None:
    verdict = Verdict(0, "a run")
    verdict.orders = 2
    of_output(verdict, replace(schedule(0), lines=2), lines, is_complete=True)
    assert verdict.faults == faults
