"""Reservations: what a project has paid for, in one zone, and orders may be placed in."""

from __future__ import annotations

from typing import Final, NamedTuple

from prefect_gpu.blocks.gcp import GcpOptions
from prefect_gpu.providers.core.errors import NotFound, RegionClosed
from prefect_gpu.providers.core.models import Offer
from prefect_gpu.providers.gcp import machines
from prefect_gpu.providers.gcp.api import Api, dict_of, dicts_of, last

KEY: Final = "compute.googleapis.com/reservation-name"


class Reservation(NamedTuple):
    """One that is ready."""

    value: str  # its name, or projects/P/reservations/N where another project shares it
    instance_type: str
    accelerators: tuple[str, ...]  # that are attached
    zone: str
    free: int

    def covers(self, offer: Offer) -> bool:
        """Whether an order of this offer may name it; a full one is named too, or its last order could not be repeated."""
        attached = machines.accelerator(offer)
        wanted = tuple([attached] * offer.gpu_count) if attached else ()
        is_same = (self.instance_type, self.zone, self.accelerators) == (offer.instance_type, offer.zone, wanted)
        return is_same and not offer.spot


def ready(api: Api, options: GcpOptions) -> Reservation | None:
    """The reservation of these options. RegionClosed, for its zone alone, where there is none of this name."""
    named = options.reserved_in()
    if named is None:
        return None
    project, zone, name = named
    path = api.path("zones", zone, "reservations", name, project=project)
    try:
        row = api.http.row(path, "", what=f"look at the reservation {name} in {zone}")
    except NotFound as missing:
        raise RegionClosed(
            f"there is no reservation {name} in {zone}: look at the block's reservation", code=missing.code
        ) from None
    specific = dict_of(row.get("specificReservation"))
    properties = dict_of(specific.get("instanceProperties"))
    attached = [
        last(one.get("acceleratorType"))
        for one in dicts_of(properties.get("guestAccelerators"))
        for _ in range(min(int(one.get("acceleratorCount") or 0), 16))
    ]
    if row.get("status") != "READY":
        return None  # it is being made, or over
    return Reservation(
        value=f"projects/{project}/reservations/{name}" if project else name,
        instance_type=str(properties.get("machineType") or ""),
        accelerators=tuple(attached),
        zone=zone,
        free=int(specific.get("count") or 0) - int(specific.get("inUseCount") or 0),
    )
