"""The command `prefect-gpu`: what all that can be typed have in common. Its commands stand in jobs, watching and setting_up."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib import metadata
from typing import Annotated, Final

from cyclopts import App, Group, Parameter

from prefect_gpu.flows.terminal.messages import Interrupted
from prefect_gpu.flows.terminal.place import Place

RENT: Final = Group("Rent", sort_key=1)
LOOK: Final = Group("Look and end", sort_key=2)
SET_UP: Final = Group("Set up", sort_key=3)

app: Final = App(
    name="prefect-gpu",
    help="""Rent the right GPU, run one job on it, give it back, as Prefect flows.

The Prefect server is the one that PREFECT_API_URL or your Prefect profile names, else one of your own, whose data lies in
~/.local/state/prefect-gpu. `prefect-gpu COMMAND --help` shows a command's options, their units and examples.""",
    help_format="markdown",
    version=lambda: metadata.version("prefect-gpu"),
    default_parameter=Parameter(show_default=False, negative_iterable=""),
    help_epilogue="Exit codes: 0 well, 1 failed, 2 what was asked is wrong, 130 interrupted.",
    suppress_keyboard_interrupt=False,
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
)
app.register_install_completion_command(  # pyright: ignore[reportUnknownMemberType]
    group=SET_UP, help="Set up completion for your shell: bash, zsh or fish."
)

Json = Annotated[
    bool, Parameter(help="Write one JSON document for programs, and nothing else, to stdout.", negative="")
]
Run = Annotated[str, Parameter(help="A run, by its name, its id, or the beginning of its id.")]
_ORDER: Final = itertools.count()  # help lists them as they stand here


def at_server(work: Callable[[Place], int], *, kept: bool = False, configured_only: bool = False) -> int:
    """Do it with the Prefect server, which is started where none is configured; the exit code."""
    from prefect_gpu.flows.terminal import place as places
    from prefect_gpu.flows.terminal import server

    place: Place | None = None
    try:
        with server.reached(kept=kept, configured_only=configured_only) as place:
            return work(place)
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted{places.what_is_left(place)}") from None


def command(group: Group) -> Callable[[Callable[..., int]], Callable[..., int]]:
    return app.command(group=group, sort_key=next(_ORDER))
