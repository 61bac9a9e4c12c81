"""The frame of the benchmarks: a table that tells what was met, a file for machines, and reasons for what did not run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.bench import Metric
from tests.bench import __main__ as frame
from tests.bench.__main__ import Outcome

FAST = Metric(1.5, "ms", 2, "lower")
SLOW = Metric(0.5, "x", 0.8, "higher")


def test_the_table_tells_value_target_and_whether_it_is_met() -> None:
    lines = frame.table([Outcome("catalog", {"catalog.narrow_ms": FAST, "logs.vs_ssh_tail": SLOW}, 1)]).splitlines()
    assert lines[1].split() == ["catalog.narrow_ms", "1.5", "ms", "<=", "2", "met"]
    assert lines[2].split() == ["logs.vs_ssh_tail", "0.5", "x", ">=", "0.8", "MISSED"]


def test_a_group_that_cannot_run_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure() -> None:
        pytest.skip("needs OpenSSH's client")

    monkeypatch.setattr(frame.importlib, "import_module", lambda _: SimpleNamespace(measure=measure))
    outcome = frame.run_group("files")
    assert outcome.skipped == "needs OpenSSH's client"
    line = frame.table([outcome]).splitlines()[1]
    assert line.split(maxsplit=2) == ["files.*", "-", "did not run: needs OpenSSH's client"]


def test_a_group_that_breaks_stops_no_other_and_fails_the_bench(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise RuntimeError("boom")

    measures = {"tests.bench.a": broken, "tests.bench.b": lambda: {"b.ms": FAST}}
    monkeypatch.setattr(frame.importlib, "import_module", lambda name: SimpleNamespace(measure=measures[name]))
    monkeypatch.setattr(frame, "groups", lambda: ["a", "b"])
    monkeypatch.chdir(tmp_path)
    assert frame.main() == 1
    assert "FAILED: RuntimeError: boom" in capsys.readouterr().out
    assert json.loads(Path("build/bench.json").read_text()) == {
        "b.ms": {"value": 1.5, "unit": "ms", "target": 2, "better": "lower"}
    }


def test_one_group_alone_keeps_what_was_measured_of_the_others(tmp_path: Path) -> None:
    path = tmp_path / "build" / "bench.json"
    frame.write([Outcome("a", {"a.ms": FAST}, 1)], path)
    frame.write([Outcome("b", {"b.x": SLOW}, 1)], path)
    assert set(json.loads(path.read_text())) == {"a.ms", "b.x"}


def test_an_unknown_group_is_told_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.main("catalogue") == 2
    assert "There is no group 'catalogue': " in capsys.readouterr().err
