"""Prefect's own process worker for our pool, started beside a server that may still be starting.

`prefect worker start` ends when no server answers yet. Waiting here, after its imports, saves their seconds: the worker polls as
soon as the server answers and the pool is made.
"""

from __future__ import annotations

import runpy
import sys
import time

import httpx
import prefect.workers.process  # noqa: F401  # pyright: ignore[reportUnusedImport] - imported while the server starts
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from prefect_gpu.flows.report import last_reap
from prefect_gpu.flows.terminal.place import POOL, START_DEADLINE_S


def main(name: str) -> None:
    """Wait for the pool, then be `prefect worker start`."""
    deadline = time.monotonic() + START_DEADLINE_S
    with get_client(sync_client=True) as client:
        while True:
            try:
                client.read_work_pool(POOL)
                print(last_reap.standing(), flush=True)  # noqa: T201 - its log
                break
            except (ObjectNotFound, httpx.TransportError):
                if time.monotonic() > deadline:
                    sys.exit(f"the server has no work pool {POOL} after {START_DEADLINE_S:.0f} s")
                time.sleep(0.1)
    sys.argv = ["prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", name]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1])
