"""Whether an offer is what the job needs: one rule per field of Requirements, the same for every provider.

A bound that an offer says nothing about is met only where not knowing does no harm: a price list that does not know its disk or
its CUDA version is not left out (the machine check looks before the job starts), one that does not know its GPU is.
"""

from __future__ import annotations

import re
from typing import Final

from providers.core.models import GpuRequest, Offer, Requirements, Spot

# NVIDIA's table, https://developer.nvidia.com/cuda-gpus, by the names that price lists use.
COMPUTE_CAPABILITY: Final[dict[str, float]] = {
    "b300": 10.3,
    "gb300": 10.3,
    "b200": 10.0,
    "gb200": 10.0,
    "h100": 9.0,
    "h100nvl": 9.0,
    "h200": 9.0,
    "h200nvl": 9.0,
    "h20": 9.0,
    "h800": 9.0,
    "gh200": 9.0,
    "l4": 8.9,
    "l40": 8.9,
    "l40s": 8.9,
    "rtx4000ada": 8.9,
    "rtx4500ada": 8.9,
    "rtx5000ada": 8.9,
    "rtx5880ada": 8.9,
    "rtx6000ada": 8.9,
    "rtx2000ada": 8.9,
    "rtx4060": 8.9,
    "rtx4060ti": 8.9,
    "rtx4070": 8.9,
    "rtx4070s": 8.9,
    "rtx4070super": 8.9,
    "rtx4070ti": 8.9,
    "rtx4070tis": 8.9,
    "rtx4070tisuper": 8.9,
    "rtx4080": 8.9,
    "rtx4080s": 8.9,
    "rtx4080super": 8.9,
    "rtx4090": 8.9,
    "rtx4090d": 8.9,
    "rtx5060": 12.0,
    "rtx5060ti": 12.0,
    "rtx5070": 12.0,
    "rtx5070ti": 12.0,
    "rtx5080": 12.0,
    "rtx5090": 12.0,
    "rtxpro4000": 12.0,
    "rtxpro4500": 12.0,
    "rtxpro5000": 12.0,
    "rtxpro6000": 12.0,
    "rtxpro6000maxq": 12.0,
    "rtxpro6000wk": 12.0,
    "a2": 8.6,
    "a10": 8.6,
    "a10g": 8.6,
    "a16": 8.6,
    "a40": 8.6,
    "a2000": 8.6,
    "a4000": 8.6,
    "a4500": 8.6,
    "a5000": 8.6,
    "a6000": 8.6,
    "rtx3050": 8.6,
    "rtx3060": 8.6,
    "rtx3060ti": 8.6,
    "rtx3070": 8.6,
    "rtx3070ti": 8.6,
    "rtx3080": 8.6,
    "rtx3080ti": 8.6,
    "rtx3090": 8.6,
    "rtx3090ti": 8.6,
    "a100": 8.0,
    "a30": 8.0,
    "a800": 8.0,
    "t4": 7.5,
    "t4g": 7.5,
    "rtx4000": 7.5,
    "rtx5000": 7.5,
    "rtx6000": 7.5,
    "rtx8000": 7.5,
    "rtx2060": 7.5,
    "rtx2070": 7.5,
    "rtx2080": 7.5,
    "rtx2080ti": 7.5,
    "gtx1650": 7.5,
    "gtx1660": 7.5,
    "v100": 7.0,
    "titanv": 7.0,
    "p100": 6.0,
    "p4": 6.1,
    "p40": 6.1,
    "gtx1050": 6.1,
    "gtx1050ti": 6.1,
    "gtx1060": 6.1,
    "gtx1070": 6.1,
    "gtx1070ti": 6.1,
    "gtx1080": 6.1,
    "gtx1080ti": 6.1,
    "m40": 5.2,
    "m60": 5.2,
    "k80": 3.7,
}

_ROUNDING_GB = 0.5  # 80 GB asked, 79.65 GB by nvidia-smi: the same GPU


def fits(offer: Offer, requirements: Requirements) -> bool:
    """Whether this offer meets every bound that is set, and one of the GPU alternatives if there are any."""
    return why_not(offer, requirements) is None


def why_not(offer: Offer, requirements: Requirements) -> str | None:
    """The first bound that the offer does not meet, in a user's words; None if it fits."""
    return (
        _price(offer, requirements)
        or _machine(offer, requirements)
        or _place(offer, requirements)
        or _gpu(offer, requirements)
    )


def alternative(offer: Offer, requirements: Requirements) -> int:
    """Which of the GPU alternatives the offer meets, counted from 0 in the order they were written; 0 where none is asked for."""
    return next((rank for rank, request in enumerate(requirements.gpu) if _matches(offer, request)), 0)


def same_gpu(one: str, other: str) -> bool:
    """Whether two spellings name the same GPU: `RTX 4090`, `rtx4090` and `rtx-4090` do, `A10` and `A100` do not."""
    return normalised(one) == normalised(other)


def normalised(gpu_name: str) -> str:
    """A GPU's name as names are compared: lower case, letters and digits only, the RTX of RTX A6000 left out."""
    plain = re.sub(r"[^a-z0-9]", "", gpu_name.lower())
    return plain[3:] if re.fullmatch(r"rtxa\d{4}", plain) else plain


def _price(offer: Offer, requirements: Requirements) -> str | None:
    if requirements.max_price is not None and offer.price > requirements.max_price:
        return f"${offer.price:.2f}/h is above ${requirements.max_price:.2f}"
    if requirements.spot is Spot.ON_DEMAND and offer.spot:
        return "it is a spot offer"
    if requirements.spot is Spot.SPOT and not offer.spot:
        return "it is not a spot offer"
    return None


def _machine(offer: Offer, requirements: Requirements) -> str | None:
    for what, has, needs, unit in (
        ("CPU", offer.cpu, requirements.cpu, " cores"),
        ("memory", offer.memory_gb, requirements.memory_gb, " GB"),
        ("disk", offer.disk_gb, requirements.disk_gb, " GB"),
    ):
        # A disk that is not listed is sized at create; a machine of unknown size is not what somebody asked for by size.
        if needs is not None and ((has is None and what != "disk") or (has is not None and has < needs)):
            size = "not known" if has is None else f"{has:g}{unit}"
            return f"{what} is {size}, {needs:g}{unit} needed"
    if requirements.arch is not None and offer.arch is not None and offer.arch != requirements.arch:
        return f"its CPU is {offer.arch}"
    return None


def _place(offer: Offer, requirements: Requirements) -> str | None:
    for what, value, only, never in (
        ("region", offer.region, requirements.regions, requirements.exclude_regions),
        ("zone", offer.zone, requirements.zones, requirements.exclude_zones),
        ("country", offer.country, requirements.countries, requirements.exclude_countries),
    ):
        place = value.casefold() if value is not None else None
        # A provider without zones, or a host that does not say where it stands, cannot promise a place.
        if only and place not in {name.casefold() for name in only}:
            return f"its {what} is {value or 'not known'}"
        if never and place in {name.casefold() for name in never}:
            return f"its {what} {value} is excluded"
    return None


def _gpu(offer: Offer, requirements: Requirements) -> str | None:
    if requirements.wants_gpu and not any(_matches(offer, request) for request in requirements.gpu):
        asked = " | ".join(request.text or _text(request) for request in requirements.gpu)
        return f"its GPU is {offer.gpu}, not {asked}"
    has_gpu = bool(offer.gpu_name and offer.gpu_count)
    if requirements.gpu_vendor is not None and (not has_gpu or offer.gpu_vendor != requirements.gpu_vendor):
        return f"its GPU is not from {requirements.gpu_vendor}"
    if requirements.min_compute_capability is not None:
        has = COMPUTE_CAPABILITY.get(normalised(offer.gpu_name)) if offer.gpu_name and has_gpu else None
        if has is None or has < requirements.min_compute_capability:
            return f"its compute capability is {has or 'not known'}, {requirements.min_compute_capability:g} needed"
    if requirements.min_cuda is not None:
        if not has_gpu or offer.gpu_vendor not in (None, "nvidia"):
            return "it has no CUDA"
        cuda = offer.raw.get("cuda")  # the newest that its driver runs, where the provider says so
        if isinstance(cuda, int | float) and cuda < requirements.min_cuda:
            return f"its driver runs CUDA {cuda:g}, {requirements.min_cuda:g} needed"
    return None


def _matches(offer: Offer, request: GpuRequest) -> bool:
    if not offer.gpu_name or not offer.gpu_count:
        return False
    if request.names and not any(same_gpu(name, offer.gpu_name) for name in request.names):
        return False
    total = offer.gpu_memory_gb * offer.gpu_count if offer.gpu_memory_gb is not None else None
    return (
        _within(offer.gpu_count, request.count_min, request.count_max)
        and _within(offer.gpu_memory_gb, request.memory_min_gb, request.memory_max_gb, slack=_ROUNDING_GB)
        and _within(
            total,
            request.total_memory_min_gb,
            request.total_memory_max_gb,
            slack=_ROUNDING_GB * offer.gpu_count,
        )
    )


def _within(value: float | None, low: float | None, high: float | None, *, slack: float = 0.0) -> bool:
    if low is None and high is None:
        return True
    if value is None:
        return False
    return (low is None or value + slack >= low) and (high is None or value - slack <= high)


def _text(request: GpuRequest) -> str:
    names = ",".join(request.names) or "any GPU"
    return names if request.count_min == 1 else f"{names}:{request.count_min}"
