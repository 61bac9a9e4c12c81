"""A folder on this machine that a download writes to, and nothing outside of it, whatever links stand in it or are made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.machine.listing import Entry, printable

RESERVE_BYTES: Final = 1_000_000_000  # of a disk stay free, or a twentieth of a small one


def reserve(disk_bytes: int) -> int:
    """How much of a disk of this size is left alone: without a free byte the worker itself stands still."""
    return min(RESERVE_BYTES, disk_bytes // 20)


class Destination:
    """The folder, made if it is not there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.root = folder.resolve()
        self._safe = {self.root}  # parents that were looked at: ten thousand files share few

    def place(self, name: str) -> Path:
        """Where a checked name goes; its parent is there then. Raises InvalidRequest."""
        path = self.root / name
        parent = path.parent
        if parent not in self._safe:
            if not parent.resolve().is_relative_to(self.root):
                raise InvalidRequest(
                    f"{printable(name)!r} would be written outside {self.root}, over a link that stands there"
                )
            parent.mkdir(parents=True, exist_ok=True)
            self._safe.add(parent)
        return path

    def make_folder(self, name: str, mode: int) -> None:
        """As closed as it was; this user may work in it."""
        path = self.place(name)
        if not path.is_dir():
            path.mkdir(mode & 0o777 | 0o700)

    def take(self, draft: Path, name: str) -> None:
        """A whole file gets its name."""
        draft.replace(self.place(name))

    def make_links(self, links: Sequence[Entry]) -> list[str]:
        """Make the links that stay inside; the names of the others."""
        made: list[Entry] = []
        left_out: list[str] = []
        for entry in links:
            path = self.place(entry.name)
            if not entry.target or entry.target.startswith("/") or (path.is_dir() and not path.is_symlink()):
                left_out.append(entry.name)
                continue
            path.unlink(missing_ok=True)
            path.symlink_to(entry.target)
            made.append(entry)
        # Only now: where a link leads may depend on the others.
        for entry in made:
            path = self.root / entry.name
            if not self._stays(path):
                path.unlink()
                left_out.append(entry.name)
        return left_out

    def _stays(self, path: Path) -> bool:
        try:
            return Path(os.path.realpath(path, strict=False)).is_relative_to(self.root) and not _is_loop(path)
        except (OSError, ValueError):
            return False


def _is_loop(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return False  # it dangles, inside
    except OSError:
        return True
    return False
