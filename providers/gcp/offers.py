"""What can be bought: the price list's types in each zone that has a subnet for us, within the project's quotas.

What is in stock Google tells nobody before an order, so what nothing speaks against is of unknown availability.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from prefect_gpu.providers.core.errors import ProviderError, RegionClosed
from prefect_gpu.providers.core.models import Availability, Offer, Unread
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit import stock
from prefect_gpu.providers.gcp import firewall, machines, network, reservations
from prefect_gpu.providers.gcp.api import Api
from prefect_gpu.providers.gcp.images import Images
from prefect_gpu.providers.gcp.order import DEFAULT_DISK_GB, MOST_DISK_GB
from prefect_gpu.providers.gcp.quotas import Quotas

log = logging.getLogger(__name__)

FLAGS: Final = ("gcp-a4", "gcp-g4")  # gpuhunt's; prices of the calendar mode are of reservations
BOOT_S: Final = {"a4": 16 * 60, "a4x": 16 * 60, "a3-ultragpu": 16 * 60}

Priced = Callable[[str, Requirements], list[Offer]]


def offers(api: Api, images: Images, priced: Priced, requirements: Requirements) -> list[Offer]:
    """All that fits; what cannot be bought now says why."""
    named = set(api.credentials.regions)
    regions = set(requirements.regions) & named if requirements.regions and named else {*requirements.regions, *named}
    if named and not regions:
        return []
    # Disks are what the order adds: the price list does not know them.
    asked = requirements.model_copy(update={"disk_gb": None, "regions": tuple(sorted(regions))})
    listed = priced("gcp", asked)
    if not listed:
        _must_exist(api, named)
        return []
    size = max(DEFAULT_DISK_GB, requirements.disk_gb or 0.0)
    unread: list[Unread] = []
    having = network.regions_with_one(api, unread)
    unknown = {one.scope: one.reason for one in unread}
    is_public = not (api.credentials.network.private or requirements.network == "private")
    quotas = Quotas(api, is_public=is_public)
    reservation = _reservation(api)

    def why_not(offer: Offer) -> str | None:
        if offer.region in unknown:
            return f"{offer.region} could not be asked: {unknown[offer.region]}"
        if offer.region not in having:
            return network.no_subnet(api, offer.region)
        if offer.region in quotas.down:
            return f"Google Cloud calls {offer.region} down"
        if (named := api.credentials.subnet_in(offer.region)) is not None:
            return _unfit(images, offer, size) or firewall.problem_with(api, named[0]) or quotas.problem(offer)
        return _unfit(images, offer, size) or quotas.problem(offer)

    found: list[Offer] = []
    for offer in stock.with_boot_deadlines(listed, BOOT_S):
        here = offer.model_copy(update={"disk_gb": size})
        covered = reservation is not None and reservation.covers(here)
        problem = why_not(here)
        if problem is None and machines.is_only_reserved(here) and not covered:
            problem = (
                f"Google sells {here.instance_type} on demand to reservations only: name one in the block, or take spot"
            )
        if problem is not None:
            found.append(
                here.model_copy(update={"availability": Availability.UNAVAILABLE, "unavailable_because": problem})
            )
        elif covered and reservation is not None and reservation.free > 0:
            found.append(here.model_copy(update={"availability": Availability.AVAILABLE}))
        else:
            found.append(here)
    return found


def _must_exist(api: Api, named: set[str]) -> None:
    """RegionClosed where nothing was found because the block's regions are none of Google's."""
    known = {str(row.get("name")) for row in api.rows("regions", what="ask for the regions")} if named else set[str]()
    if named and not named & known:
        strange, there = ", ".join(sorted(named)[:5]), ", ".join(sorted(known)[:60])
        raise RegionClosed(
            f"the block names {strange}, which Google Cloud does not have: correct the block's regions (it has {there})"
        )


def _unfit(images: Images, offer: Offer, size: float) -> str | None:
    """Why no order of this type can be made, wherever it stands."""
    if offer.gpu_vendor == "google":
        return "TPUs are rented by another API, which this provider does not speak"
    if offer.zone is None:
        return f"the price list names no zone of {offer.region}"
    if machines.accelerator(offer) == "":
        return f"it is not known how a {offer.gpu_name} is attached to {offer.instance_type}"
    if size > MOST_DISK_GB:
        return f"a disk of {size:g} GB is asked for, Google Cloud's have at most {MOST_DISK_GB}"
    return images.problem(offer)


def _reservation(api: Api) -> reservations.Reservation | None:
    try:
        return reservations.ready(api, api.credentials.options)
    except RegionClosed as missing:
        log.warning("%s", missing)
    except ProviderError as trouble:
        log.info("%s", trouble)
    return None
