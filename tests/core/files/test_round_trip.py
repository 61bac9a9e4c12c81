"""Files to a machine and back, the same as they were."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest

from prefect_gpu.providers.core.machine.download import download
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.ssh import connect
from prefect_gpu.providers.core.machine.upload import upload
from tests.core.files.folders import JOB, TREE, contents, fill, work
from tests.fakes.proxy import proxy
from tests.fakes.sshd import Server


@pytest.mark.parametrize("is_checked", [False, True])
def test_a_tree_goes_up_and_comes_down_the_same(machine: Machine, base: Path, tmp_path: Path, is_checked: bool) -> None:
    fill(base, TREE)
    (base / "hollow").mkdir()
    (base / "a.txt").chmod(0o755)
    (base / "link").symlink_to("a.txt")
    sent = upload(machine, JOB, ["."], base, is_checked=is_checked)
    assert (sent.files, sent.bytes, sent.left_out) == (len(TREE) + 2, sum(map(len, TREE.values())), ())
    assert contents(work(machine)) == {**TREE, "link": b"a"}
    assert (work(machine) / "hollow").is_dir()
    assert (work(machine) / "link").is_symlink()
    back = tmp_path / "back"
    brought = download(machine, JOB, ["."], back, is_checked=is_checked)
    assert contents(back) == {**TREE, "link": b"a"}
    assert set(brought.paths) == {*TREE, "link"}
    assert brought.bytes == sent.bytes
    assert (back / "hollow").is_dir()
    assert stat.S_IMODE((back / "a.txt").stat().st_mode) & 0o111
    assert not stat.S_IMODE((back / "empty").stat().st_mode) & 0o111


@pytest.mark.parametrize("is_checked", [False, True])
def test_a_big_file_goes_up_and_comes_down_the_same(
    machine: Machine, base: Path, tmp_path: Path, is_checked: bool
) -> None:
    data = random.Random(1).randbytes(9_000_001)
    fill(base, {"sub dir/big'$.bin": data})
    (base / "sub dir/big'$.bin").chmod(0o750)
    upload(machine, JOB, ["sub dir"], base, is_checked=is_checked)
    there = work(machine) / "sub dir/big'$.bin"
    assert there.read_bytes() == data
    assert stat.S_IMODE(there.stat().st_mode) == 0o750
    download(machine, JOB, ["sub dir/*"], tmp_path / "back", is_checked=is_checked)
    assert (tmp_path / "back/sub dir/big'$.bin").read_bytes() == data
    assert [path.name for path in (Path(machine.root) / JOB).iterdir()] == ["work"]


def test_busybox_is_enough_for_both_ways(busybox: Server, base: Path, tmp_path: Path) -> None:
    files = {"a.txt": b"a" * 300, "big": os.urandom(5_000_000), "d/ends with a space ": b"b", " d": b"c", "empty": b""}
    fill(base, files)
    (base / "link").symlink_to("a.txt")
    machine = Machine(busybox.connect, root=str(tmp_path / "root"))
    upload(machine, JOB, ["."], base, lost_after_s=5)
    assert contents(work(machine)) == {**files, "link": b"a" * 300}
    download(machine, JOB, ["."], tmp_path / "back", lost_after_s=5)
    assert contents(tmp_path / "back") == {**files, "link": b"a" * 300}
    machine.close()


def test_a_cut_link_during_transfers_is_mended(server: Server, base: Path, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(60_000_000)
    fill(base, {"big": data, "small": b"s"})
    with proxy(server.endpoint.host, server.endpoint.port) as between:
        through = server.endpoint.model_copy(update={"port": between.port})
        machine = Machine(
            lambda: connect(through, server.client_key, server.host_key.public), root=str(tmp_path / "root")
        )
        between.cut_after(20_000_000)
        upload(machine, JOB, ["."], base)
        assert (work(machine) / "big").read_bytes() == data
        assert between.connections == 2
        between.cut_after(20_000_000)
        download(machine, JOB, ["."], tmp_path / "back")
        assert between.connections == 3
        machine.close()
    assert contents(tmp_path / "back") == {"big": data, "small": b"s"}
