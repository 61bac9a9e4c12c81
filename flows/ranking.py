"""The order in which offers are worth trying, and why each stands where it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from providers.core import matching
from providers.core.contract import Billing
from providers.core.models import Availability, Model, Offer, Requirements


class Ranked(Model):
    """An offer with its place, or without one and the reason."""

    rank: int | None  # from 1; None: it would not be tried
    offer: Offer
    stay_cost: float  # USD for the expected stay, as this provider bills it
    price_per_gpu: float | None  # USD per GPU-hour
    why: str

    @property
    def is_buyable(self) -> bool:
        return self.rank is not None


def rank(
    offers: Sequence[Offer], requirements: Requirements, hours: float, billing_of: Callable[[str], Billing]
) -> list[Ranked]:
    """Alternatives as they were written, each by the price of the expected stay; then what would not be tried, cheapest first."""
    buyable: list[tuple[tuple[int, float, float], Offer]] = []
    others: list[tuple[float, Offer, str]] = []
    for offer in offers:
        cost = billing_of(offer.provider).cost(offer.price, hours * 3600)
        why = matching.why_not(offer, requirements)
        if why is None and offer.availability is Availability.UNAVAILABLE:
            why = offer.unavailable_because or "not to be had now"
        if why is None:
            buyable.append(((matching.alternative(offer, requirements), cost, offer.price), offer))
        else:
            others.append((cost, offer, why))
    buyable.sort(key=lambda one: one[0])
    others.sort(key=lambda one: one[0])
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
