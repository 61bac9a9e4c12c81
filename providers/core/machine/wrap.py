"""What a job runs with: inside of what, and with which variables."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import SecretStr

from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.models import JobSpec
from prefect_gpu.providers.core.requests import MAX_WORD_BYTES, words_problem


class Wrap(NamedTuple):
    """How a job runs inside something else (a container): two POSIX sh scripts and what they need to know.

    `run` is executed in the place of the job, in the job's working directory, with the job's argv as "$@" and its environment
    set; its exit code is the job's. `clean_up` runs after the job, however it ended, and must bear being run twice. Variables of
    the job that are `withheld` are not set: the machine itself would run by them, and `run` hands them on otherwise.
    """

    run: str
    clean_up: str = ""
    variables: dict[str, SecretStr] = {}  # noqa: RUF012 - never changed; into the environment of `run`, beside the job's own
    withheld: frozenset[str] = frozenset()


def environment(job: JobSpec, wrap: Wrap | None) -> dict[str, str]:
    """The variables that the job is started with, secrets among them. InvalidRequest where no program can be given them."""
    withheld = wrap.withheld if wrap else frozenset[str]()
    variables = {name: value for name, value in job.env.items() if name not in withheld}
    for secrets in (job.secrets, wrap.variables if wrap else {}):
        variables.update((name, value.get_secret_value()) for name, value in secrets.items())
    for name, value in variables.items():
        if not (name.isascii() and name.isidentifier()) or "\0" in value:
            raise InvalidRequest(f"{name!r} cannot be an environment variable: use letters, digits and _, and no NUL")
        if len(name) + len(value.encode()) + 1 > MAX_WORD_BYTES:
            raise InvalidRequest(f"the environment variable {name} is longer than 128 KB: upload a file instead")
    if problem := words_problem(job.command, variables):
        raise InvalidRequest(problem)
    return variables
