"""What a price is made of: the kind of machine, the place, the amount; and what a snapshot says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple


class Place(NamedTuple):
    """Where: the region, the zone where prices are by zone, and the country where it is known (ISO 3166-1 alpha-2)."""

    region: str
    zone: str | None = None
    country: str | None = None


class Kind(NamedTuple):
    """Everything about an offer but where and how much."""

    instance_type: str
    spot: bool = False
    cpu: float | None = None
    memory_gb: float | None = None
    disk_gb: float | None = None
    arch: str | None = "x86_64"
    flags: tuple[str, ...] = ()
    gpu_name: str | None = None
    gpu_count: int = 0
    gpu_memory_gb: float | None = None
    gpu_vendor: str | None = None
    raw: str = "{}"  # JSON object: what the driver needs at create


class Price(NamedTuple):
    """One offer as it is collected: USD per hour for the whole instance."""

    kind: Kind
    place: Place
    price: float

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two of them the same thing to buy, whatever they cost."""
        return (self.kind, self.place)


class Machine(NamedTuple):
    """What price levels are compared of: so many GPUs of one name (None and 0: none), spot or on-demand."""

    gpu_name: str | None
    gpu_count: int
    spot: bool


class Level(NamedTuple):
    """The median price of a machine in USD per hour, and when that was."""

    price: float
    at: datetime


Levels = Mapping[Machine, Level]


class About(NamedTuple):
    """What a snapshot says of itself."""

    provider: str
    collected_at: datetime  # when these prices were true, as far as their source tells
    source: str  # where they come from, in a person's words
    offers: int
    gpu_names: tuple[str, ...]
    levels: Levels  # what machines cost when they were last believed, those that were left out since included
