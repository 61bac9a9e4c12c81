"""The time that reap judges by: the earliest of its own clock, the Prefect server's and the providers', for one alone may be wrong."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

from prefect.context import SyncClientContext

from prefect_gpu import providers as registry
from prefect_gpu.providers.core.models import utc_now

TOLERANCE: Final = timedelta(minutes=2)
APART: Final = timedelta(
    seconds=10
)  # so far clocks that agree may be apart: a date has whole seconds, and is told late


def clocks(accounts: list[tuple[str, str]]) -> dict[str, datetime]:
    """What each clock says, as far as it can be asked."""
    told = {"this host": utc_now()}
    with suppress(Exception), SyncClientContext.get_or_create() as prefect:  # who cannot be asked does not count
        answer: Any = prefect.client.request("GET", "/admin/version")
        told["the Prefect server"] = parsedate_to_datetime(answer.headers["date"])
    for provider, account in accounts:
        with suppress(Exception):
            driver: Any = registry.library(provider).driver(account)
            if (now := driver.provider_time()) is not None:
                told[f"{provider} ({account})"] = now
    return told


def agreed(told: dict[str, datetime]) -> tuple[datetime, list[str]]:
    """The earliest of them, and what is to be said of those that are far ahead of it."""
    earliest = min(told.values())
    own = told.get("this host", earliest)
    if own - earliest <= APART:
        earliest = own
    first = min(told, key=lambda name: told[name])
    return earliest, [
        f"the clock of {name} is {ahead} ahead of that of {first}, by which leases are judged: set it right"
        for name, moment in told.items()
        if (ahead := timedelta(seconds=round((moment - earliest).total_seconds()))) > TOLERANCE
    ]
