"""The code that a command names goes along by itself, or its absence is told before anything is bought."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from prefect_gpu.flows.terminal import along
from prefect_gpu.flows.terminal.messages import Wrong


@pytest.mark.parametrize(
    ("command", "scripts"),
    [
        ("python train.py --data x.py", ["train.py"]),
        (["python3.12", "src/train.py"], ["src/train.py"]),
        ("bash ./run.sh", ["./run.sh"]),
        ("./run.sh fast", ["./run.sh"]),
        ("train.sh", ["train.sh"]),
        ("python -m train", []),
        ("python /opt/train.py", []),
        ("wget -q https://x/train.py && python train.py", []),
        ("python $HOME/train.py", []),
        ('python3 -c "print(6*7)"', []),
        ("nvidia-smi", []),
        ("echo 'not closed", []),
        ([], []),
    ],
)
def test_which_scripts_a_command_names(command: str | list[str], scripts: list[str]) -> None:
    assert along.named(command) == scripts


def of(folder: Path, command: str = "python train.py", **job: Any) -> along.Along:
    return along.of({"command": command, **({"job": job} if job else {})}, folder)


def test_a_script_that_is_nowhere_is_told_before_anything_is_bought(tmp_path: Path) -> None:
    with pytest.raises(
        Wrong, match=rf"^train\.py is not in {tmp_path}, so the job would not find it: .* --code https://"
    ):
        of(tmp_path)


@pytest.mark.parametrize(
    "job", [{"code": "https://x/y"}, {"image": "x"}, {"working_directory": "src"}, {"files": ["train.py"]}]
)
def test_where_something_else_may_bring_it_nothing_is_said(tmp_path: Path, job: dict[str, Any]) -> None:
    assert of(tmp_path, **job).files == []


def test_outside_of_git_the_script_goes_alone(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    (tmp_path / "thesis.pdf").touch()
    assert of(tmp_path) == (["train.py"], "train.py goes along; --files . takes all of this folder")
    assert of(tmp_path, files=["data"]).files == [], "who names files names all of them"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for name in ("train.py", "model.py", "secret.bin"):
        (tmp_path / name).write_text("12345")
    (tmp_path / ".gitignore").write_text("secret.bin\n")
    return tmp_path


def test_in_a_repository_goes_what_git_would_commit(repository: Path) -> None:
    going = of(repository)
    assert going.files == ["."]
    assert going.said == "What git would commit of this folder goes along: 3 files, 21 bytes; --files names others"


def test_more_than_code_is_not_taken_without_a_word(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(along, "MOST_BYTES", 20)
    assert of(repository).files == ["train.py"]


def test_a_link_that_leads_nowhere_breaks_nothing(repository: Path) -> None:
    (repository / "gone").symlink_to("/nowhere")
    assert of(repository).files == ["."]
