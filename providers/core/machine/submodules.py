"""A repository's submodules, each looked at before it is fetched: its address was written by the repository's author, not by our user."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.machine.git_program import Done

_NETWORK = re.compile(r"(https?|ssh|git)://(?!-)[^/]|[\w.-]+@(?!-)[\w.-]+:|(?!-)[\w.-]+:(?!//)", re.ASCII)
_ENTRY = re.compile(r"submodule\.(?P<name>.*)\.(?P<key>path|url)\n(?P<value>.*)", re.DOTALL)


class Submodule(NamedTuple):
    """One that belongs to the commit that is checked out."""

    path: str
    url: str
    commit: str


def listed(git: Callable[..., Done], shown: str, folder: Path, url: str, user_path: Path | None) -> list[Submodule]:
    """The submodules of what is checked out in `folder`, which came from `url`.

    Raises InvalidRequest for one that names a place on this worker, unless the user's own URL is one (`user_path`) and it stays in the
    folder that holds it.
    """
    if not (folder / ".gitmodules").is_file() or (folder / ".gitmodules").is_symlink():
        return []
    commits: dict[str, str] = {}
    for line in os.fsdecode(git("ls-tree", "-r", "-z", "HEAD").out).split("\0"):
        facts, _, path = line.partition("\t")
        if facts.startswith("160000 commit "):
            commits[path] = facts.split()[2]
    modules: dict[str, dict[str, str]] = {}
    for line in os.fsdecode(git("config", "--file", ".gitmodules", "--null", "--list").out).split("\0"):
        if (entry := _ENTRY.fullmatch(line)) is not None:
            modules.setdefault(entry["name"], {})[entry["key"]] = entry["value"]
    found: list[Submodule] = []
    for module in modules.values():
        path, written = module.get("path", ""), module.get("url", "")
        if path not in commits or not written:
            continue  # it is written there, and is not a part of this commit
        place = folder / path
        if place.resolve() != folder.resolve() / path or not place.is_dir() or any(place.iterdir()):
            raise InvalidRequest(f"{shown} has a submodule at {path!r}, where something else stands")
        address = resolved(url, written)
        _refuse_elsewhere(address, written, user_path)
        found.append(Submodule(path, address, commits[path]))
    return found


def resolved(parent: str, written: str) -> str:
    """The address that a submodule's `url` means; a relative one begins at its parent's."""
    if not written.startswith(("./", "../")):
        return written
    root = re.match(r"[a-z+]+://[^/]*/|[^/]*@?[\w.-]+:|/", parent)
    start = root[0] if root is not None else ""
    path = posixpath.normpath(posixpath.join(parent[len(start) :].rstrip("/") or ".", written))
    if path.startswith(".."):
        raise InvalidRequest(f"the submodule address {written!r} leads above the server of {parent}")
    return start + path


def refuse_local(address: str, where: str) -> None:
    """Raises InvalidRequest unless the address is one on a network."""
    if _NETWORK.match(address) is None:
        raise InvalidRequest(f"{where} of the repository names {address!r}, which is not an address on a network")


def _refuse_elsewhere(address: str, written: str, user_path: Path | None) -> None:
    local = address.removeprefix("file://") if address.startswith("file://") else address
    if user_path is not None and local.startswith("/"):
        held = user_path.resolve().parent
        if Path(unquote(local) if address.startswith("file://") else local).resolve().is_relative_to(held):
            return
    refuse_local(address, f"the submodule address {written!r} in .gitmodules")
