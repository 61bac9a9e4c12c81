"""A job ends with all that it started, however it ends, and says why."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
import uuid
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from prefect_gpu.providers.core.errors import (
    InstanceFailed,
)
from prefect_gpu.providers.core.machine import job_end
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.wrap import Wrap
from prefect_gpu.providers.core.models import utc_now
from tests.core.jobs.machines import STRAYS, TOOLS, WithPath, alive, job, run
from tests.fakes.sshd import Server
from tests.stack import wait_until


@pytest.mark.parametrize("stray", STRAYS)
@pytest.mark.parametrize("end", ["normal end", "cancel", "timeout"])
def test_nothing_that_a_job_started_outlives_it(machine: Machine, log: Path, stray: str, end: str) -> None:
    mark = 10000 + uuid.uuid4().int % 80000
    command = STRAYS[stray].format(n=mark)
    started = threading.Event()
    if end == "normal end":
        result = run(machine, job(command + "echo up"), log)
        assert (result.exit_code, result.outcome) == (0, "exited")
    elif end == "timeout":
        result = run(machine, job(command + "echo up; sleep 600", timeout_s=2), log)
        assert (result.exit_code, result.outcome) == (None, "timed out")
        assert result.duration_s < 7
    else:
        result = run(
            machine,
            job(command + "echo up; sleep 600"),
            log,
            on_output=lambda at, data: started.set(),
            should_stop=lambda: "cancelled" if started.is_set() else None,
        )
        assert (result.exit_code, result.outcome) == (None, "cancelled")
    assert b"up\n" in log.read_bytes()
    assert alive(f"7{mark}") == []


def test_without_perl_and_python_only_what_hides_three_ways_escapes(
    server: Server, machine: Machine, log: Path, tmp_path: Path
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(tool))
    bare = Machine(lambda: WithPath(server.connect(), str(tools)), root=machine.root, grace_s=1)
    mark = 10000 + uuid.uuid4().int % 80000
    command = "".join(
        STRAYS[stray].format(n=mark) for stray in ("background", "session", "double fork", "cleared environment")
    )
    result = run(bare, job(command + "echo up; sleep 600", timeout_s=2), log)
    bare.close()
    assert result.outcome == "timed out"
    assert alive(f"7{mark}") == []


def test_the_lease_s_end_ends_the_job(machine: Machine, log: Path) -> None:
    result = run(machine, job("sleep 600", deadline=utc_now() + timedelta(seconds=2.5)), log)
    assert result.outcome == "timed out"
    with pytest.raises(InstanceFailed, match="lease is over"):
        machine.start(job("true", deadline=utc_now()))


def test_a_job_that_was_cancelled_before_its_start_never_starts(machine: Machine, log: Path, tmp_path: Path) -> None:
    spec = job(f"touch {tmp_path}/ran")
    assert machine.cancel(spec).outcome == "cancelled"
    assert run(machine, spec, log).outcome == "cancelled"
    assert not (tmp_path / "ran").exists()


def test_cancel_bears_repetition_and_a_job_that_is_over(machine: Machine, log: Path) -> None:
    spec = job("exit 5")
    run(machine, spec, log)
    ended = [machine.cancel(spec) for _ in range(2)]
    assert [(each.outcome, each.exit_code) for each in ended] == [("exited", 5)] * 2


def test_a_job_whose_supervisor_was_killed_is_lost_and_leaves_nothing(machine: Machine, log: Path) -> None:
    mark = 10000 + uuid.uuid4().int % 80000
    spec = job(f"echo up; (setsid sleep 7{mark} &); sleep 7{mark}")

    def kill(offset: int, data: bytes) -> None:
        supervisor = int((Path(machine.root) / spec.id / "state").read_text().split()[0])
        os.kill(supervisor, signal.SIGKILL)

    result = run(machine, spec, log, on_output=kill)
    assert (result.exit_code, result.outcome) == (None, "lost")
    assert alive(f"7{mark}") == []
    assert alive(f"PREFECT_GPU_TIMER={spec.id}:", within="environ") == []


def test_a_job_nobody_knows_is_lost(machine: Machine) -> None:
    assert machine.follow("job-never-started", lambda at, data: None).outcome == "lost"


def test_stop_is_heeded_within_a_fifth_of_a_second(machine: Machine, log: Path) -> None:
    spec = job("sleep 600")
    machine.start(spec)
    asked: list[float] = []

    def should_stop() -> str | None:
        if time.monotonic() < began + 0.5:
            return None
        asked.append(time.monotonic())
        return "abandon"

    began = time.monotonic()
    assert machine.run(spec, log, None, should_stop) is None
    assert time.monotonic() - began < 0.5 + 0.3
    machine.cancel(spec)


def test_a_wrapper_runs_the_job_and_its_clean_up_runs_however_the_job_ends(server: Server, tmp_path: Path) -> None:
    wrap = Wrap(
        'echo "in $BOX $TOKEN"; exec "$@"',
        f"echo cleaned >>{tmp_path}/cleaned",
        {"TOKEN": SecretStr("t0ken")},
    )
    machine = Machine(server.connect, root=str(tmp_path / "root"), wrap=lambda spec: wrap, grace_s=1)
    result = run(machine, job(("sh", "-c", "echo job; exit 9"), env={"BOX": "a box"}), tmp_path / "log")
    assert (result.exit_code, (tmp_path / "log").read_text()) == (9, "in a box t0ken\njob\n")
    assert (tmp_path / "cleaned").read_text() == "cleaned\n"
    assert run(machine, job("sleep 600", timeout_s=1), tmp_path / "log2").outcome == "timed out"
    assert (tmp_path / "cleaned").read_text() == "cleaned\ncleaned\n"
    machine.close()


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not installed")
def test_busybox_is_enough(server: Server, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    subprocess.run([shutil.which("busybox"), "--install", "-s", str(tools)], check=True)
    machine = Machine(lambda: WithPath(server.connect(), str(tools)), root=str(tmp_path / "root"), grace_s=1)
    mark = 10000 + uuid.uuid4().int % 80000
    stray = STRAYS["double fork"].format(n=mark)
    result = run(machine, job(stray + "echo $0; seq 1000; sleep 0.2; printf end; exit 6"), tmp_path / "log")
    assert result.exit_code == 6
    assert (tmp_path / "log").read_bytes().endswith(b"1000\nend")
    assert alive(f"7{mark}") == []
    result = run(machine, job("echo up; sleep 600", timeout_s=1), tmp_path / "log2")
    assert result.outcome == "timed out"
    machine.close()


def test_a_job_that_never_started_took_no_time() -> None:
    """Its supervisor reports 0 for the start, and the machine's uptime for the end."""
    ended = job_end.ended("- lost 1795549200 0 7766.5 0 unstarted\n")
    assert (ended.outcome, ended.ended_at) == ("lost", ended.started_at)
    assert "never began it" in ended.why


def test_a_job_whose_machine_was_restarted_says_so(machine: Machine, log: Path) -> None:
    spec = job("sleep 600")
    machine.start(spec)
    state = Path(machine.root) / spec.id / "state"
    wait_until(lambda: state.exists() and state.read_text().endswith("\n"), 10, "the job")
    # What is left after it: no process, and a state that names an earlier start of the machine.
    pid, born, _, *rest = state.read_text().split()
    state.write_text(" ".join([pid, born, "00000000-0000-4000-8000-000000000000", *rest]) + "\n")
    os.kill(int(pid), signal.SIGKILL)
    result = run(machine, spec, log)
    assert (result.outcome, result.trouble) == ("lost", "the machine was restarted while the job ran")


def test_a_job_whose_supervisor_was_killed_and_one_that_nobody_knows_say_so(machine: Machine, log: Path) -> None:
    spec = job("echo up; sleep 600")
    result = run(
        machine,
        spec,
        log,
        on_output=lambda at, data: os.kill(
            int((Path(machine.root) / spec.id / "state").read_text().split()[0]), signal.SIGKILL
        ),
    )
    assert "ended the process that watches over the job" in result.trouble
    assert "does not know the job any more" in machine.follow("job-never-started", lambda at, data: None).why


def test_a_job_that_fails_on_a_machine_that_ran_out_of_memory_says_so(
    server: Server, tmp_path: Path, log: Path
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    counting = 'case $* in *oom_kill*) echo "oom_kill $(cat "$0.count")" ;; *) exec /usr/bin/env PATH=/usr/bin:/bin grep "$@" ;; esac'
    (tools / "grep").write_text(f"#!/bin/sh\n{counting}\n")
    (tools / "grep").chmod(0o755)
    (tools / "grep.count").write_text("7")
    machine = Machine(
        lambda: WithPath(server.connect(), f"{tools}:/usr/bin:/bin"), root=str(tmp_path / "root"), grace_s=1
    )
    grow = f"until [ -s ../memory ]; do sleep 0.02; done; echo 8 >{tools}/grep.count; "
    assert run(machine, job(grow + "exit 0"), log).trouble == "", "what went well needs no reason"
    (tools / "grep.count").write_text("7")
    killed = run(machine, job(grow + "kill -9 $$"), log.with_name("log2"))
    assert (killed.exit_code, killed.outcome) == (137, "exited")
    assert killed.trouble == "the machine ran out of memory while the job ran, and its kernel ended a process"
    assert run(machine, job("exit 4"), log.with_name("log3")).trouble == ""
    machine.close()
