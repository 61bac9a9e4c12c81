"""A command that needs no run, as a user waits for it: `prefect-gpu plan --gpu H100`, with the server up and prices collected.

Its floor is Prefect's own client, which takes most of it to import; that is measured beside it and printed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import Metric

TRIES = 5
TARGET = 2.0
PLAN = ("-m", "prefect_gpu.flows.terminal", "plan", "--gpu", "H100")
FLOOR = ("-c", "import prefect.client.orchestration")
PUBLISH = """
from datetime import UTC, datetime
from prefect_gpu.providers.core.catalog import store
from prefect_gpu.providers.core.catalog.snapshot import Kind, Place, Price
kinds = [
    Kind(f"{gpu}x{count}", cpu=12 * count, memory_gb=120 * count, gpu_name=gpu, gpu_count=count, gpu_memory_gb=80, gpu_vendor="nvidia")
    for gpu in ("H100", "A100") for count in (1, 2, 4, 8)
]
for number, provider in enumerate(("aws", "azure", "gcp", "lambdalabs", "oci", "runpod", "tensordock", "vastai", "verda", "vultr")):
    rows = [
        Price(kind, Place(f"region-{place}", None, "US"), kind.gpu_count * (2.0 + number / 10 + place / 100))
        for kind in kinds for place in range(20)
    ]
    store.publish(provider, rows, collected_at=datetime.now(UTC), source="bench")
"""


def measure() -> dict[str, Metric]:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir(mode=0o700)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MAKE"))}
        environment = {**kept, "HOME": folder, "PREFECT_GPU_HOME": str(home)}
        run(["-c", PUBLISH], {**environment, "PREFECT_HOME": str(home)})
        run(["-m", "prefect_gpu.flows.terminal", "up"], environment)
        try:
            run(list(PLAN), environment)  # bytecode is written once, and the realm is made
            pairs = [(run(list(PLAN), environment), run(list(FLOOR), environment)) for _ in range(TRIES)]
        finally:
            run(["-m", "prefect_gpu.flows.terminal", "down", "--force"], environment)
    floor = statistics.median(floor for _, floor in pairs)
    print(f"cli: the import of Prefect's client alone takes {floor:.2f} s", file=sys.stderr)
    return {"cli.plan_s": Metric(statistics.median(plan for plan, _ in pairs), "s", TARGET, "lower")}


def run(arguments: list[str], environment: dict[str, str]) -> float:
    """The seconds that it took; an error with what it said."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments[:4])}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return time.perf_counter() - began
