"""How much later the story of a `provision` run begins than an empty flow: both started by the API and run by one worker.

Both count from when the worker took the run (Pending), an empty flow to Running, a `provision` run to the first line of its story, as the
server has them. The worker's poll before that, up to a second, is the same for both and would hide the difference.
"""

from __future__ import annotations

import statistics
import tempfile
from datetime import datetime
from pathlib import Path
from uuid import UUID

from prefect import flow

from tests.bench import Metric
from tests.stack import Stack, running, wait_until

PAIRS = 10
TARGET_S = 0.5
STORY = ".steps"


@flow(name="empty")
def empty() -> None: ...


def measure() -> dict[str, Metric]:
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as stack:
        nothing = stack.deploy("tests.bench.start.empty", "default")
        provision = stack.deploy("prefect_gpu.flows.provision.provision", "default")
        extra: list[float] = []
        for number in range(PAIRS + 1):
            floor = _until_running(stack, stack.run(nothing))
            ours = _until_the_first_line(stack, stack.run(provision, command="true", providers=["local"]))
            if number:  # the first pair writes bytecode and makes the realm
                extra.append(ours - floor)
        return {"start.to_first_line_extra_s": Metric(statistics.median(extra), "s", TARGET_S, "lower")}


def _until_running(stack: Stack, run_id: UUID) -> float:
    stack.wait_for_state(run_id, "Completed")
    run = stack.flow_run(run_id)
    assert run is not None
    return _seconds(_taken(stack, run_id), run["start_time"])


def _until_the_first_line(stack: Stack, run_id: UUID) -> float:
    stack.wait_for_state(run_id, "Completed")
    question = {"logs": {"flow_run_id": {"any_": [str(run_id)]}}, "sort": "TIMESTAMP_ASC", "limit": 50}

    def story() -> list[str]:
        rows = stack.client.post("/logs/filter", json=question).json()
        return [row["timestamp"] for row in rows if row["name"].endswith(STORY)]

    wait_until(lambda: bool(story()), 30, "the first line of the story")
    return _seconds(_taken(stack, run_id), story()[0])


def _taken(stack: Stack, run_id: UUID) -> str:
    states = stack.client.get("/flow_run_states/", params={"flow_run_id": str(run_id)}).raise_for_status().json()
    return min(state["timestamp"] for state in states if state["type"] == "PENDING")


def _seconds(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
