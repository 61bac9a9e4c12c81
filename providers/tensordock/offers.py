"""What hosts have: each so many of its GPUs, with as much beside them as the job needs, at the sum of their prices."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Final

from prefect_gpu.blocks.tensordock import TensordockOptions
from prefect_gpu.providers.core.catalog import facts
from prefect_gpu.providers.core.gpu.accelerators import find
from prefect_gpu.providers.core.gpu.matching import fits
from prefect_gpu.providers.core.gpu.names import gpu_name
from prefect_gpu.providers.core.models import Availability, Offer
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit import answers

RAM_GB: Final = (8, *range(16, 257, 16), 512)  # sizes that it sells
DISK_GB: Final = 50  # steps
SMALLEST_DISK_GB: Final = 100
MOST_GPUS: Final = 16


def offers_of(host: dict[str, Any], requirements: Requirements, options: TensordockOptions) -> Iterator[Offer]:
    """The shares of one host that fit."""
    gpus: list[dict[str, Any]] = answers.at(host, "available_resources.gpus") or []
    for row in gpus:
        free = _number(answers.at(row, "availableCount")) or 0
        most = min(int(free), MOST_GPUS)
        for count in range(most if requirements.nearest else 1, most + 1):
            offer = _share(host, row, count, requirements, options)
            if offer is not None and fits(offer, requirements):
                yield offer


def _share(
    host: dict[str, Any], gpu: dict[str, Any], count: int, requirements: Requirements, options: TensordockOptions
) -> Offer | None:
    """So many of its GPUs; None where it is not known what that is or costs, or where the host has too little beside them."""
    kind = str(gpu.get("v0Name"))
    name = gpu_name(re.sub(r"^(geforce|tesla|quadro)", "", kind))
    memory = re.search(r"(\d+)gb$", kind)
    has: dict[str, Any] = answers.at(host, "available_resources") or {}
    cores = _most(has, "vcpu_count", "max_vcpus", "max_vcpus_per_gpu", count)
    ram = _most(has, "ram_gb", "max_ram_gb", "max_ram_per_gpu", count)
    disk = _most(has, "storage_gb", "max_storage_gb")
    vcpu_count = 2 * math.ceil(max(requirements.cpu or 0, min(options.vcpus_per_gpu * count, cores - 1)) / 2)
    wanted = max(requirements.memory_gb or 0, min(options.ram_gb_per_gpu * count, ram))
    ram_gb = next((size for size in RAM_GB if size >= wanted), 0)
    if ram_gb > ram and not requirements.memory_gb:
        ram_gb = max((size for size in RAM_GB if size <= ram), default=0)
    asked_gb = max(requirements.disk_gb or 0, options.disk_gb, SMALLEST_DISK_GB)
    storage_gb = DISK_GB * math.ceil(asked_gb / DISK_GB)
    prices = [_number(gpu.get("price_per_hr"))]
    prices += [_number(answers.at(host, f"pricing.per_{one}_hr")) for one in ("vcpu", "gb_ram", "gb_storage")]
    amounts = (count, vcpu_count, ram_gb, storage_gb)
    known = [price for price in prices if price is not None]  # a price that is missing is not zero
    if not host.get("id") or name is None or memory is None or len(known) < len(prices) or min(amounts) <= 0:
        return None
    if vcpu_count > cores or ram_gb > ram or storage_gb > disk:
        return None
    accelerator = find(name)
    place: dict[str, Any] = host.get("location") or {}
    told: list[Any] = has.get("available_ports") or []
    ports = [port for port in told if isinstance(port, int)]
    has_way = bool(has.get("has_public_ip_available") if options.dedicated_ip else ports)
    why = f"no {'address of its own' if options.dedicated_ip else 'port'} is free for SSH on host {host.get('id')}"
    return Offer(
        provider="tensordock",
        instance_type=f"{count}x-{kind}",
        region=_slug(f"{place.get('city') or 'unknown'} {place.get('stateprovince') or ''}"),
        zone=str(host["id"]),  # one machine of somebody's
        host=str(host["id"]),
        trust=facts.of("tensordock").trust,
        country=_country(str(place.get("country") or "")),
        price=round(sum(price * amount for price, amount in zip(known, amounts, strict=True)), 6),
        cpu=vcpu_count,
        memory_gb=ram_gb,
        disk_gb=storage_gb,
        arch="x86_64",
        gpu_name=name,
        gpu_count=count,
        gpu_memory_gb=float(memory[1]),
        gpu_vendor=accelerator.vendor if accelerator else "nvidia",
        availability=Availability.AVAILABLE if has_way else Availability.UNAVAILABLE,
        unavailable_because=None if has_way else why,
        raw={"gpu": kind, "ports": ports[:50]},
    )


def _most(has: dict[str, Any], free: str, most: str, per_gpu: str = "", count: int = 1) -> float:
    """How much of something one machine can have: what is free, what one may have, what goes with each GPU; no bound that is not told."""
    bounds = [_number(has.get(free)), _number(has.get(most))]
    each = _number(has.get(per_gpu))
    bounds.append(each * count if each is not None else None)
    return min((bound for bound in bounds if bound is not None), default=math.inf)


def _number(found: object) -> float | None:
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) and found >= 0 else None


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _country(name: str) -> str | None:
    return name.upper() if re.fullmatch(r"[A-Za-z]{2}", name) else facts.of("tensordock").countries.get(_slug(name))
