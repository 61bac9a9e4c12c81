"""What a user may ask for: nonsense is refused in one sentence that says what to write instead, before anything is bought."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path, PurePosixPath
from typing import Final

from providers import DEFAULT_ACCOUNT, ProviderName, account_of
from providers.core import git
from providers.core.errors import InvalidRequest
from providers.core.gpus import parse_gpu
from providers.core.models import MAX_WORD_BYTES, Job, Requirements

MAX_TIMEOUT_S: Final = 365 * 24 * 3600


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
    return command if isinstance(command, str) else tuple(command)


def checked_requirements(gpu: str, max_price: float | None, requirements: Requirements) -> Requirements:
    """The requirements with the two parameters that stand beside them in the form."""
    for name, default in (("gpu", ()), ("max_price", None)):
        if getattr(requirements, name) != default:
            raise Refused(f"{name} stands inside requirements: write it as the parameter {name} itself")
    if max_price is not None and not (math.isfinite(max_price) and max_price >= 0):
        raise Refused(f"max_price is {max_price:g}: write USD per hour, 0 or more, or leave it empty for no limit")
    try:
        requests = parse_gpu(gpu)
    except ValueError as unclear:
        raise Refused(str(unclear)) from unclear
    for code in (*requirements.countries, *requirements.exclude_countries):
        if not re.fullmatch(r"[A-Za-z]{2}", code):
            raise Refused(f"{code!r} is no country code: write two letters, for example US or DE")
    return requirements.model_copy(update={"gpu": requests, "max_price": max_price})


def checked_job(job: Job, directory: Path) -> Job:
    """The job, its paths inside its directory and its files present in `directory`, the worker's working directory."""
    for path in (*job.files, *job.outputs, *([job.working_directory] if job.working_directory else [])):
        if not path or "\0" in path or path.startswith(("/", "~")) or ".." in PurePosixPath(path).parts:
            raise Refused(f"{path!r} leaves the job's directory: write a path inside it, for example results/model.pt")
    for path in job.files:
        if not (directory / path).exists():
            raise Refused(f"there is no {path!r} in {directory}: files are paths in the worker's working directory")
    if job.timeout_s > MAX_TIMEOUT_S:
        raise Refused(f"timeout_s is {job.timeout_s}: write at most {MAX_TIMEOUT_S} seconds, a year")
    _refuse_bad_variables(job)
    if job.code is not None:
        try:
            git.parse(job.code)
        except InvalidRequest as unclear:
            raise Refused(unclear.message) from unclear
    return job


def _refuse_bad_variables(job: Job) -> None:
    for name in (*job.env, *job.secrets):
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise Refused(f"{name!r} is no name of an environment variable: use letters, digits and _")
    for name, value in job.env.items():
        if len(name) + len(value.encode()) + 1 > MAX_WORD_BYTES:
            raise Refused(f"the environment variable {name} is longer than 128 KB: upload a file instead")
    if twice := job.env.keys() & job.secrets.keys():
        raise Refused(f"{min(twice)} stands in env and in secrets: write it once")
    if any("\0" in value for value in job.env.values()):
        raise Refused("a value in env holds a NUL byte: no environment takes one")


def checked_providers(
    providers: list[ProviderName], enabled: list[ProviderName], account: str | dict[str, str]
) -> list[ProviderName]:
    """The providers to ask, as listed by the user or all that are enabled."""
    _refuse_unknown_accounts(providers, enabled, account)
    if not providers:
        return enabled
    for provider in providers:
        if provider not in enabled:
            raise Refused(
                f"no credentials of {provider.value} are saved as {account_of(account, provider)!r}: run `make connect PROVIDER={provider.value}`"
            )
    return list(dict.fromkeys(providers))


def _refuse_unknown_accounts(
    providers: list[ProviderName], enabled: list[ProviderName], account: str | dict[str, str]
) -> None:
    """An account that nobody saved would quietly leave its provider out, or be another one: somebody else's bill."""
    if isinstance(account, str):
        if account != DEFAULT_ACCOUNT and not providers and enabled == [ProviderName.LOCAL]:
            raise Refused(f"no credentials are saved as {account!r}: `make providers` lists what is")
        return
    known = [provider.value for provider in ProviderName]
    for key, name in account.items():
        if key not in known:
            raise Refused(f"{key!r} in account is no provider: write one of {', '.join(known)}")
        if not providers and key not in enabled:
            raise Refused(
                f"no credentials of {key} are saved as {name!r}: run `make connect PROVIDER={key} ACCOUNT={name}`"
            )


def shown(command: str | tuple[str, ...]) -> str:
    """The command on one line of at most 100 characters, as a person would type it."""
    text = command if isinstance(command, str) else shlex.join(command)
    first = text.strip().splitlines()[0]
    return first if first == text.strip() and len(first) <= 100 else first[:99] + "…"
