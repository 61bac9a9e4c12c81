"""What can be bought: the price list's types in each zone that has them and a network for us, within the account's quotas."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Final

from prefect_gpu.providers.aws import network, reservations
from prefect_gpu.providers.aws.api import Api, each
from prefect_gpu.providers.aws.images import Images
from prefect_gpu.providers.aws.order import DEFAULT_DISK_GB, MOST_DISK_GB
from prefect_gpu.providers.aws.quotas import Quotas
from prefect_gpu.providers.core.errors import ProviderError, RegionClosed
from prefect_gpu.providers.core.models import Availability, Offer
from prefect_gpu.providers.core.requests import Requirements

log = logging.getLogger(__name__)

_METAL_BOOT_S: Final = 3300  # firmware and memory of a whole server are tested first

Priced = Callable[[str, Requirements], list[Offer]]


def offers(api: Api, images: Images, priced: Priced, requirements: Requirements) -> list[Offer]:
    """All that fits; what cannot be bought now says why. The first region's error where no region answers."""
    # Zones and disks are what the order adds: the price list knows neither.
    named = set(api.credentials.regions)
    regions = set(requirements.regions) & named if requirements.regions and named else {*requirements.regions, *named}
    if named and not regions:
        return []
    asked = requirements.model_copy(
        update={"zones": (), "exclude_zones": (), "disk_gb": None, "regions": tuple(sorted(regions))}
    )
    by_region: dict[str, list[Offer]] = {}
    for offer in priced("aws", asked):
        by_region.setdefault(offer.region, []).append(offer)
    enabled = api.regions() if by_region or named else set[str]()
    if (strange := named - enabled) and not by_region:
        raise RegionClosed(_not_there(strange, enabled))
    if strange:
        log.warning("%s", _not_there(strange, enabled))
    failures: list[ProviderError] = []

    def overlay(region: str) -> list[Offer]:
        if region not in enabled:
            return _closed(by_region[region], f"{region} is not enabled in this account")
        try:
            return _in_zones(api, images, region, by_region[region], requirements)
        except ProviderError as error:
            failures.append(error)
            return _closed(by_region[region], f"{region} could not be asked: {error}")

    found = [offer for some in each(overlay, sorted(by_region)) for offer in some]
    if failures and len(failures) == len(enabled & by_region.keys()):
        raise failures[0]
    return found


def _not_there(strange: set[str], enabled: set[str]) -> str:
    return (
        f"the block names {', '.join(sorted(strange)[:5])}, which this account does not have: correct the block's regions, "
        f"or enable them in AWS (it has {', '.join(sorted(enabled)[:30])})"
    )


def _in_zones(api: Api, images: Images, region: str, listed: list[Offer], requirements: Requirements) -> list[Offer]:
    """The region's offers, one for each zone that has the type and a network for us; what cannot be bought says why."""
    with_subnet = {one.zone: one.vpc for one in reversed(network.subnets(api, region))}  # as an order takes it
    with_group = set(with_subnet)
    if chosen := api.credentials.security_group:
        found = network.groups(api, region, chosen)
        with api.asks(f"look for the security group {chosen}", region=region):
            vpcs = {str(group["VpcId"]) for group in found}
        with_group = {zone for zone, vpc in with_subnet.items() if vpc in vpcs}
    reservation = reservations.active(api, region, None)
    image_problems: dict[tuple[object, ...], str | None] = {}
    zones = _type_zones(api, region, {offer.instance_type for offer in listed})
    quotas = Quotas(api, region)
    disk_gb = max(DEFAULT_DISK_GB, requirements.disk_gb or 0.0)
    placed: list[Offer] = []
    for offer in listed:
        having = zones.get(offer.instance_type, set())
        wanted = {
            zone
            for zone in having
            if zone not in requirements.exclude_zones and (not requirements.zones or zone in requirements.zones)
        }
        if having and not wanted:
            continue
        is_metal = ".metal" in offer.instance_type
        sized = offer.model_copy(
            update={"disk_gb": disk_gb, "boot_deadline_s": _METAL_BOOT_S if is_metal else offer.boot_deadline_s}
        )
        image = (bool(offer.gpu_count), offer.gpu_vendor, offer.gpu_name, offer.arch)
        if image not in image_problems:
            image_problems[image] = images.problem(offer)
        problem = image_problems[image]
        if disk_gb > MOST_DISK_GB:
            problem = f"a disk of {disk_gb:g} GB is asked for, EC2's have at most {MOST_DISK_GB}"
        elif not having:
            problem = f"EC2 has no {offer.instance_type} in {region}"
        elif not wanted & with_subnet.keys():
            problem = network.no_subnet(api, ", ".join(sorted(wanted)))
        elif not wanted & with_group:
            problem = f"no security group {chosen} in the VPC of {', '.join(sorted(wanted & with_subnet.keys()))}"
        if (problem := problem or quotas.problem(offer)) is not None:
            placed += _closed([sized], problem)
            continue
        for zone in sorted(wanted & with_group):
            here = sized.model_copy(update={"zone": zone})
            if reservation is not None and reservation.free and reservation.covers(here):
                here = here.model_copy(update={"availability": Availability.AVAILABLE})
            placed.append(here)
    return placed


def _type_zones(api: Api, region: str, types: set[str]) -> dict[str, set[str]]:
    # More values than 200 in one filter are refused.
    only = [{"Name": "instance-type", "Values": sorted(types)}] if len(types) <= 200 else []
    zones: dict[str, set[str]] = {}
    with api.asks(f"ask for the zones of {region}", region=region):
        for row in api.pages(
            region,
            "describe_instance_type_offerings",
            "InstanceTypeOfferings",
            LocationType="availability-zone",
            Filters=only,
        ):
            if re.fullmatch(rf"{region}[a-z0-9-]{{1,12}}", str(row["Location"])):
                zones.setdefault(str(row["InstanceType"]), set()).add(str(row["Location"]))
    return zones


def _closed(some: Sequence[Offer], why: str) -> list[Offer]:
    closed = {"availability": Availability.UNAVAILABLE, "unavailable_because": why}
    return [offer.model_copy(update=closed) for offer in some]
