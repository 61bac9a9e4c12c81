"""Credentials by name: which blocks are saved on the Prefect server, and loading one."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.context import SyncClientContext
from pydantic import SecretStr

from blocks.registry import GpuRegistry
from providers.core.errors import AuthFailed
from providers.core.models import RegistryAuth

B = TypeVar("B", bound=Block)


def slug(provider: str) -> str:
    """The slug of a provider's credentials block."""
    return f"gpu-{provider}"


def saved(slugs: list[str]) -> dict[str, list[str]]:
    """Names of the saved blocks of these types; one question to the Prefect API, no secret read."""
    question = {"block_types": {"slug": {"any_": slugs}}, "include_secrets": False}
    with SyncClientContext.get_or_create() as prefect:
        answer = prefect.client.request("POST", "/block_documents/filter", json=question)
    names: dict[str, list[str]] = {}
    for document in cast("list[dict[str, Any]]", answer.json()):
        names.setdefault(document["block_type"]["slug"], []).append(document["name"])
    return names


def load(block: type[B], account: str) -> B:
    """The credentials saved under the account's name. AuthFailed, saying how to save them, where there are none."""
    try:
        return cast("B", block.load(account, _sync=True))  # pyright: ignore[reportCallIssue] - async dispatch
    except ValueError as missing:
        provider = block.get_block_type_slug().removeprefix("gpu-")
        raise AuthFailed(
            f"no credentials of {provider} are saved as {account!r}: run `make connect PROVIDER={provider}`"
        ) from missing


def secrets(names: dict[str, str]) -> dict[str, SecretStr]:
    """The values of Secret blocks by environment variable. AuthFailed, naming the block, where one is not saved."""
    values: dict[str, SecretStr] = {}
    for variable, name in names.items():
        try:
            block = cast("Secret[Any]", Secret.load(name, _sync=True))  # pyright: ignore[reportCallIssue, reportUnknownMemberType] - async dispatch
        except ValueError as missing:
            raise AuthFailed(
                f"no Secret block is saved as {name!r}: save one, or correct job.secrets[{variable!r}]"
            ) from missing
        values[variable] = SecretStr(str(block.get()))
    return values


def registry(name: str) -> RegistryAuth:
    """The registry credentials saved under this name. AuthFailed where there are none."""
    try:
        saved_block = cast("GpuRegistry", GpuRegistry.load(name, _sync=True))  # pyright: ignore[reportCallIssue] - async dispatch
    except ValueError as missing:
        raise AuthFailed(
            f"no registry credentials are saved as {name!r}: save a block of the type GPU registry under that name"
        ) from missing
    return RegistryAuth(server=saved_block.server, username=saved_block.username, password=saved_block.password)
