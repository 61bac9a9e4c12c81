"""Capacity reservations and capacity blocks: what an account has paid for and orders may be placed in."""

from __future__ import annotations

from typing import NamedTuple

from prefect_gpu.providers.aws.api import Api
from prefect_gpu.providers.core.errors import RegionClosed
from prefect_gpu.providers.core.models import Offer


class Reservation(NamedTuple):
    """One that is active now."""

    id: str
    instance_type: str
    zone: str
    free: int
    is_block: bool  # a capacity block for ML

    def covers(self, offer: Offer) -> bool:
        """Whether an order of this offer may name it; a full one is named too, or its last order could not be repeated."""
        return not offer.spot and (self.instance_type, self.zone) == (offer.instance_type, offer.zone)


def active(api: Api, region: str, chosen: str | None) -> Reservation | None:
    """The chosen reservation, or the block's, where it is one of this region and active now."""
    if (chosen := chosen or api.credentials.capacity_reservation) is None:
        return None
    try:
        with api.asks(f"look at the capacity reservation {chosen}", region=region):
            reply = api.client("ec2", region).describe_capacity_reservations(CapacityReservationIds=[chosen])
            for row in reply["CapacityReservations"]:
                if row["State"] == "active":
                    return Reservation(
                        id=chosen,
                        instance_type=str(row["InstanceType"]),
                        zone=str(row["AvailabilityZone"]),
                        free=int(row.get("AvailableInstanceCount") or 0),
                        is_block=row.get("ReservationType") == "capacity-block",
                    )
    except RegionClosed as error:
        if error.code != "InvalidCapacityReservationId.NotFound":
            raise
    return None  # it is of another region, or over
