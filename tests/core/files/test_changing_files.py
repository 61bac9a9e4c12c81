"""Files that change while they are sent go as tar, rsync and git take them: the machine stands by then, and the job waits for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.machine import pack, transfer
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.upload import Sent, upload
from tests.core.files.folders import JOB, contents, fill, work
from tests.fakes.sshd import Server

FIRST = 3_000_000  # more than what a packer reads ahead of what was taken from it
BIG = 6_000_000  # goes by itself, without a packer


@pytest.fixture(params=["tar", "python"])
def _packer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(pack.shutil, "which", lambda name: None)


def sent_while(machine: Machine, base: Path, change: Callable[[], object], *, each_time: bool = False) -> Sent:
    """Upload all of the folder; the change comes when the first bytes are on their way, and once unless `each_time`."""
    changed = list[int]()

    def on_progress(progress: transfer.Progress) -> None:
        if not changed or (each_time and progress.done < changed[-1]):
            change()
        changed.append(progress.done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "PROGRESS_S", 0.0)
        sent = upload(machine, JOB, ["."], base, is_checked=True, on_progress=on_progress)
    assert changed
    return sent


@pytest.mark.usefixtures("_packer")
def test_small_files_that_change_before_their_turn_go_as_they_are_then(machine: Machine, base: Path) -> None:
    fill(base, {"a": b"a" * FIRST, "grows": b"g", "shrinks": b"s" * 1000, "vanishes": b"v", "z": b"z"})

    def change() -> None:
        fill(base, {"grows": b"g" * 5000, "shrinks": b"s"})
        (base / "vanishes").unlink()

    sent_while(machine, base, change)
    assert contents(work(machine)) == {"a": b"a" * FIRST, "grows": b"g" * 5000, "shrinks": b"s", "z": b"z"}


@pytest.mark.usefixtures("_packer")
def test_a_small_file_that_grows_while_it_is_read_goes_as_long_as_it_was(machine: Machine, base: Path) -> None:
    fill(base, {"a": b"a" * FIRST, "z": b"z"})

    def change() -> None:
        with (base / "a").open("ab") as growing:
            growing.write(b"more" * 1000)

    sent_while(machine, base, change)
    assert contents(work(machine)) == {"a": b"a" * FIRST, "z": b"z"}


@pytest.mark.usefixtures("_packer")
def test_a_small_file_that_shrinks_while_it_is_read_takes_no_other_with_it(machine: Machine, base: Path) -> None:
    fill(base, {"a": b"a" * FIRST, "z": b"z"})
    sent_while(machine, base, lambda: fill(base, {"a": b"a"}))
    there = contents(work(machine))
    assert there["z"] == b"z"
    assert there["a"].rstrip(b"\0").strip(b"a") == b""  # what was read of it, and zeros up to its length


def test_a_big_file_that_grows_goes_as_long_as_it_was(machine: Machine, base: Path) -> None:
    fill(base, {"big": b"b" * BIG, "bigger": b"c" * BIG})

    def change() -> None:
        for name in ("big", "bigger"):
            with (base / name).open("ab") as growing:
                growing.write(b"+")

    sent_while(machine, base, change)
    there = contents(work(machine))
    assert there["big"] == b"b" * BIG
    assert there["bigger"] == b"c" * BIG + b"+"  # its turn came after it grew


def test_a_big_file_that_becomes_shorter_is_sent_again_as_it_is(machine: Machine, base: Path) -> None:
    fill(base, {"big": b"b" * BIG})
    sent_while(machine, base, lambda: fill(base, {"big": b"short"}))
    assert contents(work(machine)) == {"big": b"short"}


def test_a_big_file_that_is_gone_when_its_turn_comes_is_left_out(machine: Machine, base: Path) -> None:
    fill(base, {"a-first": b"a" * BIG, "big": b"b" * BIG})
    sent_while(machine, base, (base / "big").unlink)
    assert contents(work(machine)) == {"a-first": b"a" * BIG}


def test_a_big_file_that_becomes_shorter_each_time_is_refused_by_name(machine: Machine, base: Path) -> None:
    fill(base, {"big": b"b" * BIG})
    sizes = iter((BIG - 1, BIG - 2, BIG - 3, BIG - 4))

    def shorter() -> None:
        with (base / "big").open("r+b") as file:
            file.truncate(next(sizes))

    with pytest.raises(InvalidRequest, match=r"big becomes shorter each time it is sent: 3 times"):
        sent_while(machine, base, shorter, each_time=True)


def test_files_that_change_are_unpacked_by_busybox_too(busybox: Server, base: Path, tmp_path: Path) -> None:
    machine = Machine(busybox.connect, root=str(tmp_path / "root"))
    fill(base, {"a": b"a" * FIRST, "b": b"b" * 1000, "gone": b"", "z": b"z"})

    def change() -> None:
        fill(base, {"a": b"a", "b": b"b"})
        (base / "gone").unlink()

    sent_while(machine, base, change)
    there = contents(work(machine))
    assert (there["b"], there["z"]) == (b"b", b"z")
    assert "gone" not in there
    machine.close()
