"""What a run may cost, how long it waits and how often its job is tried: what is written, and what is refused in a sentence."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

from prefect_gpu.flows.run.limits import Limits, checked
from prefect_gpu.flows.run.request import Refused
from prefect_gpu.providers.core.models import JobResult, utc_now


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0),
        ("0", 0),
        ("45s", 45),
        ("30m", 1800),
        ("2h", 7200),
        ("1.5h", 5400),
        (" 1 H 30 Min ", 5400),
        ("1h30m", 5400),
        ("1d", 86400),
        ("2 hours", 7200),
        ("0m", 0),
    ],
)
def test_a_wait_is_written_as_people_write_it(text: str, seconds: float) -> None:
    assert checked(max_wait=text).wait == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        "soon",
        "2",
        "-1h",
        "h",
        "2 fortnights",
        "1h and 30m",
        "1e9h",
        "99999999h",
        "31d",
        "1h\n; x",
        "٢h",
        "inf h",
        "nanh",
    ],
)
def test_a_wait_that_is_not_one_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(Refused, match=r"^max_wait is '.*': write "):
        checked(max_wait=text)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"max_cost": 0.0}, "max_cost is 0: write USD for the whole run"),
        ({"max_cost": -3.0}, "max_cost is -3: write USD"),
        ({"max_cost": math.nan}, "max_cost is nan: write USD"),
        ({"max_cost": math.inf}, "max_cost is inf: write USD"),
        ({"retries": -1}, "retries is -1: write how often"),
        ({"retries": 101}, "retries is 101: write how often"),
        ({"retries": 1, "retry_exit_codes": [256]}, "256 in retry_exit_codes is not the exit code"),
        ({"retry_exit_codes": [75]}, "retry_exit_codes says when the job is tried again, and retries is 0"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(asked: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Refused) as refused:
        checked(**asked)
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize(
    ("limits", "ended", "tries", "is_retried"),
    [
        (Limits(), {"exit_code": 1}, 1, False),
        (Limits(retries=1), {"exit_code": 1}, 1, True),
        (Limits(retries=1), {"exit_code": 1}, 2, False),
        (Limits(retries=1), {"exit_code": 0}, 1, False),
        (Limits(retries=1, retry_exit_codes=(75,)), {"exit_code": 75}, 1, True),
        (Limits(retries=1, retry_exit_codes=(75,)), {"exit_code": 1}, 1, False),
        (Limits(retries=1), {"exit_code": None, "outcome": "timed out"}, 1, False),
        (Limits(retries=1), {"exit_code": None, "outcome": "lost"}, 1, False),
        (Limits(retries=1), {"exit_code": None, "outcome": "over budget"}, 1, False),
    ],
)
def test_a_job_is_tried_again_by_its_exit_code_alone(
    limits: Limits, ended: dict[str, Any], tries: int, is_retried: bool
) -> None:
    result = JobResult(started_at=utc_now(), ended_at=utc_now(), **ended)
    assert limits.is_retried(result, tries) is is_retried
