"""A run's name by what it does, `h100x8-aws-train`, where nobody gave it one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import PurePosixPath
from typing import Any, Final, cast
from uuid import UUID

from prefect.context import FlowRunContext, SyncClientContext

_LONGEST: Final = 24  # of the part that says what runs
_SCRIPT: Final = re.compile(r"\.(py|sh|bash|ipynb|R|r|jl|lua|pl|rb|js)$")
# fmt: off
_NEW_FORM: Final = re.compile(
    "(Awesome|Ergonomic|Fantastic|Generic|Gorgeous|Handcrafted|Handmade|Incredible|Intelligent|Licensed|Practical|Refined|Rustic|Sleek|Small|Tasty|Unbranded)"
    "-[A-Z].*"
)
_OLD_FORM: Final = re.compile(
    "(alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi|psi|omega)"
    "[0-9]*-[a-z][a-z-]*"
)
# fmt: on
_BEFORE: Final = {"exec", "env", "nohup", "time", "sudo", "nice", "set"}  # what comes before the program that is meant


def named(gpu: str, provider: str, command: str | tuple[str, ...]) -> str:
    """`h100x8-aws-train`: the GPU as an offer says it (`H100:8`, `none`), the provider, and what runs."""
    name, _, count = gpu.partition(":")
    first = "cpu" if gpu == "none" else f"{_plain(name)}x{count or 1}"
    return "-".join(part for part in (first, provider, what_runs(command)) if part)


def what_runs(command: str | tuple[str, ...]) -> str:
    """`train` of `python train.py`: the first script that the command names, else its first program."""
    words = _words(command)
    for number, word in enumerate(words):
        if _SCRIPT.search(word):
            return _plain(PurePosixPath(word).stem)[:_LONGEST].strip("-")
        if word == "-m" and number + 1 < len(words):
            return _plain(words[number + 1].rpartition(".")[2])[:_LONGEST].strip("-")
        if word == "-c":
            break
    programs = (word for word in words if "=" not in word and not word.startswith("-") and word not in _BEFORE)
    return _plain(PurePosixPath(next(programs, "")).name)[:_LONGEST].strip("-")


def rename(run_id: UUID, name: str, earlier: set[str]) -> None:
    """Call the run by what it does, unless somebody named it: a name that Prefect made up goes, and one of `earlier`, which were ours.

    Whatever Prefect's API says, a machine that was bought is more than its run's name.
    """
    with suppress(Exception):
        context = FlowRunContext.get()
        current = context.flow_run.name if context and context.flow_run else ""
        if name != current and (is_made_up(current) or current in earlier):
            with SyncClientContext.get_or_create() as prefect:
                prefect.client.update_flow_run(run_id, name=name)


def is_made_up(name: str) -> bool:
    """Whether it is one that Prefect makes up: `brave-otter` by its server, `Rustic-Cockle` and `upsilon-relva` by the forms of its UIs."""
    first, _, second = name.partition("-")
    adjectives, animals = _made_up()
    if first in adjectives and second in animals:
        return True
    return bool(_NEW_FORM.fullmatch(name) or _OLD_FORM.fullmatch(name))


def _words(command: str | tuple[str, ...]) -> list[str]:
    if not isinstance(command, str):
        return list(command)
    last = re.split(r"&&|;|\n", command.strip())[-1] or command  # `cd work && python train.py` is about the last
    try:
        return shlex.split(last)
    except ValueError:  # a quote that is not closed is the shell's to complain about
        return last.split()


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@cache
def _made_up() -> tuple[frozenset[str], frozenset[str]]:
    """The words that Prefect's names of two words are made of."""
    from coolname.data import config  # Prefect's own source of names; pyright: ignore[reportMissingTypeStubs]

    lists = cast("dict[str, dict[str, Any]]", config)

    def of(name: str) -> Iterator[str]:
        one = lists[name]
        yield from one.get("words", ())
        for other in one.get("lists", ()):
            yield from of(other)

    first, second = lists["an"]["lists"]
    return frozenset(of(first)), frozenset(of(second))
