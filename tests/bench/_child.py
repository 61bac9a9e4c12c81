"""Measuring in a process of its own, with a Prefect server of its own in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any


def in_a_process_of_its_own(module: str, *arguments: str) -> Any:
    """What the module's last line of output holds as JSON; the environment variable BENCH_HOME names the folder."""
    with tempfile.TemporaryDirectory() as home:
        child = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env={key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"} | {"BENCH_HOME": home},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
    if child.returncode:
        said = child.stderr.strip().splitlines()
        raise RuntimeError(said[-1] if said else f"exit {child.returncode}")
    return json.loads(child.stdout.splitlines()[-1])
