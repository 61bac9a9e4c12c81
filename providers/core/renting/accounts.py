"""Credentials by name: which blocks are saved on the Prefect server, and loading one."""

from __future__ import annotations

import json
import os
from typing import Any, Final, TypeVar, cast

from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from prefect.context import SyncClientContext
from pydantic import SecretStr

from prefect_gpu.blocks.realm import GpuRealm
from prefect_gpu.blocks.registry import GpuRegistry
from prefect_gpu.providers.core.errors import AuthFailed
from prefect_gpu.providers.core.models import RegistryAuth
from prefect_gpu.providers.core.typed import typed

PAGE: Final = 200  # the most that the API gives at once
B = TypeVar("B", bound=Block)


def slug(provider: str) -> str:
    """The slug of a provider's credentials block."""
    return f"gpu-{provider}"


def saved(slugs: list[str]) -> dict[str, list[str]]:
    """Names of the saved blocks of these types, all of them; no secret read."""
    question = {"block_types": {"slug": {"any_": slugs}}, "include_secrets": False, "sort": "BLOCK_TYPE_AND_NAME_ASC"}
    names: dict[str, list[str]] = {}
    offset = 0
    with SyncClientContext.get_or_create() as prefect:
        while True:
            page = {**question, "limit": PAGE, "offset": offset}
            answer = prefect.client.request("POST", "/block_documents/filter", json=page).json()
            for document in cast("list[dict[str, Any]]", answer):
                names.setdefault(document["block_type"]["slug"], []).append(document["name"])
            if len(answer) < PAGE:
                return names
            offset += PAGE


def load(block: type[B], account: str) -> B:
    """The credentials saved under the account's name. AuthFailed, saying how to save them, where there are none."""
    try:
        return cast("B", block.load(account, _sync=True))  # pyright: ignore[reportCallIssue] - async dispatch
    except ValueError as missing:
        provider = block.get_block_type_slug().removeprefix("gpu-")
        raise AuthFailed(
            f"no credentials of {provider} are saved as {account!r}: run `{typed('connect', provider=provider)}`",
            reach="provider",
        ) from missing


def secret_prefix() -> str:
    """What the names of Secret blocks that a job may name begin with; empty: it may name every one.

    The operator sets it: the environment variable PREFECT_GPU_SECRET_PREFIX of the worker, else the field of the block
    `gpu-realm/default`. The worker's own goes first, so that who may write blocks cannot open what it closed.
    """
    own = os.environ.get("PREFECT_GPU_SECRET_PREFIX")
    return GpuRealm.current().secrets_prefix if own is None else own


def secrets(names: dict[str, str]) -> dict[str, SecretStr]:
    """The values of Secret blocks by environment variable. AuthFailed, naming the block, where one is not saved or not for jobs."""
    values: dict[str, SecretStr] = {}
    prefix = secret_prefix() if names else ""
    for variable, name in names.items():
        if not name.startswith(prefix):
            raise AuthFailed(
                f"jobs may use Secret blocks whose names begin with {prefix!r} only: correct job.secrets[{variable!r}], or ask "
                "whoever set PREFECT_GPU_SECRET_PREFIX for the worker, or the prefix in the block gpu-realm/default",
                reach="provider",
            )
        try:
            block = cast("Secret[Any]", Secret.load(name, _sync=True))  # pyright: ignore[reportCallIssue, reportUnknownMemberType] - async dispatch
        except ValueError as missing:
            raise AuthFailed(
                f"no Secret block is saved as {name!r}: save one, or correct job.secrets[{variable!r}]",
                reach="provider",
            ) from missing
        values[variable] = SecretStr(_as_text(block.get()))
    return values


def _as_text(value: object) -> str:
    """A string as it is; anything else that a Secret block may hold as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def registry(name: str) -> RegistryAuth:
    """The registry credentials saved under this name. AuthFailed where there are none."""
    try:
        saved_block = cast("GpuRegistry", GpuRegistry.load(name, _sync=True))  # pyright: ignore[reportCallIssue] - async dispatch
    except ValueError as missing:
        raise AuthFailed(
            f"no registry credentials are saved as {name!r}: save a block of the type GPU registry under that name",
            reach="provider",
        ) from missing
    return RegistryAuth(server=saved_block.server, username=saved_block.username, password=saved_block.password)
