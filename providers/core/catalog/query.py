"""Offers from the newest prices that this machine has, in a millisecond, and why there are none."""

from __future__ import annotations

from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING

from prefect_gpu.providers.core.catalog import store
from prefect_gpu.providers.core.catalog.filters import Filters
from prefect_gpu.providers.core.catalog.places import place
from prefect_gpu.providers.core.catalog.snapshot import Snapshot
from prefect_gpu.providers.core.errors import Transient, Unsupported
from prefect_gpu.providers.core.models import Offer
from prefect_gpu.providers.core.requests import GpuRequest, Requirements, Spot
from prefect_gpu.providers.core.typed import typed

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from gpuhunt import CatalogItem  # pyright: ignore[reportMissingTypeStubs] - gpuhunt is typed and does not say so


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
        instance_type=request.instance_type or None if request else None,
        min_gpu_count=request.count_min or None if request else None,
        max_gpu_count=request.count_max if request and not request.instance_type else None,
        gpu_vendor=requirements.gpu_vendor,
        gpu_name=request.names or None if request else None,
        min_gpu_memory=request.memory_min_gb if request else None,
        max_gpu_memory=request.memory_max_gb if request else None,
        min_total_gpu_memory=request.total_memory_min_gb if request else None,
        max_total_gpu_memory=request.total_memory_max_gb if request else None,
        min_disk_size=requirements.disk_gb,
        max_price=requirements.max_price,
        min_compute_capability=_version(capability) if capability else None,
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
    """All offers of these providers (None: of all that have a snapshot) that pass, by price; or the cheapest `limit`.

    One without a snapshot hides nobody else's; NoPrices where none of those that were asked has one.
    """
    names = store.providers() if providers is None else list(dict.fromkeys(providers))
    snapshots = [snapshot for name in names if (snapshot := store.opened(name))]
    if names and not snapshots:
        _snapshot(names[0])
    if limit is not None:  # what is cheap in one may be dear beside the others: only the winners become offers
        best = sorted(
            (found[0], n, found) for n, snapshot in enumerate(snapshots) for found in snapshot.find(asked, limit)
        )
        return [snapshots[n].offers([found])[0] for _, n, found in best[:limit]]
    answers = (snapshot.offers(snapshot.find(asked)) for snapshot in snapshots)
    return sorted(chain(*answers), key=attrgetter("price"))


def _snapshot(provider: str) -> Snapshot:
    snapshot = store.opened(provider)
    if snapshot is None:
        raise NoPrices(
            f"there is no price snapshot of {provider} here yet: run `{typed('refresh')}`, or the deployment refresh-catalog/default"
        )
    return snapshot


def _version(number: float) -> tuple[int, int]:
    major, _, minor = f"{number:.1f}".partition(".")
    return int(major), int(minor)


def online(provider: str, **credentials: str | None) -> list[Offer]:
    """What gpuhunt's collector of an online provider (`vastai`, `vultr` ...) finds now, for a driver's `collect_prices`.

    Raises Unsupported for a provider that gpuhunt does not ask, Transient when the provider does not answer as gpuhunt expects.
    """
    from importlib import import_module

    # Imported here because it takes 0.2 s.
    from gpuhunt._internal.default import (  # pyright: ignore[reportMissingTypeStubs] - gpuhunt is typed and does not say so
        ONLINE_PROVIDER_MODULES,
    )

    modules = {module.rpartition(".")[2]: (module, name) for module, name in ONLINE_PROVIDER_MODULES}
    if provider not in modules:
        raise Unsupported(f"gpuhunt does not ask {provider} for prices: its driver needs a collect_prices of its own")
    module, name = modules[provider]
    try:
        items = getattr(import_module(module), name)(**credentials).get()
    except Exception as failure:  # gpuhunt lets out whatever happens to it: KeyError, requests' own, ValueError
        raise Transient(f"gpuhunt's collector of {provider} failed: {type(failure).__name__}") from failure
    return [_from_item(item) for item in items]


def _from_item(item: CatalogItem) -> Offer:
    where = place(item.provider, item.location)
    return Offer.model_construct(  # not checked: that is the gates' part, and a wrong row must not hide the others
        provider=item.provider,
        instance_type=item.instance_name,
        region=where.region,
        zone=where.zone,
        country=where.country,
        price=item.price,
        spot=item.spot,
        cpu=item.cpu,
        memory_gb=item.memory,
        disk_gb=item.disk_size,
        arch={"x86": "x86_64", "arm": "arm64"}[item.cpu_arch.value],
        gpu_name=item.gpu_name,
        gpu_count=item.gpu_count,
        gpu_memory_gb=item.gpu_memory,
        gpu_vendor=item.gpu_vendor.value if item.gpu_vendor else None,
        raw={**item.provider_data, **({"flags": item.flags} if item.flags else {})},
    )
