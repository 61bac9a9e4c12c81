"""The .sh files: every shell that may run them reads them, shellcheck has no remark, and no value is pasted into their text."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from prefect_gpu.providers.core.machine import scripts

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "providers").rglob("*.sh"))


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox"])
def test_every_shell_can_read_them(shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    for path in FILES:
        argv = [program, "sh"] if shell == "busybox" else [program]
        subprocess.run([*argv, "-n", str(path)], check=True)


def test_shellcheck_has_no_remark() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", "-s", "sh", *map(str, FILES)], check=False, capture_output=True, text=True)
    assert done.stdout == ""


def test_each_says_in_its_head_what_it_is() -> None:
    for path in FILES:
        first, second, *_ = path.read_text().splitlines()
        assert first in {"# shellcheck shell=sh", "#!/bin/sh"}, path  # a part, or a program of its own
        assert second.startswith("# "), path
        assert not second.startswith("# shellcheck"), path


def test_they_travel_without_their_comments(tmp_path: Path) -> None:
    (tmp_path / "one.sh").write_text("# why\n  # and how\necho 'a # b' # c\n")
    (tmp_path / "two.sh").write_text("echo 2\n")
    assert scripts.text("one", "two", folder=tmp_path) == "echo 'a # b' # c\necho 2\n"


@pytest.mark.parametrize("value", ["it's $HOME `id`", "", "-n", "a\nb", "\\"])
def test_a_value_arrives_as_it_is(value: str) -> None:
    script = (
        scripts.assigned(one=value, two=3) + scripts.printing("three", value) + 'printf "%s|%s|" "$one" "$two"; three'
    )
    done = subprocess.run(["sh", "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == f"{value}|3|{value}"
