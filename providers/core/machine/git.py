"""Code from git for a job: cloned on the worker and uploaded, so a machine needs neither git nor anybody's credentials.

`https://host/org/repo@ref`, `git@host:org/repo@ref`, `ssh://...`, `file:///path@ref`: a branch, a tag or a commit; without `@ref` the
default branch. The newest commit only, submodules and files in Git LFS too. What is uploaded names no address, and a token in one stands
in no list of processes: git gets it by a credential helper of its own, which reads it from the environment.

A repository's author is not this worker's user: `.gitmodules` and `.lfsconfig` may name addresses elsewhere, but no path of this worker,
unless the user's own URL is a path and they stay in the folder that holds it.
"""

from __future__ import annotations

import copy
import re
import tempfile
import threading
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote

from prefect_gpu.providers.core.aside import attended, never
from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.machine import git_program, selection, submodules
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.reach import ShouldStop
from prefect_gpu.providers.core.machine.shell import plain
from prefect_gpu.providers.core.machine.transfer import OnProgress
from prefect_gpu.providers.core.machine.upload import Sent, send

_NETWORK = "https:http:ssh:git"  # not ext, which runs any program, and file only for a path that the user wrote
_WITH_LOGIN = re.compile(
    r"(?P<scheme>https?)://(?P<user>[^/:]*?)(:(?P<password>[^/]*))?@(?P<host>[^/@]+)(?P<path>/.*)?"
)
_LOGIN = re.compile(r"://[^/\s]*@")

# Only what it prints has the token in it. (An address put together by url.insteadOf ends up in git-remote-https's arguments.)
_HELPER = """!f() { printf 'username=%s\\npassword=%s\\n' "$PREFECT_GPU_GIT_USER" "$PREFECT_GPU_GIT_PASSWORD"; }; f"""

_URL = re.compile(r"(?P<host>[a-z+]+://[^/]*/|[\w.-]+@[\w.-]+:|[\w.-]+:(?!//)|/)(?P<path>[^\0]*)", re.ASCII)
_NO_REF = re.compile(r"[\s~^:?*\[\\]|\.\.|@\{|^-|^$|^/|/$", re.ASCII)
_DEEPEST = 10
_NOISE = re.compile(r"hint:|please make sure|and the repository exists|cloning into|warning: templates", re.IGNORECASE)
_REASON_LETTERS: Final = 600


class Source(NamedTuple):
    """A repository and what of it."""

    url: str
    ref: str  # "HEAD" for the default branch

    @property
    def shown(self) -> str:
        """The address without what may be a password."""
        return _LOGIN.sub("://", self.url)

    @property
    def path(self) -> Path | None:
        """Where on this worker it is, if the user named a path."""
        if self.url.startswith("file://"):
            return Path("/", unquote(self.url.removeprefix("file://").partition("/")[2]))
        return Path(self.url) if self.url.startswith("/") else None


def parse(code: str) -> Source:
    """`URL@ref` taken apart. Raises InvalidRequest, saying what to write instead."""
    code = code.strip()
    match = _URL.fullmatch(code)
    if match is None or code.startswith("-") or match["host"].partition("@")[2].startswith("-"):
        raise InvalidRequest(
            f"{_LOGIN.sub('://', code)!r} is not a git URL: write for example https://github.com/org/repo@v1.0"
        )
    path, ref = _at_the_ref(match["host"], match["path"])
    if not path.strip("/") or _NO_REF.search(ref):
        raise InvalidRequest(f"the part after @ names no branch, tag or commit: {ref!r}")
    return Source(match["host"] + path, ref)


def _at_the_ref(host: str, path: str) -> tuple[str, str]:
    """A tag may have an `@` in it (`ui@1.2.0`, `@org/ui@1.2.0`), and so may a path on this worker."""
    if "@" not in path:
        return path, "HEAD"
    if host == "/" or host.startswith("file:"):
        splits = [at for at, letter in enumerate(path) if letter == "@"]
        for at in splits:
            if Path("/", path[:at]).is_dir() or Path("/", path[:at] + ".git").is_dir():
                return path[:at], path[at + 1 :]
        return path[: splits[-1]], path[splits[-1] + 1 :]
    repository, _, ref = path.partition("@")
    return repository, ref


def upload(
    machine: Machine,
    job_id: str,
    code: str,
    should_stop: ShouldStop = never,
    *,
    on_progress: OnProgress | None = None,
) -> Sent:
    """Clone on this machine and send it to the job's directory.

    Raises InvalidRequest when it cannot be cloned, and what `upload.send` raises.
    """
    source = parse(code)
    is_given_up = threading.Event()
    with tempfile.TemporaryDirectory(prefix="prefect-gpu-code-", ignore_cleanup_errors=True) as folder_name:
        folder = Path(folder_name)
        try:
            attended(lambda: clone(source, folder, is_given_up), should_stop)
        except BaseException:
            is_given_up.set()
            raise
        names = list(selection.below(folder, ""))
        return send(machine, job_id, names, folder, should_stop, on_progress=on_progress)


def clone(source: Source, folder: Path, is_given_up: threading.Event | None = None) -> None:
    """The commit that `source` names, checked out in an empty folder. Raises InvalidRequest in one sentence."""
    if not git_program.is_there():
        raise InvalidRequest("code from git needs git on the worker: install it there, or give files instead")
    _fetch(Git(source, folder, is_given_up), source, depth=0)


def _fetch(git: Git, source: Source, depth: int) -> None:
    """One repository, and then its submodules, each as a repository of its own in its place."""
    git("init", "--quiet")
    git("config", "remote.origin.url", git.url)  # git-lfs wants to know where it came from
    try:
        git("fetch", "--quiet", "--depth", "1", "--", git.url, source.ref)
    except InvalidRequest:
        if not re.fullmatch(r"[0-9a-f]{7,64}", source.ref):
            raise
        # A short commit, or a server that hands out no single commits: all of it then.
        git("fetch", "--quiet", "--tags", "--", git.url, "+refs/heads/*:refs/remotes/origin/*")
        commit = source.ref
    else:
        commit = "FETCH_HEAD"
    options = Git.LFS if _uses_lfs(git, commit) else ()
    git(*options, "checkout", "--quiet", "--detach", commit)
    for module in submodules.listed(git, git.shown, git.folder, git.url, git.user_path):
        if depth == _DEEPEST:
            raise InvalidRequest(f"{git.shown} has submodules in submodules, {_DEEPEST} deep: give the files instead")
        _fetch(git.of_submodule(module), Source(module.url, module.commit), depth + 1)
    git("config", "--unset-all", "remote.origin.url")
    (git.folder / ".git/FETCH_HEAD").unlink(missing_ok=True)


def _uses_lfs(git: Git, commit: str) -> bool:
    """Raises InvalidRequest where files are in Git LFS, and git-lfs is not there or would read them from this worker."""
    if git.ask("grep", "-q", "-e", "filter=lfs", commit, "--", ":(glob)**/.gitattributes").code != 0:
        return False
    config = git.ask("config", "--blob", f"{commit}:.lfsconfig", "--get-regexp", r"url$").out.decode(errors="replace")
    for line in config.splitlines():
        submodules.refuse_local(line.partition(" ")[2], ".lfsconfig")
    if git.ask("lfs", "version").code != 0:
        raise InvalidRequest(
            f"{git.shown} keeps files in Git LFS: install git-lfs on the worker, or give the files instead"
        )
    return True


class Git:
    """Git in one folder, logged in as the address says and silent about it."""

    # As `git lfs install` sets it for a user; it need not have been.
    LFS: Final = (
        "-c", "filter.lfs.smudge=git-lfs smudge -- %f", "-c", "filter.lfs.process=git-lfs filter-process",
        "-c", "filter.lfs.clean=git-lfs clean -- %f", "-c", "filter.lfs.required=true",
    )  # fmt: skip

    def __init__(self, source: Source, folder: Path, is_given_up: threading.Event | None = None) -> None:
        self.url = source.url  # without a login that stands in it
        self.shown = f"{source.shown} at {source.ref}"
        self.folder = folder
        self.user_path = source.path
        self._is_given_up = is_given_up
        self._options: list[str] = []
        self._env = {
            **git_program.environment(),
            "GIT_ALLOW_PROTOCOL": f"{_NETWORK}:file" if self.user_path is not None else _NETWORK,
            "GIT_PROTOCOL_FROM_USER": "1",
        }
        if (login := _WITH_LOGIN.fullmatch(source.url)) is not None:
            server = f"{login['scheme']}://{login['host']}"
            self.url = server + (login["path"] or "")
            self._env["PREFECT_GPU_GIT_USER"] = unquote(login["user"])
            self._env["PREFECT_GPU_GIT_PASSWORD"] = unquote(login["password"] or "")
            # Without a password the worker's own helpers may know one, and come first.
            if login["password"] is not None:
                self._options += ["-c", f"credential.{server}.helper="]
            self._options += ["-c", f"credential.{server}.helper={_HELPER}"]

    def of_submodule(self, module: submodules.Submodule) -> Git:
        """The same for a submodule: what the user's address allows, and its login on its server."""
        other = copy.copy(self)
        other.folder, other.url = self.folder / module.path, module.url
        other.shown = f"{self.shown}, submodule {module.path},"
        return other

    def ask(self, *arguments: str) -> git_program.Done:
        """Whatever comes of it. Raises InvalidRequest only for one that does not end."""
        try:
            command = [*self._options, *arguments]
            return git_program.run(command, self.folder, self._env, is_given_up=self._is_given_up, fetches=True)
        except git_program.TooLong:
            raise InvalidRequest(f"{self.shown} was not cloned within {git_program.TIMEOUT_S / 60:.0f} min") from None
        except git_program.NoRoom:
            raise InvalidRequest(f"{self.shown} does not fit the disk of the worker, where it is cloned") from None

    def __call__(self, *arguments: str) -> git_program.Done:
        """Raises InvalidRequest in one sentence, with all that git said about it."""
        done = self.ask(*arguments)
        if done.code != 0:
            raise InvalidRequest(f"{self.shown} cannot be cloned: {_reason(done)}")
        return done


def _reason(done: git_program.Done) -> str:
    """What git and what it runs said, without advice; its last line alone would be "and the repository exists"."""
    lines = [line.strip() for line in done.told.splitlines()]
    said = [line for line in dict.fromkeys(lines) if line and not _NOISE.match(line)]
    text = plain(_LOGIN.sub("://", "; ".join(said)))  # a server's words are among it
    if len(text) > _REASON_LETTERS:
        text = f"{text[: _REASON_LETTERS // 3]} ... {text[-_REASON_LETTERS * 2 // 3 :]}"
    return text or f"git ended with {done.code}"
