"""Resuming: from `kill -9` of a flow process to its job's output going on in the same run, with the settings that set-up ships.

On a server of its own, with its worker, deployments and automations as `run` has them. The parts, as the server has them: until it knows of
the crash, the automation, the worker's look, the start of the process, the way back to the job.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from prefect_gpu.flows.terminal import server
from tests.bench import Metric
from tests.bench._child import in_a_process_of_its_own

T = TypeVar("T")
TIMES = 5
TARGET_S = 30.0
PARTS = {
    "crash": 5.0,
    "automation": 15.0,
    "worker": 8.0,
    "process": 8.0,
    "attach": 4.0,
}  # of them together the target counts


def measure() -> dict[str, Metric]:
    gaps: list[dict[str, float]] = in_a_process_of_its_own("tests.bench.resume")
    figures = {"resume.gap_s": Metric(statistics.median(one["gap"] for one in gaps), "s", TARGET_S, "lower")}
    for part, target in PARTS.items():
        figures[f"resume.{part}_s"] = Metric(statistics.median(one[part] for one in gaps), "s", target, "lower")
    return figures


def _gaps() -> list[dict[str, float]]:
    os.environ["PREFECT_GPU_HOME"] = os.environ["BENCH_HOME"]
    from prefect_gpu.flows.terminal.deploy import deploy

    with server.reached(kept=False) as place:
        place.start_worker()
        with place.asked() as client:
            deployment = deploy(client)["provision/default"]
            return [_gap(client, deployment) for _ in range(TIMES)]


def _gap(client: Any, deployment: UUID) -> dict[str, float]:
    from prefect.states import Cancelling

    command = "for i in $(seq 3000); do echo $i; sleep 0.1; done"
    run = client.create_flow_run_from_deployment(deployment, parameters={"command": command, "providers": ["local"]})
    _wait(lambda: _first_output(client, run.id, datetime.fromtimestamp(0, UTC)))
    os.kill(_process(run.id), signal.SIGKILL)
    killed = datetime.now(UTC)
    time.sleep(1)  # what was under way has arrived
    shown = _wait(lambda: _first_output(client, run.id, killed + timedelta(seconds=1)))
    states = [one for one in client.read_flow_run_states(run.id) if one.timestamp > killed]
    began = [
        next(one.timestamp for one in states if one.name == name)
        for name in ("Crashed", "Scheduled", "Pending", "Running")
    ]
    steps = [killed, *began, shown]
    parts = {part: (steps[at + 1] - steps[at]).total_seconds() for at, part in enumerate(PARTS)}
    client.set_flow_run_state(run.id, Cancelling())

    def is_over() -> bool:
        return client.read_flow_run(run.id).state.is_final()

    _wait(is_over)
    return {**parts, "gap": (shown - killed).total_seconds()}


def _first_output(client: Any, run_id: UUID, after: datetime) -> datetime | None:
    """When the first of the job's output after a moment was written."""
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterTimestamp

    mine = LogFilter(
        flow_run_id=LogFilterFlowRunId(any_=[run_id]), timestamp=LogFilterTimestamp.model_validate({"after_": after})
    )
    return next((log.timestamp for log in client.read_logs(mine, limit=200) if log.name.startswith("job@")), None)


def _process(run_id: UUID) -> int:
    """The process that runs the flow: the last that has the run's id in its environment."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"FLOW_RUN_ID={run_id}" in (entry / "environ").read_text(errors="replace"):
                found.append(int(entry.name))
    return max(found)


def _wait(look: Callable[[], T | None], within_s: float = 180) -> T:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.1)
    raise TimeoutError(f"{look} in {within_s:.0f} s")


if __name__ == "__main__":
    print(json.dumps(_gaps()))
