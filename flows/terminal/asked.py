"""What a command asks for, refused in a sentence before a server is waited for or anything is bought."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any, Final

from prefect_gpu.flows.terminal.messages import Trouble, Wrong
from prefect_gpu.providers import ProviderName
from prefect_gpu.providers.core.typed import installing, libraries_of, typed

SMALL_JOB: Final = 'python3 -c "print(6*7)"'


def job(words: Sequence[str], parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters of `provision`: one word is a shell line, several are a program and its arguments."""
    gpu = parameters.get("gpu", "")
    if not any(word.strip() for word in words):
        if gpu:
            raise Wrong(
                f"Say what to run on {gpu}: {typed('run', gpu=gpu, command='nvidia-smi')}. "
                f"`{typed('plan', gpu=gpu)}` only asks for prices."
            )
        # The first run costs nothing, whatever is connected.
        return {"command": SMALL_JOB, "providers": ["local"], **parameters}
    return {"command": words[0] if len(words) == 1 else list(words), **parameters}


def gpu_known(gpu: str) -> None:
    """Wrong for a GPU that neither we nor the prices of this machine know. Of another server's worker only that worker knows."""
    from prefect_gpu.providers.core.catalog import store
    from prefect_gpu.providers.core.gpu.request import parse_gpu

    try:
        parse_gpu(gpu, store)
    except ValueError as unclear:
        said = str(unclear)
        raise Wrong(said if said.endswith("?") else f"{said}.") from None


def refuse_no_run(command: str, run: str) -> None:
    if not run.strip():
        raise Wrong(
            f"Say which run: `{typed(command, run='NAME')}`, its name or id. `{typed('ps', all=True)}` lists them."
        )


def connectable(name: str) -> None:
    """Refused where no question can be asked, or none is needed."""
    provider = provider_named(name)
    if provider is ProviderName.LOCAL:
        raise Wrong("local needs no credentials: it is this machine.")
    for library in libraries_of(provider.value):
        try:
            metadata.version(library)
        except metadata.PackageNotFoundError:
            raise Trouble(f"{provider.value} needs {library}: {installing(provider.value)}") from None
    if not sys.stdin.isatty():
        raise Trouble(
            f"`{typed('connect', provider=provider.value)}` asks questions: type it in a terminal, or save the block in the Prefect UI."
        )


def provider_named(name: str) -> ProviderName:
    """The provider of that name or alias; a sentence that lists them where there is none."""
    try:
        return ProviderName(name.strip().lower())
    except ValueError:
        known = ", ".join(one.value for one in ProviderName if one is not ProviderName.LOCAL)
        said = f"There is no provider {name!r}" if name.strip() else "Say which"
        raise Wrong(f"{said}: `{typed('connect', provider='NAME')}` with one of {known}.") from None
