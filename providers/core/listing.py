"""Which files there are and which are meant: what an upload takes along, what a pattern of outputs matches. Moves nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

import pathspec

from providers.core.errors import InstanceFailed, InvalidRequest

IGNORE_FILE: Final = ".prefectignore"

# One record an entry: kind, size, mode, name, target of a link; ended by NUL twice because a target may be empty.
# busybox has no -printf: there a name with a newline is left out. An exit code of 1 is find's: it could not look at everything.
LIST_PROGRAM: Final = r"""
cd "$dir/work" || exit 66
if find . -maxdepth 0 -readable -printf '' 2>/dev/null; then
    find . -mindepth 1 -type f ! -readable -printf 'u %s %m %P\0\0' \
        -o -type d ! \( -readable -executable \) -printf 'U %s %m %P\0\0' -prune \
        -o -printf '%y %s %m %P\0%l\0'
else
    find . -mindepth 1 ! -name '*
*' 2>/dev/null | while IFS= read -r name; do
        facts=$(stat -c '%s %a' "$name" 2>/dev/null) || continue
        set -- $facts
        kind=f link=
        if [ -L "$name" ]; then kind=l link=$(readlink "$name")
        elif [ -d "$name" ]; then kind=d; [ -r "$name" ] && [ -x "$name" ] || kind=U
        elif [ ! -f "$name" ]; then kind=o
        elif [ ! -r "$name" ]; then kind=u; fi
        printf '%s %s %s %s\0%s\0' $kind "$1" "$2" "${name#./}" "$link"
    done
fi
"""


class Entry(NamedTuple):
    """Something in the job's directory."""

    kind: str  # "f" file, "d" folder, "l" link, "u" and "U" file and folder that may not be read, else what nobody can copy
    size: int
    mode: int
    name: str  # relative, checked
    target: str  # of a link


def chosen(paths: Iterable[str], base: Path) -> list[str]:
    """The files, links and empty folders that an upload of these paths takes along, relative to `base`, in order.

    Raises InvalidRequest, in one sentence, for what is not there or leaves the directory.
    """
    root = base.resolve()
    ignored = _ignored(base)
    found: dict[str, None] = {}
    for path in paths:
        refuse_outside(path)
        name = str(PurePosixPath(path))
        full = base / name
        if not os.path.lexists(full):
            raise InvalidRequest(f"{path!r} is not in {base}: files are paths in the worker's working directory")
        if not full.resolve().is_relative_to(root):
            raise InvalidRequest(f"{path!r} is a link that leaves {base}: name a file inside it")
        if full.is_dir() and (name == "." or not full.is_symlink()):
            found.update(dict.fromkeys(below(base, "" if name == "." else name, ignored)))
        else:
            found[name] = None
    return list(found)


def below(base: Path, folder: str, ignored: pathspec.GitIgnoreSpec | None = None) -> Iterator[str]:
    """Files, links and empty folders below a folder of `base`, without what is ignored; links are not followed."""
    names: list[str] = []
    with os.scandir(base / folder) as entries:
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if ignored is not None and ignored.match_file(name + "/" if is_folder else name):
                continue
            if is_folder:
                names.append(name + "/")
            elif entry.is_file(follow_symlinks=False) or entry.is_symlink():
                names.append(name)
    if not names and folder:
        yield folder
    for name in sorted(names):
        if name.endswith("/"):
            yield from below(base, name[:-1], ignored)
        else:
            yield name


def parse(listing: bytes) -> list[Entry]:
    """What LIST_PROGRAM printed. Raises InvalidRequest for a name that no honest machine lists, InstanceFailed for other nonsense."""
    *fields, rest = listing.split(b"\0")
    if rest:
        raise InstanceFailed(f"the machine does not list the job's files: its list ends with {rest[:100]!r}")
    entries: list[Entry] = []
    try:
        for head, target in zip(fields[::2], fields[1::2], strict=True):
            kind, size, mode, name = os.fsdecode(head).split(" ", 3)
            if _is_outside(name):
                raise _outside(name)
            entries.append(Entry(kind, int(size), int(mode, 8), name, os.fsdecode(target)))
    except ValueError as unclear:
        raise InstanceFailed(f"the machine does not list the job's files: {unclear}") from unclear
    return sorted(entries, key=lambda entry: entry.name)


def match(entries: Sequence[Entry], patterns: Sequence[str]) -> tuple[list[Entry], tuple[str, ...]]:
    """The entries that the patterns mean, and the patterns that mean nothing."""
    wanted: dict[str, Entry] = {}
    missing: list[str] = []
    for pattern in patterns:
        refuse_outside(pattern)
        plain = str(PurePosixPath(pattern))
        if plain == ".":
            hits = list(entries)
        else:
            # gitignore's matcher: with the slash in front a pattern begins in the job's directory, and a folder is all in it.
            spec = pathspec.GitIgnoreSpec.from_lines(["/" + _escaped(plain)])
            hits = [entry for entry in entries if spec.match_file(entry.name)]
        if not hits:
            missing.append(pattern)
        wanted.update((entry.name, entry) for entry in hits)
    return sorted(wanted.values(), key=lambda entry: entry.name), tuple(missing)


def hidden(entries: Sequence[Entry], patterns: Sequence[str]) -> list[str]:
    """The folders that may not be read and in which something might match."""
    folders = [entry.name for entry in entries if entry.kind == "U"]
    return [name for name in folders if any(_may_lead_into(str(PurePosixPath(one)), name) for one in patterns)]


def _may_lead_into(pattern: str, folder: str) -> bool:
    if pattern == ".":
        return True
    for part, name in zip(pattern.split("/"), folder.split("/"), strict=False):
        if part == "**":
            return True
        if not fnmatchcase(name, part):
            return False
    return True  # it goes on below the folder, or the folder is in what it means


def refuse_outside(path: str) -> None:
    """Raises InvalidRequest for a path of a user's that leaves the job's directory."""
    if _is_outside(path) or path.startswith("~"):  # where a shell would expand it
        raise _outside(path)


def _is_outside(path: str) -> bool:
    return not path or "\0" in path or path.startswith("/") or ".." in PurePosixPath(path).parts


def _outside(path: str) -> InvalidRequest:
    return InvalidRequest(f"{path!r} leaves the job's directory: write a path inside it, for example results/model.pt")


def _ignored(base: Path) -> pathspec.GitIgnoreSpec | None:
    try:
        lines = (base / IGNORE_FILE).read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return None
    return pathspec.GitIgnoreSpec.from_lines(lines)


def _escaped(pattern: str) -> str:
    # A trailing space and a backslash mean something to gitignore and nothing in a path.
    return pattern.replace("\\", "\\\\").replace(" ", "\\ ")
