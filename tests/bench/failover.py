"""Failing over: our own time for an offer that is sold out, one task run and the record included.

A run on the reference cloud, whose answers take no time worth counting, with sold-out offers before the one that serves, against
the same run without them: on one real Prefect server, Running to Completed, pair by pair, in a process of their own.
"""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

from prefect_gpu.flows.terminal import server
from tests.bench import Metric
from tests.bench._child import in_a_process_of_its_own

OFFERS = 20  # sold out in each run that fails over
PAIRS = 9
TARGET = 150.0


def measure() -> dict[str, Metric]:
    pairs: list[tuple[float, float]] = in_a_process_of_its_own("tests.bench.failover")
    each = statistics.median((failing - plain) / OFFERS for failing, plain in pairs)
    return {"failover.per_offer_ms": Metric(each * 1000, "ms", TARGET, "lower")}


def _pairs() -> list[tuple[float, float]]:
    os.environ["PREFECT_GPU_HOME"] = os.environ["BENCH_HOME"]
    with server.reached(kept=False) as place:
        place.wait_for_server()
        from prefect_gpu import providers as registry
        from prefect_gpu.providers.core.renting.library import TaskLibrary
        from tests.fakes.reference import MachineType, Reference, ReferenceCloud, Terms, reference

        # The zones are tried in the order in which the catalog names them: all that is in the region `full` is sold out.
        zones = {"full": tuple(f"full-{number:02}" for number in range(OFFERS)), "free": ("free-1",)}
        cheap = MachineType(name="cpu.small", price=0.05, cpu=4, memory_gb=16)
        cloud = ReferenceCloud(
            Path(os.environ["BENCH_HOME"]) / "cloud.db", Terms(zones=zones, types=(cheap,), has_ssh=True)
        )
        library: TaskLibrary[Any] = TaskLibrary(Reference)
        # Or the second run would pass over what the first one was refused.
        library.capabilities = library.capabilities.model_copy(update={"sold_out_s": 0.0})
        library.connections.drivers["default"] = reference(cloud)
        registry.library = lambda _name: library
        registry.enabled = lambda *_: ["reference"]  # pyright: ignore[reportAttributeAccessIssue]
        cloud.fault("create", "sold out", times=None, region="full")

        try:
            _run(), _run(regions=("free",))  # what is only paid once: imports, the realm, the first login
            return [(_run(), _run(regions=("free",))) for _ in range(PAIRS)]
        finally:
            cloud.close()


def _run(**requirements: Any) -> float:
    """From Running to the final state, as the server has it."""
    from prefect.client.orchestration import get_client

    from prefect_gpu.flows.provision import provision
    from prefect_gpu.providers.core.requests import Requirements

    state: Any = provision(command="true", requirements=Requirements(**requirements), return_state=True)
    assert state.is_completed(), state.message
    assert (f"{OFFERS + 1} offers tried" in state.message) is (not requirements), state.message
    with get_client(sync_client=True) as client:
        return client.read_flow_run(state.state_details.flow_run_id).total_run_time.total_seconds()


if __name__ == "__main__":
    print(json.dumps(_pairs()))
