"""What a terminal shows while it waits, and that none of it stays."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from prefect_gpu.flows.terminal import status as statuses
from prefect_gpu.flows.terminal.follow import Display
from prefect_gpu.flows.terminal.status import Status, transfer
from prefect_gpu.providers.core.machine.transfer import Progress
from tests.terminal.test_follow import log


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> tuple[Display, io.StringIO]:
    monkeypatch.setattr(statuses, "SHOWN_AFTER_S", 0.0)
    monkeypatch.setattr(statuses, "AGAIN_S", 0.0)
    out = io.StringIO()
    return Display(Console(file=out, width=100, force_terminal=True, color_system=None, soft_wrap=True)), out


@pytest.mark.parametrize(
    ("done", "total", "seconds"), [(640_000_000, 1_500_000_000, 10.0), (7, 900, 1.0), (0, 1_500_000, 10.0)]
)
def test_what_a_transfer_tells_is_understood(done: int, total: int, seconds: float) -> None:
    """By the very words that the transfer writes."""
    told = transfer(f"files up: {Progress(done, total, seconds)}")
    assert told is not None
    assert told.what == "files up"
    assert told.total == pytest.approx(total, rel=0.05)
    assert told.done == pytest.approx(done, rel=0.05)
    assert told.per_s == pytest.approx(done / seconds, rel=0.5)


@pytest.mark.parametrize(
    "line", ["files up: 3 files, 40 MB; left out: .venv (340 MB)", "5 run   python a.py", "files up: 9 of 9, 1/s"]
)
def test_other_lines_are_no_transfer(line: str) -> None:
    assert transfer(line) is None


def test_a_transfer_is_a_bar_with_rate_and_time_left(terminal: tuple[Display, io.StringIO]) -> None:
    display, out = terminal
    display.record(log("files up: 640 MB of 1.5 GB, 64 MB/s, 13 s left", "prefect.task_runs"))
    display.waits()
    assert "files up" in out.getvalue()
    assert "43%, 64 MB/s, 13 s left" in out.getvalue()


def test_a_bar_goes_on_between_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = transfer("files down: 100 MB of 1.5 GB, 100 MB/s, 14 s left")
    assert told is not None
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: told.at + 2)
    assert told.now() == pytest.approx(300e6)
    monkeypatch.setattr(time, "monotonic", lambda: began + 1000)
    assert told.now() == 1.5e9


def test_what_is_waited_for_is_seen_and_how_long_so_far(terminal: tuple[Display, io.StringIO]) -> None:
    display, out = terminal
    display.waits()
    assert "asking the providers ... 0 s" in out.getvalue()
    display.record(log("3 create     pg-x    0.2 s"))
    display.waits()
    assert "the machine starts ... 0 s" in out.getvalue()
    display.record(log("             aws says pending, 12 s so far"))
    display.waits()
    assert "aws says pending ..." in out.getvalue()
    assert "12 s so far" not in out.getvalue()


def test_a_job_runs_once_its_files_are_up_or_it_has_said_something(terminal: tuple[Display, io.StringIO]) -> None:
    display, out = terminal
    display.record(log("5 run        python train.py"))
    display.waits()
    assert "the job begins ... 0 s" in out.getvalue()
    display.record(log("files up: 1 file, 300 MB", "prefect.task_runs"))
    display.waits()
    assert "the job runs ... 0 s" in out.getvalue()


def test_none_of_it_stays(terminal: tuple[Display, io.StringIO]) -> None:
    display, out = terminal
    display.waits()
    display.record(log("1 offers     1 provider asked"))
    display.quiet()
    assert out.getvalue().endswith("\x1b[2K1 offers     1 provider asked\n")


def test_elsewhere_than_on_a_terminal_everything_is_a_line() -> None:
    out = io.StringIO()
    display = Display(Console(file=out, width=100, soft_wrap=True))
    display.waits()
    display.record(log("             aws says pending, 12 s so far"))
    display.record(log("files up: 640 MB of 1.5 GB, 64 MB/s, 13 s left", "prefect.task_runs"))
    assert out.getvalue() == (
        "             aws says pending, 12 s so far\n             files up: 640 MB of 1.5 GB, 64 MB/s, 13 s left\n"
    )


def test_a_warning_of_ours_is_shown_and_what_prefect_says_is_not() -> None:
    out = io.StringIO()
    display = Display(Console(file=out, width=100, soft_wrap=True))
    warning = log("outputs: *.pt matched nothing", "prefect.task_runs").model_copy(update={"level": 30})
    crash = log("Crash detected!", "prefect.flow_runs").model_copy(update={"level": 40})
    for one in (warning, crash, log("Beginning flow run", "prefect.flow_runs"), log("x", "somebody")):
        display.record(one)
    assert out.getvalue() == "             outputs: *.pt matched nothing\n"


def test_a_status_without_a_step_says_what_it_waits_for() -> None:
    status = Status(Console(file=io.StringIO(), force_terminal=True))
    assert not status.takes("2 choose     #1")
    assert status._what == "ordering the machine"
    assert not status.takes("             exit 0     0.7 s")
    assert status._what == "the machine is given back"
