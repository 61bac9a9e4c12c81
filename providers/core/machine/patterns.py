"""Shell-like patterns of paths that match in linear time, whatever name they meet.

`*` and `?` stop at a slash, `**` between slashes is any number of folders, `[a-z]` and `[!a-z]` are one character. A folder that
matches is all in it. There is no escape: a name that is written exactly as it is matches too, `a[1].txt` among others.

A star takes as little as it can and never gives it back (an atomic group), which is right because what stands between two stars
has one length: a backtracking `*-*-*-*.pt` took 7 s against a name of 400 dashes, with every other thread standing still.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Final

MAGIC: Final = re.compile(r"[*?[]")
_CLASS = re.compile(r"\[(?P<not>[!^])?(?P<set>\]?[^\]/]*)\]")


class Pattern:
    """One pattern, ready to be asked."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._plain = str(PurePosixPath(text))  # without a slash at the end, `./` and `//`
        self._below = self._plain + "/"
        self._parts = self._plain.split("/")
        self._regex = re.compile(_path(self._parts), re.DOTALL) if MAGIC.search(self._plain) else None

    def matches(self, name: str) -> bool:
        """Whether it means this path, or a folder that this path lies in."""
        if self._plain in {".", name} or name.startswith(self._below):
            return True
        return self._regex is not None and self._regex.match(name) is not None

    def may_lead_into(self, folder: str) -> bool:
        """Whether something in this folder could match."""
        if self._plain == ".":
            return True
        for part, name in zip(self._parts, folder.split("/"), strict=False):
            if part == "**":
                return True
            if name != part and re.fullmatch(_part(part), name, re.DOTALL) is None:
                return False
        return True  # it goes on below the folder, or the folder is in what it means


def _path(parts: list[str]) -> str:
    """The pattern as a regular expression for `match`; it ends at the end of a name or of a folder in it."""
    chunks: list[list[str]] = [[]]  # what stands between two `**`
    for part in parts:
        if part == "**":
            chunks.append([])
        else:
            chunks[-1].append(_part(part))
    first, *rest = ["/".join(chunk) for chunk in chunks]
    if not rest:
        return rf"{first}(?=/|\Z)"
    regex = f"{first}/" if first else ""
    for chunk in rest[:-1]:
        if chunk:
            regex += rf"(?>(?:[^/]*/)*?{chunk}/)"
    last = rest[-1]
    return regex + (rf"(?:[^/]*/)*?{last}(?=/|\Z)" if last else r".")  # `a/**`: what is in a, not a itself


def _part(part: str) -> str:
    """What stands between two slashes."""
    chunks = [_literal(chunk) for chunk in re.split(r"\*+", part)]
    first, *rest = chunks
    if not rest:
        return first
    middle = "".join(rf"(?>[^/]*?{chunk})" for chunk in rest[:-1] if chunk)
    return rf"{first}{middle}[^/]*{rest[-1]}"


def _literal(chunk: str) -> str:
    """Characters, `?` and classes: always as many characters as it has members."""
    regex, at = "", 0
    while at < len(chunk):
        if chunk[at] == "?":
            regex += "[^/]"
        elif chunk[at] == "[" and (found := _CLASS.match(chunk, at)) is not None and found["set"]:
            regex += _class(found["set"], is_not=found["not"] is not None)
            at = found.end()
            continue
        else:
            regex += re.escape(chunk[at])
        at += 1
    return regex


def _class(members: str, *, is_not: bool) -> str:
    written, at = "", 0
    while at < len(members):
        low = members[at]
        if at + 2 < len(members) and members[at + 1] == "-":
            high = members[at + 2]
            written += f"{re.escape(low)}-{re.escape(high)}" if low <= high else ""
            at += 3
        else:
            written += re.escape(low)
            at += 1
    if not written:  # [z-a]
        return "[^/]" if is_not else "(?!)[^/]"
    return f"[^/{written}]" if is_not else rf"(?:(?!/)[{written}])"
