"""Jobs on a machine: over asyncssh everywhere, and over OpenSSH where it is installed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from providers.core import jobs
from providers.core.aside import Stopped, never
from providers.core.contract import Connection
from providers.core.errors import AuthFailed, InstanceFailed, InvalidRequest, LinkLost, NotFound, ProviderError
from providers.core.jobs import Machine, Wrap
from providers.core.models import JobResult, JobSpec, utc_now
from tests.fakes.sshd import Server, asyncssh_server, has_openssh, openssh_server


@pytest.fixture(scope="module", params=["asyncssh", pytest.param("openssh", marks=pytest.mark.openssh)])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "openssh" and not has_openssh():
        pytest.skip("OpenSSH is not installed: apt-get install openssh-server")
    with asyncssh_server() if request.param == "asyncssh" else openssh_server() as running:
        yield running


@pytest.fixture
def machine(server: Server, tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(server.connect, root=str(tmp_path / "root"), grace_s=1)
    yield machine
    machine.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def job(command: str | tuple[str, ...], **options: object) -> JobSpec:
    return JobSpec(id=f"job-{uuid.uuid4().hex}", command=command, **options)


def run(machine: Machine, spec: JobSpec, log: Path, **options: object) -> JobResult:
    result = machine.run(spec, log, **options)
    assert result is not None
    return result


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


def test_stdin_is_empty_and_does_not_hang(machine: Machine, log: Path) -> None:
    assert run(machine, job("cat; echo done"), log).exit_code == 0
    assert log.read_bytes() == b"done\n"


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


# Debian's essential programs without perl.
TOOLS = "sh bash sleep grep mv cat head tail mkdir chmod id stat setsid env flock wc date touch rm seq timeout".split()  # noqa: SIM905 - readable

# What a job can do to outlive itself: in the background, in a session of its own, twice forked, without its environment.
STRAYS = {
    "background": "sleep 7{n} & ",
    "session": "setsid sleep 7{n} & ",
    "double fork": "(setsid sh -c 'sleep 7{n} & sleep 0.01' &) ; sleep 0.1; ",
    "cleared environment": "env -i sleep 7{n} & ",
    "double fork without environment": "(env -i setsid sh -c 'sleep 7{n} & sleep 0.01' &) ; sleep 0.2; ",
    "deaf": "sh -c 'trap \"\" TERM HUP INT; sleep 7{n} & wait' & sleep 0.1; ",
    "stopped": "sleep 7{n} & kill -STOP $!; ",
}


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


def alive(word: str, within: str = "cmdline") -> list[str]:
    """Command lines of living processes with such an argument, or such a line in their environment."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / within).read_bytes().decode(errors="replace").split("\0")
            if word in words:
                found.append((process / "cmdline").read_text())
    return found


def test_without_perl_and_python_only_what_hides_three_ways_escapes(
    server: Server, machine: Machine, log: Path, tmp_path: Path
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(tool))
    bare = Machine(lambda: _WithPath(server.connect(), str(tools)), root=machine.root, grace_s=1)
    mark = 10000 + uuid.uuid4().int % 80000
    command = "".join(
        STRAYS[stray].format(n=mark) for stray in ("background", "session", "double fork", "cleared environment")
    )
    result = run(bare, job(command + "echo up; sleep 600", timeout_s=2), log)
    bare.close()
    assert result.outcome == "timed out"
    assert alive(f"7{mark}") == []


class _WithPath:
    """A connection to a machine that has only some programs."""

    def __init__(self, inner: object, path: str) -> None:
        self._inner = inner
        self._path = path

    def open(self, command: str) -> object:
        return self._inner.open(f"PATH={self._path}; export PATH; {command}")

    def is_alive(self) -> bool:
        return self._inner.is_alive()

    def close(self) -> None:
        self._inner.close()


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


def test_what_the_sink_raises_is_raised(machine: Machine) -> None:
    spec = job("echo x; sleep 600")
    machine.start(spec)

    def full(offset: int, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        machine.follow(spec.id, full)
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


def test_a_machine_out_of_reach_is_said(server: Server, tmp_path: Path) -> None:
    def refuse() -> object:
        raise LinkLost("nobody there")

    machine = Machine(refuse, root=str(tmp_path))
    with pytest.raises(LinkLost, match="out of reach: nobody there"):
        machine.follow("job-1", lambda at, data: None, lost_after_s=0.3)
    with pytest.raises(Stopped):
        machine.follow("job-1", lambda at, data: None, should_stop=lambda: "cancelled")


class Falling:
    """A way to a machine that breaks when it is told to, and then says what its provider says, each once."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._links: list[Connection] = []
        self.says: list[ProviderError] = []

    def connect(self) -> Connection:
        if self.says:
            raise self.says.pop(0)
        self._links.append(self._server.connect())
        return self._links[-1]

    def fall(self, *says: ProviderError) -> None:
        self.says += says
        self._links[-1].close()


@pytest.mark.parametrize("error", [NotFound, InstanceFailed, InvalidRequest])
def test_a_job_whose_machine_goes_while_it_runs_is_lost_and_no_error(
    server: Server, machine: Machine, log: Path, error: type[ProviderError]
) -> None:
    """As an error it would be run a second time, on the next offer."""
    way = Falling(server)
    dying = Machine(way.connect, root=machine.root)
    spec = job("echo up; sleep 600")
    result = run(dying, spec, log, on_output=lambda at, data: way.fall(error("evicted"), error("evicted")))
    machine.cancel(spec)
    assert (result.outcome, result.exit_code, result.trouble) == ("lost", None, "evicted")
    assert log.read_bytes() == b"up\n"


def test_credentials_refused_for_a_moment_lose_no_job(server: Server, machine: Machine, log: Path) -> None:
    way = Falling(server)
    said: list[str] = []
    patient = Machine(way.connect, root=machine.root)
    spec = job("echo up; sleep 0.3; exit 4")
    result = run(
        patient,
        spec,
        log,
        on_output=lambda at, data: way.fall(AuthFailed("401"), AuthFailed("401")),
        on_link=said.append,
    )
    patient.close()
    assert (result.outcome, result.exit_code, result.trouble) == ("exited", 4, "")
    assert said[-1] == "attached to the job again at byte 3"


class Answering:
    """A machine whose programs end with this exit code (None: the link breaks), and write nothing."""

    def __init__(self, exit_code: int | None) -> None:
        self._exit_code = exit_code

    def open(self, command: str) -> Answering:
        return self

    def sendall(self, data: bytes) -> None: ...

    def shutdown_write(self) -> None: ...

    def recv(self, size: int) -> bytes:
        return b""

    def exit_status(self, timeout_s: float) -> int:
        if self._exit_code is None:
            raise LinkLost("the link to the machine is lost")
        return self._exit_code

    def error_text(self) -> str:
        return ""

    def is_alive(self) -> bool:
        return self._exit_code is not None

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("exit_code", "next_says", "is_lost"),
    [
        (None, NotFound("no such pod"), True),  # the first sending may have arrived
        (None, AuthFailed("401"), True),
        (137, NotFound("no such pod"), True),  # killed, maybe after it started the job
        (73, NotFound("no such pod"), False),  # refused
    ],
)
def test_a_start_whose_answer_was_lost_is_no_error_and_a_refused_one_is(
    tmp_path: Path, exit_code: int | None, next_says: ProviderError, is_lost: bool
) -> None:
    """What is raised may be tried on another machine; a job that may run on this one may not."""
    answers = iter([Answering(exit_code)])

    def connect() -> Answering:
        for answer in answers:
            return answer
        raise next_says

    machine = Machine(connect, root=str(tmp_path))
    if not is_lost:
        with pytest.raises(InstanceFailed, match="cannot start a job: exit 73"):
            machine.run(job("true"), tmp_path / "log")
        return
    result = run(machine, job("true"), tmp_path / "log")
    assert result.outcome == "lost"
    assert "may have been started" in result.trouble


@pytest.mark.parametrize("error", [NotFound("no such pod"), AuthFailed("401")])
def test_what_happens_before_the_first_start_is_raised(tmp_path: Path, error: ProviderError) -> None:
    def refuse() -> Connection:
        raise error

    with pytest.raises(type(error)):
        Machine(refuse, root=str(tmp_path)).run(job("true"), tmp_path / "log")


def test_a_job_that_never_reached_its_machine_may_run_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> Connection:
        raise LinkLost("nobody there")

    monkeypatch.setattr(jobs, "LOST_AFTER_S", 0.2)
    with pytest.raises(InstanceFailed, match="was not started: the machine is out of reach: nobody there"):
        Machine(refuse, root=str(tmp_path)).run(job("true"), tmp_path / "log")


@pytest.mark.parametrize("call", ["start", "cancel"])
def test_a_machine_that_hangs_is_given_up_in_the_time_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It answers each connect, so an attempt takes long; that is no sign of life where the program should take a moment."""

    def hang(*_: object, **__: object) -> None:
        time.sleep(0.15)
        raise LinkLost("the machine did not finish within 0.15 s")

    monkeypatch.setattr(jobs, "run_script", hang)
    monkeypatch.setattr(jobs, "_STEADY_S", 0.1)
    monkeypatch.setattr(jobs, "LOST_AFTER_S", 0.4)
    machine = Machine(lambda: Answering(0), root=str(tmp_path))
    late = time.monotonic() + 3

    def should_stop() -> str | None:
        return "still at it" if time.monotonic() > late else None

    calls = {
        "start": lambda: machine.start(job("true"), should_stop),
        "cancel": lambda: machine.cancel(job("true"), should_stop, timeout_s=0.4),
    }
    with pytest.raises(LinkLost, match="did not finish"):
        calls[call]()


def test_a_link_that_breaks_after_it_held_for_long_is_a_new_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Following and transfers go on for hours; what they held counts, however often they break."""
    held = iter([0.7, 0.7, 0.7])

    def hold(connection: object) -> str:
        for seconds in held:
            time.sleep(seconds)
            raise LinkLost("the link to the machine is lost")
        return "through"

    monkeypatch.setattr(jobs, "_STEADY_S", 0.3)
    assert Machine(lambda: Answering(0), root=str(tmp_path)).persist(hold, never, 0.5) == "through"


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not installed")
def test_busybox_is_enough(server: Server, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    subprocess.run([shutil.which("busybox"), "--install", "-s", str(tools)], check=True)
    machine = Machine(lambda: _WithPath(server.connect(), str(tools)), root=str(tmp_path / "root"), grace_s=1)
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
    ended = jobs._ended("- lost 1795549200 0 7766.5 0\n")
    assert (ended.outcome, ended.ended_at) == ("lost", ended.started_at)
