"""Files from a machine."""

from __future__ import annotations

import itertools
import os
import random
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefect_gpu.providers.core.aside import Stopped
from prefect_gpu.providers.core.errors import InstanceFailed, InvalidRequest
from prefect_gpu.providers.core.machine import listing, transfer
from prefect_gpu.providers.core.machine.download import Brought, download
from prefect_gpu.providers.core.machine.jobs import Machine
from tests.core.files.folders import JOB, Hanging, contents, fill, late, work


def test_many_files_come_down_whole_while_their_names_are_still_on_the_way(machine: Machine, tmp_path: Path) -> None:
    folder = work(machine)
    folder.mkdir(parents=True)
    data = os.urandom(1_000_000)
    for number in range(30):
        (folder / f"{number:03}").write_bytes(data)
    names = tmp_path / "root" / JOB / "work" / "many"
    names.mkdir()
    for number in range(6000):
        (names / f"{'n' * 120}{number}").touch()
    brought = download(machine, JOB, ["."], tmp_path / "back")
    assert len(brought.paths) == 6030
    assert brought.bytes == 30_000_000
    assert (tmp_path / "back/029").read_bytes() == data


def test_links_on_the_machine_lead_nowhere_outside(machine: Machine, tmp_path: Path) -> None:
    folder = work(machine)
    fill(folder, {"results/model-9.pt": b"weights", "results/d/e/f": b"f"})
    fill(tmp_path, {"outside/secret": b"private"})
    links = {
        "results/latest.pt": "model-9.pt",
        "results/absolute": str(tmp_path / "outside/secret"),
        "results/up": "../../../../outside/secret",
        "results/folder": "../../../../outside",
        "results/inner": "d/e",
        "results/self": ".",
        "results/tricky": "self/../../../x",
        "results/loop": "loop",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    back = tmp_path / "back"
    brought = download(machine, JOB, ["results/", "results/folder/secret"], back)
    assert brought.missing == ("results/folder/secret",)
    assert set(brought.left_out) == {
        "results/absolute",
        "results/up",
        "results/folder",
        "results/tricky",
        "results/loop",
    }
    assert (back / "results/latest.pt").read_bytes() == b"weights"
    assert (back / "results/inner/f").read_bytes() == b"f"
    assert not any(b"private" in data for data in contents(back).values())
    for path in back.rglob("*"):
        assert path.resolve().is_relative_to(back.resolve())


def test_what_nobody_can_copy_is_left_out(machine: Machine, tmp_path: Path) -> None:
    folder = work(machine)
    fill(folder, {"a": b"a"})
    os.mkfifo(folder / "pipe")
    brought = download(machine, JOB, ["."], tmp_path / "back")
    assert (brought.paths, brought.left_out) == (("a",), ("pipe",))


def test_a_link_in_the_destination_leads_nothing_out_of_it(machine: Machine, tmp_path: Path) -> None:
    fill(work(machine), {"d/a": b"a", "f": b"f"})
    back, outside = tmp_path / "back", tmp_path / "outside"
    back.mkdir()
    outside.mkdir()
    (back / "f").symlink_to(outside / "f")
    download(machine, JOB, ["f"], back)
    assert (back / "f").read_bytes() == b"f"
    (back / "d").symlink_to(outside)
    with pytest.raises(InvalidRequest, match="outside"):
        download(machine, JOB, ["d"], back)
    assert list(outside.iterdir()) == []


def test_a_name_that_begins_with_a_tilde_is_a_name(machine: Machine, tmp_path: Path) -> None:
    fill(work(machine), {"~lock": b"1", "~/a": b"2", "d/~b": b"3"})
    assert download(machine, JOB, ["."], tmp_path / "back").paths == ("d/~b", "~/a", "~lock")
    assert contents(tmp_path / "back") == {"~lock": b"1", "~/a": b"2", "d/~b": b"3"}


def test_a_pattern_that_matches_nothing_is_said_and_no_error(machine: Machine, tmp_path: Path) -> None:
    fill(work(machine), {"a": b""})
    assert download(machine, JOB, ["*.pt", "a"], tmp_path / "back") == Brought(("a",), ("*.pt",), (), {}, "", 0, 0)


def test_outputs_of_a_job_that_never_ran_are_an_error_in_one_sentence(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(InstanceFailed, match="does not list the job's files"):
        download(machine, JOB, ["a"], tmp_path / "back")


class Meddling:
    """A connection over which, between the list and the contents, something happens to the files."""

    def __init__(self, inner: object, meddle: Callable[[], object], always: bool = False) -> None:
        self._inner = inner
        self._meddle = meddle
        self._always = always
        self._opened = 0

    def open(self, command: str) -> object:
        self._opened += 1
        if self._opened == 2 or self._always:
            self._meddle()
        return self._inner.open(command)

    def is_alive(self) -> bool:
        return self._inner.is_alive()

    def close(self) -> None:
        self._inner.close()


@pytest.mark.parametrize("is_checked", [False, True])
def test_a_file_that_changes_while_it_comes_down_comes_again_and_shifts_no_other(
    machine: Machine, tmp_path: Path, is_checked: bool
) -> None:
    folder = work(machine)
    names = ["a", "gone", "b", "shrunk", "grown", "c", "empty", "d"]
    fill(folder, {name: name.encode() * 1000 for name in names} | {"empty": b""})
    now = {"shrunk": b"shrunk" * 999, "grown": b"grown" * 1000 + b"shrunk"}  # as many bytes in all

    def meddle() -> None:
        (folder / "gone").unlink()
        fill(folder, now)

    back = tmp_path / "back"
    meddled = Machine(lambda: None, Meddling(machine.connection(), meddle), root=machine.root)
    brought = download(meddled, JOB, ["."], back, is_checked=is_checked)
    whole = {name: name.encode() * 1000 for name in "abcd"} | {"empty": b""} | now
    assert contents(back) == whole
    assert brought.paths == tuple(sorted(whole))
    assert brought.losses() == ["not brought back: gone, which changed while it was brought back"]
    assert [path.name for path in (Path(machine.root) / JOB).iterdir()] == ["work"]


def test_a_file_that_never_holds_still_is_lost_and_replaces_nothing(machine: Machine, tmp_path: Path) -> None:
    folder, back = work(machine), tmp_path / "back"
    sizes = itertools.count(1)
    fill(folder, {"a": b"a", "log": b""})
    fill(back, {"log": b"what was there before"})
    meddled = Machine(
        lambda: None, Meddling(machine.connection(), lambda: os.truncate(folder / "log", next(sizes)), always=True),
        root=machine.root,
    )  # fmt: skip
    brought = download(meddled, JOB, ["."], back)
    assert contents(back) == {"a": b"a", "log": b"what was there before"}
    assert brought.losses() == ["not brought back: log, which changed while it was brought back"]


def test_rights_come_back_as_they_were_and_nothing_more(machine: Machine, tmp_path: Path) -> None:
    folder, back = work(machine), tmp_path / "back"
    fill(folder, {"key": b"k", "script": b"s", "open": b"o", "suid": b"u", "closed/a": b"a", "read only": b"r"})
    for name, mode in {"key": 0o600, "script": 0o755, "open": 0o666, "suid": 0o4755, "read only": 0o400}.items():
        (folder / name).chmod(mode)
    (folder / "closed").chmod(0o700)
    download(machine, JOB, ["."], back)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in back.iterdir()}
    mask = os.umask(0o022)
    os.umask(mask)
    assert modes == {
        "key": 0o600, "script": 0o755 & ~mask, "open": 0o666 & ~mask, "suid": 0o755 & ~mask, "closed": 0o700,
        "read only": 0o400,
    }  # fmt: skip


def test_odd_names_come_back_and_can_be_printed(machine: Machine, tmp_path: Path) -> None:
    folder, back = work(machine), tmp_path / "back"
    names = [b"caf\xe9.pt", b"two\nlines.pt", b"pi|pe.pt", b"\x1b[2J.pt", "ü.pt".encode()]
    folder.mkdir(parents=True)
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(name)
    brought = download(machine, JOB, ["*.pt"], back)
    assert sorted(os.fsencode(path) for path in brought.paths) == sorted(names)
    assert {os.fsencode(path.name): path.read_bytes() for path in back.iterdir()} == {name: name for name in names}
    assert {listing.printable(path) for path in brought.paths} == {
        r"caf\xe9.pt", r"two\nlines.pt", "pi|pe.pt", r"\x1b[2J.pt", "ü.pt",
    }  # fmt: skip


def test_a_hole_stays_a_hole(machine: Machine, tmp_path: Path) -> None:
    folder, back = work(machine), tmp_path / "back"
    folder.mkdir(parents=True)
    with (folder / "sparse").open("wb") as sparse:
        sparse.write(b"begin")
        sparse.truncate(50_000_000)
    download(machine, JOB, ["sparse"], back, is_checked=True)
    assert (back / "sparse").read_bytes() == b"begin" + bytes(50_000_000 - 5)
    assert (back / "sparse").stat().st_blocks * 512 < 5_000_000


def test_a_reserve_of_the_disk_stays_free(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(work(machine), {"big": random.Random(1).randbytes(5_000_000)})
    monkeypatch.setattr("prefect_gpu.providers.core.machine.download._ROOM_EVERY", 1_000_000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=10**12, free=999_999_999))
    with pytest.raises(OSError, match=r"only 1\.0 GB of its disk are free"):
        download(machine, JOB, ["big"], tmp_path / "back")
    assert list((tmp_path / "back").iterdir()) == []


def test_progress_is_told_with_rate_and_time_left(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(work(machine), {name: bytes(range(256)) * 8_000 for name in "abc"})
    monkeypatch.setattr(transfer, "PROGRESS_S", 0.0)
    told: list[transfer.Progress] = []
    download(machine, JOB, ["."], tmp_path / "back", on_progress=told.append)
    assert (told[-1].done, told[-1].total, told[-1].left_s) == (6_144_000, 6_144_000, 0.0)
    assert [one.done for one in told] == sorted(one.done for one in told)
    assert str(transfer.Progress(640_000_000, 1_500_000_000, 10)) == "640 MB of 1.5 GB, 64 MB/s, 13 s left"


def test_a_file_that_is_half_here_has_no_name_yet(machine: Machine, tmp_path: Path) -> None:
    folder = work(machine)
    folder.mkdir(parents=True)
    with (folder / "huge").open("wb") as huge:
        huge.write(b"x" * 1_000_000)
        huge.truncate(20_000_000_000)
    back = tmp_path / "back"
    named: set[str] = set()

    def stop() -> str | None:
        drafts = [path for path in back.glob(".prefect-gpu-*/*") if path.stat().st_size]
        named.update(path.name for path in back.glob("[!.]*"))
        return "cancelled" if drafts else None

    with pytest.raises(Stopped, match="cancelled"):
        download(machine, JOB, ["huge"], back, stop)
    assert named == set()
    assert list(back.iterdir()) == []


class Nobody:
    """A connection as a user who owns nothing, to a machine with these programs only."""

    def __init__(self, inner: object, path: str) -> None:
        self._inner = inner
        self._path = path

    def open(self, command: str) -> object:
        as_nobody = "/usr/bin/setpriv --reuid=65534 --regid=65534 --clear-groups" if os.getuid() == 0 else ""
        return self._inner.open(f"PATH={self._path}; export PATH; exec {as_nobody} sh -c {shlex.quote(command)}")

    def is_alive(self) -> bool:
        return self._inner.is_alive()

    def close(self) -> None:
        self._inner.close()


@pytest.fixture(params=["gnu", "busybox"])
def nobodys(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine that knows us as a user who does not own all that is there."""
    with tempfile.TemporaryDirectory(prefix="nobody-") as folder:  # pytest's own folders are root's alone
        path = os.environ["PATH"]
        if request.param == "busybox":
            program = shutil.which("busybox")
            if program is None:
                pytest.skip("busybox is not installed")
            path = f"{folder}/bin"
            Path(path).mkdir()
            subprocess.run([program, "--install", "-s", path], check=True)
        Path(folder).chmod(0o755)
        (Path(folder) / JOB).mkdir()
        (Path(folder) / JOB).chmod(0o777)
        yield Machine(lambda: None, Nobody(machine.connection(), path), root=folder)


def test_what_may_not_be_read_is_named_and_all_else_comes_whole(nobodys: Machine, tmp_path: Path) -> None:
    folder = work(nobodys)
    fill(folder, {"a": b"a" * 10, "locked": b"l" * 10, "sub/z": b"z" * 10, "theirs/model.pt": b"m", "half/x": b"x"})
    (folder / "link").symlink_to("locked")
    (folder / "locked").chmod(0)
    (folder / "theirs").chmod(0)
    (folder / "half").chmod(0o444)
    back = tmp_path / "back"
    brought = download(nobodys, JOB, ["."], back)
    assert brought.paths == ("a", "link", "sub/z")
    assert {path.name: path.read_bytes() for path in back.rglob("[az]")} == {"a": b"a" * 10, "z": b"z" * 10}
    assert set(brought.lost) == {"locked", "theirs", "half"}
    assert brought.losses() == [
        "not brought back: half, locked, theirs, which may not be read by the user that we log in as"
    ]
    assert download(nobodys, JOB, ["a", "sub/*.pt"], back).lost == {}
    assert set(download(nobodys, JOB, ["**/*.pt"], back).lost) == {"theirs", "half"}
    hidden = download(nobodys, JOB, ["theirs/model.pt", "x/y"], back)
    assert (set(hidden.lost), hidden.missing, hidden.left_out) == ({"theirs"}, ("theirs/model.pt", "x/y"), ())
    for name in ("theirs", "half"):
        (folder / name).chmod(0o755)


def test_a_download_from_a_machine_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "STEP_S", 0.3)
    with pytest.raises(InstanceFailed, match="hangs: no byte of the files moved"):
        download(Machine(lambda: Hanging(100_000), root=str(tmp_path)), JOB, ["*"], tmp_path / "back", late(3))
