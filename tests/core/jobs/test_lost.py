"""Links that break, machines that hang or go: nothing runs twice and nothing is said too early."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from prefect_gpu.providers.core.aside import Stopped, never
from prefect_gpu.providers.core.contract import Connection
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InstanceFailed,
    InvalidRequest,
    LinkLost,
    NotFound,
    ProviderError,
)
from prefect_gpu.providers.core.machine import reach
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.renting.running import Watch, run_on
from prefect_gpu.providers.core.requests import Job
from tests.core.jobs.machines import Answering, Falling, job, run
from tests.fakes.sshd import Server


def test_stdin_is_empty_and_does_not_hang(machine: Machine, log: Path) -> None:
    assert run(machine, job("cat; echo done"), log).exit_code == 0
    assert log.read_bytes() == b"done\n"


def test_a_machine_out_of_reach_is_said(server: Server, tmp_path: Path) -> None:
    def refuse() -> object:
        raise LinkLost("nobody there")

    machine = Machine(refuse, root=str(tmp_path))
    with pytest.raises(LinkLost, match="out of reach: nobody there"):
        machine.follow("job-1", lambda at, data: None, lost_after_s=0.3)
    with pytest.raises(Stopped):
        machine.follow("job-1", lambda at, data: None, should_stop=lambda: "cancelled")


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


def test_the_provider_is_asked_also_about_a_machine_that_is_gone_under_a_link_that_stands() -> None:
    dead = Machine(lambda: Answering(0), root="/nowhere")
    dead.connection()
    assert dead.is_linked
    watch = Watch(dead, lambda: "its provider says that it is terminated")
    assert watch() is None, "what was never heard to fail is not asked about"
    with pytest.raises(Stopped, match="terminated"):
        dead.follow("job-1", lambda at, data: None, should_stop=watch, lost_after_s=10)


def test_credentials_refused_for_a_moment_lose_no_job(server: Server, machine: Machine, log: Path) -> None:
    way = Falling(server)
    said: list[str] = []
    patient = Machine(way.connect, root=machine.root)
    spec = job("echo up; until [ -e again ]; do sleep 0.05; done; exit 4")

    def note(words: str) -> None:
        said.append(words)
        if words.startswith("attached"):
            (Path(machine.root) / spec.id / "work" / "again").touch()

    result = run(
        patient,
        spec,
        log,
        on_output=lambda at, data: way.fall(AuthFailed("401"), AuthFailed("401")),
        on_link=note,
    )
    patient.close()
    assert (result.outcome, result.exit_code, result.trouble) == ("exited", 4, "")
    assert said[-1] == "attached to the job again at byte 3"


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


def test_a_start_that_was_killed_is_sent_again_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that goes down kills what starts the job before it ends its links."""
    monkeypatch.setattr(reach, "_FIRST_PAUSE_S", 0.01)
    opened: list[Answering] = []

    def connect() -> Answering:
        opened.append(Answering(143))
        return opened[-1]

    machine = Machine(connect, root=str(tmp_path))
    monkeypatch.setattr(machine, "cancel", lambda *_, **__: None)
    result = run(machine, job("true"), tmp_path / "log")
    assert result.outcome == "lost"
    assert result.trouble.startswith(
        "the job may have been started, and then: the machine cannot start a job: exit 143"
    )
    assert sum(one.opened for one in opened) == 1 + 3


def test_of_a_machine_that_still_answers_while_it_goes_down_the_provider_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is lost with it may begin anew elsewhere; what its job lost on a machine that stays may not."""
    monkeypatch.setattr(reach, "_FIRST_PAUSE_S", 0.01)
    for words, trouble in (
        (None, "the job may have been started"),
        ("taken back at 12:00", "taken back at 12:00 (the job"),
    ):
        machine = Machine(lambda: Answering(143), root=str(tmp_path))
        monkeypatch.setattr(machine, "cancel", lambda *_, **__: None)
        monkeypatch.setattr(Machine, "is_reached", True)  # so the silence of its link is no sign
        result = run_on(machine, job("true"), Job(), tmp_path, lambda words=words: words)
        assert (result.outcome, result.is_gone) == ("lost", words is not None)
        assert result.trouble.startswith(trouble)


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

    monkeypatch.setattr(reach, "LOST_AFTER_S", 0.2)
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

    monkeypatch.setattr(reach, "run_script", hang)
    monkeypatch.setattr(reach, "_STEADY_S", 0.1)
    monkeypatch.setattr(reach, "LOST_AFTER_S", 0.4)
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

    monkeypatch.setattr(reach, "_STEADY_S", 0.3)
    assert Machine(lambda: Answering(0), root=str(tmp_path)).persist(hold, never, 0.5) == "through"
