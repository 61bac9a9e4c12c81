"""`make down` stops what `make up` keeps, and nothing under a job."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_gpu.flows.terminal import server
from prefect_gpu.flows.terminal.daemon import Daemon
from prefect_gpu.flows.terminal.messages import Trouble
from prefect_gpu.flows.terminal.place import worker_name
from prefect_gpu.flows.terminal.stopping import down
from tests.fakes.prefect_api import FakePrefect, run_at_work
from tests.terminal.test_place import start


def test_down_without_anything_up_says_so(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert down(is_forced=False) == 0
    assert capsys.readouterr().out == "Nothing is up.\n"


def test_down_is_refused_while_jobs_run_and_forced_it_cancels_them(
    clean: Path, api: FakePrefect, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = Daemon("server", clean)
    process = start(daemon, kept=True, url=api.url)
    api.running = [run_at_work("1")]
    with pytest.raises(Trouble, match=r"1 job is at work \(brave-otter-1\).*down --force"):
        down(is_forced=False)
    assert daemon.find() is not None
    assert down(is_forced=True) == 0
    assert api.running == []
    assert daemon.find() is None
    assert process.wait(5) == -signal.SIGTERM
    assert "stopped" in capsys.readouterr().out
    assert not (clean / "password").exists()


@pytest.fixture
def shared(clean: Path, sleeping_workers: None, api: FakePrefect, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """The worker that `make up` keeps for a server that others use too, with a job of its own and one of theirs."""
    monkeypatch.setenv("PREFECT_API_URL", api.url)
    with server.reached(kept=True) as found:
        found.start_worker()
        found.keep()
    api.running = [run_at_work("mine", worker_name(clean, is_own=False)), run_at_work("theirs")]
    yield found.worker
    found.worker.stop()


def test_down_counts_and_cancels_only_the_jobs_of_this_homes_worker(
    clean: Path,
    shared: Daemon,
    api: FakePrefect,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(Trouble, match=r"1 job is at work \(brave-otter-mine\).*down --force"):
        down(is_forced=False)
    alive_at_cancel: list[bool] = []
    api.at_cancel = lambda: alive_at_cancel.append(shared.find() is not None)
    assert down(is_forced=True) == 0
    assert api.names == ["theirs"]
    assert alive_at_cancel == [True], "the worker that is to give the machine back is stopped afterwards"
    assert shared.find() is None
    assert capsys.readouterr().out.startswith("The worker for http://127.0.0.1:")


@pytest.mark.parametrize(
    ("variable", "value", "header"),
    [("PREFECT_API_KEY", "pnu_1", "Bearer pnu_1"), ("PREFECT_API_AUTH_STRING", "admin:pass", "Basic YWRtaW46cGFzcw==")],
)
def test_down_gives_a_servers_password_or_says_that_it_is_wrong(
    clean: Path,
    shared: Daemon,
    api: FakePrefect,
    variable: str,
    value: str,
    header: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect_gpu.flows.terminal.api import use

    api.password = header
    with pytest.raises(
        Trouble, match=r"refuses \(401\): Unauthorized\. Are PREFECT_API_KEY.*nothing was stopped.*down --force"
    ):
        down(is_forced=False)
    assert shared.find() is not None
    monkeypatch.setenv(variable, value)
    use()
    with pytest.raises(Trouble, match=r"1 job is at work \(brave-otter-mine\)"):
        down(is_forced=False)
    assert down(is_forced=True) == 0
    assert api.names == ["theirs"]


def test_down_forced_stops_a_worker_whose_server_says_nothing(
    clean: Path,
    shared: Daemon,
    api: FakePrefect,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api.password = "unknown here"
    assert down(is_forced=True) == 0
    assert shared.find() is None
    assert "Whether a job was at work is not known: `prefect-gpu reap`" in capsys.readouterr().err
