"""One provider's prices made new: collected, passed through the gates, compared, published, remembered. Whatever goes wrong, the last good snapshot stays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from prefect_gpu.providers.core.catalog import changes, history, levels, rules, store
from prefect_gpu.providers.core.catalog.changes import Changes
from prefect_gpu.providers.core.catalog.collect import Collection
from prefect_gpu.providers.core.catalog.findings import Finding
from prefect_gpu.providers.core.catalog.levels import Group
from prefect_gpu.providers.core.catalog.snapshot import Snapshot
from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.models import utc_now

Outcome = Literal["published", "unchanged", "kept"]


class Drop(NamedTuple):
    """The cheapest price per GPU-hour of a GPU at one provider fell; `was` is None where it was not offered before."""

    provider: str
    gpu_name: str
    spot: bool
    was: float | None
    now: float
    instance_type: str
    region: str


@dataclass(frozen=True)
class Refreshed:
    """What came of refreshing one provider. `kept`: the last good snapshot stays (or there is none), because of `trouble`."""

    provider: str
    outcome: Outcome
    offers: int = 0  # in the snapshot that counts now
    collected_at: datetime | None = None  # of that snapshot
    trouble: str | None = None
    findings: list[Finding] = field(default_factory=list[Finding])
    changes: Changes | None = None
    drops: tuple[Drop, ...] = ()


def refresh(
    provider: str, collect: Callable[[str | None], Collection | None], *, accept_suspicious: bool = False
) -> Refreshed:
    """Make a provider's prices new; never raises for what the provider or its data did.

    `collect` gets the source of the snapshot that counts and returns None when there is nothing newer. `accept_suspicious` publishes
    what the gates refuse or doubt, for a person who has looked; single offers that cannot be true are left out even then.
    """
    before = store.opened(provider)
    try:
        collection = collect(before.about.source if before else None)
    except ProviderError as failed:
        return _kept(provider, before, failed.message)
    if collection is None:
        return _as_it_is(provider, "unchanged", before)
    checked = rules.check(provider, collection, before, _market(besides=provider), accept_suspicious=accept_suspicious)
    if checked.refusals and not (accept_suspicious and checked.prices):
        return _kept(provider, before, "; ".join(map(str, checked.refusals)), checked.findings)
    about = store.publish(
        provider,
        checked.prices,
        collected_at=collection.collected_at,
        source=collection.source,
        levels=levels.remembered(checked.prices, before, utc_now()),
    )
    history.append(provider, checked.prices, utc_now())
    after = store.opened(provider)
    return Refreshed(
        provider,
        "published",
        about.offers,
        about.collected_at,
        findings=checked.findings,
        changes=changes.compare(before.all(), checked.prices) if before else None,
        drops=_drops(provider, before, after) if before and after else (),
    )


def _market(besides: str) -> dict[Group, tuple[float, ...]]:
    """What each other provider asks per GPU-hour at the least."""
    asked: dict[Group, list[float]] = defaultdict(list)
    for provider in store.providers():
        snapshot = store.opened(provider) if provider != besides else None
        for key, cheapest in snapshot.cheapest_gpus().items() if snapshot else ():
            asked[Group(*key)].append(cheapest.price)
    return {group: tuple(prices) for group, prices in asked.items()}


def _kept(provider: str, before: Snapshot | None, trouble: str, findings: list[Finding] | None = None) -> Refreshed:
    return _as_it_is(provider, "kept", before, trouble, findings)


def _as_it_is(
    provider: str,
    outcome: Outcome,
    before: Snapshot | None,
    trouble: str | None = None,
    findings: list[Finding] | None = None,
) -> Refreshed:
    about = before.about if before else None
    return Refreshed(
        provider, outcome, about.offers if about else 0, about.collected_at if about else None, trouble, findings or []
    )


def _drops(provider: str, before: Snapshot, after: Snapshot) -> tuple[Drop, ...]:
    was, now = before.cheapest_gpus(), after.cheapest_gpus()
    fallen = [
        Drop(provider, gpu, spot, was[gpu, spot].price if (gpu, spot) in was else None, *cheapest)
        for (gpu, spot), cheapest in now.items()
        if (gpu, spot) not in was or cheapest.price < was[gpu, spot].price * 0.99
    ]
    return tuple(sorted(fallen, key=lambda drop: drop.now / drop.was if drop.was else 0.0))
