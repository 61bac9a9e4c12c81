"""`make fetch`: where a run's files go."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest

from prefect_gpu.flows.run import outputs
from prefect_gpu.flows.terminal import fetching
from prefect_gpu.flows.terminal.place import Place


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("brave-otter", "brave-otter"),
        ("../../.config", ".._.._.config"),
        ("train/2026", "train_2026"),
        ("a\x1b]52;c;eA==\x07b", r"a\x1b]52;c;eA==\x07b"),
        ("/etc", "_etc"),
        ("..", None),
        ("", None),
        ("x" * 300, None),
    ],
)
def test_a_run_s_name_leads_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, folder: str | None
) -> None:
    """On a shared server somebody else named the run: `../../.ssh` was written to on the computer of who fetched it."""
    run = SimpleNamespace(id=uuid4(), name=name)

    def fetch(_run_id: object, destination: Path) -> list[Path]:
        destination.mkdir(parents=True)
        (destination / "job.log").touch()
        return [destination / "job.log"]

    class Client:
        def __enter__(self) -> Any:
            return SimpleNamespace(read_flow_run=dict.fromkeys([run.id], run).get)

        def __exit__(self, *_args: object) -> None: ...

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(outputs, "fetch", fetch)
    monkeypatch.setattr(outputs, "size", lambda _: None)
    assert fetching.fetch(cast("Place", SimpleNamespace(asked=Client)), str(run.id), None, as_json=False) == 0
    assert [path.parent for path in tmp_path.rglob("job.log")] == [tmp_path / "fetched" / (folder or str(run.id))]
