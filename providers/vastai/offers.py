"""The search: what is wanted as filters of Vast.ai's own, and each ask that it finds as an offer, on demand or by bid."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

from prefect_gpu.blocks.vastai import VastaiOptions
from prefect_gpu.providers.core.errors import RateLimited, Transient
from prefect_gpu.providers.core.gpu.accelerators import find
from prefect_gpu.providers.core.gpu.matching import fits
from prefect_gpu.providers.core.gpu.names import gpu_name
from prefect_gpu.providers.core.models import Availability, Offer, Trust
from prefect_gpu.providers.core.requests import Requirements, Spot
from prefect_gpu.providers.core.toolkit import answers

LIMIT: Final = (
    500  # asks of one answer; without a limit it is 64, https://docs.vast.ai/api-reference/search/search-offers
)
CAP: Final = 64
PAGES: Final = 6
HOURS: Final = 24 * 30  # of a month, in prices of disk
_ROUNDING: Final = 0.93  # of a GPU's memory, which hosts report without what its driver keeps
# Where Vast.ai's names have more in them than ours.
_NAMES: Final = {
    "A100": ("A100 PCIE", "A100 SXM4"), "A100X": ("A100X",), "A800": ("A800 PCIE",), "H100": ("H100 PCIE", "H100 SXM"),
    "H100NVL": ("H100 NVL",), "H200": ("H200",), "H200NVL": ("H200 NVL",), "B200": ("B200",), "B300": ("B300", "B300 PC"),
    "GH200": ("GH200 SXM",), **{name: (f"Tesla {name}",) for name in ("P4", "P40", "P100", "T4", "V100")},
    **{name: (name,) for name in ("A10", "A16", "A30", "A40", "L4", "L40", "L40S")},
}  # fmt: skip


def found(
    search: Callable[[dict[str, Any]], answers.Json], requirements: Requirements, options: VastaiOptions
) -> list[Offer]:
    """All that fits, each once, on as many pages as there are; an odd row hides no other."""
    offers: dict[tuple[object, bool], Offer] = {}
    for body in searches(requirements, options):
        spot, asks = body.get("type") == "bid", set[object]()
        following: dict[str, Any] = body
        for page in range(1 if requirements.nearest else PAGES):
            try:
                told = answers.at(search(following), "offers")
            except RateLimited:
                if page == 0:
                    raise
                break  # what is cheapest is there
            if not isinstance(told, list):
                raise Transient("Vast.ai's answer to a search has no list of offers")
            rows = [cast("dict[str, Any]", row) for row in cast("list[Any]", told) if isinstance(row, dict)]
            news = {row.get("id") for row in rows} - asks
            asks |= news
            for row in rows:
                with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
                    one = offer_of(row, requirements, options, spot=spot)
                    if one is not None and fits(one, requirements):
                        offers.setdefault((one.raw["ask_id"], spot), one)
            dearest = rows[-1].get("dph_total") if rows else None
            if not news or len(rows) not in (CAP, LIMIT) or not isinstance(dearest, int | float):
                break  # else it may have cut the list
            following = {**body, "dph_total": {**body.get("dph_total", {}), "gte": dearest}}
    return list(offers.values())


def searches(requirements: Requirements, options: VastaiOptions) -> list[dict[str, Any]]:
    """The bodies of the searches: one for each market, and for unverified hosts one more, since none shows both kinds."""
    checked = [True, *([False] if options.unverified and requirements.trust == "any" else [])]
    markets = [spot for spot in (False, True) if requirements.spot is not (Spot.ON_DEMAND if spot else Spot.SPOT)]
    asked = _filters(requirements, options)
    return [
        {**asked, "verified": {"eq": verified}, **({"type": "bid"} if spot else {})}
        for spot in markets
        for verified in checked
    ]


def _filters(requirements: Requirements, options: VastaiOptions) -> dict[str, Any]:
    disk_gb = disk(requirements, options)
    asked: dict[str, Any] = {
        "limit": LIMIT,
        "order": [*([["num_gpus", "desc"]] if requirements.nearest else []), ["dph_total", "asc"]],
        "allocated_storage": disk_gb,
        "rentable": {"eq": True},
        "rented": {"eq": False},
        "direct_port_count": {"gte": 1},
        "reliability": {"gte": options.min_reliability},
        "inet_down": {"gte": options.min_download_mbps},
        "duration": {"gte": round(options.lasts_h * 3600)},
        "disk_space": {"gte": disk_gb},
    }
    wanted = requirements.gpu
    names = [_written(name) for request in wanted for name in request.names]
    if names and all(names) and all(request.names for request in wanted):
        asked["gpu_name"] = {"in": sorted({name for several in names for name in several})}
    least = min((request.count_min for request in wanted), default=1)
    counts = [request.count_max for request in wanted]
    most = {} if None in counts or not counts else {"lte": max(count or 0 for count in counts)}
    if not any(request.instance_type for request in wanted):
        asked["num_gpus"] = {"gte": max(1, least), **most}
    if wanted and all(request.memory_min_gb for request in wanted):
        asked["gpu_ram"] = {"gte": round(min(request.memory_min_gb or 0 for request in wanted) * 1024 * _ROUNDING)}
    if requirements.max_price is not None:
        asked["dph_total"] = {
            "lte": round(requirements.max_price * 1.01 + 0.01, 4)
        }  # it rounds otherwise; looked at again
    for field, least_of in (
        ("cpu_cores_effective", requirements.cpu),
        ("cuda_max_good", requirements.min_cuda),
        ("compute_cap", requirements.min_compute_capability and round(requirements.min_compute_capability * 100)),
    ):
        if least_of is not None:
            asked[field] = {"gte": least_of}
    if requirements.arch is not None:
        asked["cpu_arch"] = {"eq": {"x86_64": "amd64", "arm64": "arm64"}[requirements.arch]}
    if places := requirements.countries or requirements.exclude_countries:
        asked["geolocation"] = {"in" if requirements.countries else "notin": [one.upper() for one in places]}
    if requirements.trust == "secure":
        asked["datacenter"] = {"eq": True}
    for way in ("up", "down") if options.max_traffic_per_gb is not None else ():
        asked[f"inet_{way}_cost"] = {"lte": options.max_traffic_per_gb}
    return asked


def _written(name: str) -> tuple[str, ...]:
    """A GPU's name as Vast.ai writes it: `RTX 4090`, `RTX A6000`; nothing where that is not known, and is not asked for then."""
    if name.upper() in _NAMES:
        return _NAMES[name.upper()]
    rtx = re.fullmatch(r"RTX ?(\d{4})(S?)( ?Ti)?( ?Ada)?", name, re.IGNORECASE)
    if rtx:
        return (f"RTX {rtx[1]}{rtx[2].upper()}{' Ti' if rtx[3] else ''}{'Ada' if rtx[4] else ''}",)
    workstation = re.fullmatch(r"(?:RTX ?)?A(\d{4})", name, re.IGNORECASE)
    return (f"RTX A{workstation[1]}",) if workstation else ()


def disk(requirements: Requirements, options: VastaiOptions) -> int:
    """GB of disk of an order: what a job asks for, at least what the block says."""
    return max(options.disk_gb, math.ceil(requirements.disk_gb or 0))


def offer_of(row: dict[str, Any], requirements: Requirements, options: VastaiOptions, *, spot: bool) -> Offer | None:
    """One ask; None where it is less reliable than wanted, or where what it is or costs is not known."""
    name = str(row["gpu_name"])
    known = gpu_name(name) or name.replace(" ", "")
    accelerator = find(known)
    count, disk_gb = int(row["num_gpus"]), disk(requirements, options)
    storage = float(row["storage_cost"]) * disk_gb / HOURS
    bid = round(float(row["min_bid"]) * (1 + options.bid_over), 6) if spot else None
    price = (float(row["dph_base"]) if bid is None else bid) + storage
    cores = float(row["cpu_cores_effective"])
    if float(row.get("reliability2") or row.get("reliability") or 0) < options.min_reliability or count < 1:
        return None
    place, machine = str(row.get("geolocation") or ""), str(int(row["machine_id"]))
    country = re.search(r"(?:^|, *)([A-Z]{2})$", place.strip())
    memory_gb = float(row["gpu_ram"]) / 1024
    told = answers.at(row, "gpu_arch")
    return Offer(
        provider="vastai",
        instance_type=f"{count}x-{name.replace(' ', '-')}",
        region=re.sub(r"[^a-z0-9]+", "-", place.lower()).strip("-") or "unknown",
        zone=machine,
        host=machine,
        trust=_trust(row),
        country=country[1] if country else None,
        price=round(price, 6),
        spot=spot,
        cpu=cores,
        memory_gb=round(float(row["cpu_ram"]) / 1024 * min(1.0, cores / float(row["cpu_cores"])), 1),
        disk_gb=disk_gb,
        arch="arm64" if row.get("cpu_arch") == "arm64" else "x86_64",
        gpu_name=known,
        gpu_count=count,
        gpu_memory_gb=accelerator.nearest_memory_gb(memory_gb) if accelerator else float(round(memory_gb)),
        gpu_vendor=accelerator.vendor if accelerator else told if told in ("nvidia", "amd") else "nvidia",
        availability=Availability.AVAILABLE,
        raw={
            "ask_id": int(row["id"]),
            "bid": bid,
            "cuda": row.get("cuda_max_good"),
            "usd_per_gb": {way: row.get(f"inet_{way}_cost") for way in ("up", "down")},
        },
    )


def _trust(row: dict[str, Any]) -> Trust:
    """A host that Vast.ai has verified, in a data centre that it works with or not."""
    if row.get("verification") != "verified":
        return "any"
    return "secure" if row.get("hosting_type") == 1 else "verified"
