"""What can be asked of a snapshot: gpuhunt's filters with its meaning, and those on places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefect_gpu.providers.core.catalog.kinds import Place

if TYPE_CHECKING:
    from collections.abc import Container


@dataclass(frozen=True, slots=True)
class Filters:
    """gpuhunt's filters with its meaning, and those on places. A field that is None or empty does not restrict."""

    cpu_arch: str | None = None
    min_cpu: float | None = None
    max_cpu: float | None = None
    min_memory: float | None = None
    max_memory: float | None = None
    min_gpu_count: int | None = None  # 0: offers without a GPU pass, whatever the filters on GPUs say
    max_gpu_count: int | None = None
    instance_type: str | None = None
    gpu_vendor: str | None = None
    gpu_name: tuple[str, ...] | None = None
    min_gpu_memory: float | None = None
    max_gpu_memory: float | None = None
    min_total_gpu_memory: float | None = None
    max_total_gpu_memory: float | None = None
    min_disk_size: float | None = None  # an offer that says no disk size can have any
    max_disk_size: float | None = None
    min_price: float | None = None
    max_price: float | None = None
    min_compute_capability: tuple[int, int] | None = None
    max_compute_capability: tuple[int, int] | None = None
    spot: bool | None = None
    allowed_flags: Container[str] | None = None
    regions: tuple[str, ...] = ()  # a zone's name is understood too
    exclude_regions: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    exclude_zones: tuple[str, ...] = ()
    countries: tuple[str, ...] = ()  # what is not known to be in one of them is left out
    exclude_countries: tuple[str, ...] = ()  # and so is what might be in one of these

    def take_place(self, place: Place) -> bool:
        """Whether a place passes."""
        return _is_in(place, self) and not _is_out(place, self)

    @property
    def restricts_places(self) -> bool:
        return bool(
            self.regions
            or self.exclude_regions
            or self.zones
            or self.exclude_zones
            or self.countries
            or self.exclude_countries
        )


def _is_in(place: Place, filters: Filters) -> bool:
    region, zone, country = (part.lower() if part else "" for part in place)
    regions, zones, countries = (
        {name.lower() for name in names} for names in (filters.regions, filters.zones, filters.countries)
    )
    if regions and region not in regions and (zone or region) not in regions:
        return False
    # Prices by region hold for its zones: us-east-1 stays when us-east-1a is asked for, and the driver picks the zone.
    if zones and zone not in zones and (zone or not any(name.startswith(region) for name in zones)):
        return False
    return not countries or country in countries


def _is_out(place: Place, filters: Filters) -> bool:
    region, zone, country = (part.lower() if part else "" for part in place)
    regions, zones, countries = (
        {name.lower() for name in names}
        for names in (filters.exclude_regions, filters.exclude_zones, filters.exclude_countries)
    )
    return (
        bool(regions & {region, zone or region})
        or bool(zone and zone in zones)
        or (bool(countries) and (not country or country in countries))
    )
