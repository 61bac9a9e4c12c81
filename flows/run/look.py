"""What would be rented, and for how much: asked and ranked, with nothing bought. The flow `plan` and the command share it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from prefect_gpu import providers as registry
from prefect_gpu.blocks.realm import GpuRealm
from prefect_gpu.flows import fields as form
from prefect_gpu.flows.report import text
from prefect_gpu.flows.run import market, story, unseen
from prefect_gpu.flows.run import request as inputs
from prefect_gpu.flows.run.offers import Ranked, rank
from prefect_gpu.flows.run.request import Refused
from prefect_gpu.providers import ProviderName
from prefect_gpu.providers.core.catalog import explain
from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.models import Model, Offer
from prefect_gpu.providers.core.requests import Requirements

KEPT: Final = 200  # of the offers, in the data of the run

Accounts = str | dict[str, str]
Ask = Callable[[Sequence[ProviderName], Requirements, Accounts], tuple[list[Offer], dict[str, ProviderError]]]


class Plan(Model):
    """What `plan` found: the data of its final state."""

    wanted: str
    hours: float
    message: str
    offers: tuple[Ranked, ...]  # the first of them; in the order they would be tried, then what would not be
    buyable: int  # of all
    seen: int
    troubles: dict[str, str]  # provider -> why it did not answer
    market: tuple[Ranked, ...] = ()  # what those ask whom nobody has an account with


class Look(Model):
    """A plan, and all that it was made from."""

    found: Plan
    ranked: tuple[Ranked, ...]
    wanted: Requirements

    def tables(self) -> list[list[str]]:
        """In columns, for a log and a terminal."""
        buyable = [one.offer for one in self.ranked if one.is_buyable]
        tables = [story.offers_table(buyable)] if buyable else []
        return [*tables, market.table(list(self.found.market))] if self.found.market else tables

    def unseen(self) -> list[str]:
        """What could not be looked at, a line each."""
        return unseen.lines([one.offer for one in self.ranked])


def look(
    gpu: str,
    max_price: float | None,
    providers: list[ProviderName],
    requirements: Requirements,
    hours: float,
    account: Accounts,
    ask: Ask,
) -> Look:
    """Ask, and rank what was answered. Refused where it makes no sense."""
    hours = _checked_hours(hours)
    wanted = inputs.checked_requirements(gpu, max_price, requirements)
    names = _asked(providers, account)
    # The price limit is kept back, so that what is just too dear is seen.
    at_any_price = wanted.model_copy(update={"max_price": None})
    offers, failures = ask(names, at_any_price, account)
    offers = unseen.with_nearest(offers, names, at_any_price, account, failures)
    ranked = rank(offers, wanted, hours, market.billing_of)
    buyable = sum(one.is_buyable for one in ranked)
    others = [] if providers else market.without_account(wanted, names, hours)
    message = _message(ranked, wanted, names, hours)
    if not providers and (not buyable or (others and others[0].stay_cost < ranked[0].stay_cost)):
        message = f"{message} {market.sentence(others)}".strip()
    found = Plan(
        wanted=explain.wanted(wanted),
        hours=hours,
        message=message,
        offers=tuple(shown(ranked, KEPT, KEPT)),
        buyable=buyable,
        seen=len(ranked),
        troubles={name: failure.message for name, failure in failures.items()},
        market=tuple(others),
    )
    return Look(found=found, ranked=tuple(ranked), wanted=wanted)


def _asked(providers: list[ProviderName], account: str | dict[str, str]) -> list[ProviderName]:
    """As `provision` asks them; where there is nobody to ask, prices are shown all the same."""
    try:
        return inputs.checked_providers(providers, registry.enabled(account), account, GpuRealm.current().providers_off)
    except Refused:
        if providers or account != form.DEFAULT_ACCOUNT:
            raise
        return []


def _checked_hours(hours: float) -> float:
    if not (math.isfinite(hours) and 0 < hours <= 24 * 366):
        raise Refused(f"hours is {hours:g}: write how long the job may take, for example 0.5 or 24")
    return hours


def _message(ranked: list[Ranked], wanted: Requirements, names: list[ProviderName], hours: float) -> str:
    if not ranked or not ranked[0].is_buyable:
        return explain.explain(wanted, [str(name) for name in names], [one.offer for one in ranked])
    best = ranked[0]
    offer = best.offer
    count = sum(one.is_buyable for one in ranked)
    stay = (
        ""
        if hours == 1 and abs(best.stay_cost - offer.price) < 0.005
        else f", {text.dollars(best.stay_cost)} for {hours:g} h"
    )
    where = offer.instance_type if offer.provider == "local" else f"{offer.instance_type} in {offer.scope}"
    old = story.old_prices([one.offer for one in ranked if one.is_buyable])
    return f"{text.counted(count, 'offer')}; cheapest {text.dollars(offer.price)}/h: {offer.provider} {where}{stay}" + (
        f"; {old}" if old else ""
    )


def shown(ranked: list[Ranked], most: int, most_others: int) -> list[Ranked]:
    """The first, the best of each provider that is not among them, and the cheapest that would not be tried."""
    buyable = [one for one in ranked if one.is_buyable]
    first = buyable[:most]
    seen = {one.offer.provider for one in first}
    for one in buyable[most:]:
        if one.offer.provider not in seen:
            seen.add(one.offer.provider)
            first.append(one)
    return [*first, *[one for one in ranked if not one.is_buyable][:most_others]]
