"""Files to a machine and back."""

from __future__ import annotations

import io
import os
import random
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from providers.core import files, listing, pack
from providers.core.aside import Stopped
from providers.core.errors import InstanceFailed, InvalidRequest, LinkLost
from providers.core.files import Brought, download, upload
from providers.core.jobs import Machine
from providers.core.listing import Entry
from providers.core.marked import CutShort, Marked
from providers.core.remote import connect
from tests.fakes.proxy import proxy
from tests.fakes.sshd import Server, asyncssh_server, has_openssh, openssh_server


@pytest.fixture(scope="module", params=["asyncssh", pytest.param("openssh", marks=pytest.mark.openssh)])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "openssh" and not has_openssh():
        pytest.skip("OpenSSH is not installed: apt-get install openssh-server")
    with asyncssh_server() if request.param == "asyncssh" else openssh_server() as running:
        yield running


@pytest.fixture
def machine(server: Server, tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(server.connect, root=str(tmp_path / "root"))
    yield machine
    machine.close()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose only programs are busybox's; its `head` comes late, when all that is sent at once waits for it."""
    program = shutil.which("busybox")
    if program is None:
        pytest.skip("busybox is not installed")
    tools = tmp_path_factory.mktemp("busybox")
    subprocess.run([program, "--install", "-s", str(tools)], check=True)
    (tools / "head").unlink()
    (tools / "head").write_text(f'#!/bin/sh\nsleep 0.1\nexec {program} head "$@"\n')
    (tools / "head").chmod(0o755)
    with asyncssh_server("busybox", env={"PATH": str(tools)}) as running:
        yield running


JOB = "job-1"


def work(machine: Machine) -> Path:
    return Path(machine.root) / JOB / "work"


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


TREE = {
    "a.txt": b"a",
    "empty": b"",
    "deep/er/b.bin": bytes(range(256)) * 100,
    "with space/ü\n'\"$x": b"odd",
    "-dash": b"dash",
    "x" * 200 + "/" + "y" * 200: b"long",
}


@pytest.mark.parametrize("is_checked", [False, True])
def test_a_tree_goes_up_and_comes_down_the_same(machine: Machine, base: Path, tmp_path: Path, is_checked: bool) -> None:
    fill(base, TREE)
    (base / "hollow").mkdir()
    (base / "a.txt").chmod(0o755)
    (base / "link").symlink_to("a.txt")
    sent = upload(machine, JOB, ["."], base, is_checked=is_checked)
    assert sent == (len(TREE) + 2, sum(map(len, TREE.values())))
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


def test_the_ignore_file_keeps_things_out_of_folders_but_not_what_is_named(base: Path) -> None:
    fill(base, dict.fromkeys([".git/config", "a.py", "b.log", "keep.log", "data/c.log", "data/d.csv", "venv/x/y"], b""))
    (base / ".prefectignore").write_text("# comment\n*.log\n!keep.log\n.git/\nvenv\n")
    assert listing.chosen(["."], base) == [".prefectignore", "a.py", "data/d.csv", "keep.log"]
    assert listing.chosen(["data", "b.log"], base) == ["data/d.csv", "b.log"]


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "a/../../b", "~/.ssh", "", "a\0b", ".."])
def test_a_path_that_leaves_the_directory_is_refused_both_ways(machine: Machine, base: Path, path: str) -> None:
    with pytest.raises(InvalidRequest, match="leaves the job's directory"):
        upload(machine, JOB, [path], base)
    with pytest.raises(InvalidRequest, match="leaves the job's directory"):
        download(machine, JOB, [path], base / "back")


def test_a_file_that_does_not_exist_is_refused_by_name(machine: Machine, base: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"'nothing\.txt' is not in"):
        upload(machine, JOB, ["nothing.txt"], base)


def test_a_link_that_leaves_the_directory_is_refused_by_name_and_not_followed_in_a_folder(
    machine: Machine, base: Path, tmp_path: Path
) -> None:
    fill(tmp_path, {"secret/key": b"private"})
    (base / "tree").mkdir()
    (base / "tree/out").symlink_to(tmp_path / "secret")
    (base / "out").symlink_to("../secret")
    with pytest.raises(InvalidRequest, match="'out' is a link that leaves"):
        upload(machine, JOB, ["out"], base)
    with pytest.raises(InvalidRequest, match="'out/key' is a link that leaves"):
        upload(machine, JOB, ["out/key"], base)
    upload(machine, JOB, ["tree"], base)
    assert (work(machine) / "tree/out").is_symlink()  # as a link, with nothing of what it leads to
    assert [path.name for path in work(machine).rglob("*")] == ["tree", "out"]


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


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..", ""], ids=lambda name: name or "empty")
def test_a_hostile_machine_writes_nothing_outside_the_destination(name: str) -> None:
    with pytest.raises(InvalidRequest):
        listing.parse(f"f 4 644 {name}".encode() + b"\0\0")


@pytest.mark.parametrize("listed", [b"f 4 644", b"f  644 a\0\0", b"f 4 9 a\0\0", b"f 4 644 a\0"])
def test_a_listing_that_nobody_understands_is_said(listed: bytes) -> None:
    with pytest.raises(InstanceFailed, match="does not list"):
        listing.parse(listed)


def test_a_name_that_begins_with_a_tilde_is_a_name(machine: Machine, tmp_path: Path) -> None:
    fill(work(machine), {"~lock": b"1", "~/a": b"2", "d/~b": b"3"})
    assert download(machine, JOB, ["."], tmp_path / "back").paths == ("d/~b", "~/a", "~lock")
    assert contents(tmp_path / "back") == {"~lock": b"1", "~/a": b"2", "d/~b": b"3"}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*.pt"], {"a.pt"}),
        (["**/*.pt"], {"a.pt", "d/b.pt", "d/e/c.pt"}),
        (["d"], {"d", "d/b.pt", "d/e", "d/e/c.pt"}),
        (["d/"], {"d", "d/b.pt", "d/e", "d/e/c.pt"}),
        (["d/*.pt"], {"d/b.pt"}),
        (["?.pt", "d/e"], {"a.pt", "d/e", "d/e/c.pt"}),
        (["a[0-9].txt"], {"a1.txt"}),
        (["!odd"], {"!odd"}),
        (["#1"], {"#1"}),
        (["sp ace "], {"sp ace "}),
        (["./a.pt"], {"a.pt"}),
        (["."], None),
    ],
)
def test_patterns_are_shell_like_and_begin_in_the_job_s_directory(
    patterns: list[str], expected: set[str] | None
) -> None:
    names = ["a.pt", "a1.txt", "d", "d/b.pt", "d/e", "d/e/c.pt", "!odd", "#1", "sp ace "]
    entries = [Entry("d" if name in {"d", "d/e"} else "f", 0, 0o644, name, "") for name in names]
    hits, missing = listing.match(entries, patterns)
    assert {entry.name for entry in hits} == (set(names) if expected is None else expected)
    assert missing == ()


def test_a_pattern_that_matches_nothing_is_said_and_no_error(machine: Machine, tmp_path: Path) -> None:
    fill(work(machine), {"a": b""})
    assert download(machine, JOB, ["*.pt", "a"], tmp_path / "back") == Brought(("a",), ("*.pt",), (), {}, "", 0)


def test_outputs_of_a_job_that_never_ran_are_an_error_in_one_sentence(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(InstanceFailed, match="does not list the job's files"):
        download(machine, JOB, ["a"], tmp_path / "back")


def test_a_full_disk_on_the_machine_is_said(server: Server, base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    machine = Machine(server.connect, root=f"{tmp_path}/file")
    fill(base, {"a": b"a", "big": b"x" * 5_000_000})
    for name in ("a", "big"):
        with pytest.raises(InstanceFailed, match=r"did not take the files: .*directory"):
            upload(machine, JOB, [name], base)
    machine.close()


def test_an_unreadable_or_shrinking_file_is_said(machine: Machine, base: Path) -> None:
    fill(base, {"a": b"a" * 5_000_000})

    class Shrinking(type(base)):
        def lstat(self) -> os.stat_result:
            status = list(super().lstat())
            status[6] += 10
            return os.stat_result(status)

    with pytest.raises(InvalidRequest, match="became shorter"):
        upload(machine, JOB, ["a"], Shrinking(base))
    assert not (work(machine) / "a").exists()


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


def test_stop_is_heeded_during_a_transfer(machine: Machine, base: Path) -> None:
    with (base / "huge").open("wb") as huge:
        huge.truncate(20_000_000_000)
    began = time.monotonic()
    with pytest.raises(Stopped, match="cancelled"):
        upload(machine, JOB, ["huge"], base, lambda: "cancelled" if time.monotonic() > began + 0.5 else None)
    assert time.monotonic() - began < 1.0


class Meddling:
    """A connection over which, between the list and the contents, something happens to the files."""

    def __init__(self, inner: object, meddle: Callable[[], object]) -> None:
        self._inner = inner
        self._meddle = meddle
        self._opened = 0

    def open(self, command: str) -> object:
        self._opened += 1
        if self._opened == 2:
            self._meddle()
        return self._inner.open(command)

    def is_alive(self) -> bool:
        return self._inner.is_alive()

    def close(self) -> None:
        self._inner.close()


@pytest.mark.parametrize("is_checked", [False, True])
def test_a_file_that_changes_while_it_comes_down_is_lost_and_shifts_no_other(
    machine: Machine, tmp_path: Path, is_checked: bool
) -> None:
    folder = work(machine)
    names = ["a", "gone", "b", "shrunk", "grown", "c", "empty", "d"]
    fill(folder, {name: name.encode() * 1000 for name in names} | {"empty": b""})

    def meddle() -> None:
        (folder / "gone").unlink()
        (folder / "shrunk").write_bytes(b"shrunk" * 999)
        (folder / "grown").write_bytes(b"grown" * 1000 + b"shrunk")  # as many bytes in all

    back = tmp_path / "back"
    back.mkdir()
    (back / "shrunk").write_bytes(b"what was there before")
    meddled = Machine(lambda: None, Meddling(machine.connection(), meddle), root=machine.root)
    brought = download(meddled, JOB, ["."], back, is_checked=is_checked)
    whole = {name: name.encode() * 1000 for name in "abcd"} | {"empty": b""}
    assert contents(back) == whole | {"shrunk": b"what was there before"}
    assert brought.paths == tuple(sorted(whole))
    assert set(brought.lost) == {"gone", "shrunk", "grown"}
    assert brought.remarks() == ["not brought back: gone, grown, shrunk, which changed while it was brought back"]
    assert [path.name for path in (Path(machine.root) / JOB).iterdir()] == ["work"]


def test_a_file_that_is_half_here_has_no_name_yet(machine: Machine, tmp_path: Path) -> None:
    folder = work(machine)
    folder.mkdir(parents=True)
    with (folder / "huge").open("wb") as huge:
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
    assert brought.remarks() == [
        "not brought back: half, locked, theirs, which may not be read by the user that we log in as"
    ]
    assert download(nobodys, JOB, ["a", "sub/*.pt"], back).lost == {}
    assert set(download(nobodys, JOB, ["**/*.pt"], back).lost) == {"theirs", "half"}
    hidden = download(nobodys, JOB, ["theirs/model.pt", "x/y"], back)
    assert (set(hidden.lost), hidden.missing, hidden.left_out) == ({"theirs"}, ("theirs/model.pt", "x/y"), ())
    for name in ("theirs", "half"):
        (folder / name).chmod(0o755)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 1000])
def test_marks_are_found_wherever_the_stream_is_cut(size: int) -> None:
    stream = io.BytesIO(b"<mark>one<mark><mark><mar<mark>k<<mark>")
    told: list[bytes] = []
    marked = Marked(lambda most: stream.read(min(size, most)), b"<mark>", told.append)
    assert [b"".join(marked.until_mark()) for _ in range(5)] == [b"", b"one", b"", b"<mar", b"k<"]
    assert marked.is_over()
    assert b"".join(told) == stream.getvalue()
    with pytest.raises(CutShort):
        list(marked.until_mark())


class Hanging:
    """A machine whose sshd answers and whose programs never do anything: they take `takes` bytes of their input."""

    def __init__(self, takes: int) -> None:
        self._takes = takes
        self._is_closed = threading.Event()

    def open(self, command: str) -> Hanging:
        return self

    def sendall(self, data: bytes) -> None:
        self._takes -= len(data)
        if self._takes < 0:
            self._is_closed.wait()
            raise LinkLost("the machine takes no more input")

    def shutdown_write(self) -> None: ...

    def recv(self, size: int) -> bytes:
        self._is_closed.wait()
        return b""

    def exit_status(self, timeout_s: float) -> int:
        raise LinkLost("the link to the machine is lost")

    def error_text(self) -> str:
        return ""

    def is_alive(self) -> bool:
        return True

    def close(self) -> None:
        self._is_closed.set()


@pytest.mark.parametrize("takes", [100_000, 1_000_000_000], ids=["in the middle", "after the last byte"])
def test_an_upload_to_a_machine_that_hangs_is_given_up(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes: int
) -> None:
    monkeypatch.setattr(files, "_STEP_S", 0.3)
    fill(base, {"big": b"x" * 5_000_000})
    with pytest.raises(InstanceFailed, match="hangs: no byte of the files moved"):
        upload(Machine(lambda: Hanging(takes), root=str(tmp_path)), JOB, ["big"], base, late(3))


def test_a_download_from_a_machine_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_STEP_S", 0.3)
    with pytest.raises(InstanceFailed, match="hangs: no byte of the files moved"):
        download(Machine(lambda: Hanging(100_000), root=str(tmp_path)), JOB, ["*"], tmp_path / "back", late(3))


def late(seconds: float) -> Callable[[], str | None]:
    end = time.monotonic() + seconds
    return lambda: "still at it" if time.monotonic() > end else None
