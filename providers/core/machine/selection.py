"""What an upload takes along: what git would commit, else everything but a list of defaults, and never what is private.

A file that is named is sent; of a folder that is named goes what git would commit (tracked, or new and not ignored), and where there is
no git everything but DEFAULTS. `.prefectignore` (Prefect's own, gitignore's syntax) in the working directory comes on top. A folder that
is ignored itself and named all the same is sent whole.

Private places (the Prefect server's home with its database and key, keys for SSH and clouds) are known by what they are, device and
inode, whatever they are called: no pattern, no link and no name brings one along. So are files of theirs that have a second name
elsewhere, and those that the environment names (KUBECONFIG and its like).
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

import pathspec

from prefect_gpu.providers.core import private
from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.machine import git_program
from prefect_gpu.providers.core.machine.patterns import MAGIC, Pattern
from prefect_gpu.providers.core.machine.shell import plain
from prefect_gpu.providers.core.machine.transfer import size_text

IGNORE_FILE: Final = ".prefectignore"
DEFAULTS: Final = (
    ".git", ".hg", ".svn", ".env", ".env.*", ".envrc", ".netrc", ".venv", "venv", "__pycache__", "*.pyc", "node_modules", ".tox",
    ".nox", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", ".ipynb_checkpoints", ".DS_Store", ".prefect-gpu",
    "fetched", ".ssh", ".aws", ".kube", ".gnupg",
)  # fmt: skip
_NO_REPOSITORY = re.compile(r"not a git repository|must be run in a work tree")
_LOOKED_AT = 100_000  # so many things are measured of what is left out
_SHOWN = 4


class LeftOut(NamedTuple):
    """Something in a named folder that an upload does not take along."""

    name: str
    bytes: int
    is_measured: bool = True  # else it is at least so big

    def __str__(self) -> str:
        return f"{self.name} ({'' if self.is_measured else 'over '}{size_text(self.bytes)})"


class Chosen(NamedTuple):
    """What goes, in order: files, links and empty folders, relative to the working directory."""

    names: list[str]
    left_out: tuple[LeftOut, ...]


Identity = tuple[int, int]  # device and inode
IsOut = Callable[[os.DirEntry[str], str], bool]  # told an entry and its name, with a slash at the end for a folder


def remark(left_out: Sequence[LeftOut]) -> str:
    """What was left out, the biggest first, in one line."""
    ordered = sorted(left_out, key=lambda one: -one.bytes)
    shown = [str(one) for one in ordered[:_SHOWN]]
    if more := ordered[_SHOWN:]:
        all_of_them = LeftOut(
            f"{len(more):,} more", sum(one.bytes for one in more), all(one.is_measured for one in more)
        )
        shown.append(str(all_of_them))
    return ", ".join(shown)


def chosen(paths: Iterable[str], base: Path, secret: Iterable[Path] = (), *, is_measured: bool = True) -> Chosen:
    """What an upload of these paths and patterns takes along; nothing of `private.own_places` and of the `secret` ones beside them.

    Raises InvalidRequest, in one sentence, for what is not there, leads out of the directory or is private.
    """
    tree = _Tree(base, [*secret, *private.own_places()])
    found: dict[str, None] = {}
    folders: list[str] = []
    for path in paths:
        refuse_outside(path, base)
        name = str(PurePosixPath(path))
        full = base / name
        if not os.path.lexists(full):
            tree.refuse_private(".", path)
            found.update(dict.fromkeys(tree.matching(path)))
            continue
        if not full.resolve().is_relative_to(base.resolve()):
            raise InvalidRequest(f"{path!r} is a link that leads out of {base}: name a file inside it")
        tree.refuse_private(path)
        if full.is_dir() and (name == "." or not full.is_symlink()):
            folder = "" if name == "." else name
            folders.append(folder)
            found.update(dict.fromkeys(tree.kept(folder)))
        else:
            found[name] = None
    return Chosen(list(found), tuple(tree.left_out(folders, found)) if is_measured else ())


def refuse_outside(path: str, base: Path) -> None:
    """Raises InvalidRequest for a path that does not lie in the working directory by its very name."""
    if not path or "\0" in path or path.startswith(("/", "~")) or ".." in PurePosixPath(path).parts:
        raise InvalidRequest(
            f"{path!r} leads out of {base}, where files to upload are looked for: name what lies in it, for example "
            "train.py, data/ or *.csv; a single dot is all of it"
        )


def below(base: Path, folder: str, is_out: IsOut | None = None) -> Iterator[str]:
    """Files, links and empty folders below a folder of `base`, without what is out; links are not followed."""
    waiting = [folder + "/"]
    while waiting:
        name = waiting.pop()
        if not name.endswith("/"):
            yield name
            continue
        inner = name[:-1]
        names: list[str] = []
        is_empty = True
        with os.scandir(base / inner) as entries:
            for entry in entries:
                is_empty = False
                name = f"{inner}/{entry.name}" if inner else entry.name
                is_folder = entry.is_dir(follow_symlinks=False)
                if is_out is not None and is_out(entry, name + "/" if is_folder else name):
                    continue
                if is_folder:
                    names.append(name + "/")
                elif entry.is_file(follow_symlinks=False) or entry.is_symlink():
                    names.append(name)
        if is_empty and inner:
            yield inner
        waiting += sorted(names, reverse=True)


class _Tree:
    """The working directory."""

    def __init__(self, base: Path, secret: Iterable[Path]) -> None:
        self._base = base
        self._private: dict[Identity, Path] = {}
        for place in (one for named in secret for one in (named, *private.known_elsewhere(named))):
            with contextlib.suppress(OSError):
                status = place.stat()
                self._private[status.st_dev, status.st_ino] = place
        self._known: dict[tuple[Path, Path], bool] = {}
        self._inodes = {inode for _device, inode in self._private}
        try:
            self._own_rules = (base / IGNORE_FILE).read_text(errors="surrogateescape").splitlines()
        except (FileNotFoundError, IsADirectoryError):
            self._own_rules = list[str]()
        self._own = pathspec.GitIgnoreSpec.from_lines(self._own_rules)
        self._default = pathspec.GitIgnoreSpec.from_lines([*DEFAULTS, *self._own_rules])

    def refuse_private(self, path: str, written: str = "") -> None:
        """Raises InvalidRequest for a private place, and for what lies in one; `written` is how the user named it."""
        full = (self._base / path).resolve()
        for place in (full, *full.parents):
            status = place.stat()
            if (secret := self._private.get((status.st_dev, status.st_ino))) is not None:
                raise InvalidRequest(
                    f"{(written or path)!r} is or lies in {secret}, where keys and passwords are kept: it is never uploaded"
                )

    def kept(self, folder: str) -> Iterator[str]:
        """What goes of a folder that was named."""
        committed = self._committed(folder)
        if committed is not None:
            yield from committed
            return
        is_named_though_ignored = bool(folder) and self._default.match_file(folder + "/")
        rules = None if is_named_though_ignored else self._default

        def is_out(entry: os.DirEntry[str], name: str) -> bool:
            return self._is_private(entry) or (rules is not None and rules.match_file(name))

        yield from below(self._base, folder, is_out)

    def matching(self, path: str) -> list[str]:
        """What goes by a pattern: of what goes of the whole directory, else of all that is there. Raises InvalidRequest if nothing does."""
        pattern = Pattern(path)
        is_about_hidden = path.removeprefix("./").startswith(".")
        if MAGIC.search(path) is not None:
            everything = below(self._base, "", lambda entry, _name: self._is_private(entry))
            for names in (self.kept(""), everything):
                hits = [name for name in names if pattern.matches(name) and (is_about_hidden or name[0] != ".")]
                if hits:
                    return hits
            raise InvalidRequest(f"nothing in {self._base} matches {path!r}")
        raise InvalidRequest(f"there is no {path!r} in {self._base}: files are paths in the worker's working directory")

    def left_out(self, folders: Sequence[str], kept: Iterable[str]) -> Iterator[LeftOut]:
        """What does not go of the folders that were named, the topmost of it."""
        going = set(kept)
        parents = {str(parent) for name in going for parent in PurePosixPath(name).parents} - {"."}
        budget = [_LOOKED_AT]
        for folder in folders:
            waiting = [folder]
            while waiting:
                inner = waiting.pop()
                with os.scandir(self._base / inner) as entries:
                    for entry in entries:
                        name = f"{inner}/{entry.name}" if inner else entry.name
                        if name in parents:
                            waiting.append(name)
                        elif name not in going:
                            size = _size(entry, budget)
                            yield LeftOut(name, size, is_measured=budget[0] > 0)

    def _is_private(self, entry: os.DirEntry[str]) -> bool:
        if entry.inode() not in self._inodes and not entry.is_dir(follow_symlinks=False):
            return False
        status = entry.stat(follow_symlinks=False)  # a mounted folder has another inode than its entry
        return (status.st_dev, status.st_ino) in self._private

    def _committed(self, folder: str) -> list[str] | None:
        """What git would commit of a folder, or None where git does not know it, or ignores it."""
        if not git_program.is_there():
            return None
        tracked, new = self._git(folder, "--cached"), self._git(folder, "--others", "--exclude-standard")
        if not tracked and not new:
            return None
        names: list[str] = []
        for listed, rules in ((tracked, self._own), (new, self._default)):
            for inner in listed:
                name = f"{folder}/{inner}" if folder else inner
                if rules.match_file(name) or not os.path.lexists(self._base / name):
                    continue
                if name.endswith("/") or ((self._base / name).is_dir() and not (self._base / name).is_symlink()):
                    name = name.rstrip("/")  # a repository in the repository
                    names += self.kept(name)
                else:
                    names.append(name)
        return sorted(name for name in dict.fromkeys(names) if self._may_go(name, self._base / folder))

    def _may_go(self, name: str, top: Path) -> bool:
        """Whether something that git listed below `top` is of a kind that goes and lies in no private place nor behind a link."""
        path = self._base / name
        status = path.lstat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            return False
        return (status.st_dev, status.st_ino) not in self._private and self._is_public(path.parent, top)

    def _is_public(self, folder: Path, top: Path) -> bool:
        """A folder that git tracks may be a link to another one by now: git would not commit what is there."""
        if (folder, top) not in self._known:
            status = folder.stat()
            is_public = (status.st_dev, status.st_ino) not in self._private
            is_below = folder != top and folder.is_relative_to(top)
            if is_public and is_below and folder.is_symlink():
                is_public = False
            self._known[folder, top] = is_public and (folder == self._base or self._is_public(folder.parent, top))
        return self._known[folder, top]

    def _git(self, folder: str, *which: str) -> list[str]:
        """Names; none where there is no repository. InvalidRequest where there is one and git does not tell: its rules keep secrets in."""
        place = self._base / folder
        try:
            done = git_program.run(["ls-files", "-z", *which], place, git_program.environment(), timeout_s=60)
            words = plain(done.told)[:300]
        except git_program.TooLong:
            raise InvalidRequest(f"git does not list {place} in time: name less of it") from None
        if done.code == 0:
            return [os.fsdecode(name) for name in done.out.split(b"\0") if name]
        if _NO_REPOSITORY.search(words):
            return []
        raise InvalidRequest(f"git does not tell what of {place} may go: {words or f'it ended with {done.code}'}")


def _size(entry: os.DirEntry[str], budget: list[int]) -> int:
    """Bytes of a file, or of all that is in a folder as far as the budget goes."""
    total, waiting = 0, [entry]
    while waiting and budget[0] > 0:
        budget[0] -= 1
        one = waiting.pop()
        with contextlib.suppress(OSError):
            if one.is_dir(follow_symlinks=False):
                with os.scandir(one) as entries:
                    waiting += entries
            else:
                total += one.stat(follow_symlinks=False).st_size
    return total
