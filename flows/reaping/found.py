"""What all accounts list under names of ours, and whom could not be asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Final, TypeVar

from prefect_gpu import providers as registry
from prefect_gpu.providers.core.aside import Aside
from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.models import Instance, Leftover, Listing, Model

LISTING_S: Final = 90.0  # so long a provider may take to list all regions
LATE_S: Final = 15.0  # and one that did not answer the last reap
FULL_PATIENCE: Final = timedelta(hours=1)  # after which it is given the whole time again
T = TypeVar("T")


class Found(Model):
    """Something under a name of ours, and what to do with it."""

    provider: str
    account: str
    ids: tuple[str, ...]
    machines: tuple[str, ...] = ()  # those of the ids that are machines
    name: str
    price: float | None = None
    end_because: str | None = None  # None: it is in use, or nobody knows
    remark: str = ""  # what else there is to say of it
    came_of_it: str = ""  # "gone: ..." or "owed: ..."

    @property
    def is_gone(self) -> bool:
        return self.came_of_it.startswith("gone")


def listings_of(
    accounts: list[tuple[str, str]], late: Mapping[str, datetime], now: datetime
) -> dict[tuple[str, str], Listing | str]:
    """What each account lists, or why it could not be read; one that hangs does not hold up the others.

    `late`: accounts that did not answer the last reap, and since when: they cost seconds, and once an hour the whole time.
    """
    calls = [partial(_list, *account) for account in accounts]
    patience = [patience_s(named(*account), late, now) for account in accounts]
    answers = at_once(calls, patience)
    return {
        account: f"no answer within {seconds:.0f} s" if answer is None else answer
        for account, answer, seconds in zip(accounts, answers, patience, strict=True)
    }


def named(provider: str, account: str) -> str:
    """An account as messages and the memory name it."""
    return f"{provider} ({account})"


def patience_s(account: str, late: Mapping[str, datetime], now: datetime) -> float:
    """How long this account may take to list all that it has."""
    since = late.get(account)
    return LISTING_S if since is None or now - since > FULL_PATIENCE else min(LATE_S, LISTING_S)


def late_ones(
    listings: dict[tuple[str, str], Listing | str], late: Mapping[str, datetime], now: datetime
) -> dict[str, datetime]:
    """The accounts that did not answer in time, for the next reap; who was given the whole time again begins anew."""
    silent = [
        named(*account) for account, answer in listings.items() if isinstance(answer, str) and "no answer" in answer
    ]
    return {one: now if patience_s(one, late, now) == LISTING_S else late[one] for one in silent}


def _list(provider: str, account: str) -> Listing | str:
    try:
        return registry.library(provider).driver(account).list_instances("pg-")
    except ProviderError as trouble:
        return trouble.message
    except Exception as bug:  # noqa: BLE001 - one broken driver must not keep the others' orphans alive
        return f"its driver broke: {type(bug).__name__}"


def at_once(calls: list[Callable[[], T]], within_s: list[float]) -> list[T | None]:
    """What the calls return, None for those that take longer; their threads end with the process at the latest."""
    began = time.monotonic()
    running = [Aside(call) for call in calls]
    return [
        one.result() if one.wait(max(0.0, began + seconds - time.monotonic())) else None
        for one, seconds in zip(running, within_s, strict=True)
    ]


def unread_of(listings: dict[tuple[str, str], Listing | str]) -> list[str]:
    """Whom and what could not be read, and why."""
    troubles: list[str] = []
    for account, listing in listings.items():
        if isinstance(listing, str):
            troubles.append(f"{named(*account)}: {listing}")
        else:
            troubles += [f"{named(*account)} {one.scope}: {one.reason}" for one in listing.incomplete]
    return troubles


def unproved_of(listings: dict[tuple[str, str], Listing | str]) -> list[str]:
    """What only bears a name of ours: reported, never ended."""
    return [
        f"{one.kind} {one.id} on {named(*account)} bears the name {one.name} and was not touched: {one.reason}"
        for account, listing in listings.items()
        if not isinstance(listing, str)
        for one in listing.unproved
    ]


def by_name(listing: Listing) -> dict[str, list[Instance | Leftover]]:
    things: dict[str, list[Instance | Leftover]] = {}
    for one in [*(one for one in listing.instances if not one.state.is_final), *listing.leftovers]:
        things.setdefault(one.name, []).append(one)
    return things
