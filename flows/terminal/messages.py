"""What a person at a terminal is told around a subcommand: trouble as one sentence, and what is waited for."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Generator

PATIENCE_S: Final = 2.0  # what takes longer is told


class Trouble(Exception):
    """What stands in the way, as one sentence for the person at the terminal."""


class Wrong(Trouble):
    """What was asked makes no sense as it was written; nothing was done."""


class Interrupted(Trouble):
    """Ctrl-C, a closed terminal or a request to end; with what is left."""


class NobodyReads(Exception):
    """What stdout led to is gone: `make ... | head` had enough, or the terminal was closed."""


# Colours, and nothing else that a terminal obeys: a job, a machine or a vendor may have written any of this.
_COLOUR: Final = r"\x1b\[[0-9;:]{0,60}m"
_COMMANDS: Final = re.compile(rf"({_COLOUR})|[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_RESET: Final = "\x1b[0m"


def as_text(line: str) -> str:
    """One line with its colours, which end with it; whatever else would move, clear or ask a terminal is shown as text."""

    def shown(match: re.Match[str]) -> str:
        if match[1]:
            return match[1]
        code = ord(match[0])
        return f"^{chr(code ^ 0x40)}" if code < 0x80 else f"\\u{code:04x}"

    line = line.rstrip("\r").rpartition("\r")[2]  # a progress line that was written over itself: what one would see
    text = _COMMANDS.sub(shown, line)
    colours = re.findall(_COLOUR, text)
    return text + _RESET if colours and colours[-1] not in ("\x1b[m", _RESET) else text


def plain(text: str) -> str:
    """A message of ours, which may quote others: no colours either, line by line."""
    return "\n".join(as_text(re.sub(_COLOUR, "", line)) for line in text.split("\n"))


def tell(text: object) -> None:
    """A sentence on stderr; where nobody reads that either, nothing."""
    with contextlib.suppress(OSError):
        print(plain(str(text)), file=sys.stderr, flush=True)  # noqa: T201 - a terminal is what this is for


@contextlib.contextmanager
def waiting(what: str) -> Generator[None]:
    """Tell on stderr what is waited for if it takes longer than two seconds; a terminal gets one line, erased at the end."""
    over = threading.Event()
    is_terminal = sys.stderr.isatty()
    began = time.monotonic()

    def tell_it() -> None:
        if over.wait(PATIENCE_S):
            return
        if not is_terminal:
            tell(f"{what} ...")
            return
        with contextlib.suppress(OSError):  # the terminal was closed
            while True:
                print(f"\r{what} ... {time.monotonic() - began:.0f} s", end="", file=sys.stderr, flush=True)  # noqa: T201
                if over.wait(1):
                    break
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # noqa: T201

    teller = threading.Thread(target=tell_it, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
