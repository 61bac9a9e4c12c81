"""`python -m flows run`, `... up` and so on: what the words after `make` start.

Decides where the Prefect server is, and starts one where none is configured, before anything of Prefect is imported: settings are read
at import, and the server starts while this process imports.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from flows import environment
from flows.terminal import NobodyReads, Trouble, tell, waiting

if TYPE_CHECKING:
    from types import FrameType

    from flows.environment import Place


def main(command: str) -> int:
    """Carry out one subcommand; its exit code. What goes wrong is one sentence on stderr."""
    # In the background of a script SIGINT is ignored, and what is started here would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _interrupt)
    place: Place | None = None
    try:
        if command == "down":
            return environment.down()
        with environment.reached(kept=command == "up", configured_only=command == "deploy") as place:
            with waiting("Prefect starts"):
                from flows import console

            return console.SUBCOMMANDS[command](place)
    except Trouble as trouble:
        tell(trouble)
        return 1
    except NobodyReads:
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        tell(f"Interrupted{environment.what_is_left(place)}")
        return 130


def _interrupt(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGHUP:
        # The terminal is gone, and tells it more than once; what is given back now takes its time.
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
