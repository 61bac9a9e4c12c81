"""The registry: every provider by its name, which is its file, its block's slug and its gpuhunt name.

`library(name)` is the provider's task library; its file is imported only then, so a provider whose extra is missing troubles
nobody who does not use it.
"""

from __future__ import annotations

import importlib
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from prefect_gpu.providers.core.errors import Unsupported
from prefect_gpu.providers.core.typed import installing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prefect_gpu.providers.core.renting.library import TaskLibrary

DEFAULT_ACCOUNT: Final = "default"


class ProviderName(StrEnum):
    """One line per provider."""

    LOCAL = "local"
    SSH = "ssh"
    AWS = "aws"
    AZURE = "azure"
    GCP = "gcp"
    KUBERNETES = "kubernetes"
    VULTR = "vultr"
    VERDA = "verda"
    LAMBDALABS = "lambdalabs"
    TENSORDOCK = "tensordock"
    RUNPOD = "runpod"
    VASTAI = "vastai"

    @classmethod
    def _missing_(cls, value: object) -> ProviderName | None:
        return cls.__members__.get(_ALIASES.get(str(value), ""))


_ALIASES: Final = {"vast": "VASTAI", "lambda": "LAMBDALABS", "datacrunch": "VERDA", "k8s": "KUBERNETES"}


def library(name: ProviderName | str) -> TaskLibrary[Any]:
    """The provider's task library. Unsupported when its extra is not installed."""
    provider = ProviderName(name)
    try:
        module = importlib.import_module(f"{__name__}.{provider.value}")
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("prefect_gpu"):
            raise
        raise Unsupported(f"{provider.value} needs {missing.name}: {installing(provider.value)}") from missing
    return module.tasks


def account_of(account: str | Mapping[str, str], provider: ProviderName | str) -> str:
    """The account's name for one provider, where `account` may be one name or a map from provider to name."""
    if isinstance(account, str):
        return account
    return account.get(str(provider), DEFAULT_ACCOUNT)


def enabled(
    account: str | Mapping[str, str] = DEFAULT_ACCOUNT, among: Sequence[ProviderName] = ()
) -> list[ProviderName]:
    """The providers with a saved credentials block of the account's name; `local` always, without asking if only that is meant."""
    if list(among) == [ProviderName.LOCAL]:
        return [ProviderName.LOCAL]
    saved = saved_accounts()
    return [
        provider
        for provider in ProviderName
        if provider is ProviderName.LOCAL or account_of(account, provider) in saved[provider]
    ]


def saved_accounts() -> dict[ProviderName, list[str]]:
    """The names of all saved credentials blocks, by provider."""
    from prefect_gpu.providers.core.renting import accounts

    saved = accounts.saved([accounts.slug(provider) for provider in ProviderName])
    return {provider: saved.get(accounts.slug(provider), []) for provider in ProviderName}
