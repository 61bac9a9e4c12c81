"""The sh programs themselves, without a machine around them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from prefect_gpu.providers.core.errors import LinkLost
from prefect_gpu.providers.core.machine import job_end, scripts, supervisor
from tests.stack import wait_until

# What the programs use, without what makes a child subreaper.
TOOLS = frozenset(
    "sh bash sleep grep mv cat head tail mkdir chmod id stat setsid env flock wc date touch rm timeout".split()  # noqa: SIM905 - readable
)


@pytest.fixture(params=["dash", "bash", "busybox"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A PATH whose `sh` is this one; with busybox there is nothing else."""
    program = shutil.which(request.param)
    if program is None:
        pytest.skip(f"{request.param} is not installed")
    tools = tmp_path / "bin"
    tools.mkdir()
    if request.param == "busybox":
        subprocess.run([program, "--install", "-s", str(tools)], check=True)
        return str(tools)
    (tools / "sh").symlink_to(program)
    return f"{tools}:/usr/bin:/bin"


# What belongs to a job is found by its id on the whole machine, so tests beside these must not have the same.
JOB = f"job-{uuid.uuid4().hex}"


def run(script: str, path: str | None = None, **variables: str) -> str:
    env = {**os.environ, "PATH": path or os.environ["PATH"], **variables}
    done = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True, timeout=60, env=env)
    return done.stdout + done.stderr


def program(
    root: Path,
    name: str,
    command: str,
    *,
    exports: dict[str, str] | None = None,
    clean: str = "",
    notice_signal: str = "",
) -> str:
    return supervisor.start_program(
        str(root), name, command, exports=exports or {}, limit_s=7200, grace_s=1, clock=0.0, working_directory="",
        wrap="", clean=clean, notice_signal=notice_signal,
    )  # fmt: skip


def ended(root: Path, name: str) -> list[str]:
    """Exit code and outcome, waited for."""
    wait_until((root / name / "exit").exists, 15, f"the end of {name}")
    return (root / name / "exit").read_text().split()[:2]


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
    started = run(program(tmp_path, f"{name}.1", "sleep 300"))
    assert started == "started\n"
    timer = f"PREFECT_GPU_TIMER={name}.1:"
    wait_until(lambda: len(living(timer, "environ")) == 1, 10, "the timer")
    os.kill(int((tmp_path / f"{name}.1" / "state").read_text().split()[0]), signal.SIGKILL)
    run(supervisor.end_all_function(str(tmp_path), grace_s=2) + f"end_all {name}.")
    assert living(timer, "environ") == living(name, "cmdline") == []


def test_a_job_that_is_cancelled_at_its_first_instruction_has_a_whole_exit_file(shell: str, tmp_path: Path) -> None:
    """Its supervisor waits for no child then, so there is no exit code."""
    script = program(tmp_path, JOB, "sleep 300")
    assert script.count("\nchild=$!\n") == 1
    run(script.replace("\nchild=$!\n", "\nchild=$!\nkill -s TERM $$\n"), shell)
    assert ended(tmp_path, JOB) == ["-", "cancelled"]


def test_a_job_s_variables_may_have_any_name(shell: str, tmp_path: Path) -> None:
    """Those of its supervisor too: the job runs, with their values and its mark."""
    names = sorted(set(re.findall(r"(?<![$\w-])[a-z_]+(?==)", supervisor.supervising())) | {"IFS", "PREFECT_GPU_JOB"})
    assert {"id", "dir", "setsid", "wd", "wrap", "shell", "variables"} <= set(names)
    run(program(tmp_path, JOB, "env; exit 3", exports={name: f"/my {name}" for name in names}), shell)
    assert ended(tmp_path, JOB) == ["3", "exited"]
    seen = set((tmp_path / JOB / "log").read_text().splitlines())
    wanted = {f"{name}=/my {name}" for name in names} - {"PREFECT_GPU_JOB=/my PREFECT_GPU_JOB", "IFS=/my IFS"}
    assert wanted <= seen
    assert f"PREFECT_GPU_JOB={JOB}:" in seen


@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_a_job_is_told_once_that_its_machine_is_taken_back_and_nobody_else_is(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """By its supervisor, whether or not anybody follows it. What does not handle the signal would end of it, and its timer must go on."""
    said = tmp_path / "interruption"
    monkeypatch.setattr(supervisor, "NOTICE_FILE", str(said))
    job = (
        f"trap 'echo told' {name}; sleep 300 & echo $! >sleeps; echo ready; "
        "while [ ! -e ../../gate ]; do sleep 0.1; done; kill -0 $(cat sleeps) && echo the other lives; exit 3"
    )
    run(program(tmp_path, JOB, job, notice_signal=name), shell)
    log = tmp_path / JOB / "log"
    wait_until(lambda: log.read_text() == "ready\n", 15, "the job")
    time.sleep(0.5)
    assert log.read_text() == "ready\n"
    said.write_text("terminate")
    wait_until(lambda: "told" in log.read_text(), 15, "the signal")
    time.sleep(3)  # it looks every 2 s
    assert living(f"PREFECT_GPU_TIMER={JOB}:", "environ"), "its timer goes on"
    (tmp_path / "gate").touch()
    assert ended(tmp_path, JOB) == ["3", "exited"]
    assert log.read_text() == "ready\ntold\nthe other lives\n"
    assert len((tmp_path / JOB / "told").read_text().split()) == 1


def test_the_jobs_of_a_name_are_ended_with_their_clean_up(shell: str, tmp_path: Path) -> None:
    """A supervisor that was killed before it came to that would leave its container, and files that are root's."""
    clean = f"sleep 1.3; echo cleaned >{tmp_path}/cleaned"
    run(program(tmp_path, f"{JOB}.1", "sleep 300", clean=clean), shell)
    wait_until((tmp_path / f"{JOB}.1/state").exists, 10, "the job")
    run(supervisor.end_all_function(str(tmp_path), grace_s=0) + f"end_all {JOB}.", shell)
    assert (tmp_path / "cleaned").exists()
    assert ended(tmp_path, f"{JOB}.1") == ["143", "cancelled"]


def test_no_program_asks_for_the_calendar() -> None:
    """Somebody may set it while a job runs: what lasts is measured by the time since the machine's start."""
    for path in scripts.OURS.glob("*.sh"):
        code = re.sub(r"^\s*#.*$", "", path.read_text(), flags=re.MULTILINE)
        assert not re.search(r"\bdate\b|\bEPOCH", code), path


def test_a_job_s_time_is_over_when_it_is_over(shell: str, tmp_path: Path) -> None:
    """And not up to a second before, though uptime is read in whole seconds."""
    script = program(tmp_path, JOB, "sleep 300").replace(" 7200 ", " 1 ")
    began = float(Path("/proc/uptime").read_text().split()[0])
    run(script, shell)
    assert ended(tmp_path, JOB)[1] == "timed-out"
    assert float((tmp_path / JOB / "exit").read_text().split()[2]) - began >= 1


def test_a_job_that_an_earlier_version_ended_is_read(shell: str, tmp_path: Path) -> None:
    """Its exit file has no reason; whoever attaches after an upgrade reads it all the same."""
    place = tmp_path / JOB
    place.mkdir()
    for name, text in {
        "claim": "",
        "log": "out\n",
        "state": "1 1 x 5.000 10.00\n",
        "exit": "3 exited 12.50   \n",
    }.items():
        (place / name).write_text(text)
    said = run(supervisor.follow_program(str(tmp_path), JOB, 0), shell)
    ended = job_end.ended(said)
    assert (ended.exit_code, ended.log_bytes, ended.why) == (3, 4, "")
    assert (ended.ended_at - ended.started_at).total_seconds() == 2.5


PLANTED = (
    "a pipe", "-1 1 x 0 0", "self 1 x 0 0", "$(touch /tmp/never) 1 \x1b[2J * *", "9" * 5000, "{stranger} 1 {boot} 0 0",
)  # fmt: skip


@pytest.mark.parametrize("name", ["state", "exit"])
def test_whatever_a_job_puts_in_the_place_of_its_files_it_is_over_and_nobody_is_signalled(
    shell: str, tmp_path: Path, name: str
) -> None:
    """It runs as the user whose files these are. What comes of it is an end of that job, or an error that names it."""
    stranger = subprocess.Popen(["sleep", "300"])
    try:
        born = Path(f"/proc/{stranger.pid}/stat").read_text().rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        for number, planted in enumerate(PLANTED):
            place = tmp_path / f"{JOB}.{number}"
            (place / "work").mkdir(parents=True)
            for file in ("claim", "log", "lock"):
                (place / file).touch()
            if planted == "a pipe":
                os.mkfifo(place / name)
            else:
                (place / name).write_text(
                    planted.replace("{stranger}", str(stranger.pid)).replace("{born}", born).replace("{boot}", boot)
                )
            if name == "exit":
                (place / "state").write_text("1 1 x 0 0\n")
            for script in (
                supervisor.follow_program(str(tmp_path), place.name, 0),
                supervisor.cancel_program(str(tmp_path), place.name, grace_s=0, clean=""),
            ):
                with contextlib.suppress(LinkLost):  # which names the job's machine, and nothing else is ended by it
                    assert job_end.ended(run(script, shell)).exit_code is None
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("broken", ["perl", "perl and python"])
def test_a_broken_perl_or_python_ends_no_job(tmp_path: Path, broken: str) -> None:
    """With the other of them it still finds what cleared its environment, left its session and lost its parent."""
    modules, tools = tmp_path / "modules", tmp_path / "bin"
    for folder in modules, tools:
        folder.mkdir()
    (modules / "Config.pm").write_text("die 'Perl lib version (5.30.0) does not match executable';")
    # Not a version manager's stand-in for it, which is slow.
    (tools / "python3").symlink_to(sys.executable if broken == "perl" else "/bin/false")
    stray = f"sleep 7{10000 + uuid.uuid4().int % 80000}"
    command = f"(env -i setsid sh -c '{stray} & sleep 0.01' &); sleep 0.2; exit 3" if broken == "perl" else "exit 3"
    run(program(tmp_path, JOB, command), f"{tools}:/usr/bin:/bin", PERL5LIB=str(modules))
    assert ended(tmp_path, JOB) == ["3", "exited"]
    assert living(stray.replace(" ", "\0"), "cmdline") == []


@pytest.mark.parametrize("refusal", ["no locks here", "no flock at all"])
def test_where_files_cannot_be_locked_a_job_is_followed_to_its_end(shell: str, tmp_path: Path, refusal: str) -> None:
    """Lustre without `-o flock`, some FUSE and NFS: the program is there and fails at once."""
    bare = tmp_path / "bare"
    bare.mkdir()
    if refusal == "no locks here":
        (bare / "flock").write_text("#!/bin/sh\necho 'flock: Function not implemented' >&2\nexit 71\n")
        (bare / "flock").chmod(0o755)
        path = f"{bare}:{shell}"
    else:
        for tool in TOOLS - {"flock"}:
            if (found := shutil.which(tool, path=shell)) is not None:
                (bare / tool).symlink_to(found)
        path = str(bare)
    run(program(tmp_path, JOB, "echo a; sleep 0.7; echo b; exit 3"), path)
    said = run(supervisor.follow_program(str(tmp_path), JOB, 0), path)
    assert said.splitlines()[:2] == ["a", "b"]
    assert said.splitlines()[2].split()[:2] == ["3", "exited"]


def test_a_follower_that_goes_leaves_nothing_behind(shell: str, tmp_path: Path) -> None:
    """Each lost link would leave its wait for the lock, until the job ends."""
    if subprocess.run(["tail", "--pid=1", "/dev/null"], env={"PATH": shell}, capture_output=True).returncode != 0:  # noqa: PLW1510 - asked
        pytest.skip("its tail knows no --pid, so nothing waits beside it")
    mark = f"FOLLOWER_{uuid.uuid4().hex}"
    run(program(tmp_path, JOB, "sleep 300"), shell)
    follow = supervisor.follow_program(str(tmp_path), JOB, 0)
    follower = subprocess.Popen(
        ["sh", "-c", follow], env={"PATH": shell, "HOME": str(tmp_path), mark: "1"}, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: {"flock", "tail"} <= set(map(_name, living(mark, "environ"))), 10, "the follower")
    (tail,) = (pid for pid in living(mark, "environ") if _name(pid) == "tail")
    os.kill(tail, signal.SIGPIPE)  # as when nobody reads it any more
    follower.wait(10)
    wait_until(lambda: living(mark, "environ") == [], 3, "its end")
    run(supervisor.cancel_program(str(tmp_path), JOB, grace_s=1, clean=""), shell)


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""
