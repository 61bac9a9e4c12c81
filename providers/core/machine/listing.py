"""What the machine says is in a job's directory, read as it comes: only what the patterns mean is kept, and nothing of it is believed.

A million files of which one is wanted cost a million short looks and the memory of one. What no honest machine says (a path that leaves
the directory, a number that is not one, a name or a list without end) is an error of that machine. Moves nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from prefect_gpu.providers.core.errors import InstanceFailed, InvalidRequest
from prefect_gpu.providers.core.machine.patterns import Pattern

LIST_BYTES: Final = 512 * 1024 * 1024  # five million files
KEPT_BYTES: Final = 32 * 1024 * 1024  # of what is wanted, as it stands in memory: about 100,000 files
_RECORD_BYTES = 16 * 1024  # a path and the target of a link have at most 4,096 each
_PATH_BYTES = 4095  # Linux's
_NAME_BYTES = 255
_ENTRY_BYTES = 250  # what an entry costs beside its name
_MOST_BYTES = 2**63  # a file cannot be larger
_PATTERN_LETTERS = 4096
_NUMBER = re.compile(rb"[0-9]{1,19}")
_MODE = re.compile(rb"[0-7]{1,6}")


class Entry(NamedTuple):
    """Something in the job's directory."""

    kind: str  # "f" file, "d" folder, "l" link, "u" and "U" file and folder that may not be read, else what nobody can copy
    size: int
    mode: int
    name: str  # relative, checked
    target: str  # of a link


class Found(NamedTuple):
    """What the patterns mean of all that is there."""

    entries: tuple[Entry, ...]  # by name
    missing: tuple[str, ...]  # patterns that mean nothing
    hidden: tuple[str, ...]  # folders that may not be read and in which something might match
    beyond: int  # so many more match, than are brought one by one


class Reader:
    """Takes a list apart while it comes in pieces of any size."""

    def __init__(self, patterns: Sequence[str]) -> None:
        for pattern in patterns:
            refuse_outside(pattern)
        self._patterns = [Pattern(pattern) for pattern in patterns]
        self._has_hit = [False] * len(patterns)
        self._entries: list[Entry] = []
        self._hidden: list[str] = []
        self._kept_bytes = 0
        self._beyond = 0
        self._came = 0
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Raises InstanceFailed or InvalidRequest for what no honest machine lists."""
        self._came += len(data)
        if self._came > LIST_BYTES:
            raise InstanceFailed(f"the machine's list of the job's files does not end: {self._came:,} bytes so far")
        *fields, self._rest = (self._rest + data).split(b"\0")
        if len(self._rest) > _RECORD_BYTES:
            raise _nonsense(f"a name of more than {_RECORD_BYTES:,} bytes")
        if len(fields) % 2:
            self._rest = fields.pop() + b"\0" + self._rest
        for head, target in zip(fields[::2], fields[1::2], strict=True):
            self._take(head, target)

    def found(self) -> Found:
        """When all of it has come."""
        if self._rest:
            raise _nonsense(f"its list ends with {self._rest[:100]!r}")
        missing = tuple(one.text for one, has_hit in zip(self._patterns, self._has_hit, strict=True) if not has_hit)
        entries = tuple(sorted(self._entries, key=lambda entry: entry.name))
        kinds = {entry.name: entry.kind for entry in entries}
        if len(kinds) < len(entries):
            raise _nonsense("it names a file twice")
        for entry in entries:
            above = entry.name
            while (slash := above.rfind("/")) > 0:
                above = above[:slash]
                if kinds.get(above, "d") != "d":
                    raise _nonsense(f"{printable(above)!r} is a file and holds others")
        return Found(entries, missing, tuple(self._hidden), self._beyond)

    def _take(self, head: bytes, target: bytes) -> None:
        if len(head) + len(target) > _RECORD_BYTES:
            raise _nonsense(f"a name of more than {_RECORD_BYTES:,} bytes")
        kind, _, rest = head.partition(b" ")
        size, _, rest = rest.partition(b" ")
        mode, _, path = rest.partition(b" ")
        if len(kind) != 1 or _NUMBER.fullmatch(size) is None or _MODE.fullmatch(mode) is None:
            raise _nonsense(repr(head[:100]))
        name = os.fsdecode(path)
        if _is_outside(name):
            raise _outside(name)
        if len(path) > _PATH_BYTES or any(part in {b"", b"."} or len(part) > _NAME_BYTES for part in path.split(b"/")):
            raise _nonsense(repr(head[:100]))
        hits = [number for number, pattern in enumerate(self._patterns) if pattern.matches(name)]
        for number in hits:
            self._has_hit[number] = True
        if kind == b"U":
            if any(pattern.may_lead_into(name) for pattern in self._patterns) and self._keep(len(name)):
                self._hidden.append(name)
            return
        if not hits:
            return
        if self._keep(len(name) + len(target)):
            sized = min(int(size), _MOST_BYTES)
            self._entries.append(Entry(kind.decode("latin-1"), sized, int(mode, 8) & 0o7777, name, os.fsdecode(target)))

    def _keep(self, letters: int) -> bool:
        self._kept_bytes += letters + _ENTRY_BYTES
        if self._kept_bytes > KEPT_BYTES:
            self._beyond += 1
        return self._kept_bytes <= KEPT_BYTES


def printable(name: str) -> str:
    r"""A name as it can stand in a log, a table and JSON: bytes that are no UTF-8 and control characters written as `\\x..`."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def refuse_outside(path: str) -> None:
    """Raises InvalidRequest for a path of a user's that leaves the job's directory."""
    if _is_outside(path) or path.startswith("~"):  # where a shell would expand it
        raise _outside(path)
    if len(path) > _PATTERN_LETTERS:
        raise InvalidRequest(f"{path[:50]!r}... is longer than any path: write at most {_PATTERN_LETTERS:,} letters")


def _is_outside(path: str) -> bool:
    return not path or "\0" in path or path.startswith("/") or (".." in path and ".." in PurePosixPath(path).parts)


def _outside(path: str) -> InvalidRequest:
    return InvalidRequest(f"{path!r} leaves the job's directory: write a path inside it, for example results/model.pt")


def _nonsense(what: str) -> InstanceFailed:
    return InstanceFailed(f"the machine does not list the job's files: {what}")
