"""Prices where this machine has none yet: `plan` and `providers` fetch what is published, then and there, instead of asking for another command."""

from __future__ import annotations

import time
from collections.abc import Container
from functools import partial
from typing import TYPE_CHECKING, Final

from prefect_gpu.flows.terminal.messages import waiting
from prefect_gpu.providers.core.aside import Aside
from prefect_gpu.providers.core.catalog import published, store

if TYPE_CHECKING:
    from prefect_gpu.providers.core.catalog.collect import Collection
    from prefect_gpu.providers.core.catalog.refresh import Refreshed

PATIENCE_S: Final = 20.0  # a network that swallows everything costs no more


def fetched(providers: Container[str] | None = None) -> str:
    """Fetch the published prices, once; why there are still none, or an empty text.

    Where there are some, however old, nothing is fetched: their age is told, and the deployment refresh-catalog makes them new.
    """
    wanted = [name for name in published.PROVIDERS if providers is None or name in providers]
    if not wanted or store.providers():
        return ""
    from prefect_gpu.flows.report import prices
    from prefect_gpu.providers.core.catalog.refresh import Refreshed

    with waiting("no prices were collected here yet: fetching the published ones, which needs no account"):
        began = time.monotonic()
        running = {name: Aside(partial(_refreshed, name)) for name in wanted}
        results = [
            one.result()
            if one.wait(max(0.0, began + PATIENCE_S - time.monotonic()))
            else Refreshed(name, "kept", trouble=f"no answer within {PATIENCE_S:.0f} s")
            for name, one in running.items()
        ]
    return "" if store.providers() else "; ".join(prices.lines(results))


def _refreshed(name: str) -> Refreshed:
    from prefect_gpu.providers.core.catalog.refresh import Refreshed, refresh

    def collected(source: str | None) -> Collection | None:
        return published.catalog(name, unless=source)

    try:
        return refresh(name, collected)
    except OSError as unwritable:
        return Refreshed(
            name, "kept", trouble=f"its prices cannot be kept in {store.folder()}: {unwritable.strerror or unwritable}"
        )
