"""Code from git, cloned here and uploaded."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tracemalloc
from pathlib import Path
from urllib.parse import unquote

import pytest

from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.machine import git
from prefect_gpu.providers.core.machine.git import Source, clone, parse
from prefect_gpu.providers.core.machine.jobs import Machine
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
    ("code", "url", "ref"),
    [
        ("https://github.com/org/repo@pkg@1.0.0", "https://github.com/org/repo", "pkg@1.0.0"),
        ("https://token@github.com/org/repo@@org/ui@1.0.0", "https://token@github.com/org/repo", "@org/ui@1.0.0"),
        ("git@github.com:org/repo@ui@2", "git@github.com:org/repo", "ui@2"),
    ],
)
def test_a_tag_may_have_an_at_sign(code: str, url: str, ref: str) -> None:
    assert parse(code) == Source(url, ref)


def test_a_tag_with_an_at_sign_is_cloned_from_a_path_with_one(repository: Path, tmp_path: Path) -> None:
    git_in(repository, "tag", "-f", "@org/ui@1.0", "v1")
    clone(parse(f"file://{repository}@@org/ui@1.0"), tmp_path)
    assert (tmp_path / "version").read_text() == "one"


def test_the_worker_s_own_git_directory_is_left_alone(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that a git hook started, or that stands in a worktree."""
    own = tmp_path / "own"
    own.mkdir()
    git_in(own, "init")
    (own / "mine").write_text("mine")
    git_in(own, "add", ".")
    git_in(own, "commit", "-m", "mine")
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    for name, place in {
        "GIT_DIR": ".git", "GIT_WORK_TREE": "", "GIT_INDEX_FILE": ".git/index", "GIT_OBJECT_DIRECTORY": ".git/objects",
        "GIT_COMMON_DIR": ".git", "GIT_PREFIX": "", "GIT_TEMPLATE_DIR": "mine",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(own / place))
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", f"'core.worktree={own}'")
    (tmp_path / "clone").mkdir()
    clone(parse(f"file://{repository}@v1"), tmp_path / "clone")
    assert (tmp_path / "clone/version").read_text() == "one"
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == before


def test_hooks_and_templates_of_the_worker_do_not_run(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for hook in ("hooks/post-checkout", "templates/hooks/post-checkout", "monitor"):
        (tmp_path / hook).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / hook).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (tmp_path / hook).chmod(0o755)
    (tmp_path / "config").write_text(
        f"[core]\nhooksPath = {tmp_path}/hooks\nfsmonitor = {tmp_path}/monitor\n[init]\ntemplateDir = {tmp_path}/templates\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    (tmp_path / "clone").mkdir()
    clone(parse(f"file://{repository}@v1"), tmp_path / "clone")
    assert (tmp_path / "clone/version").read_text() == "one"
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "clone/.git/hooks").exists()


def evil(folder: Path, url: str, private: Path) -> Path:
    """A repository whose .gitmodules names `url` for a commit of the worker's private repository."""
    folder.mkdir(parents=True)
    git_in(folder, "init")
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=private, check=True, capture_output=True, text=True
    ).stdout
    (folder / ".gitmodules").write_text(f'[submodule "x"]\n\tpath = x\n\turl = {url}\n')
    git_in(folder, "add", ".")
    git_in(folder, "update-index", "--add", "--cacheinfo", f"160000,{commit.strip()},x")
    git_in(folder, "commit", "-m", "evil")
    return folder


@pytest.mark.parametrize(
    "written",
    [
        "{private}", "file://{private}", "file://localhost{private}", "../../home/private", "{private}/.git",
        "ext::sh -c 'touch {private}/ran'", "-uhttp://x", "ssh://-oProxyCommand=touch/x", "http://-x/y", "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("over", ["http", "file"])
def test_a_submodule_that_names_a_place_on_the_worker_is_refused(tmp_path: Path, written: str, over: str) -> None:
    """The repository's author would get what only the worker may read."""
    private = tmp_path / "home/private"
    private.mkdir(parents=True)
    git_in(private, "init")
    (private / "secret").write_text("secret")
    git_in(private, "add", ".")
    git_in(private, "commit", "-m", "private")
    source = evil(tmp_path / "srv/repo", written.format(private=private), private)
    (tmp_path / "clone").mkdir()
    with contextlib.ExitStack() as stack:
        url = f"file://{source}"
        if over == "http":
            url = f"http://u:p@{stack.enter_context(git_server(tmp_path / 'srv', 'u:p')).address}/repo"
        if written:
            with pytest.raises(InvalidRequest, match=r"submodule|cannot be cloned"):
                clone(parse(url), tmp_path / "clone")
        else:
            clone(parse(url), tmp_path / "clone")  # no address: as plain git, nothing comes
    assert not any(path.name == "secret" for path in (tmp_path / "clone").rglob("*"))
    assert not any(path.name == "ran" for path in tmp_path.rglob("*"))


def test_a_submodule_at_a_link_is_refused(nested: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    source = tmp_path / "srv/repo"
    evil(source, f"file://{nested}/core", nested / "core")
    git_in(source, "update-index", "--force-remove", "x")
    (source / "a").symlink_to(outside)
    (source / ".gitmodules").write_text('[submodule "x"]\n\tpath = a/x\n\turl = ../core\n')
    git_in(source, "add", ".")
    git_in(source, "commit", "-m", "link")
    (tmp_path / "clone").mkdir()
    clone(parse(f"file://{source}"), tmp_path / "clone")  # it is written, and not a part of the commit
    assert list(outside.iterdir()) == []


def test_the_user_s_own_ssh_command_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "my-ssh"
    program.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\necho "my-ssh: no route to bastion" >&2\nexit 255\n')
    program.chmod(0o755)
    (tmp_path / "config").write_text(f"[core]\nsshCommand = {program} -J bastion\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    (tmp_path / "clone").mkdir()
    with pytest.raises(InvalidRequest, match="my-ssh: no route to bastion") as caught:
        clone(parse("git@example.invalid:org/repo"), tmp_path / "clone")
    assert "-J bastion" in (tmp_path / "calls").read_text()
    assert not caught.value.message.endswith("exists.")


def test_a_refused_login_over_ssh_is_said_with_ssh_s_own_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ssh"
    program.write_text('#!/bin/sh\necho "git@host: Permission denied (publickey)." >&2\nexit 255\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "clone").mkdir()
    with pytest.raises(InvalidRequest) as caught:
        clone(parse("git@host:org/repo"), tmp_path / "clone")
    assert caught.value.message == (
        "git@host:org/repo at HEAD cannot be cloned: git@host: Permission denied (publickey).; "
        "fatal: Could not read from remote repository."
    )


has_lfs = pytest.mark.skipif(shutil.which("git-lfs") is None, reason="git-lfs is not installed")


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a file in Git LFS, whose object stands where a server keeps it; nobody ran `git lfs install` here."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    folder = tmp_path / "large"
    folder.mkdir()
    git_in(folder, "init")
    data = b"weights" * 1000
    digest = hashlib.sha256(data).hexdigest()
    (folder / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    (folder / "model.bin").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(data)}\n"
    )
    git_in(folder, "-c", "filter.lfs.required=false", "add", ".")
    git_in(folder, "commit", "-m", "large")
    stored = folder / ".git/lfs/objects" / digest[:2] / digest[2:4]
    stored.mkdir(parents=True)
    (stored / digest).write_bytes(data)
    return folder


@has_lfs
def test_files_in_git_lfs_come_whole(large: Path, tmp_path: Path) -> None:
    (tmp_path / "clone").mkdir()
    clone(parse(f"file://{large}"), tmp_path / "clone")
    assert (tmp_path / "clone/model.bin").read_bytes() == b"weights" * 1000
    assert leaks(tmp_path / "clone", str(large)) == []


@has_lfs
def test_files_in_git_lfs_are_not_read_from_the_worker(large: Path, tmp_path: Path) -> None:
    (large / ".lfsconfig").write_text(f"[lfs]\n\turl = file://{tmp_path}/private\n")
    git_in(large, "add", ".lfsconfig")
    git_in(large, "commit", "-m", "evil")
    (tmp_path / "clone").mkdir()
    with pytest.raises(InvalidRequest, match=r"\.lfsconfig of the repository names 'file://"):
        clone(parse(f"file://{large}"), tmp_path / "clone")


def test_git_lfs_that_is_missing_is_said(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("git", "sh", "ssh"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(programs))
    (tmp_path / "clone").mkdir()
    with pytest.raises(InvalidRequest, match="keeps files in Git LFS: install git-lfs on the worker"):
        clone(parse(f"file://{large}"), tmp_path / "clone")


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
    monkeypatch.setattr(git.git_program, "is_there", lambda: False)
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


def _program(folder: Path, monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    """A program in git's place."""
    folder.mkdir()
    (folder / "git").write_text(f"#!/bin/sh\n{lines}\n")
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_server_that_talks_without_end_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says on the way comes through git's stderr; all 300 MB were kept."""
    _program(
        tmp_path / "bin",
        monkeypatch,
        "yes remote: nonsense | head -c 300000000 >&2; echo >&2; echo fatal: the end >&2; exit 128",
    )
    tracemalloc.start()
    try:
        done = git.git_program.run(["fetch"], tmp_path, git.git_program.environment())
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (done.code, done.told.splitlines()[-1]) == (128, "fatal: the end")
    assert most < 20_000_000


def test_a_list_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path / "bin", monkeypatch, "exec yes")
    monkeypatch.setattr(git.git_program, "_OUT_BYTES", 1_000_000)
    with pytest.raises(git.git_program.TooLong):
        git.git_program.run(["ls-files"], tmp_path, git.git_program.environment())


def test_a_clone_that_fills_the_worker_s_disk_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path / "bin", monkeypatch, "exec sleep 60")
    monkeypatch.setattr(git.git_program, "reserve", {shutil.disk_usage(tmp_path).total: 1 << 62}.get)
    (tmp_path / "into").mkdir()
    with pytest.raises(InvalidRequest, match=r"^https://host/repo at main does not fit the disk of the worker"):
        clone(Source("https://host/repo", "main"), tmp_path / "into")


def test_a_server_s_words_reach_nobody_as_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stand in the log and in the final message, on any terminal and in any database."""
    _program(tmp_path / "bin", monkeypatch, r"printf 'remote: \033]52;c;eA==\007 no\000\302\233 entry\n' >&2; exit 128")
    (tmp_path / "into").mkdir()
    with pytest.raises(InvalidRequest) as caught:
        clone(Source("https://host/repo", "main"), tmp_path / "into")
    assert str(caught.value) == "https://host/repo at main cannot be cloned: remote: ]52;c;eA== no entry"
