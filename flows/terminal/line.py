"""A line as it was typed: carried out, or refused in one sentence."""

from __future__ import annotations

import cyclopts

from prefect_gpu.flows.terminal import jobs, setting_up, watching
from prefect_gpu.flows.terminal.app import app
from prefect_gpu.flows.terminal.messages import Trouble, Wrong

COMMANDS = (jobs, watching, setting_up)  # importing them makes them known to the app


def carry_out(words: list[str]) -> int:
    """The exit code. Trouble and Wrong are raised; so is KeyboardInterrupt."""
    _refuse_ambiguous(words)
    try:
        result = app(words)
    except cyclopts.CycloptsError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, Trouble):
                raise cause from None
            cause = cause.__cause__
        raise Wrong(_sentence(error, words)) from None
    return result if isinstance(result, int) else 0


def _sentence(error: cyclopts.CycloptsError, words: list[str]) -> str:
    said = " ".join(str(error).split())
    if isinstance(error, cyclopts.UnknownOptionError) and words[:1] == ["run"] and "--" not in words:
        return (
            f"{said} What belongs to the job stands after --: prefect-gpu run --gpu H100 -- python train.py --lr 3e-4"
        )
    command = words[0] if words and words[0] in app.resolved_commands() else ""
    return f"{said} See: prefect-gpu {f'{command} ' if command else ''}--help"


def _refuse_ambiguous(words: list[str]) -> None:
    """`run python train.py --gpu H100`: whose is --gpu? It may be money."""
    if words[:1] != ["run"] or "--" in words:
        return
    arguments = app["run"].assemble_argument_collection()
    valued = {name: argument.hint is not bool for argument in arguments for name in argument.names}
    program: list[str] = []
    rest = iter(words[1:])
    for word in rest:
        if not word.startswith("-") or word == "-":
            program.append(word)
            continue
        if program and not (len(program) == 1 and " " in program[0]):
            raise Wrong(
                f"Is {word} for the job or for prefect-gpu? Write what is for prefect-gpu first, and the job after --: "
                f"prefect-gpu run --gpu H100 -- {' '.join(program)} ..."
            )
        if "=" not in word and valued.get(word, False):
            next(rest, None)
