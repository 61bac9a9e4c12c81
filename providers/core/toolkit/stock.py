"""Offers of a price list, judged by what is in stock: where each can be bought, in which zone, and why it cannot."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping

from prefect_gpu.providers.core.models import Availability, Offer
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit.scopes import read_each


def judged(offers: Iterable[Offer], why_not: Callable[[Offer], str | None]) -> list[Offer]:
    """Each offer, available or with the reason why it is not: what is passed over is shown too."""
    return [_because(offer, why_not(offer)) for offer in offers]


def in_regions(offers: Iterable[Offer], types_in: Callable[[str], Container[str]]) -> list[Offer]:
    """Each offer, judged by what `types_in` says that its region has now; a region that cannot be read rules out only itself."""
    listed = list(offers)
    has = read_each({offer.region for offer in listed}, types_in)
    unread = {one.scope: one.reason for one in has.unread}

    def why_not(offer: Offer) -> str | None:
        if offer.region in unread:
            return f"what {offer.region} has could not be read: {unread[offer.region]}"
        return None if offer.instance_type in has.found[offer.region] else f"sold out in {offer.region}"

    return judged(listed, why_not)


def in_zones(
    offers: Iterable[Offer],
    zones: Callable[[Offer], Iterable[str]],
    requirements: Requirements,
    why_not: Callable[[Offer], str | None] = lambda _: None,
) -> list[Offer]:
    """One offer for each zone of its region that has it and that is wanted; `why_not` is asked with the zone in it.

    An offer that no zone has stays as one, with the reason; one whose zones are all unwanted is left out.
    """
    placed: list[Offer] = []
    for offer in offers:
        having = sorted(set(zones(offer)))
        if not having:
            placed.append(_because(offer, f"no zone of {offer.region} has {offer.instance_type}"))
        for zone in having:
            if zone in requirements.exclude_zones or (requirements.zones and zone not in requirements.zones):
                continue
            here = offer.model_copy(update={"zone": zone})
            placed.append(_because(here, why_not(here)))
    return placed


def with_boot_deadlines(offers: Iterable[Offer], deadlines: Mapping[str, int]) -> list[Offer]:
    """The offers with seconds to boot, by the longest beginning of their instance type that is named."""
    found: list[Offer] = []
    for offer in offers:
        starts = [start for start in deadlines if offer.instance_type.startswith(start)]
        slow = {"boot_deadline_s": deadlines[max(starts, key=len)]} if starts else {}
        found.append(offer.model_copy(update=slow))
    return found


def _because(offer: Offer, problem: str | None) -> Offer:
    state = Availability.AVAILABLE if problem is None else Availability.UNAVAILABLE
    return offer.model_copy(update={"availability": state, "unavailable_because": problem})
