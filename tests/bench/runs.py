"""Many runs at once: 100 of `provision` on this machine and on fake clouds, through one server on PostgreSQL and two workers, one of which is killed.

The server, the workers and the flow's engine are Prefect's own; flow processes are forked from one that has imported everything, or 100 of them would
measure this machine's cores. All jobs wait for the last run to begin; then half of the runs lose their worker.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests import postgres
from tests.bench import Metric
from tests.chaos.batch import FINAL, WORKERS, Ground
from tests.chaos.schedule import PROVIDERS

RUNS = 100
LINES = 20
BEGIN_S = 400.0  # so long all of them may take to begin on a busy machine
END_S = 400.0


def measure() -> dict[str, Metric]:
    if postgres.programs() is None:
        pytest.skip("no PostgreSQL here: install the package postgresql")
    with (
        tempfile.TemporaryDirectory(prefix="runs-", ignore_cleanup_errors=True) as folder,
        postgres.running() as address,
    ):
        ground = Ground(Path(folder), address)
        try:
            ground.start()
            return _measured(ground, Path(folder) / "gate")
        finally:
            ground.stop()


def _measured(ground: Ground, gate: Path) -> dict[str, Metric]:
    command = (
        f"for i in $(seq {LINES}); do echo line $i; done; while [ ! -e {gate} ]; do sleep 1; done; "
        f"for i in $(seq {LINES}); do echo more $i; sleep 0.2; done"
    )
    others = [name for name in PROVIDERS if name != "tensordock"]  # which sells spot
    began = time.monotonic()
    runs: list[UUID] = []
    for number in range(RUNS):
        provider = "local" if number % 2 else others[number // 2 % len(others)]
        runs.append(ground.run(ground.deployments["provision/default"], command=command, providers=[provider]))
    most = 0
    reaped_at = began
    while time.monotonic() - began < BEGIN_S:
        most = max(most, _count(ground, runs, "RUNNING"))
        if _begun(ground, runs) == RUNS:
            break
        reaped_at = _reap(ground, reaped_at)
        time.sleep(2)
    all_begun_s = time.monotonic() - began
    ground.kill(WORKERS[1])  # half of them are its
    time.sleep(3)
    gate.touch()
    killed = time.monotonic()
    while time.monotonic() - killed < END_S and sum(_count(ground, runs, state) for state in FINAL) < RUNS:
        reaped_at = _reap(ground, reaped_at)
        time.sleep(2)
    rows = ground.states(runs)
    wanted = [f"{word} {number}" for word in ("line", "more") for number in range(1, LINES + 1)]
    lost = [run for run in runs if rows[run]["state"]["type"] != "COMPLETED" or ground.job_output(run) != wanted]
    for run in lost:
        print(
            run, rows[run]["state"]["name"], rows[run]["state"]["message"], len(ground.job_output(run)), file=sys.stderr
        )
    alive = sum(len(cloud.alive()) for cloud in ground.clouds.values())
    print(
        f"{most} at once, all begun after {all_begun_s:.0f} s, ended {time.monotonic() - killed:.0f} s after the worker's death, {alive} alive",
        file=sys.stderr,
    )
    return {
        "runs.concurrent": Metric(most, "runs", RUNS, "higher"),
        "runs.lost": Metric(len(lost) + alive, "runs", 0, "lower"),
    }


def _reap(ground: Ground, last: float) -> float:
    """As scheduled: every five minutes, here every half."""
    if time.monotonic() - last < 30:
        return last
    ground.run(ground.deployments["reap/default"])
    return time.monotonic()


def _count(ground: Ground, runs: list[UUID], state: str) -> int:
    return sum(row["state"]["type"] == state for row in ground.states(runs).values())


def _begun(ground: Ground, runs: list[UUID]) -> int:
    """Whose job has begun, by their records: the run is on a machine."""
    question: dict[str, Any] = {"artifacts": {"key": {"any_": [f"attempts-{run}" for run in runs]}}, "limit": 200}
    rows = ground.client.post("/artifacts/latest/filter", json=question).json()
    return sum(any(line["began_at"] for line in json.loads(row["data"])) for row in rows if row.get("data"))


if __name__ == "__main__":
    os.environ.pop("PREFECT_API_URL", None)
    print(measure())
