"""A flow process outlives the worker that started it: its job goes on, its log is whole, its machine is given back."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stack import ROOT, Stack, wait_until

pytestmark = pytest.mark.server
JOBS = 5
LINES = 150
POOL = "gpu-tests-dying-worker"


@pytest.fixture
def worker(stack: Stack, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`prefect worker start`, as users type it, on a pool of its own."""
    if stack.client.get(f"/work_pools/{POOL}").status_code == 404:
        stack.client.post("/work_pools/", json={"name": POOL, "type": "process"}).raise_for_status()
    with (tmp_path / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"],
            cwd=ROOT,
            env=stack.env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    yield process
    process.kill()
    process.wait(10)


@pytest.mark.timeout(600)
def test_five_jobs_end_well_after_their_worker_was_killed(
    stack: Stack, worker: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    deployment = stack.deploy("prefect_gpu.flows.provision.provision", "dying-worker", pool=POOL)
    gate = tmp_path / "gate"
    command = (
        f"for i in $(seq {LINES}); do echo line $i; sleep 0.02; done; "
        f"while [ ! -e {gate} ]; do sleep 0.2; done; for i in $(seq {LINES}); do echo more $i; sleep 0.02; done"
    )
    runs = [stack.run(deployment, command=command, providers=["local"]) for _ in range(JOBS)]
    for run in runs:
        stack.wait_for_line(run, "line 1", within_s=300)
    worker.kill()
    worker.wait(60)
    time.sleep(1)
    gate.touch()
    for run in runs:
        assert stack.wait_for_state(run, "Completed", "Failed", "Crashed", "Cancelled") == "Completed", stack.logs(run)
    wanted = [f"{word} {number}" for word in ("line", "more") for number in range(1, LINES + 1)]
    for run in runs:
        wait_until(lambda run=run: len(stack.job_output(run)) >= len(wanted), 30, "the last lines")  # type: ignore[misc]
        assert stack.job_output(run) == wanted
