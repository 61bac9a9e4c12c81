"""`python -m prefect_gpu.flows.terminal.made run`: what `make` calls. Its variables become the words of the command `prefect-gpu`.

A variable is an option's name in capitals (`MAX_PRICE` is `--max-price`), and `JOB` is the command of `run`; so there is no second
list of them. They are read as they stand, and one that means nothing is refused with the right name: it is money.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args, get_origin

from cyclopts import Argument

from prefect_gpu.flows.terminal.messages import Trouble, Wrong, tell
from prefect_gpu.providers.core.typed import DOOR, NAMED_BY_MAKE

MEANT: Final = {
    "COMMAND": "JOB",
    "CMD": "JOB",
    "PRICE": "MAX_PRICE",
    "BUDGET": "MAX_COST",
    "FILE": "FILES",
    "OUTPUT": "OUTPUTS",
    "TIMEOUT": "TIMEOUT_S",
}
ANYWHERE: Final = ("PYTHON", "SHELL")  # of the Makefile itself
# These may also stand in the environment, as they always could. Of the others (IMAGE, ENV ...) that would be an accident.
FROM_ENVIRONMENT: Final = frozenset(
    {"JOB", "GPU", "MAX_PRICE", "PROVIDERS", "PROVIDER", "ACCOUNT", "FILES", "OUTPUTS", "RUN", "FORCE", "DRY_RUN"}
)


class Variable(NamedTuple):
    """One that a command takes."""

    name: str
    flag: str  # empty: it stands by itself
    is_switch: bool
    is_list: bool
    is_shown: bool


def of_command(command: str) -> dict[str, Variable]:
    """The variables that a command takes, by their names, in the order of its help."""
    from prefect_gpu.flows.terminal.line import app

    found: dict[str, Variable] = {}
    for argument in app[command].assemble_argument_collection():
        flags = [name for name in argument.names if name.startswith("--")]
        is_positional = not flags or argument.field_info.is_positional
        own = argument.names[0].lstrip("-").lower() if is_positional else flags[0].removeprefix("--")
        name = NAMED_BY_MAKE.get(own, own.replace("-", "_").upper())
        found[name] = Variable(
            name, "" if is_positional else flags[0], argument.hint is bool, _is_list(argument), bool(argument.show)
        )
    return found


def _is_list(argument: Argument) -> bool:
    hint: Any = argument.hint
    return any(get_origin(one) is list for one in (hint, *get_args(hint)))


def words(command: str, variables: Mapping[str, str]) -> list[str]:
    """What the line of make means, as words for `prefect-gpu`. Wrong where one of its variables means nothing."""
    taken = of_command(command)
    line = written(variables.get("MAKEFLAGS", ""))
    if variables.get("MAKELEVEL") == "1":  # else another Makefile calls it, whose own variables make hands on
        for name in line:
            if name not in taken and name not in ANYWHERE and not name.startswith("PREFECT_"):
                raise Wrong(_refusal(command, name, taken))
    found: list[str] = []
    alone: list[str] = []
    for one in taken.values():
        if one.name not in variables or not (one.name in line or one.name in FROM_ENVIRONMENT):
            continue
        value = variables[one.name]
        if one.is_switch:
            found += [one.flag] if value.strip() not in ("", "0") else []
        elif one.flag and one.is_list:
            found += [word for part in split(value) for word in (f"{one.flag}={part}",)]
        elif one.flag:
            if value.strip() or one.name.startswith("MAX_"):  # an empty limit is refused; an empty name is none
                found.append(f"{one.flag}={value.strip()}")
        elif value.strip():
            alone.append(value)
    return [command, *found, *(["--", *alone] if alone else [])]


def _refusal(command: str, name: str, taken: Mapping[str, Variable]) -> str:
    known = {one: one for one in taken} | {other: one for other, one in MEANT.items() if one in taken}
    close = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.6)
    shown = [one.name for one in taken.values() if one.is_shown]
    if close:
        return f"make {command} does not take {name}: did you mean {known[close[0]]}?"
    return f"make {command} does not take {name}: nothing was done. " + (
        f"It takes {', '.join(shown)}." if shown else "It takes no variable."
    )


def written(flags: str) -> list[str]:
    """The names of the variables on make's command line, by what make tells its children (MAKEFLAGS)."""
    _, _, assigned = f" {flags}".partition(" -- ")
    parts = re.findall(r"(?:\\.|[^\\\s])+", assigned)
    return [match[1] for part in parts if (match := re.match(r"([^\s:+?!=]+)(?::{1,3}|\+|\?|!)?=", part))]


def split(text: str) -> Iterator[str]:
    """A list as people write it: by spaces or commas, with quotes around what has some; a file of exactly this name is one."""
    if os.path.lexists(text.strip()):
        yield text.strip()
        return
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace += ","
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        yield from lexer
    except ValueError:
        raise Wrong(f"{text}: a quote is opened and not closed.") from None


def main(arguments: Sequence[str]) -> int:
    """Carry out what was typed after make; the exit code."""
    os.environ[DOOR] = "make"
    try:
        line = words(arguments[0], os.environ)
    except Trouble as trouble:
        tell(trouble)
        return _last_word(2)
    from prefect_gpu.flows.terminal.__main__ import main as carry_out

    return _last_word(carry_out(line))


def _last_word(code: int) -> int:
    """Our sentence stays the last one on a person's terminal: make would add `make: *** [Makefile:28: run] Error 2`, and cannot be told not to.

    SIGPIPE ends it without a word, of the shell's either. In a script make's own line and its exit code of 2 stay.
    """
    if code and sys.stderr.isatty() and os.environ.get("MAKELEVEL") == "1":
        with contextlib.suppress(OSError):
            parent = os.getppid()
            if Path(f"/proc/{parent}/comm").read_text().strip() in ("make", "gmake"):
                os.kill(parent, signal.SIGPIPE)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
