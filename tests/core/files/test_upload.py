"""Files to a machine."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from prefect_gpu.providers.core.aside import Stopped
from prefect_gpu.providers.core.errors import InstanceFailed
from prefect_gpu.providers.core.machine import pack, transfer
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.upload import upload
from tests.core.files.folders import JOB, TREE, Hanging, contents, fill, late, work
from tests.fakes.sshd import Server


def test_without_a_tar_program_here_python_packs(machine: Machine, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack.shutil, "which", lambda name: None)
    fill(base, TREE)
    (base / "link").symlink_to("a.txt")
    upload(machine, JOB, ["."], base)
    assert contents(work(machine)) == {**TREE, "link": b"a"}


def test_an_upload_replaces_what_is_there(machine: Machine, base: Path) -> None:
    fill(base, {"a": b"old", "big": b"x" * 5_000_000})
    upload(machine, JOB, ["."], base)
    fill(base, {"a": b"new", "big": b"y" * 5_000_000})
    upload(machine, JOB, ["."], base)
    assert contents(work(machine)) == {"a": b"new", "big": b"y" * 5_000_000}


def test_a_full_disk_on_the_machine_is_said(server: Server, base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    machine = Machine(server.connect, root=f"{tmp_path}/file")
    fill(base, {"a": b"a", "big": b"x" * 5_000_000})
    for name in ("a", "big"):
        with pytest.raises(InstanceFailed, match=r"did not take the files: .*directory"):
            upload(machine, JOB, [name], base)
    machine.close()


def test_stop_is_heeded_during_a_transfer(machine: Machine, base: Path) -> None:
    with (base / "huge").open("wb") as huge:
        huge.truncate(20_000_000_000)
    began = time.monotonic()
    with pytest.raises(Stopped, match="cancelled"):
        upload(machine, JOB, ["huge"], base, lambda: "cancelled" if time.monotonic() > began + 0.5 else None)
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("takes", [100_000, 1_000_000_000], ids=["in the middle", "after the last byte"])
def test_an_upload_to_a_machine_that_hangs_is_given_up(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes: int
) -> None:
    monkeypatch.setattr(transfer, "STEP_S", 0.3)
    fill(base, {"big": b"x" * 5_000_000})
    with pytest.raises(InstanceFailed, match="hangs: no byte of the files moved"):
        upload(Machine(lambda: Hanging(takes), root=str(tmp_path)), JOB, ["big"], base, late(3))
