"""The script that feeds a pod's commands, under every shell that is here: counted chunks in, exact bytes out."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect_gpu.providers.kubernetes.connection import EXEC, FEED

MARK = b"0123456789abcdef"
SHELLS = [shell for shell in (["dash"], ["bash"], ["busybox", "sh"]) if shutil.which(shell[0])]


@pytest.fixture(params=SHELLS, ids=lambda shell: shell[0])
def shell(request: pytest.FixtureRequest) -> list[str]:
    return request.param


@pytest.fixture(autouse=True)
def _only_its_tools(
    shell: list[str], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sh` is this shell; with busybox, all other commands are busybox's too."""
    folder = tmp_path_factory.mktemp("bin")
    tools = ("sh", "dd", "cat", "sleep", "head", "tr", "wc") if shell[0] == "busybox" else ("sh",)
    for tool in tools:
        (folder / tool).symlink_to(str(shutil.which(shell[0])))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def start(command: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        ["sh", "-c", EXEC, "sh", FEED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin
    process.stdin.write(b"%d %s\n" % (len(command), MARK) + command.encode())
    process.stdin.flush()
    return process


def chunks(data: bytes, size: int) -> bytes:
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%d\n" % len(part) + part for part in parts) + b"0\n"


@pytest.mark.parametrize(("amount", "size"), [(0, 1), (1, 1), (5000, 7), (300_000, 65536), (3_000_000, 1 << 20)])
def test_stdin_arrives_exactly_and_ends(amount: int, size: int) -> None:
    data = os.urandom(amount)
    process = start("cat")
    assert process.communicate(chunks(data, size), timeout=30) == (data, MARK)
    assert process.returncode == 0


def test_stdin_that_looks_like_counts_is_data() -> None:
    process = start("cat")
    assert process.communicate(chunks(b"0\n5\nabc\n0\n", 3), timeout=10)[0] == b"0\n5\nabc\n0\n"


def test_exit_status_and_stderr_are_the_commands_own() -> None:
    process = start("echo out; echo err >&2; exit 9")
    assert process.communicate(b"0\n", timeout=10) == (b"out\n", b"err\n" + MARK)
    assert process.returncode == 9


def test_a_command_that_ends_without_its_stdin_says_so_and_the_rest_is_swallowed() -> None:
    process = start("head -c 3; exit 4")
    assert process.stdin
    process.stdin.write(chunks(b"abc" + bytes(3_000_000), 1 << 20)[:-2])
    process.stdin.flush()
    assert process.stderr
    assert process.stderr.read(len(MARK)) == MARK
    assert process.poll() is None, "it ended with bytes unread: the link would be reset"
    assert process.communicate(b"0\n", timeout=10) == (b"abc", b"")
    assert process.returncode == 4


@pytest.mark.parametrize(
    ("has", "lacks"),
    [({"cat"}, b"dd"), ({"dd"}, b"cat"), (set(), b"dd and cat"), ({"cat", "old dd"}, b"dd with iflag=fullblock")],
)
@pytest.mark.parametrize("command", ["touch ran\nexit 0\n", "touch ran\n: 10"])
def test_a_tool_that_the_image_lacks_is_named_and_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: list[str], has: set[str], lacks: bytes, command: str
) -> None:
    image = tmp_path / "bin"
    image.mkdir()
    for tool in {"sh", *has}:
        (image / tool.removeprefix("old ")).symlink_to(
            str(shutil.which(shell[0] if tool == "sh" else tool.split()[-1]))
        )
    if "old dd" in has:
        (image / "dd").unlink()
        (image / "dd").write_text(f"#!{shutil.which('dash')}\necho unknown operand >&2; exit 1\n")
        (image / "dd").chmod(0o755)
    monkeypatch.setenv("PATH", str(image))
    monkeypatch.chdir(tmp_path)
    process = start(command)
    assert process.stderr
    said = 2 * MARK + lacks
    assert process.stderr.read(len(said)) == said
    assert process.poll() is None, "it ended with bytes unread: the link would be reset"
    assert process.communicate(b"0\n", timeout=10) == (b"", b"")
    assert process.returncode == 255
    assert not (tmp_path / "ran").exists()


def test_a_link_that_breaks_hangs_up_on_the_command() -> None:
    process = start("exec sleep 60")
    time.sleep(0.3)
    assert process.stdin
    process.stdin.close()
    began = time.monotonic()
    assert process.wait(timeout=10) == -signal.SIGHUP
    assert time.monotonic() - began < 5
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    process.stderr.close()


def test_what_a_command_put_into_a_session_of_its_own_outlives_the_link() -> None:
    process = start("setsid sh -c 'sleep 1; echo $$ >&3' 3>&1 >/dev/null 2>&1 & exec sleep 60")
    time.sleep(0.3)
    assert process.stdin
    process.stdin.close()
    assert process.stdout
    assert process.stdout.read().strip().isdigit()
    process.wait(timeout=10)
    process.stdout.close()
    assert process.stderr
    process.stderr.close()
