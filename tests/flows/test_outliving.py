"""A flow process outlives its worker: no pipe breaks, and what it prints reaches a worker that lives to the last line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, time
from rich.console import Console
from prefect_gpu.flows.run.outliving import outlive_worker
outlive_worker()
outlive_worker()
console = Console(file=sys.stderr)
print("first", flush=True)
sys.stdin.readline()
for number in range({lines}):
    print("line", number, flush=True)
    console.print("rich ends the program where a pipe is broken")
print("last", end="")
open({path!r}, "w").write("the end was reached")
"""


def start(lines: int, path: Path, *, of_a_worker: bool = True) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PREFECT__FLOW_RUN_ID": "a run"} if of_a_worker else dict(os.environ)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(lines=lines, path=str(path))],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def let_die(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a process whose readers go away once it has begun."""
    assert process.stdin
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    process.stderr.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    return process.wait(60)


def test_a_process_goes_on_when_nobody_reads_it_any_more(tmp_path: Path) -> None:
    assert let_die(start(5000, tmp_path / "end")) == 0
    assert (tmp_path / "end").read_text() == "the end was reached"


def test_without_it_the_process_would_have_ended(tmp_path: Path) -> None:
    assert let_die(start(5000, tmp_path / "end", of_a_worker=False)) != 0
    assert not (tmp_path / "end").exists()


@pytest.mark.parametrize("lines", [0, 20_000])
def test_every_line_reaches_who_reads_in_order(lines: int, tmp_path: Path) -> None:
    said, told = start(lines, tmp_path / "end").communicate(b"\n", timeout=120)
    assert said.decode().splitlines() == ["first", *(f"line {number}" for number in range(lines)), "last"]
    assert told.count(b"rich ends") == lines
