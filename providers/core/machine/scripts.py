"""The sh programs that run on machines: files of a folder `sh`, put together with the values that they need.

They need dash or busybox and /proc, no ps, no Python. Each is read by shellcheck (`make check`). What a program gets from here
stands in front of it as assignments, so that no value is ever pasted into its text.
"""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Final

OURS: Final = Path(__file__).with_name("sh")

_COMMENT = re.compile(r"^[ \t]*#.*\n", re.MULTILINE)


@cache
def text(*names: str, folder: Path = OURS) -> str:
    """The programs of these names (`follow` is follow.sh) one after the other, without the lines that are comments."""
    return "".join(_COMMENT.sub("", (folder / f"{name}.sh").read_text(encoding="utf-8")) for name in names)


def assigned(**values: str | float) -> str:
    """A line of assignments to variables of these names."""
    return " ".join(f"{name}={shlex.quote(str(value))}" for name, value in values.items()) + "\n"


def printing(name: str, value: str) -> str:
    """A function of this name that prints the value: for what must stand in no environment and no list of processes."""
    return f"{name}() {{ printf %s {shlex.quote(value)}; }}\n"
