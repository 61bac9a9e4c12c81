"""What a person at a terminal is told around a subcommand: trouble as one sentence, and what is waited for."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Generator

PATIENCE_S: Final = 2.0  # what takes longer is told


class Trouble(Exception):
    """What stands in the way, as one sentence for the person at the terminal."""


class NobodyReads(Exception):
    """What stdout led to is gone: `make ... | head` had enough, or the terminal was closed."""


def tell(text: object) -> None:
    """A sentence on stderr; where nobody reads that either, nothing."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - a terminal is what this is for


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
