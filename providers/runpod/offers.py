"""What RunPod has: so many GPUs of a type in each data center, or anywhere in the community cloud, with a disk at the sum of their prices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from prefect_gpu.blocks.runpod import RunpodOptions
from prefect_gpu.providers.core.catalog.places import place
from prefect_gpu.providers.core.gpu.accelerators import find
from prefect_gpu.providers.core.gpu.matching import fits
from prefect_gpu.providers.core.gpu.names import gpu_name, squash
from prefect_gpu.providers.core.models import Availability, Offer
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit import answers
from prefect_gpu.providers.core.toolkit.http import JsonApi

MOST_GPUS: Final = 10
HOURS: Final = 730.0  # a month, by which disks are priced. https://docs.runpod.io/pods/pricing
DISK_USD: Final = 0.10 / HOURS
VOLUME_USD: Final = 0.07 / HOURS
WORDS: Final = {"SECURE": "secure", "COMMUNITY": "community"}  # a cloud, as a region: where no data center is told


def scopes_of(requirements: Requirements, options: RunpodOptions) -> dict[str, dict[str, Any]]:
    """What to ask the catalog for, by what it is called in messages: stock is told for one cloud and one number of GPUs."""
    bounds = [(max(1, one.count_min), one.count_max or MOST_GPUS) for one in requirements.gpu]
    if requirements.gpu_vendor and not bounds:
        bounds = [(1, 1)]
    counts = {n for low, high in bounds for n in range(low, min(high, MOST_GPUS) + 1)}
    if requirements.nearest:
        counts = {1}  # the answer tells how many there are at most
    may_be_a_stranger_s = requirements.trust == "any" and options.volume_gb is None  # the community has no volumes
    usual = {"include": "AVAILABILITY", "product": "POD"}
    if requirements.min_cuda:
        usual["minCudaVersion"] = f"{requirements.min_cuda:.1f}"
    return {
        f"{count} GPUs in the {word} cloud": {**usual, "cloud": cloud, "count": count}
        for cloud, word in WORDS.items()
        for count in sorted(counts)
        if options.cloud in ("both", word) and (cloud == "SECURE" or may_be_a_stranger_s)
    }


def offers_in(
    api: JsonApi, asked: dict[str, Any], requirements: Requirements, options: RunpodOptions
) -> Iterator[Offer]:
    """Of one answer of the catalog what fits; a type that is written oddly hides no other."""
    for row in api.rows("/catalog/gpus", "gpus", asked):
        with suppress(KeyError, TypeError, ValueError, AttributeError):
            offers = list(_offers_of(row, asked["cloud"], asked["count"], requirements, options))
            yield from (offer for offer in offers if fits(offer, requirements))


def _offers_of(
    row: dict[str, Any], cloud: str, count: int, requirements: Requirements, options: RunpodOptions
) -> Iterator[Offer]:
    """One GPU type of the catalog in each place that has it; where nothing has it, one offer with the reason."""
    price, most = (answers.at(row, f"{field}.{WORDS[cloud]}") for field in ("price", "maxCount"))
    if not row.get(WORDS[cloud]) or not _is_number(price) or price <= 0 or not _is_number(most) or count > most:
        return
    count = int(most) if requirements.nearest else count
    name = gpu_name(row["id"]) or gpu_name(row["name"]) or squash(row["name"]).upper()
    known, vendor, memory = find(name), str(row.get("manufacturer")).lower(), row["memory"]
    disk_gb = math.ceil(max(requirements.disk_gb or 0, options.disk_gb))
    # Community hosts stand in no data center that an order could name.
    places: list[dict[str, Any]] = (row.get("dataCenters") or []) if cloud == "SECURE" else []
    for there in places or [{"id": WORDS[cloud], "availability": row.get("availability")}]:
        has = there.get("availability") in {"LOW", "MEDIUM", "HIGH"}  # a hint: an order may be refused all the same
        yield Offer(
            provider="runpod",
            instance_type=row["id"],
            region=there["id"],
            country=place("runpod", there["id"]).country if places else None,
            price=round(price * count + disk_gb * DISK_USD + (options.volume_gb or 0) * VOLUME_USD, 6),
            disk_gb=disk_gb,
            arch="x86_64",
            gpu_name=name,
            gpu_count=count,
            gpu_memory_gb=float(memory),
            gpu_vendor=vendor if vendor in {"nvidia", "amd"} else known.vendor if known else None,
            availability=Availability.AVAILABLE if has else Availability.UNAVAILABLE,
            unavailable_because=None if has else f"sold out in {there['id']}" + ("" if places else " cloud"),
            trust="secure" if cloud == "SECURE" else "any",  # RunPod's own, or a stranger's; it tells no host
            raw={"cloud": cloud, "min_cuda": requirements.min_cuda},
        )


def _is_number(found: object) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool)
