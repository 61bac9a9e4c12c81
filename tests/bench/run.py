"""A whole `provision` run on `local` against its floor: seven empty task runs, the start of the same SSH server, one `ssh host true`.

Both are flows on one real Prefect server, measured Running to Completed, pair by pair, in a process of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import uuid
from datetime import timedelta
from pathlib import Path

import pytest

from prefect_gpu.flows.terminal import server
from tests.bench import Metric
from tests.bench._child import in_a_process_of_its_own

PAIRS = 15
TARGET = 1.3


def measure() -> dict[str, Metric]:
    if shutil.which("ssh") is None:
        pytest.skip("needs OpenSSH's client")
    pairs: list[tuple[float, float]] = in_a_process_of_its_own("tests.bench.run")
    ratio = statistics.median(run / floor for run, floor in pairs)
    return {"run.overhead_vs_floor": Metric(ratio, "x", TARGET, "lower")}


def _pairs() -> list[tuple[float, float]]:
    os.environ["PREFECT_GPU_HOME"] = os.environ["BENCH_HOME"]
    with server.reached(kept=False) as place:
        place.wait_for_server()
        from prefect import flow, task

        from prefect_gpu.flows.provision import provision

        @task
        def nothing() -> None: ...

        @flow(name="floor")
        def seven_empty_tasks() -> None:
            for _ in range(7):
                nothing()

        def whole() -> float:
            return _seconds(lambda: provision(command="true", providers=["local"], return_state=True))

        def floor() -> float:
            return _seconds(lambda: seven_empty_tasks(return_state=True)) + _server_and_ssh()

        whole(), floor()  # what is only paid once: imports, the realm, the first login
        return [(whole(), floor()) for _ in range(PAIRS)]


def _seconds(call) -> float:
    """From Running to the final state, as the server has it."""
    from prefect.client.orchestration import get_client

    state = call()
    assert state.is_completed(), state.message
    with get_client(sync_client=True) as client:
        return client.read_flow_run(state.state_details.flow_run_id).total_run_time.total_seconds()


def _server_and_ssh() -> float:
    from prefect_gpu.providers.core.lease import Lease
    from prefect_gpu.providers.core.machine import keys
    from prefect_gpu.providers.core.models import LaunchSpec, utc_now
    from prefect_gpu.providers.core.requests import Requirements
    from prefect_gpu.providers.local.driver import Local

    driver, secret = Local(), b"s" * 32
    deadline = utc_now() + timedelta(minutes=10)
    name = Lease(realm="bnch", run_id=uuid.uuid4(), deadline=deadline, run_count=1, attempt=0).name
    client = keys.derive(secret, name, "client")
    spec = LaunchSpec(
        name=name, deadline=deadline, client_public_key=client.public, host_key=keys.derive(secret, name, "host")
    )
    (offer,) = driver.fetch_offers(Requirements())
    with tempfile.TemporaryDirectory() as folder:
        identity = Path(folder, "key")
        identity.touch(mode=0o600)
        identity.write_text(client.private.get_secret_value())
        began = time.perf_counter()
        instance = driver.create_instance(offer, spec)
        try:
            while instance.ssh is None:
                time.sleep(0.01)
                instance = driver.get_instance(instance.id)
            options = ["-F", "none", "-i", str(identity), "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no"]
            options += ["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-p", str(instance.ssh.port)]
            subprocess.run(
                ["ssh", *options, f"{instance.ssh.user}@{instance.ssh.host}", "true"],
                check=True,
                stdin=subprocess.DEVNULL,
                timeout=30,
            )
            return time.perf_counter() - began
        finally:
            driver.terminate_instance(instance.id)


if __name__ == "__main__":
    print(json.dumps(_pairs()))
