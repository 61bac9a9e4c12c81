"""The first import of `provision` against its floor: Prefect and the libraries that a run on `local` needs, with all extras installed.

Each is imported in a process of its own, turn by turn. Measured is the processor's time, which a busy machine does not lengthen.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Final

from tests.bench import Metric

PAIRS: Final = 7
TARGET: Final = 1.15
# What the flow's own modules import of other people's code, and nothing that belongs to one provider.
FLOOR: Final = (
    "prefect.artifacts", "prefect.blocks.abstract", "prefect.blocks.system", "prefect.cache_policies",
    "prefect.client.orchestration", "prefect.events", "prefect.filesystems", "prefect.flows", "prefect.logging.handlers",
    "prefect.main", "prefect.results", "prefect.runtime", "prefect.states", "prefect.tasks",
    "cryptography.hazmat.primitives.asymmetric.ed25519", "cryptography.hazmat.primitives.kdf.hkdf",
    "cryptography.hazmat.primitives.serialization", "httpx", "pathspec", "pydantic", "yaml",
)  # fmt: skip
# Prefect imports more when a flow is made, and more again when one has a parameter.
_EMPTY_FLOW: Final = "from prefect import flow; flow(lambda x=0: x, name='empty')"
WHOLE: Final = ("prefect_gpu.flows.provision",)
_TIMED: Final = """
import importlib, json, sys, time
began = time.process_time()
for name in sys.argv[2:]:
    importlib.import_module(name)
exec(sys.argv[1])
print(json.dumps([time.process_time() - began, sorted(sys.modules)]))
"""


def imported(*names: str, then: str = "") -> tuple[float, list[str]]:
    """How many seconds of the processor the import of these modules takes in a new process, and what is loaded after it."""
    done = subprocess.run(
        [sys.executable, "-c", _TIMED, then, *names],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(said[-1] if said else f"exit {done.returncode}")
    seconds, modules = json.loads(done.stdout.splitlines()[-1])
    return seconds, modules


def measure() -> dict[str, Metric]:
    imported(*WHOLE)  # bytecode is written once
    pairs = [(imported(*WHOLE)[0], imported(*FLOOR, then=_EMPTY_FLOW)[0]) for _ in range(PAIRS)]
    ratio = statistics.median(whole for whole, _ in pairs) / statistics.median(floor for _, floor in pairs)
    return {"import.first_ratio": Metric(ratio, "x", TARGET, "lower")}
