"""What can be bought: the price list's types in each region that sells them to this subscription, within its quotas."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from prefect_gpu.providers.azure import images, network, reservations
from prefect_gpu.providers.azure.api import COMPUTE, Arm, at, each_dict
from prefect_gpu.providers.azure.order import DEFAULT_DISK_GB, MOST_DISK_GB
from prefect_gpu.providers.azure.quotas import Quotas
from prefect_gpu.providers.azure.reservations import Reservation
from prefect_gpu.providers.core.errors import AuthFailed, ProviderError
from prefect_gpu.providers.core.models import Availability, Offer
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit import scopes, stock

log = logging.getLogger(__name__)

Priced = Callable[[str, Requirements], list[Offer]]
_KEPT_S: Final = 600.0  # a region's list of types is long, and changes seldom


class Type(NamedTuple):
    """What a region says of one of its types, for this subscription."""

    family: str
    zones: frozenset[str]  # those that it may be placed in by name
    capabilities: dict[str, str]
    closed: str | None  # why it may not be ordered


class Types:
    """The types of each region, kept for a while."""

    def __init__(self, arm: Arm) -> None:
        self._arm = arm
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, dict[str, Type]]] = {}

    def of(self, region: str) -> dict[str, Type]:
        """By name in lower case."""
        with self._lock:
            asked_at, known = self._kept.get(region, (0.0, {}))
        if known and time.monotonic() - asked_at < _KEPT_S:
            return known
        found: dict[str, Type] = {}
        what = f"ask for the types of {region}"
        rows = self._arm.rows(f"{self._arm.subscription}{COMPUTE}/skus", what=what, filter=f"location eq '{region}'")
        for row in rows:
            here = {str(one).lower() for one in at(row, "locations", [""])}
            if row.get("resourceType") == "virtualMachines" and region in here:
                found[str(row.get("name")).lower()] = _type(row, region)
        with self._lock:
            self._kept[region] = (time.monotonic(), found)
        return found


def offers(arm: Arm, types: Types, priced: Priced, requirements: Requirements) -> list[Offer]:
    """All that fits; what cannot be bought now says why. The error where no region answers."""
    named = {region.lower().replace(" ", "") for region in arm.credentials.regions}
    regions = set(requirements.regions) & named if requirements.regions and named else {*requirements.regions, *named}
    if named and not regions:
        return []
    # Zones and disks are what the order adds: the price list knows neither.
    asked = requirements.model_copy(
        update={"zones": (), "exclude_zones": (), "disk_gb": None, "regions": tuple(sorted(regions))}
    )
    by_region: dict[str, list[Offer]] = {}
    for offer in priced("azure", asked):
        by_region.setdefault(offer.region, []).append(offer)
    if not by_region:
        return []
    group = arm.credentials.capacity_reservation_group
    try:
        reserved = reservations.of(arm, group)
    except AuthFailed:
        raise
    except ProviderError as error:
        log.warning("the block's capacity reservations could not be read: %s", error)
        reserved = []
    read = scopes.read_each(by_region, lambda region: _in_region(arm, types, region, by_region[region], reserved))
    found = [_zoned(one, requirements) for offers in read.found.values() for one in offers]
    closed = [
        _closed(offer, f"{one.scope} could not be asked: {one.reason}")
        for one in read.unread
        for offer in by_region[one.scope]
    ]
    return [offer for zoned in found for offer in zoned] + closed


def _in_region(arm: Arm, types: Types, region: str, listed: list[Offer], reserved: list[Reservation]) -> list[Offer]:
    known = types.of(region)
    no_network: str | None = None
    if arm.credentials.subnets:
        try:
            network.subnet_in(arm, region)
        except AuthFailed:
            raise
        except ProviderError as error:
            no_network = error.message
    quotas = Quotas(arm, region)
    return [
        _judged(arm, offer, known.get(offer.instance_type.lower()), quotas, reserved, no_network) for offer in listed
    ]


def _judged(
    arm: Arm, offer: Offer, kind: Type | None, quotas: Quotas, reserved: list[Reservation], no_network: str | None
) -> Offer:
    credentials = arm.credentials
    block = credentials.gpu_image if offer.gpu_count else credentials.cpu_image
    if kind is None:
        return _closed(offer, f"{offer.region} does not sell {offer.instance_type} to this subscription")
    raw = {"zones": sorted(kind.zones), "accelerated_networking": _is(kind, "AcceleratedNetworkingEnabled")}
    arch = {"x64": "x86_64", "arm64": "arm64"}.get(kind.capabilities.get("CpuArchitectureType", "").lower())
    offer = offer.model_copy(update={"raw": {**offer.raw, **raw}, "arch": arch or offer.arch})
    if any(one.covers(offer) and one.free for one in reserved):
        return offer.model_copy(update={"availability": Availability.AVAILABLE})
    generations = kind.capabilities.get("HyperVGenerations", "V1,V2")
    why = kind.closed or no_network or (None if block else images.problem(offer))
    if why is None and offer.spot and kind.capabilities.get("LowPriorityCapable", "True") != "True":
        why = f"Azure does not sell {offer.instance_type} as spot"
    if why is None and block is None and "V2" not in generations:
        why = f"{offer.instance_type} boots images of generation 1 only: name one of yours in the block"
    why = why or quotas.problem(offer, kind.family)
    return offer if why is None else _closed(offer, why)


def _zoned(offer: Offer, requirements: Requirements) -> list[Offer]:
    """With the disk that an order takes; a zone is named only where zones are asked for, since Azure finds more without."""
    disk_gb = max(DEFAULT_DISK_GB, requirements.disk_gb or 0.0)
    offer = offer.model_copy(update={"disk_gb": disk_gb})
    if disk_gb > MOST_DISK_GB:
        return [_closed(offer, f"a disk of {disk_gb:g} GB is asked for, Azure's have at most {MOST_DISK_GB}")]
    if not requirements.zones and not requirements.exclude_zones:
        return [offer]
    zones = [f"{offer.region}-{zone}" for zone in offer.raw.get("zones", [])]
    why = offer.unavailable_because
    placed = stock.in_zones([offer], lambda _: zones, requirements, lambda _: why)
    # In stock is not known: no zone's stock can be asked for.
    return [
        one if one.unavailable_because else one.model_copy(update={"availability": offer.availability})
        for one in placed
    ]


def _type(row: dict[str, Any], region: str) -> Type:
    placed = [one for one in each_dict(row, "locationInfo") if at(one, "location", "").lower() == region]
    zones = {str(zone) for one in placed for zone in at(one, "zones", [""]) if zone}
    closed: str | None = None
    for one in each_dict(row, "restrictions"):
        reason = (
            "ask Azure for access"
            if one.get("reasonCode") == "NotAvailableForSubscription"
            else "its quota excludes it"
        )
        if one.get("type") == "Location":
            closed = (
                f"{region} does not sell {row.get('name')} to this subscription ({one.get('reasonCode')}): {reason}"
            )
        elif one.get("type") == "Zone":
            zones -= {str(zone) for zone in at(one, "restrictionInfo.zones", [""])}
    capabilities = {str(one.get("name")): str(one.get("value")) for one in each_dict(row, "capabilities")}
    return Type(str(row.get("family")), frozenset(zones), capabilities, closed)


def _is(kind: Type, capability: str) -> bool:
    return kind.capabilities.get(capability) == "True"


def _closed(offer: Offer, why: str) -> Offer:
    return offer.model_copy(update={"availability": Availability.UNAVAILABLE, "unavailable_because": why})
