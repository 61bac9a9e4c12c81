"""Code from git for a job: cloned on the worker and uploaded, so a machine needs neither git nor anybody's credentials.

`https://host/org/repo@ref`, `git@host:org/repo@ref`, `ssh://...`, `file:///path@ref`: a branch, a tag or a commit; without `@ref` the
default branch. The newest commit only, submodules too. No remote is configured in the clone: an address may carry a token.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from providers.core import files, listing
from providers.core.aside import attended, never
from providers.core.errors import InvalidRequest
from providers.core.files import Sent
from providers.core.jobs import Machine, ShouldStop

TIMEOUT_S: Final = 900.0

_PROTOCOLS = "https:http:ssh:git:file"  # not ext, which runs any program
_URL = re.compile(r"(?P<host>[a-z+]+://[^/]*/|[\w.-]+@[\w.-]+:|[\w.-]+:(?!//)|/)(?P<path>[^\0]*)", re.ASCII)


class Source(NamedTuple):
    """A repository and what of it."""

    url: str
    ref: str  # "HEAD" for the default branch

    @property
    def shown(self) -> str:
        """The address without what may be a password."""
        return re.sub(r"://[^/@]*@", "://", self.url)


def parse(code: str) -> Source:
    """`URL@ref` taken apart. Raises InvalidRequest, saying what to write instead."""
    match = _URL.fullmatch(code.strip())
    if match is None or code.startswith("-"):
        raise InvalidRequest(
            f"{re.sub('://[^/@]*@', '://', code)!r} is no git URL: write for example https://github.com/org/repo@v1.0"
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
    _git(["init", "--quiet"], folder, source)
    try:
        _git(["fetch", "--quiet", "--depth", "1", "--", source.url, source.ref], folder, source)
        _git(["checkout", "--quiet", "--detach", "FETCH_HEAD"], folder, source)
    except InvalidRequest:
        if not re.fullmatch(r"[0-9a-f]{7,40}", source.ref):
            raise
        # A short commit, or a server that hands out no single commits: all of it then.
        _git(["fetch", "--quiet", "--tags", "--", source.url, "+refs/heads/*:refs/remotes/origin/*"], folder, source)
        _git(["checkout", "--quiet", "--detach", source.ref], folder, source)
    if (folder / ".gitmodules").exists():
        _git(["submodule", "--quiet", "update", "--init", "--recursive", "--depth", "1"], folder, source)
    for left in folder.rglob("FETCH_HEAD"):
        left.unlink()


def _git(arguments: Iterable[str], folder: Path, source: Source) -> None:
    env = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": _PROTOCOLS, "GIT_SSH_COMMAND": _ssh()}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise InvalidRequest(f"{source.shown} was not cloned within {TIMEOUT_S / 60:.0f} min") from error
    if done.returncode != 0:
        told = done.stderr.decode(errors="replace").strip().splitlines()
        reason = re.sub(r"://[^/@\s]*@", "://", told[-1]) if told else f"git ended with {done.returncode}"
        raise InvalidRequest(f"{source.shown} at {source.ref} cannot be cloned: {reason}")


def _ssh() -> str:
    return os.environ.get("GIT_SSH_COMMAND", "ssh") + " -o BatchMode=yes"  # asks nothing: nobody would answer
