"""`prefect-gpu`, and `python -m prefect_gpu.flows.terminal`: signals, exit codes, and trouble as one sentence.

Where the Prefect server is gets decided before anything of Prefect is imported: settings are read at import, and a server of one's
own starts while this process imports.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefect_gpu.flows.terminal.messages import Interrupted, NobodyReads, Trouble, Wrong, tell

if TYPE_CHECKING:
    from types import FrameType


def main(words: Sequence[str] | None = None) -> int:
    """Carry out a line; its exit code. What goes wrong is one sentence on stderr."""
    # In the background of a script SIGINT is ignored, and what is started here would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _interrupt)
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows no UTF-8 sees what it knows
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    os.umask(0o077)  # what is written here may hold what a job printed
    try:
        from prefect_gpu.flows.terminal import line

        return line.carry_out(list(sys.argv[1:] if words is None else words))
    except Interrupted as interrupted:
        tell(interrupted)
        return 130
    except Wrong as wrong:
        tell(wrong)
        return 2
    except Trouble as trouble:
        tell(trouble)
        return 1
    except NobodyReads:
        return 128 + signal.SIGPIPE
    except BrokenPipeError:  # `prefect-gpu --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        tell("Interrupted: nothing was left running.")
        return 130


def _interrupt(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGHUP:
        # The terminal is gone, and tells it more than once; what is given back now takes its time.
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
