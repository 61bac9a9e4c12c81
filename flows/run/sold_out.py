"""What was sold out a moment ago to any run of this Prefect server: passed over for some minutes, so that not every run asks in vain.

Nothing is kept for it: each run writes its refused orders on its own record anyway, and those of the last minutes are read. So each of these
artifacts has one writer, none is lost, and nothing grows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Final, NamedTuple

from prefect_gpu import providers as registry
from prefect_gpu.flows.report import text
from prefect_gpu.flows.run import ledger, offers
from prefect_gpu.flows.run.attempt import Attempt
from prefect_gpu.flows.run.offers import Ranked
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers import account_of
from prefect_gpu.providers.core.errors import NoCapacity, ProviderError
from prefect_gpu.providers.core.models import Offer, utc_now

LONGEST_S: Final = 900.0  # whatever a provider declares
MOST: Final = 400  # records that are looked at
APART: Final = timedelta(minutes=2)  # so far clocks may be apart


class Place(NamedTuple):
    """What was asked for, of whom, on whose account."""

    provider: str
    account: str
    scope: str
    machine: str
    gpu: str
    spot: bool


SoldOut = Mapping[Place, tuple[Attempt, datetime]]  # and when it was


def lately(now: datetime | None = None) -> dict[Place, tuple[Attempt, datetime]]:
    """What was sold out to any run in the last minutes, by the newest word of it."""
    moment = now or utc_now()
    since = moment - timedelta(seconds=LONGEST_S)
    found: dict[Place, tuple[Attempt, datetime]] = {}
    for row in islice(ledger.artifacts({"like_": "attempts-%"}, since), MOST):
        if NoCapacity.short not in str(row.get("data")):  # most were not: what need not be read is not
            continue
        try:
            attempts = Record.parse(row["data"])
            written_at = datetime.fromisoformat(row["updated"])
        except (ValueError, TypeError):  # what nobody can read hides no other
            continue
        for line in attempts:
            when = line.gone_at
            if line.outcome == NoCapacity.short and when is not None and when - moment <= APART:
                place = Place(line.provider, line.account, line.scope, line.machine, line.gpu, line.spot)
                when = min(when, written_at)  # a clock that is ahead keeps nothing longer
                if place not in found or when > found[place][1]:
                    found[place] = line, when
    return found


def passed_over(
    ranked: Sequence[Ranked], sold_out: SoldOut, account: str | Mapping[str, str], now: datetime
) -> list[Ranked]:
    """The offers; those that were sold out a moment ago are not to be tried, and say why and until when."""
    accounts: dict[tuple[str, str], str | None] = {}
    kept: list[Ranked] = []
    others: list[Ranked] = []
    for one in ranked:
        until = _until(one.offer, sold_out, account, accounts) if one.is_buyable else None
        if until is None or until <= now:
            kept.append(one)
            continue
        ago = text.duration((now - _when(one.offer, sold_out, account)).total_seconds())
        why = f"sold out {ago} ago, as a run of this server was told: passed over until {text.clock_time(until)}"
        others.append(one.model_copy(update={"rank": None, "why": why, "passed_over_until": until}))
    return offers.passed_over(kept, others)


def place_of(offer: Offer, account: str | Mapping[str, str]) -> Place:
    """What would be asked for with this offer."""
    whose = account_of(account, offer.provider)
    return Place(offer.provider, whose, offer.scope, offer.instance_type, offer.gpu, offer.spot)


def _when(offer: Offer, sold_out: SoldOut, account: str | Mapping[str, str]) -> datetime:
    return sold_out[place_of(offer, account)][1]


def _until(
    offer: Offer,
    sold_out: SoldOut,
    account: str | Mapping[str, str],
    accounts: dict[tuple[str, str], str | None],
) -> datetime | None:
    place = place_of(offer, account)
    if place not in sold_out or offer.raw.get("ask_id"):  # one of a marketplace's machines says nothing of another
        return None
    line, when = sold_out[place]
    library = registry.library(offer.provider)
    whose = (place.provider, place.account)
    if whose not in accounts:
        try:
            accounts[whose] = library.driver(place.account).account_id()
        except ProviderError:
            accounts[whose] = None
    if accounts[whose] != line.account_id:  # the block was changed meanwhile; zones have other names on other accounts
        return None
    return when + timedelta(seconds=min(library.capabilities.sold_out_s, LONGEST_S))
