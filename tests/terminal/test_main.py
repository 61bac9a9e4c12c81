"""What `python -m prefect_gpu.flows.terminal` says when it is interrupted."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from prefect_gpu.flows.terminal import __main__ as main
from prefect_gpu.flows.terminal import app, line, server
from prefect_gpu.flows.terminal.messages import NobodyReads, Trouble, Wrong
from prefect_gpu.flows.terminal.place import Place

RUN = UUID("df65e510-c2aa-4dab-a011-1afe3090301b")


@pytest.mark.parametrize(
    ("run_id", "says"),
    [(None, "Interrupted: nothing was left running."), (RUN, f"Interrupted before the run {RUN} was seen")],
)
def test_interrupted_says_that_nothing_is_left_only_where_that_is_known(
    run_id: UUID | None, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    @contextlib.contextmanager
    def reached(**_: Any) -> Iterator[Place]:
        yield Place("http://127.0.0.1:9/api", tmp_path, is_own=True, run_id=run_id)

    def interrupted(_: Place) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "reached", reached)
    monkeypatch.setattr(line, "carry_out", lambda _: app.at_server(interrupted))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main.main(["run"]) == 130
    assert capsys.readouterr().err.startswith(says)


@pytest.mark.parametrize(
    ("raised", "code"),
    [(Trouble("It broke."), 1), (Wrong("That is wrong."), 2), (NobodyReads(), 141)],
    ids=["trouble", "wrong", "pipe"],
)
def test_the_exit_code_says_what_kind_of_trouble_it_was(
    raised: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: list[str]) -> int:
        raise raised

    monkeypatch.setattr(line, "carry_out", fails)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main.main(["ps"]) == code
    assert capsys.readouterr().err == (f"{raised}\n" if str(raised) else "")


def test_a_closed_terminal_interrupts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel and the shell both tell it, and the second time would cut off the giving back."""
    ignored: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: ignored.append((number, handler)))
    for number in (signal.SIGINT, signal.SIGHUP):
        with pytest.raises(KeyboardInterrupt):
            main._interrupt(number, None)
    assert ignored == [(signal.SIGHUP, signal.SIG_IGN)]
