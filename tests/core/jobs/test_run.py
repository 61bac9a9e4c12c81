"""A job on a machine: what it gets, what it writes, what it ends with."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from prefect_gpu.providers.core.errors import (
    InstanceFailed,
    InvalidRequest,
)
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.models import JobSpec, utc_now
from tests.core.jobs.machines import job, run
from tests.fakes.sshd import Server


def test_exit_code_is_a_result(machine: Machine, log: Path) -> None:
    result = run(machine, job("echo out; echo err >&2; exit 3"), log)
    assert (result.exit_code, result.outcome) == (3, "exited")
    assert log.read_bytes() == b"out\nerr\n"
    assert result.log_bytes == 8
    assert 0 <= result.duration_s < 5
    assert abs((result.started_at - utc_now()).total_seconds()) < 30


@pytest.mark.parametrize(("command", "code"), [("kill -TERM $$", 143), ("kill -KILL $$", 137), ("exit 255", 255)])
def test_death_by_a_signal_is_an_exit_code_as_a_shell_gives_it(
    machine: Machine, log: Path, command: str, code: int
) -> None:
    result = run(machine, job(command), log)
    assert (result.exit_code, result.outcome) == (code, "exited")


def test_an_argv_reaches_the_program_as_it_is(machine: Machine, log: Path) -> None:
    words = ("a b", "", "$HOME", "'\"", "*", "-n", "new\nline", "ünï")
    run(machine, job(("printf", "[%s]", *words)), log)
    assert log.read_text() == "".join(f"[{word}]" for word in words)


def test_a_command_that_does_not_exist_ends_with_127(machine: Machine, log: Path) -> None:
    assert run(machine, job(("no-such-program",)), log).exit_code == 127
    assert run(machine, job("no-such-program"), log.with_name("log2")).exit_code == 127


def test_environment_and_secrets_arrive_and_stand_in_no_list_of_processes(machine: Machine, log: Path) -> None:
    spec = job(
        'printf %s "$PLAIN|$SECRET"; grep -aslF hush-hush /proc/[0-9]*/cmdline; grep -rlF --exclude=log hush-hush "$PWD/.."; :',
        env={"PLAIN": 'it\'s "quoted" $HOME `id` \\ ü\n\n'},
        secrets={"SECRET": SecretStr("hush" + "-hush")},
    )
    run(machine, spec.model_copy(update={"command": spec.command.replace("hush-hush", "hush''-hush")}), log)
    assert log.read_text() == 'it\'s "quoted" $HOME `id` \\ ü\n\n|hush-hush'


def test_a_path_of_the_job_does_not_break_its_supervisor(machine: Machine, log: Path) -> None:
    result = run(machine, job("echo $PATH", env={"PATH": "/nowhere"}), log)
    assert (result.exit_code, log.read_text()) == (0, "/nowhere\n")


def test_a_job_without_a_usable_home_gets_one(machine: Machine, log: Path) -> None:
    assert run(machine, job('touch "$HOME/x" && ls "$HOME"', env={"HOME": "/nowhere"}), log).exit_code == 0
    assert log.read_text() == "x\n"


def test_output_is_bytes(machine: Machine, log: Path) -> None:
    every_byte = bytes(range(256)) * 64
    spec = job(("python3", "-c", "import sys; sys.stdout.buffer.write(bytes(range(256)) * 64 + b'\\r10%\\r20%')"))
    run(machine, spec, log)
    assert log.read_bytes() == every_byte + b"\r10%\r20%"


def test_a_line_of_64_mb_arrives_exactly(machine: Machine, log: Path) -> None:
    result = run(machine, job("head -c 67108864 /dev/zero | tr '\\0' x"), log)
    assert result.log_bytes == 67108864
    with log.open("rb") as written:
        assert all(not chunk.strip(b"x") for chunk in iter(lambda: written.read(1 << 20), b""))


def test_output_of_the_last_millisecond_arrives(machine: Machine, tmp_path: Path) -> None:
    for attempt in range(10):
        log = tmp_path / f"log{attempt}"
        run(machine, job("sleep 0.05; seq 2000; printf end"), log)
        assert log.read_bytes().endswith(b"2000\nend"), attempt


def test_lines_are_seen_while_the_job_runs(machine: Machine, log: Path) -> None:
    seen: list[float] = []
    spec = job("for i in 1 2 3 4 5; do date +%s.%N; sleep 0.2; done")
    run(machine, spec, log, on_output=lambda offset, data: seen.extend([time.time()] * data.count(b"\n")))
    written = [float(line) for line in log.read_text().split()]
    lags = sorted(at - since for at, since in zip(seen, written, strict=True))
    assert lags[2] < 0.5, lags  # the bench has the figure; without following, all would be as old as the job


def test_a_working_directory_inside_the_job_s_directory(machine: Machine, log: Path) -> None:
    spec = job("pwd", working_directory="a/b")
    done = machine.execute(f'{machine.job_directory(spec.id)} mkdir -p "$dir/work/a/b"')
    assert done.exit_code == 0
    run(machine, spec, log)
    assert log.read_text().endswith(f"{spec.id}/work/a/b\n")
    missing = run(machine, job("pwd", working_directory="c"), log.with_name("log2"))
    assert missing.exit_code == 127
    assert "has no c to work in" in log.with_name("log2").read_text()


def test_two_starters_start_it_once(server: Server, machine: Machine, log: Path) -> None:
    spec = job("echo ran; sleep 0.3")
    machines = [Machine(server.connect, root=machine.root) for _ in range(4)]
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda each=each: answers.append(each.start(spec))) for each in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in machines:
        each.close()
    assert sorted(answers) == [False, False, False, True]
    run(machine, spec, log)
    assert log.read_text() == "ran\n"


def test_another_process_attaches_and_gets_the_rest(server: Server, machine: Machine, log: Path) -> None:
    spec = job("seq 100; until [ -e go ]; do sleep 0.05; done; seq 101 200; exit 7")
    stop = threading.Event()
    seen = bytearray()

    def first(offset: int, data: bytes) -> None:
        seen.extend(data)
        if seen.endswith(b"\n100\n"):
            stop.set()

    assert machine.run(spec, log, first, lambda: "abandon" if stop.is_set() else None) is None
    machine.close()
    other = Machine(server.connect, root=machine.root)
    other.execute(f'{other.job_directory(spec.id)} : >"$dir/work/go"')
    from_60: list[tuple[int, bytes]] = []
    result = run(other, spec, log, on_output=lambda at, data: from_60.append((at, data)), output_from=60)
    other.close()
    whole = "".join(f"{n}\n" for n in range(1, 201)).encode()
    assert result.exit_code == 7
    assert log.read_bytes() == whole
    assert b"".join(data for _, data in from_60) == whole[60:]
    at = 60
    for offset, data in from_60:
        assert offset == at
        at += len(data)


def test_a_job_that_is_over_can_be_read_again(machine: Machine, log: Path) -> None:
    spec = job("echo once; exit 4")
    is_new: list[bool] = []
    run(machine, spec, log, on_start=is_new.append)
    again = run(machine, spec, log.with_name("again"), on_start=is_new.append)
    assert is_new == [True, False]
    assert (again.exit_code, log.with_name("again").read_text()) == (4, "once\n")


def test_what_the_sink_raises_is_raised(machine: Machine) -> None:
    spec = job("echo x; sleep 600")
    machine.start(spec)

    def full(offset: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        machine.follow(spec.id, full)
    machine.cancel(spec)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "-x", "a b", "x" * 200])
def test_a_job_id_that_names_no_directory_is_refused(machine: Machine, name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot name a job"):
        machine.start(JobSpec(id=name, command="true"))


def test_a_machine_that_cannot_hold_the_job_says_why(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    machine = Machine(server.connect, root=f"{tmp_path}/file/root")
    with pytest.raises(InstanceFailed, match=r"cannot start a job: .*file/root"):
        machine.start(job("true"))
    machine.close()


def test_an_environment_variable_too_long_for_linux_is_refused(machine: Machine) -> None:
    with pytest.raises(InvalidRequest, match="longer than 128 KB"):
        machine.start(job("true", env={"BIG": "x" * 131072}))


@pytest.mark.parametrize("command", ["-n hello", "--version", "+x"])
def test_a_command_that_begins_with_a_dash_is_no_option_of_the_shell(machine: Machine, log: Path, command: str) -> None:
    assert run(machine, job(command), log).exit_code == 127
    assert f"{command.split(maxsplit=1)[0]}: " in log.read_text()
    assert run(machine, job(tuple(command.split())), log.with_name("log2")).exit_code == 127


def test_a_command_and_an_environment_that_no_machine_can_start_are_refused(machine: Machine) -> None:
    many = {f"BIG_{number}": "x" * 100_000 for number in range(105)}
    for spec in (
        job("true", env=many),
        job("true", secrets={name: SecretStr(value) for name, value in many.items()}),
        job(("true", *many.values())),
    ):
        with pytest.raises(InvalidRequest, match=r"10\.0 MB together, .* below 1 MB, and upload a file"):
            machine.start(spec)


def test_as_much_as_is_not_refused_does_start(machine: Machine, log: Path) -> None:
    """A megabyte in words of nearly 128 KB: what is let through must run."""
    most = {f"BIG_{number}": "x" * 104_800 for number in range(10)}
    assert run(machine, job("exit 3", env=most), log).exit_code == 3
