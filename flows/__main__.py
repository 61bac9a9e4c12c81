"""`python -m flows run`, `... up` and so on: what the words after `make` start.

Decides where the Prefect server is, and starts one where none is configured, before anything of Prefect is imported: settings are read
at import, and the server starts while this process imports.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from flows import environment
from flows.terminal import Trouble, waiting

if TYPE_CHECKING:
    from types import FrameType


def main(command: str) -> int:
    """Carry out one subcommand; its exit code. What goes wrong is one sentence on stderr."""
    # In the background of a script SIGINT is ignored, and what is started here would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _interrupt)
    try:
        if command == "down":
            return environment.down()
        with environment.reached(kept=command == "up", configured_only=command == "deploy") as place:
            with waiting("Prefect starts"):
                from flows import console

            return console.SUBCOMMANDS[command](place)
    except Trouble as trouble:
        print(trouble, file=sys.stderr)  # noqa: T201 - a terminal is what this is for
        return 1
    except KeyboardInterrupt:
        print("Interrupted: nothing was left running.", file=sys.stderr)  # noqa: T201
        return 130


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
