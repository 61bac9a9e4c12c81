"""Asking several providers at once for their offers: one that is down, slow or refuses holds up nobody."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import providers as registry
from providers import ProviderName, account_of
from providers.core.errors import InvalidRequest, ProviderError, Transient
from providers.core.models import Offer, Requirements

PATIENCE_S: Final = 30.0  # so long a provider may take


def ask(
    names: Sequence[ProviderName], requirements: Requirements, account: str | Mapping[str, str]
) -> tuple[list[Offer], dict[str, ProviderError]]:
    """All offers, and what went wrong by provider. Runs as tasks of the flow that calls it."""
    deadline = time.monotonic() + PATIENCE_S
    offers: list[Offer] = []
    troubles: dict[str, ProviderError] = {}
    pending: dict[ProviderName, Any] = {}
    for name in names:
        try:
            fetch_offers: Any = registry.library(name).fetch_offers
            if len(names) == 1:  # nobody else to ask meanwhile: no thread
                offers += fetch_offers(requirements, account_of(account, name))
            else:
                pending[name] = fetch_offers.submit(requirements, account_of(account, name))
        except ProviderError as trouble:
            troubles[str(name)] = trouble
    for name, future in pending.items():
        future.wait(timeout=max(0.1, deadline - time.monotonic()))
        if not future.state.is_final():
            troubles[str(name)] = Transient(f"no answer within {PATIENCE_S:.0f} s")
            continue
        answer = future.result(raise_on_failure=False)
        if isinstance(answer, ProviderError):
            troubles[str(name)] = answer
        elif isinstance(
            answer, Exception
        ):  # a bug of one driver, or a reply nobody foresaw, is that provider's trouble alone
            troubles[str(name)] = InvalidRequest(f"its driver broke: {type(answer).__name__}")
        else:
            offers += answer
    return offers, troubles
