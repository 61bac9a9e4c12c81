"""What is refused before anything is waited for."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from prefect_gpu.flows.terminal import __main__ as main
from prefect_gpu.flows.terminal import app, server
from prefect_gpu.flows.terminal.place import Place


class Started(Exception):
    """The server would be waited for."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A server of one's own that nobody may wait for."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    found = Place("http://127.0.0.1:1/api", tmp_path, is_own=True)

    @contextlib.contextmanager
    def reached(**_: Any) -> Generator[Place]:
        yield found

    def waited(_: Place) -> None:
        raise Started

    monkeypatch.setattr(server, "reached", reached)
    monkeypatch.setattr(Place, "wait_for_server", waited)
    assert app.at_server(lambda one: int(one is not found)) == 0
    return found


@pytest.mark.parametrize("line", [["run", "--gpu", "H1000", "--", "nvidia-smi"], ["plan", "--gpu", "H1000"]])
def test_a_gpu_that_nobody_knows_is_told_before_a_server_is_waited_for(
    line: list[str], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(line) == 2
    assert capsys.readouterr().err == "there is no GPU called 'H1000': did you mean H100?\n"


def test_on_a_team_s_server_its_worker_knows(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.is_own = False
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", "http://127.0.0.1:1")
    with pytest.raises(Started):
        main.main(["plan", "--gpu", "H1000", "--providers", "local"])
