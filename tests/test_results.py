"""A run's log and files in result storage, where that is not this machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from prefect.filesystems import RemoteFileSystem

from flows import results


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RemoteFileSystem:
    storage = RemoteFileSystem(basepath=f"memory://{tmp_path.name}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(results, "get_result_store", lambda: SimpleNamespace(result_storage=storage))
    return storage


def leave(run_id: UUID, end: BaseException | None = None) -> None:
    with results.kept(run_id, 1) as folder:
        (folder / "job.log").write_bytes(b"42\n")
        if end is not None:
            raise end


def test_what_a_job_left_goes_to_storage_and_does_not_stay_here(remote: RemoteFileSystem, tmp_path: Path) -> None:
    run_id, broken = uuid4(), uuid4()
    leave(run_id)
    with pytest.raises(ZeroDivisionError):
        leave(broken, ZeroDivisionError())
    for one in (run_id, broken):
        assert remote.read_path(f"{results.place(one, 1)}/job.log", _sync=True) == b"42\n"  # type: ignore[call-arg]
    assert list(tmp_path.iterdir()) == []


def test_at_a_cancel_nothing_stays_here_and_no_upload_holds_up_the_give_back(
    remote: RemoteFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_put", lambda *_: pytest.fail("an upload"))
    with pytest.raises(KeyboardInterrupt):
        leave(uuid4(), KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []
