"""Offers from the newest prices that this machine has, in a millisecond, and why there are none."""

from __future__ import annotations

from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING

from providers.core import prices
from providers.core.errors import Unsupported
from providers.core.models import GpuRequest, Offer, Requirements, Spot
from providers.core.snapshot import Filters, Snapshot

if TYPE_CHECKING:
    from collections.abc import Container, Sequence


class NoPrices(Unsupported):
    """There is no price snapshot of this provider on this machine."""

    short = "no prices"


def offers(
    provider: str,
    requirements: Requirements,
    *,
    allowed_flags: Container[str] | None = None,
    limit: int | None = 1000,
) -> list[Offer]:
    """What a provider's price list has for these requirements: alternatives in their order, each by price, `limit` of each.

    `allowed_flags` are gpuhunt's flags that the driver can buy (None: all). What a price list does not know restricts
    nothing: `min_cuda`, `network`, and zones where prices are by region. Raises NoPrices where there is no snapshot.
    """
    snapshot = _snapshot(provider)
    found = [
        snapshot.find(filters(requirements, request, allowed_flags), limit) for request in requirements.gpu or (None,)
    ]
    return snapshot.offers(found[0] if len(found) == 1 else dict.fromkeys(chain(*found)))


def filters(
    requirements: Requirements, request: GpuRequest | None, allowed_flags: Container[str] | None = None
) -> Filters:
    """What one alternative of the requirements asks of a snapshot."""
    capability = requirements.min_compute_capability
    return Filters(
        cpu_arch=requirements.arch,
        min_cpu=requirements.cpu,
        min_memory=requirements.memory_gb,
        min_gpu_count=request.count_min if request else None,
        max_gpu_count=request.count_max if request else None,
        gpu_vendor=requirements.gpu_vendor if request else None,
        gpu_name=request.names or None if request else None,
        min_gpu_memory=request.memory_min_gb if request else None,
        max_gpu_memory=request.memory_max_gb if request else None,
        min_total_gpu_memory=request.total_memory_min_gb if request else None,
        max_total_gpu_memory=request.total_memory_max_gb if request else None,
        min_disk_size=requirements.disk_gb,
        max_price=requirements.max_price,
        min_compute_capability=_version(capability) if request and capability else None,
        spot={Spot.ON_DEMAND: False, Spot.SPOT: True, Spot.EITHER: None}[requirements.spot],
        allowed_flags=allowed_flags,
        regions=requirements.regions,
        exclude_regions=requirements.exclude_regions,
        zones=requirements.zones,
        exclude_zones=requirements.exclude_zones,
        countries=requirements.countries,
        exclude_countries=requirements.exclude_countries,
    )


def query(asked: Filters, providers: Sequence[str] | None = None, limit: int | None = None) -> list[Offer]:
    """All offers of these providers (None: of all that have a snapshot) that pass, by price; or the cheapest `limit`."""
    names = prices.providers() if providers is None else list(dict.fromkeys(providers))
    snapshots = [_snapshot(name) for name in names]
    if limit is not None:  # what is cheap in one may be dear beside the others: only the winners become offers
        best = sorted(
            (found[0], n, found) for n, snapshot in enumerate(snapshots) for found in snapshot.find(asked, limit)
        )
        return [snapshots[n].offers([found])[0] for _, n, found in best[:limit]]
    answers = (snapshot.offers(snapshot.find(asked)) for snapshot in snapshots)
    return sorted(chain(*answers), key=attrgetter("price"))


def _snapshot(provider: str) -> Snapshot:
    snapshot = prices.opened(provider)
    if snapshot is None:
        raise NoPrices(
            f"there is no price snapshot of {provider} here yet: run `make refresh`, or the deployment refresh-catalog/default"
        )
    return snapshot


def _version(number: float) -> tuple[int, int]:
    major, _, minor = f"{number:.1f}".partition(".")
    return int(major), int(minor)
