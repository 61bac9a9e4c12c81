"""Whether an offer is what the job needs: one rule per field of Requirements, the same for every provider.

A bound that an offer says nothing about is met only where not knowing does no harm: a price list that does not know its disk or
its CUDA version is not left out (the machine check looks before the job starts), one that does not know its GPU is. Of a machine that
could not be looked at only what is known is judged.
"""

from __future__ import annotations

import re

from prefect_gpu.providers.core.gpu.accelerators import find
from prefect_gpu.providers.core.gpu.names import gpu_name, is_slice_of
from prefect_gpu.providers.core.models import TRUST, Offer, Trust
from prefect_gpu.providers.core.requests import GpuRequest, Requirements, Spot

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
        or _host(offer, requirements)
        or _gpu(offer, requirements)
    )


def alternative(offer: Offer, requirements: Requirements) -> int:
    """Which of the GPU alternatives the offer meets, counted from 0 in the order they were written; 0 where none is asked for."""
    return next((rank for rank, request in enumerate(requirements.gpu) if _matches(offer, request)), 0)


def is_trusted(trust: Trust | None, requirements: Requirements) -> bool:
    """Whether a host of which a marketplace says this is trusted enough; None: the provider's own machines, which always are."""
    return trust is None or TRUST.index(trust) >= TRUST.index(requirements.trust)


def same_gpu(one: str, other: str) -> bool:
    """Whether two spellings name the same GPU: `RTX 4090`, `rtx4090` and `rtx-4090` do, `A10` and `A100` do not.

    A TPU that is asked for without a size (`v6e`) is any slice of it (`v6e-8`).
    """
    return normalised(one) == normalised(other) or is_slice_of(other, one)


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
        if needs is None or requirements.nearest:
            continue
        # A disk that is not listed is sized at create; a machine of unknown size is not what somebody asked for by size.
        is_unknown = has is None and what != "disk" and not offer.is_unseen
        if is_unknown or (has is not None and has < needs):
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
        # Zones are part of regions, and who names none has none; a country is somewhere, and may be this one.
        if never and place is None and what == "country":
            return "its country is not known, and some are excluded"
    return None


def _host(offer: Offer, requirements: Requirements) -> str | None:
    if is_trusted(offer.trust, requirements):
        return None
    has = (
        "verified, but in no secure data centre"
        if offer.trust == "verified"
        else "a stranger's, and nobody has checked it"
    )
    return f"its host is {has}: trust={requirements.trust} is asked for"


def _gpu(offer: Offer, requirements: Requirements) -> str | None:
    if offer.is_unseen and not offer.gpu_name:
        return None
    if requirements.wants_gpu and not any(_matches(offer, request) for request in requirements.gpu):
        asked = " | ".join(request.text or _text(request) for request in requirements.gpu)
        return f"its GPU is {offer.gpu}, not {asked}"
    has_gpu = bool(offer.gpu_name and offer.gpu_count)
    if requirements.gpu_vendor is not None and (not has_gpu or offer.gpu_vendor != requirements.gpu_vendor):
        return f"its GPU is not from {requirements.gpu_vendor}"
    if requirements.min_compute_capability is not None:
        has = _compute_capability(offer) if has_gpu else None
        if has is None or has < _version(requirements.min_compute_capability):
            said = f"{has[0]}.{has[1]}" if has else "not known"
            return f"its compute capability is {said}, {requirements.min_compute_capability:g} needed"
    if requirements.min_cuda is not None:
        if not has_gpu or offer.gpu_vendor not in (None, "nvidia"):
            return "it has no CUDA"
        cuda = offer.raw.get("cuda")  # the newest that its driver runs, where the provider says so
        if isinstance(cuda, int | float) and _version(cuda) < _version(requirements.min_cuda):
            return f"its driver runs CUDA {cuda:g}, {requirements.min_cuda:g} needed"
    return None


def _compute_capability(offer: Offer) -> tuple[int, int] | None:
    name = offer.gpu_name or ""
    known = find(name) or find(gpu_name(name) or "")
    return known.compute_capability if known else None


def _version(number: float) -> tuple[int, int]:
    """12.4 is version 12.4, and 12.10 cannot be told from 12.1: NVIDIA has had no tenth minor version of either number."""
    major, _, minor = f"{number:g}".partition(".")
    return int(major), int(minor or 0)


def _matches(offer: Offer, request: GpuRequest) -> bool:
    if request.instance_type:
        return offer.instance_type.casefold() == request.instance_type.casefold()
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
