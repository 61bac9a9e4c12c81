"""Capacity reservations: what a subscription pays for anyway, and orders of its type and place are put in."""

from __future__ import annotations

from typing import NamedTuple

from prefect_gpu.providers.azure.api import Arm, at, each_dict
from prefect_gpu.providers.core.errors import InvalidRequest, NotFound
from prefect_gpu.providers.core.models import Offer


class Reservation(NamedTuple):
    """One of a reservation group: so many machines of a type in a region, or in a zone of it."""

    group: str
    instance_type: str
    region: str
    zone: str | None  # "1"
    free: int

    def covers(self, offer: Offer) -> bool:
        """Whether an order of this offer may be placed in it. A full one too: then Azure says so."""
        if offer.spot or (self.instance_type.lower(), self.region) != (offer.instance_type.lower(), offer.region):
            return False
        return offer.zone is None or self.zone is None or offer.zone == f"{self.region}-{self.zone}"


def of(arm: Arm, group: str | None) -> list[Reservation]:
    """The reservations of a group."""
    if group is None:
        return []
    what = "look at the block's capacity reservations"
    try:
        region = str(arm.get(group, what=what).get("location") or "").lower()
    except NotFound as missing:
        raise InvalidRequest(
            f"there is no capacity reservation group {group}: look at the block", code=missing.code
        ) from None
    found: list[Reservation] = []
    for row in arm.rows(f"{group}/capacityReservations", what=what):
        zones = at(row, "zones", [""])
        taken = len(each_dict(row, "properties.virtualMachinesAssociated"))
        found.append(
            Reservation(
                group=group,
                instance_type=at(row, "sku.name", ""),
                region=str(row.get("location") or region).lower(),
                zone=str(zones[0]) if zones and zones[0] else None,
                free=max(0, at(row, "sku.capacity", 0) - taken),
            )
        )
    return found
