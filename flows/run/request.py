"""What a user may ask for: nonsense is refused in one sentence that says what to write instead, before anything is bought."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pydantic import SecretStr

from prefect_gpu.blocks.server import is_own_server
from prefect_gpu.providers import DEFAULT_ACCOUNT, ProviderName, account_of, saved_accounts
from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.requests import MAX_WORD_BYTES, Job, Requirements, words_problem
from prefect_gpu.providers.core.typed import typed

MAX_TIMEOUT_S: Final = 365 * 24 * 3600
_PROVIDERS: Final = f"one of {', '.join(name.value for name in ProviderName)}"


class Refused(ValueError):
    """The request makes no sense; the message says what to write instead."""


def checked_command(command: str | list[str]) -> str | tuple[str, ...]:
    """The command: a string for the shell, a tuple as an argv."""
    words = [command] if isinstance(command, str) else command
    if not words or not words[0].strip():
        raise Refused("the command is empty: write what to run, for example 'python train.py'")
    if any("\0" in word for word in words):
        raise Refused("the command holds a NUL byte: no shell takes one")
    if any(len(word.encode()) > MAX_WORD_BYTES for word in words):
        raise Refused(
            "the command is longer than 128 KB, more than Linux takes: upload a script in job.files and run that"
        )
    if not isinstance(command, str) and words[0].startswith("-"):
        raise Refused(
            f"{words[0]!r} is not a program: a command that is a list begins with one, for example ['python', 'train.py']"
        )
    return command if isinstance(command, str) else tuple(command)


def checked_requirements(gpu: str, max_price: float | None, requirements: Requirements) -> Requirements:
    """The requirements with the two parameters that stand beside them in the form."""
    for name, default in (("gpu", ()), ("max_price", None)):
        if getattr(requirements, name) != default:
            raise Refused(f"{name} stands inside requirements: write it as the parameter {name} itself")
    if requirements.nearest:
        raise Refused("nearest finds what does not fit: leave it out of requirements")
    if max_price is not None and not (math.isfinite(max_price) and max_price >= 0):
        raise Refused(f"max_price is {max_price:g}: write USD per hour, 0 or more, or leave it empty for no limit")
    try:
        from prefect_gpu.providers.core.catalog import store  # opens price lists, for names that are not known here

        requests = parse_gpu(gpu, store)
    except ValueError as unclear:
        raise Refused(str(unclear)) from unclear
    for code in (*requirements.countries, *requirements.exclude_countries):
        if not re.fullmatch(r"[A-Za-z]{2}", code):
            raise Refused(f"{code!r} is not a country code: write two letters, for example US or DE")
    return requirements.model_copy(update={"gpu": requests, "max_price": max_price})


def nothing_saved(asked: Sequence[str]) -> str:
    """What a newcomer types next, where only this machine was asked because no account is saved; else nothing."""
    if [*map(str, asked)] != [ProviderName.LOCAL.value]:
        return ""
    with suppress(Exception):  # a hint is worth no failure
        if not any(saved_accounts().values()):
            return (
                f" No account of a provider is saved: `{typed('providers')}` shows what each asks, "
                f"`{typed('connect', provider='aws')}` saves one."
            )
    return ""


def checked_job(job: Job, directory: Path) -> Job:
    """The job, its paths inside its directory and its files present in `directory`, the worker's working directory."""
    for path in (*job.outputs, *job.checkpoint, *([job.working_directory] if job.working_directory else [])):
        if not path or "\0" in path or path.startswith(("/", "~")) or ".." in PurePosixPath(path).parts:
            raise Refused(f"{path!r} leaves the job's directory: write a path inside it, for example results/model.pt")
    from prefect_gpu.providers.core.machine import selection  # what `plan` needs not: it answers at once
    from prefect_gpu.providers.core.renting import running

    try:
        selection.chosen(job.files, directory, running.prefects_places(), is_measured=False)
    except InvalidRequest as unclear:
        raise Refused(unclear.message) from unclear
    if job.timeout_s > MAX_TIMEOUT_S:
        raise Refused(f"timeout_s is {job.timeout_s}: write at most {MAX_TIMEOUT_S} seconds, a year")
    _refuse_bad_variables(job)
    if job.code is not None:
        from prefect_gpu.providers.core.machine import git  # few jobs bring their code by it

        try:
            git.parse(job.code)
        except InvalidRequest as unclear:
            raise Refused(unclear.message) from unclear
    return job


def _refuse_bad_variables(job: Job) -> None:
    for name in (*job.env, *job.secrets):
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise Refused(f"{name!r} is not a valid name of an environment variable: use letters, digits and _")
    for name, value in job.env.items():
        if len(name) + len(value.encode()) + 1 > MAX_WORD_BYTES:
            raise Refused(f"the environment variable {name} is longer than 128 KB: upload a file instead")
    if twice := job.env.keys() & job.secrets.keys():
        raise Refused(f"{min(twice)} stands in env and in secrets: write it once")
    if any("\0" in value for value in job.env.values()):
        raise Refused("a value in env holds a NUL byte: no environment takes one")


def refuse_too_long(command: str | tuple[str, ...], env: Mapping[str, str], secrets: Mapping[str, SecretStr]) -> None:
    """Refuse what no machine can start a program with: it would be found out after one was bought."""
    variables = {**env, **{name: value.get_secret_value() for name, value in secrets.items()}}
    for name in secrets:
        if len(name) + len(variables[name].encode()) + 1 > MAX_WORD_BYTES:
            raise Refused(f"the Secret block for {name} holds more than 128 KB: upload a file instead")
        if "\0" in variables[name]:
            raise Refused(f"the Secret block for {name} holds a NUL byte: no environment takes one")
    if problem := words_problem(command, variables):
        raise Refused(problem)


def checked_options(options: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Provider-specific options by the provider's own name; what stands in them is its driver's to check."""
    known: dict[str, dict[str, Any]] = {}
    for name, of_provider in options.items():
        try:
            known[ProviderName(name).value] = of_provider
        except ValueError:
            raise Refused(f"{name!r} in options is not a provider: write {_PROVIDERS}") from None
    return known


def checked_providers(
    providers: list[ProviderName], enabled: list[ProviderName], account: str | dict[str, str], off: Sequence[str] = ()
) -> list[ProviderName]:
    """The providers to ask, as listed by the user or all that are enabled.

    This machine is nobody's choice by accident: it is asked where it is named, and where nothing else is enabled on a server of
    one's own.
    """
    _refuse_unknown_accounts(providers, enabled, account)
    for provider in providers:
        if str(provider) in off:
            raise Refused(
                f"{provider.value} is turned off on this Prefect server, in its block gpu-realm/default: choose another provider"
            )
        if provider not in enabled:
            raise Refused(
                f"no credentials of {provider.value} are saved as {account_of(account, provider)!r}: run `{typed('connect', provider=provider.value)}`"
            )
    if providers:
        return list(dict.fromkeys(providers))
    others = [one for one in enabled if one != ProviderName.LOCAL and str(one) not in off]
    if others:
        return others
    if ProviderName.LOCAL.value in off or not is_own_server():
        raise Refused(
            "no provider's credentials are saved here, and a job runs on the worker itself only where that is asked for: "
            f"run `{typed('connect', provider='aws')}`, or write providers=['local']"
        )
    return enabled


def _refuse_unknown_accounts(
    providers: list[ProviderName], enabled: list[ProviderName], account: str | dict[str, str]
) -> None:
    """An account that nobody saved would quietly leave its provider out, or be another one: somebody else's bill."""
    if isinstance(account, str):
        if account != DEFAULT_ACCOUNT and not providers and enabled == [ProviderName.LOCAL]:
            raise Refused(f"no credentials are saved as {account!r}: `{typed('providers')}` lists what is")
        return
    for key, name in account.items():
        if key not in set(ProviderName):
            raise Refused(f"{key!r} in account is not a provider: write {_PROVIDERS}")
        if not providers and key not in enabled:
            raise Refused(
                f"no credentials of {key} are saved as {name!r}: run `{typed('connect', account=name, provider=key)}`"
            )


def shown(command: str | tuple[str, ...]) -> str:
    """The command on one line of at most 100 characters, as a person would type it."""
    text = command if isinstance(command, str) else shlex.join(command)
    first = text.strip().splitlines()[0]
    return first if first == text.strip() and len(first) <= 100 else first[:99] + "…"
