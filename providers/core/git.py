"""Code from git for a job: cloned on the worker and uploaded, so a machine needs neither git nor anybody's credentials.

`https://host/org/repo@ref`, `git@host:org/repo@ref`, `ssh://...`, `file:///path@ref`: a branch, a tag or a commit; without `@ref` the
default branch. The newest commit only, submodules too. What is uploaded names no address, and a token in one stands in no list of
processes: git gets it by a credential helper of its own, which reads it from the environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote

from providers.core import files, listing
from providers.core.aside import attended, never
from providers.core.errors import InvalidRequest
from providers.core.files import Sent
from providers.core.jobs import Machine, ShouldStop

TIMEOUT_S: Final = 900.0

_PROTOCOLS = "https:http:ssh:git:file"  # not ext, which runs any program
_WITH_LOGIN = re.compile(
    r"(?P<scheme>https?)://(?P<user>[^/:]*?)(:(?P<password>[^/]*))?@(?P<host>[^/@]+)(?P<path>/.*)?"
)
_LOGIN = re.compile(r"://[^/\s]*@")

# Only what it prints has the token in it. (An address put together by url.insteadOf ends up in git-remote-https's arguments.)
_HELPER = """!f() { printf 'username=%s\\npassword=%s\\n' "$PREFECT_GPU_GIT_USER" "$PREFECT_GPU_GIT_PASSWORD"; }; f"""

# A submodule's address may be relative to its parent's, so each has one until all are here.
_FORGET_ADDRESSES = """
git config --name-only --get-regexp '^(remote|submodule)\\..*\\.url$' | while IFS= read -r key; do git config --unset-all "$key"; done
"""

_URL = re.compile(r"(?P<host>[a-z+]+://[^/]*/|[\w.-]+@[\w.-]+:|[\w.-]+:(?!//)|/)(?P<path>[^\0]*)", re.ASCII)


class Source(NamedTuple):
    """A repository and what of it."""

    url: str
    ref: str  # "HEAD" for the default branch

    @property
    def shown(self) -> str:
        """The address without what may be a password."""
        return _LOGIN.sub("://", self.url)


def parse(code: str) -> Source:
    """`URL@ref` taken apart. Raises InvalidRequest, saying what to write instead."""
    match = _URL.fullmatch(code.strip())
    if match is None or code.startswith("-"):
        raise InvalidRequest(
            f"{_LOGIN.sub('://', code)!r} is no git URL: write for example https://github.com/org/repo@v1.0"
        )
    path, at, ref = match["path"].rpartition("@")
    if not at:
        path, ref = match["path"], "HEAD"
    if not path.strip("/") or not ref or ref.startswith("-") or re.search(r"[\s~^:?*\[\\]|\.\.", ref):
        raise InvalidRequest(f"the part after @ names no branch, tag or commit: {ref!r}")
    return Source(match["host"] + path, ref)


def upload(machine: Machine, job_id: str, code: str, should_stop: ShouldStop = never) -> Sent:
    """Clone on this machine and send it to the job's directory.

    Raises InvalidRequest when it cannot be cloned, and what `files.send` raises.
    """
    source = parse(code)
    with tempfile.TemporaryDirectory(prefix="prefect-gpu-code-") as folder_name:
        folder = Path(folder_name)
        attended(lambda: clone(source, folder), should_stop)
        return files.send(machine, job_id, list(listing.below(folder, "")), folder, should_stop)


def clone(source: Source, folder: Path) -> None:
    """The commit that `source` names, checked out in an empty folder. Raises InvalidRequest in one sentence."""
    if shutil.which("git") is None:
        raise InvalidRequest("code from git needs git on the worker: install it there, or give files instead")
    git = _Git(source, folder)
    git("init", "--quiet")
    try:
        git("fetch", "--quiet", "--depth", "1", "--", git.url, source.ref)
        git("checkout", "--quiet", "--detach", "FETCH_HEAD")
    except InvalidRequest:
        if not re.fullmatch(r"[0-9a-f]{7,40}", source.ref):
            raise
        # A short commit, or a server that hands out no single commits: all of it then.
        git("fetch", "--quiet", "--tags", "--", git.url, "+refs/heads/*:refs/remotes/origin/*")
        git("checkout", "--quiet", "--detach", source.ref)
    if (folder / ".gitmodules").exists():
        git("config", "remote.origin.url", git.url)
        git("submodule", "--quiet", "update", "--init", "--recursive", "--depth", "1")
        git("submodule", "--quiet", "foreach", "--recursive", _FORGET_ADDRESSES)
        git("-c", f"alias.forget=!{_FORGET_ADDRESSES.strip()}", "forget")
    for left in folder.rglob("FETCH_HEAD"):
        left.unlink()


class _Git:
    """Git in one folder, logged in as the address says and silent about it."""

    def __init__(self, source: Source, folder: Path) -> None:
        self.url = source.url  # without a login that stands in it
        self._source = source
        self._folder = folder
        self._options = ["-c", "core.logAllRefUpdates=false"]  # a log of a branch names where it came from
        self._env = {
            **os.environ,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ALLOW_PROTOCOL": _PROTOCOLS,
            "GIT_SSH_COMMAND": _ssh(),
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

    def __call__(self, *arguments: str) -> None:
        """Raises InvalidRequest in one sentence."""
        try:
            done = subprocess.run(
                ["git", *self._options, *arguments],
                cwd=self._folder, env=self._env, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise InvalidRequest(f"{self._source.shown} was not cloned within {TIMEOUT_S / 60:.0f} min") from error
        if done.returncode != 0:
            told = done.stderr.decode(errors="replace").strip().splitlines()
            reason = _LOGIN.sub("://", told[-1]) if told else f"git ended with {done.returncode}"
            raise InvalidRequest(f"{self._source.shown} at {self._source.ref} cannot be cloned: {reason}")


def _ssh() -> str:
    return os.environ.get("GIT_SSH_COMMAND", "ssh") + " -o BatchMode=yes"  # asks nothing: nobody would answer
