"""A command as who reads a message would type it: `make run GPU=H100` in the checkout, `prefect-gpu run --gpu H100` once installed."""

from __future__ import annotations

import os
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Final

DOOR: Final = "PREFECT_GPU_DOOR"  # "make" where make was typed; the worker that it starts inherits it
POSITIONAL: Final = {
    "run": ("command",),
    "connect": ("provider",),
    "logs": ("run",),
    "stop": ("run",),
    "fetch": ("run",),
}
NAMED_BY_MAKE: Final = {"command": "JOB"}


def is_make() -> bool:
    return os.environ.get(DOOR) == "make"


def typed(command: str, /, **options: str | bool) -> str:
    """The line; options as the flow's parameters are named."""
    if is_make():
        words = [
            f"{NAMED_BY_MAKE.get(name, name.upper())}={'1' if value is True else _quoted(value)}"
            for name, value in options.items()
            if value is not False
        ]
        return " ".join(["make", command, *words])
    words: list[str] = []
    last: list[str] = []
    for name, value in options.items():
        if name in POSITIONAL.get(command, ()):
            last += ["--", str(value)] if name == "command" and options.keys() - {"command"} else [str(value)]
        elif value is True:
            words.append(f"--{name.replace('_', '-')}")
        elif value is not False:
            words += [f"--{name.replace('_', '-')}", _quoted(value)]
    return " ".join(["prefect-gpu", command, *words, *last])


def installing(extra: str) -> str:
    """What installs the libraries of one extra. Not by the name `prefect-gpu`, which is on no index; and pip alone looks for minutes for versions that fit."""
    if is_make():
        return f"`{typed('connect', provider=extra)}` installs it"
    if (Path(sys.prefix) / "complete.json").exists():  # made by the checkout's own set-up
        return "`make install` in the checkout installs it"
    return "`pip install --no-deps -r requirements-all.lock` in the checkout installs it"


def libraries_of(extra: str) -> list[str]:
    """What an extra of this package brings, as pip knows it."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in metadata.requires("prefect-gpu") or []]
    return [one.name for one in wanted if one.marker and one.marker.evaluate({"extra": extra}) and not one.extras]


def spelled(flag: str, value: str | None = None) -> str:
    """An option as who reads it writes it: `--max-price 20`, or `MAX_PRICE=20`."""
    if not is_make():
        return flag if value is None else f"{flag} {value}"
    name = flag.removeprefix("--").replace("-", "_").upper()
    return name if value is None else f"{name}={value}"


def _quoted(value: str | bool) -> str:
    text = str(value)
    return text if shlex.quote(text) == text else f"'{text}'"
