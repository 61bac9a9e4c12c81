"""Code from git, cloned here and uploaded."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

from providers.core import git
from providers.core.errors import InvalidRequest
from providers.core.git import Source, clone, parse
from providers.core.jobs import Machine
from tests.fakes.git_server import git_server
from tests.fakes.sshd import asyncssh_server

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("git") / "re@po"
    folder.mkdir()
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}

    def run(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", *identity, *arguments], cwd=folder, env=env, check=True, capture_output=True)

    run("init")
    for version in ("one", "two", "three"):
        (folder / "version").write_text(version)
        run("add", ".")
        run("commit", "-m", version)
        if version == "one":
            run("tag", "v1")
        if version == "two":
            run("branch", "feature/two")
    return folder


def git_in(folder: Path, *arguments: str) -> None:
    options = ["user.name=t", "user.email=t@t", "init.defaultBranch=main", "protocol.file.allow=always"]
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}
    command = ["git", *(part for option in options for part in ("-c", option)), *arguments]
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three repositories: `outer` has `inner` as a submodule by a relative address, and that has `core` so."""
    folder = tmp_path_factory.mktemp("nested")
    for name, below in (("core", ""), ("inner", "core"), ("outer", "inner")):
        (folder / name).mkdir()
        git_in(folder / name, "init")
        (folder / name / "name").write_text(name)
        if below:
            git_in(folder / name, "submodule", "add", f"../{below}", f"sub {below}")
        git_in(folder / name, "add", ".")
        git_in(folder / name, "commit", "-m", name)
    return folder


def test_submodules_with_relative_addresses_come_along_and_no_address_does(nested: Path, tmp_path: Path) -> None:
    clone(parse(f"file://{nested}/outer"), tmp_path)
    assert (tmp_path / "name").read_text() == "outer"
    assert (tmp_path / "sub inner/name").read_text() == "inner"
    assert (tmp_path / "sub inner/sub core/name").read_text() == "core"
    assert leaks(tmp_path, str(nested)) == []
    for folder in (tmp_path, tmp_path / "sub inner", tmp_path / "sub inner/sub core"):
        done = subprocess.run(["git", "status", "--short"], cwd=folder, check=True, capture_output=True)
        assert done.stdout == b""


@pytest.fixture(scope="module")
def bare(nested: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare")
    for name in ("core", "inner", "outer"):
        git_in(folder, "clone", "--bare", "--quiet", str(nested / name))
        (folder / f"{name}.git").rename(folder / name)
    return folder


@pytest.mark.parametrize("login", ["user:t0%25k%40en", "t0%25k%40en", "t0%25k%40en:x-oauth-basic"])
def test_a_token_in_the_address_logs_in_for_submodules_too_and_stands_nowhere(
    bare: Path, tmp_path: Path, login: str
) -> None:
    user, _, password = unquote(login).partition(":")
    with git_server(bare, f"{user}:{password}") as server:
        clone(parse(f"http://{login}@{server.address}/outer@main"), tmp_path)
        assert server.served > 0
        assert any("git" in line and server.address in line for line in server.seen)
        assert [line for line in server.seen if "t0%" in line] == []
        assert leaks(tmp_path, "t0%") == leaks(tmp_path, server.address) == []
    assert (tmp_path / "sub inner/sub core/name").read_text() == "core"


def test_a_user_in_the_address_logs_in_with_what_the_worker_knows(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text('[credential]\nhelper = "!f() { echo username=me; echo password=known; }; f"\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    (tmp_path / "clone").mkdir()
    with git_server(bare, "me:known") as server:
        clone(parse(f"http://me@{server.address}/core"), tmp_path / "clone")
    assert (tmp_path / "clone/name").read_text() == "core"


def test_a_wrong_token_is_an_error_in_one_sentence_without_it(bare: Path, tmp_path: Path) -> None:
    with git_server(bare, "user:right") as server, pytest.raises(InvalidRequest, match="cannot be cloned") as caught:
        clone(parse(f"http://user:wr@ng@{server.address}/outer@main"), tmp_path)
    assert "wr" not in caught.value.message
    assert "ng@" not in caught.value.message


def leaks(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("code", "url", "ref"),
    [
        ("https://github.com/org/repo", "https://github.com/org/repo", "HEAD"),
        ("https://github.com/org/repo.git@v1.0", "https://github.com/org/repo.git", "v1.0"),
        ("https://token@github.com/org/repo@feature/x", "https://token@github.com/org/repo", "feature/x"),
        ("git@github.com:org/repo", "git@github.com:org/repo", "HEAD"),
        ("git@github.com:org/repo@main", "git@github.com:org/repo", "main"),
        ("ssh://git@host:2222/org/repo@0123abc", "ssh://git@host:2222/org/repo", "0123abc"),
        ("file:///srv/a@b/repo@v1", "file:///srv/a@b/repo", "v1"),
    ],
)
def test_an_address_is_taken_apart_at_the_ref(code: str, url: str, ref: str) -> None:
    assert parse(code) == Source(url, ref)


@pytest.mark.parametrize(
    "code", ["", "repo", "--upload-pack=x", "https://host/repo@", "https://host/r@-x", "https://host/r@a..b"]
)
def test_what_is_no_address_is_refused(code: str) -> None:
    with pytest.raises(InvalidRequest):
        parse(code)


@pytest.mark.parametrize(
    ("ref", "version"), [("@main", "three"), ("@v1", "one"), ("@feature/two", "two"), ("@HEAD", "three")]
)
def test_branch_tag_and_default_are_cloned(repository: Path, tmp_path: Path, ref: str, version: str) -> None:
    clone(parse(f"file://{repository}{ref}"), tmp_path)
    assert (tmp_path / "version").read_text() == version


@pytest.mark.parametrize("length", [7, 40])
def test_a_commit_is_cloned(repository: Path, tmp_path: Path, length: int) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "v1"], cwd=repository, check=True, capture_output=True, text=True
    ).stdout[:length]
    clone(parse(f"file://{repository}@{commit}"), tmp_path)
    assert (tmp_path / "version").read_text() == "one"


def test_what_cannot_be_cloned_is_said_without_the_token(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be cloned") as caught:
        clone(Source("https://s3cret@127.0.0.1:1/org/repo", "main"), tmp_path)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_program_as_an_address_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        clone(Source(f"ext::touch {tmp_path}/ran", "main"), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_worker_without_git_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(git.shutil, "which", lambda name: None)
    with pytest.raises(InvalidRequest, match="needs git on the worker"):
        clone(Source("https://host/repo", "main"), tmp_path)


def test_code_arrives_in_the_job_s_directory_and_its_address_does_not(repository: Path, tmp_path: Path) -> None:
    with asyncssh_server() as server:
        machine = Machine(server.connect, root=str(tmp_path / "root"))
        git.upload(machine, "job-1", f"file://{repository}@v1")
        machine.close()
    work = tmp_path / "root/job-1/work"
    assert (work / "version").read_text() == "one"
    assert subprocess.run(["git", "status", "--short"], cwd=work, check=True, capture_output=True).stdout == b""
    assert not any(str(repository).encode() in path.read_bytes() for path in work.rglob("*") if path.is_file())
