"""What an upload takes along, and what never goes."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from prefect_gpu.providers.core import private
from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.machine import selection
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.selection import LeftOut
from prefect_gpu.providers.core.machine.upload import upload
from tests.core.files.folders import JOB, fill, work

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
    subprocess.run(command, cwd=folder, env=env | {"GIT_CONFIG_GLOBAL": "/dev/null"}, check=True, capture_output=True)


@needs_git
def test_a_folder_goes_as_git_would_commit_it(base: Path) -> None:
    git(base, "init", "-q")
    fill(base, {".gitignore": b"data/\n*.log\n", "tracked.log": b"t", "src/a.py": b"a", "gone": b""})
    git(base, "add", "-f", ".")
    (base / "gone").unlink()
    fill(base, {"new.py": b"n", "x.log": b"12345", "data/d.csv": b"d" * 2000, ".env": b"SECRET=1", ".venv/lib": b"v"})
    (base / "link").symlink_to("src")
    os.mkfifo(base / "pipe")
    chosen = selection.chosen(["."], base)
    assert chosen.names == [".gitignore", "link", "new.py", "src/a.py", "tracked.log"]
    left_out = {one.name: one.bytes for one in chosen.left_out}
    assert left_out.pop(".git") > 0
    assert left_out == {".env": 8, ".venv": 1, "data": 2000, "pipe": 0, "x.log": 5}
    assert selection.chosen(["src"], base) == (["src/a.py"], ())
    # What is named itself goes, ignored or not.
    assert selection.chosen(["data", "x.log", ".env"], base).names == ["data/d.csv", "x.log", ".env"]


@needs_git
def test_a_repository_in_the_repository_goes_by_its_own_rules(base: Path) -> None:
    for folder in (base, base / "inner"):
        folder.mkdir(exist_ok=True)
        git(folder, "init", "-q")
        fill(folder, {".gitignore": b"*.log", "a.py": b"", "a.log": b""})
    git(base / "inner", "add", ".")
    git(base / "inner", "commit", "-qm", "x")
    assert selection.chosen(["."], base).names == [".gitignore", "a.py", "inner/.gitignore", "inner/a.py"]
    git(base, "-c", "advice.addEmbeddedRepo=false", "add", ".")
    assert selection.chosen(["."], base).names == [".gitignore", "a.py", "inner/.gitignore", "inner/a.py"]


@needs_git
def test_a_git_directory_in_the_environment_is_not_asked(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    fill(other, {"theirs": b""})
    git(other, "init", "-q")
    git(other, "add", ".")
    git(base, "init", "-q")
    fill(base, {"ours": b""})
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git/index"))
    assert selection.chosen(["."], base).names == ["ours"]


@needs_git
def test_a_folder_that_an_outer_repository_ignores_goes_without_the_defaults(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    fill(tmp_path, {".gitignore": b"*", "project/a.py": b"", "project/.env": b"", "project/.git-is-not": b""})
    assert selection.chosen(["."], tmp_path / "project").names == [".git-is-not", "a.py"]


def test_without_git_everything_goes_but_the_defaults(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection.git_program, "is_there", lambda: False)
    sent = ["a.py", "data/x.csv", "models/env.py"]
    kept_back = [
        ".env",
        ".env.prod",
        ".git/config",
        ".venv/x",
        "p/__pycache__/a.pyc",
        "node_modules/x",
        ".prefect-gpu/prefect.db",
    ]
    fill(base, dict.fromkeys([*sent, *kept_back], b"12"))
    assert selection.chosen(["."], base).names == sent
    (base / ".prefectignore").write_text("models\n!.env\n")
    assert selection.chosen(["."], base).names == [".env", ".prefectignore", "a.py", "data/x.csv"]


@pytest.mark.parametrize("with_git", [False, pytest.param(True, marks=needs_git)])
def test_a_private_place_never_goes_whatever_it_is_called(tmp_path: Path, base: Path, with_git: bool) -> None:
    home = base / "data" / "my results"
    fill(base, {"a.py": b"", "data/my results/prefect.db": b"all credentials", "data/x": b""})
    if with_git:
        git(base, "init", "-q")
        git(base, "add", ".")  # even if somebody committed it
    (base / "way").symlink_to("data/my results")
    assert selection.chosen([".", "data"], base, [home]).names == ["a.py", "data/x", "way"]  # the link as a link
    assert selection.chosen(["*", "data/*"], base, [home]).names == ["a.py", "data/x", "way"]
    for named in ("data/my results", "data/my results/prefect.db", "way", "way/prefect.db"):
        with pytest.raises(InvalidRequest, match="is never uploaded"):
            selection.chosen([named], base, [home])
    # A single file: the server's database somewhere else.
    assert selection.chosen(["data"], base, [home / "prefect.db"]).names == ["data/x"]
    (home / "deeper").mkdir()
    with pytest.raises(InvalidRequest, match="is never uploaded"):
        selection.chosen(["."], home / "deeper", [home])


@pytest.mark.parametrize("with_git", [False, pytest.param(True, marks=needs_git)])
@pytest.mark.parametrize("pattern", ["*", "**/*", "d*"])
def test_no_pattern_brings_anything_along_from_within_a_private_place(
    tmp_path: Path, with_git: bool, pattern: str
) -> None:
    inside = tmp_path / "home" / "storage"
    fill(inside, {"db": b"all credentials"})
    if with_git:
        git(inside, "init", "-q")
    with pytest.raises(InvalidRequest, match=r"is or lies in .*/home, .* is never uploaded") as refused:
        selection.chosen([pattern], inside, [tmp_path / "home"])
    assert repr(pattern) in str(refused.value)


def test_a_private_file_is_known_by_its_second_name_too(tmp_path: Path, base: Path) -> None:
    home = tmp_path / "home"
    fill(home, {"deep/key": b"k", "mine": b"m"})
    fill(base, {"a.py": b"", "dotfiles/credentials": b"c"})
    os.link(home / "deep/key", base / "harmless.txt")
    (home / "credentials").symlink_to(base / "dotfiles/credentials")
    (home / "work").symlink_to(base)  # a folder that is linked there is not private by it
    assert selection.chosen([".", "*"], base, [home]).names == ["a.py"]
    for named in ("harmless.txt", "dotfiles/credentials"):
        with pytest.raises(InvalidRequest, match="is never uploaded"):
            selection.chosen([named], base, [home])


def test_what_the_environment_names_as_keys_is_private(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(base, dict.fromkeys(["a.py", "key.json", "kube/one", "kube/two", "aws/credentials"], b""))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(base / "key.json"))
    monkeypatch.setenv("KUBECONFIG", f"{base}/kube/one:{base}/kube/two:{base}/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(base / "aws/credentials"))
    assert selection.chosen(["*.*", "kube", "aws"], base).names == ["a.py"]


@pytest.mark.parametrize(("variable", "place"), [("PREFECT_HOME", ".prefect"), ("XDG_STATE_HOME", ".local/state/prefect-gpu"), (private.VARIABLE, ".local/state/prefect-gpu")])  # fmt: skip
def test_a_home_elsewhere_leaves_the_usual_one_private(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, place: str
) -> None:
    monkeypatch.setenv("HOME", str(base))
    monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    fill(base, {"a.py": b"", f"{place}/prefect.db": b"all credentials"})
    with pytest.raises(InvalidRequest, match="is never uploaded"):
        selection.chosen([f"{place}/prefect.db"], base)


@needs_git
@pytest.mark.parametrize("fault", ["owner", "index", "config"])
def test_a_repository_that_git_does_not_read_goes_nowhere(
    base: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Everything but the defaults went, with what its .gitignore keeps in: a checkout of another user's in a container, for example."""
    git(base, "init", "-q")
    fill(base, {".gitignore": b"key.json", "key.json": b"secret", "a.py": b""})
    if fault == "owner":
        kept = selection.git_program.environment
        monkeypatch.setattr(
            selection.git_program, "environment", lambda: kept() | {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}
        )
    else:
        (base / ".git" / fault).write_bytes(b"nonsense\0[")
    with pytest.raises(InvalidRequest, match=r"git does not tell what of .*base may go: fatal: "):
        selection.chosen(["."], base)
    assert selection.chosen(["a.py"], base).names == ["a.py"]


@needs_git
def test_a_tracked_folder_that_became_a_link_goes_as_a_link(base: Path, tmp_path: Path) -> None:
    fill(base, {"data/a.txt": b"mine", "m.py": b""})
    fill(tmp_path / "outside", {"a.txt": b"private"})
    git(base, "init", "-q")
    git(base, "add", ".")
    shutil.rmtree(base / "data")
    (base / "data").symlink_to(tmp_path / "outside")
    assert selection.chosen(["."], base).names == ["data", "m.py"]
    # One that leads to a folder beside it and is a part of what was named is followed, as it was.
    fill(base, {"real/sub/b.py": b""})
    (base / "way").symlink_to("real")
    assert selection.chosen(["way/sub"], base).names == ["way/sub/b.py"]


def test_the_server_s_home_and_the_user_s_keys_are_private_by_themselves(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(base))
    monkeypatch.setenv(private.VARIABLE, str(base / "state"))
    monkeypatch.setenv("PREFECT_HOME", str(base / "prefect"))
    names = ["state/db", "prefect/db", ".ssh/id", ".aws/credentials", ".kube/config", ".netrc", ".config/gcloud/x"]
    fill(base, dict.fromkeys([*names, "a.py"], b""))
    assert [name for name in selection.chosen(["."], base).names if name != ".config"] == ["a.py"]
    for name in names:
        with pytest.raises(InvalidRequest, match="is never uploaded"):
            selection.chosen([name], base)


def test_lists_with_spaces_and_patterns(base: Path) -> None:
    fill(base, dict.fromkeys(["my file.txt", "a.md", "b.md", "docs/c.md", ".d.md", "odd[1].txt"], b""))
    assert selection.chosen(["my file.txt", "*.md"], base).names == ["my file.txt", "a.md", "b.md"]
    assert selection.chosen(["**/*.md"], base).names == ["a.md", "b.md", "docs/c.md"]
    assert selection.chosen(["odd[1].txt", "do*", ".*.md"], base).names == ["odd[1].txt", "docs/c.md", ".d.md"]
    with pytest.raises(InvalidRequest, match=r"nothing in .* matches '\*\.csv'"):
        selection.chosen(["*.csv"], base)


@pytest.mark.parametrize("path", ["..", "../checkout", "/etc/passwd", "a/../../b", "~/.ssh", "", "a\0b"])
def test_a_path_that_leads_out_is_refused_with_what_to_write(base: Path, path: str) -> None:
    with pytest.raises(InvalidRequest, match=r"leads out of .*/base, .* for example train\.py, data/ or \*\.csv"):
        selection.chosen([path], base)


def test_what_was_left_out_is_one_line_with_sizes() -> None:
    left_out = [LeftOut(f"x{n}", n) for n in range(6)] + [
        LeftOut(".venv", 340_000_000),
        LeftOut("big", 2 * 10**9, is_measured=False),
    ]
    assert (
        selection.remark(left_out) == "big (over 2.0 GB), .venv (340 MB), x5 (5 bytes), x4 (4 bytes), 4 more (6 bytes)"
    )


def test_a_folder_deeper_than_python_s_stack_goes() -> None:
    deep = "/".join(["d"] * 1200)
    folder = tempfile.mkdtemp()  # pytest's own cannot be cleared away by Python
    try:
        subprocess.run(["mkdir", "-p", deep], cwd=folder, check=True)
        assert selection.chosen(["d"], Path(folder)).names == [deep]
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)


def test_the_ignore_file_keeps_things_out_of_folders_but_not_what_is_named(base: Path) -> None:
    fill(base, dict.fromkeys([".git/config", "a.py", "b.log", "keep.log", "data/c.log", "data/d.csv", "venv/x/y"], b""))
    (base / ".prefectignore").write_text("# comment\n*.log\n!keep.log\n.git/\nvenv\n")
    assert selection.chosen(["."], base).names == [".prefectignore", "a.py", "data/d.csv", "keep.log"]
    assert selection.chosen(["data", "b.log"], base).names == ["data/d.csv", "b.log"]


def test_a_file_that_does_not_exist_is_refused_by_name(machine: Machine, base: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"there is no 'nothing\.txt' in"):
        upload(machine, JOB, ["nothing.txt"], base)


def test_a_link_that_leaves_the_directory_is_refused_by_name_and_not_followed_in_a_folder(
    machine: Machine, base: Path, tmp_path: Path
) -> None:
    fill(tmp_path, {"secret/key": b"private"})
    (base / "tree").mkdir()
    (base / "tree/out").symlink_to(tmp_path / "secret")
    (base / "out").symlink_to("../secret")
    with pytest.raises(InvalidRequest, match="'out' is a link that leads out of"):
        upload(machine, JOB, ["out"], base)
    with pytest.raises(InvalidRequest, match="'out/key' is a link that leads out of"):
        upload(machine, JOB, ["out/key"], base)
    upload(machine, JOB, ["tree"], base)
    assert (work(machine) / "tree/out").is_symlink()  # as a link, with nothing of what it leads to
    assert [path.name for path in work(machine).rglob("*")] == ["tree", "out"]
