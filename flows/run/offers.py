"""The offers of all providers, asked at once, and the order in which they are worth trying; why each stands where it stands."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final

from prefect_gpu import providers as registry
from prefect_gpu.providers import ProviderName, account_of
from prefect_gpu.providers.core.aside import POLL_S, Aside, Stopped, never
from prefect_gpu.providers.core.contract import Billing
from prefect_gpu.providers.core.errors import InvalidRequest, ProviderError, Transient
from prefect_gpu.providers.core.gpu import matching
from prefect_gpu.providers.core.models import Availability, Model, Offer
from prefect_gpu.providers.core.renting.order import Clock
from prefect_gpu.providers.core.renting.plain_log import told_in_the_log
from prefect_gpu.providers.core.renting.progress import OnProgress, Waiting
from prefect_gpu.providers.core.requests import Requirements

PATIENCE_S: Final = 30.0  # so long a provider may take


def ask(
    names: Sequence[ProviderName],
    requirements: Requirements,
    account: str | Mapping[str, str],
    on_progress: OnProgress = told_in_the_log,
) -> tuple[list[Offer], dict[str, ProviderError]]:
    """All offers, and what went wrong by provider: one that is down, slow or refuses does not hold up the others.

    Runs as tasks of the flow that calls it.
    """
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
    waiting = Waiting(on_progress, Clock())
    for name, future in pending.items():
        while not future.state.is_final() and (left := deadline - time.monotonic()) > 0:
            waiting.on(f"waiting for the offers of {name}")
            future.wait(timeout=min(left, 1.0))
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


def ask_again(
    names: Sequence[ProviderName],
    requirements: Requirements,
    account: str | Mapping[str, str],
    should_stop: Callable[[], str | None] = never,
) -> tuple[list[Offer], dict[str, ProviderError]]:
    """The same once more, as no tasks: who waits for hours would fill the run's page with them."""

    def fetch(name: ProviderName) -> list[Offer]:
        fetch_offers: Any = registry.library(name).fetch_offers
        return fetch_offers.fn(requirements, account_of(account, name))

    deadline = time.monotonic() + PATIENCE_S
    asked = {name: Aside(partial(fetch, name)) for name in names}
    offers: list[Offer] = []
    troubles: dict[str, ProviderError] = {}
    for name, answer in asked.items():
        while not answer.wait(min(POLL_S, max(0.0, deadline - time.monotonic()))) and time.monotonic() < deadline:
            if (reason := should_stop()) is not None:
                raise Stopped(reason)
        try:
            offers += answer.result() if answer.wait(0) else _no_answer()
        except ProviderError as trouble:
            troubles[str(name)] = trouble
        except Exception as bug:  # noqa: BLE001 - one broken driver is that provider's trouble alone
            troubles[str(name)] = InvalidRequest(f"its driver broke: {type(bug).__name__}")
    return offers, troubles


def _no_answer() -> list[Offer]:
    raise Transient(f"no answer within {PATIENCE_S:.0f} s")


class Ranked(Model):
    """An offer with its place, or without one and the reason."""

    rank: int | None  # from 1; None: it would not be tried
    offer: Offer
    stay_cost: float  # USD for the expected stay, as this provider bills it
    price_per_gpu: float | None  # USD per GPU-hour
    why: str
    passed_over_until: datetime | None = None  # it was sold out to a run of this server a moment ago
    is_unfit: bool = False  # its host failed the machine check of a run of this server within a day

    @property
    def is_buyable(self) -> bool:
        return self.rank is not None


def rank(
    offers: Sequence[Offer], requirements: Requirements, hours: float, billing_of: Callable[[str], Billing]
) -> list[Ranked]:
    """Alternatives as they were written, each by the price of the expected stay; then what would not be tried, cheapest first, what could not be looked at before it."""
    buyable: list[tuple[tuple[int, float, float], Offer]] = []
    others: list[tuple[float, Offer, str]] = []
    for offer in offers:
        cost = billing_of(offer.provider).cost(offer.price, hours * 3600)
        why = matching.why_not(offer, requirements)
        if why is None and offer.availability is Availability.UNAVAILABLE:
            why = offer.unavailable_because or "not available now"
        if why is None:
            buyable.append(((matching.alternative(offer, requirements), cost, offer.price), offer))
        else:
            others.append((cost, offer, why))
    buyable.sort(key=lambda one: one[0])
    others.sort(key=lambda one: (not one[1].is_unseen, one[0]))
    best = {position: (cost, offer) for (position, cost, _), offer in reversed(buyable)}
    ranked = [
        _ranked(number, offer, cost, _why(offer, cost, position, best, requirements, billing_of))
        for number, ((position, cost, _), offer) in enumerate(buyable, start=1)
    ]
    return [*ranked, *(_ranked(None, offer, cost, why) for cost, offer, why in others)]


def in_given_order(ranked: Sequence[Ranked], providers: Sequence[str]) -> list[Ranked]:
    """The same, what would be tried by its provider's place in the list instead of by price."""
    buyable = sorted((one for one in ranked if one.is_buyable), key=lambda one: providers.index(one.offer.provider))
    renumbered = [one.model_copy(update={"rank": number}) for number, one in enumerate(buyable, start=1)]
    return [*renumbered, *(one for one in ranked if not one.is_buyable)]


def passed_over(ranked: Sequence[Ranked], others: Sequence[Ranked]) -> list[Ranked]:
    """Those that are left, moved up; then `others`, which say why they are not to be tried; then what would not be tried anyway."""
    buyable = [one for one in ranked if one.is_buyable]
    moved_up = [one.model_copy(update={"rank": number}) for number, one in enumerate(buyable, start=1)]
    return [*moved_up, *others, *(one for one in ranked if not one.is_buyable)]


def _ranked(number: int | None, offer: Offer, cost: float, why: str) -> Ranked:
    per_gpu = offer.price / offer.gpu_count if offer.gpu_count else None
    return Ranked(rank=number, offer=offer, stay_cost=cost, price_per_gpu=per_gpu, why=why)


def _why(
    offer: Offer,
    cost: float,
    position: int,
    best: dict[int, tuple[float, Offer]],
    requirements: Requirements,
    billing_of: Callable[[str], Billing],
) -> str:
    cheapest_cost, cheapest = best[position]
    first = position == min(best)
    if offer is cheapest:
        if first:
            return "the cheapest that fits"
        wanted = requirements.gpu[position].text or offer.gpu
        return f"the cheapest {wanted}, which was written after {requirements.gpu[min(best)].text}"
    if cost <= cheapest_cost * 1.0005:
        return "the same price"
    more = f"+{(cost / cheapest_cost - 1) * 100:.0f} %" if cheapest_cost else f"${cost:.2f} more"
    if offer.price <= cheapest.price:  # cheaper by the hour and dearer for this stay
        billing = billing_of(offer.provider)
        if billing.hourly_extras:
            return f"{more}: ${billing.hourly_extras:.3f}/h come on top for disk and address"
        return f"{more}: billed for at least {_time(billing.minimum_s)}, in steps of {_time(billing.step_s)}"
    return f"{more} for the stay"


def _time(seconds: int) -> str:
    if seconds % 3600 == 0:
        return f"{seconds // 3600} h"
    return f"{seconds // 60} min" if seconds % 60 == 0 else f"{seconds} s"
