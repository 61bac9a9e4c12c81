"""What goes along with a command by itself: the code that it names, from where the user stands; what is nowhere is told before anything is bought."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, Final, NamedTuple

from prefect_gpu.flows.terminal.messages import Wrong
from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.machine import selection
from prefect_gpu.providers.core.machine.transfer import size_text
from prefect_gpu.providers.core.typed import spelled

MOST_BYTES: Final = 100_000_000  # of code; more is data, and is named
INTERPRETERS: Final = re.compile(r"(python[\d.]*|bash|sh|zsh|node|Rscript|julia|perl|ruby|torchrun|deepspeed)")
SCRIPT: Final = re.compile(r"[^-/~$*?\s][^$*?\s]*\.(py|sh|bash|zsh|js|mjs|R|jl|pl|rb|ipynb)")
SHELL: Final = set("&|;<>$`(){}\n")  # a line with these may make its own files


class Along(NamedTuple):
    """The files, and what to say of them."""

    files: list[str]
    said: str = ""


def named(command: str | list[str]) -> list[str]:
    """The scripts that a command names in the folder where it is typed, whether they are there or not."""
    if isinstance(command, str):
        if SHELL & set(command):
            return []
        try:
            words = shlex.split(command)
        except ValueError:
            return []
    else:
        words = command
    found: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        is_run = not before or INTERPRETERS.fullmatch(Path(before).name) is not None
        if SCRIPT.fullmatch(word) and (is_run or word.startswith("./")):
            found.append(word)
    return found


def of(parameters: dict[str, Any], folder: Path) -> Along:
    """What to upload beside what was named. Wrong where a script is nowhere."""
    job = parameters.get("job", {})
    scripts = named(parameters["command"])
    if not scripts or job.get("code") or job.get("working_directory") or job.get("files"):
        return Along([])  # something else brings it; named files are looked for where the worker works
    missing = [one for one in scripts if not (folder / one).exists()]
    if missing and not job.get("image"):
        raise Wrong(
            f"{missing[0]} is not in {folder}, so the job would not find it: type this where it is, or name the repository that has it, "
            f"as in {spelled('--code', 'https://github.com/you/it')}."
        )
    if missing:
        return Along([])
    return _all_of(folder) or Along(
        scripts, f"{', '.join(scripts)} goes along; {spelled('--files', '.')} takes all of this folder"
    )


def _all_of(folder: Path) -> Along | None:
    """What git would commit of the folder, unless that is more than code."""
    if not any((one / ".git").exists() for one in (folder, *folder.parents)):
        return None
    try:
        names = selection.chosen(["."], folder, is_measured=False).names
    except InvalidRequest:
        return None
    size = sum((folder / one).lstat().st_size for one in names if (folder / one).is_file())
    if size > MOST_BYTES:
        return None
    files = f"{len(names):,} file{'' if len(names) == 1 else 's'}"
    return Along(
        ["."],
        f"What git would commit of this folder goes along: {files}, {size_text(size)}; {spelled('--files')} names others",
    )
