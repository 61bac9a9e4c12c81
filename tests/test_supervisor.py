"""The sh programs themselves, without a machine around them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import uuid
from pathlib import Path

from providers.core import supervisor
from tests.stack import wait_until


def run(script: str) -> str:
    return subprocess.run(["sh", "-c", script], check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout


def living(mark: str, within: str) -> list[int]:
    """The processes that have this text in their command line or environment."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (process / within).read_bytes():
                found.append(int(process.name))
    return found


def test_a_timer_that_lost_its_supervisor_is_ended_with_the_jobs_of_its_name(tmp_path: Path) -> None:
    """Not only where somebody killed it: a signal to a shell that is just forking is lost, and so one timer of 25 slept on after a
    job of a few milliseconds.
    """
    name = f"pg-{uuid.uuid4().hex}"
    started = run(
        supervisor.start_program(
            str(tmp_path), f"{name}.1", "sleep 300", exports={}, limit_s=7200, grace_s=2, clock=0.0,
            working_directory="", wrap="", clean="",
        )
    )  # fmt: skip
    assert started == "started\n"
    timer = f"PREFECT_GPU_TIMER={name}.1:"
    wait_until(lambda: len(living(timer, "environ")) == 1, 10, "the timer")
    os.kill(int((tmp_path / f"{name}.1" / "state").read_text().split()[0]), signal.SIGKILL)
    run(supervisor.end_all_function(str(tmp_path), grace_s=2) + f"end_all {name}.")
    assert living(timer, "environ") == living(name, "cmdline") == []
