"""A run's log and files in result storage, where that is not this machine."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from prefect.filesystems import LocalFileSystem, RemoteFileSystem

from prefect_gpu.flows.run import outputs


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RemoteFileSystem:
    storage = RemoteFileSystem(basepath=f"memory://{tmp_path.name}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(outputs, "get_result_store", lambda: SimpleNamespace(result_storage=storage))
    return storage


def leave(run_id: UUID, end: BaseException | None = None) -> None:
    with outputs.kept(run_id, 1) as folder:
        (folder / "job.log").write_bytes(b"42\n")
        if end is not None:
            raise end


def test_what_a_job_left_goes_to_storage_and_does_not_stay_here(remote: RemoteFileSystem, tmp_path: Path) -> None:
    run_id, broken = uuid4(), uuid4()
    leave(run_id)
    with pytest.raises(ZeroDivisionError):
        leave(broken, ZeroDivisionError())
    for one in (run_id, broken):
        assert remote.read_path(f"{outputs.place(one, 1)}/job.log", _sync=True) == b"42\n"  # type: ignore[call-arg]
    assert list(tmp_path.iterdir()) == []


def test_at_a_cancel_nothing_stays_here_and_no_upload_holds_up_the_give_back(
    remote: RemoteFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "_put", lambda *_: pytest.fail("an upload"))
    with pytest.raises(KeyboardInterrupt):
        leave(uuid4(), KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


def local(monkeypatch: pytest.MonkeyPatch, folder: Path) -> LocalFileSystem:
    storage = LocalFileSystem(basepath=str(folder))
    monkeypatch.setattr(outputs, "get_result_store", lambda: SimpleNamespace(result_storage=storage))
    monkeypatch.setattr(outputs, "_default_storage", lambda: storage)
    return storage


def test_links_stay_links_however_often_they_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Followed, `a -> .` and `b -> .` are copied without end."""
    local(monkeypatch, tmp_path / "storage")
    run_id = uuid4()
    with outputs.kept(run_id, 1) as folder:
        (folder / "outputs/d").mkdir(parents=True, mode=0o700)
        (folder / "outputs/d/key").write_bytes(b"k")
        (folder / "outputs/d/key").chmod(0o600)
        for name, target in {"a": ".", "b": ".", "gone": "nothing", "latest": "d/key"}.items():
            (folder / "outputs" / name).symlink_to(target)
    for _ in range(2):
        files = outputs.fetch(run_id, tmp_path / "fetched")
        assert [str(path.relative_to(tmp_path / "fetched/1/outputs")) for path in files] == [
            "a", "b", "d/key", "gone", "latest",
        ]  # fmt: skip
    there = tmp_path / "fetched/1/outputs"
    assert [(there / name).readlink() for name in ("a", "b", "gone", "latest")] == [
        Path(), Path(), Path("nothing"), Path("d/key"),
    ]  # fmt: skip
    assert (there / "d/key").stat().st_mode & 0o777 == 0o600
    assert (there / "d").stat().st_mode & 0o777 == 0o700


def test_a_link_that_stands_where_a_file_is_fetched_to_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local(monkeypatch, tmp_path / "storage")
    run_id = uuid4()
    leave(run_id)
    (tmp_path / "fetched/1").mkdir(parents=True)
    (tmp_path / "fetched/1/job.log").symlink_to(tmp_path / "mine")
    outputs.fetch(run_id, tmp_path / "fetched")
    assert not (tmp_path / "mine").exists()
    assert (tmp_path / "fetched/1/job.log").read_bytes() == b"42\n"


def test_a_bucket_with_a_folder_gives_back_what_it_got(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto")
    prefect_aws = pytest.importorskip("prefect_aws")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with moto.mock_aws():
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
        storage = prefect_aws.S3Bucket(
            bucket_name="bucket",
            bucket_folder="team/results",
            credentials=prefect_aws.AwsCredentials(region_name="us-east-1"),
        )
        monkeypatch.setattr(outputs, "get_result_store", lambda: SimpleNamespace(result_storage=storage))
        monkeypatch.setattr(outputs, "_default_storage", lambda: storage)
        run_id = uuid4()
        with outputs.kept(run_id, 1) as folder:
            (folder / "job.log").write_bytes(b"42\n")
            (folder / "outputs/d").mkdir(parents=True)
            (folder / "outputs/d" / os.fsdecode(b"caf\xe9")).write_bytes(b"not UTF-8")
            (folder / "outputs/link").symlink_to("d")
            (folder / "outputs/gone").symlink_to("nothing")
            (folder / "outputs/latest").symlink_to("../job.log")
        files = outputs.fetch(run_id, tmp_path / "fetched")
        with outputs.log_file(run_id, 1) as log, outputs.log_file(run_id, 2) as none:
            assert log is not None
            assert (log.read_bytes(), none) == (b"42\n", None)
    found = {str(path.relative_to(tmp_path / "fetched")): path.read_bytes() for path in files}
    assert found == {"1/job.log": b"42\n", "1/outputs/latest": b"42\n", r"1/outputs/d/caf\xe9": b"not UTF-8"}
