"""What a price list is held against: what its provider always has, and what GPUs usually cost."""

from __future__ import annotations

from typing import Final

from prefect_gpu.providers.core.catalog import facts
from prefect_gpu.providers.core.catalog.findings import CONTENT, CONTENT_SEEN, Findings
from prefect_gpu.providers.core.catalog.kinds import Price

# USD per GPU-hour on demand, about: bounds are far from it on both sides.
USUAL: Final = {
    "GB300": 8.0, "B300": 7.5, "GB200": 6.0, "B200": 5.2, "H200": 3.6, "H200NVL": 3.4, "H100": 3.0, "H100NVL": 3.0,
    "GH200": 2.0, "A100": 1.6, "L40S": 1.2, "L40": 1.0, "A40": 0.6, "A6000": 0.7, "RTX6000Ada": 0.9, "RTXPRO6000": 1.9,
    "MI300X": 2.6, "MI325X": 3.0, "MI355X": 4.6, "L4": 0.7, "A10G": 1.0, "A10": 0.9, "T4": 0.5, "V100": 1.8, "P100": 1.2,
    "A5000": 0.35, "RTX5090": 0.7, "RTX4090": 0.5, "RTX3090": 0.3, "A4000": 0.25, "RTX4000Ada": 0.35, "RTXPRO4500": 0.8,
}  # fmt: skip


def expect(provider: str, kept: list[Price], found: Findings) -> None:
    """What gpuhunt checks that a provider has: it wants all of it, here most of it, so a GPU that is retired blocks nothing."""
    expected = facts.of(provider).expected
    if expected is None or not kept:
        return
    kinds = list({id(offer.kind): offer.kind for offer in kept}.values())
    names = {kind.gpu_name for kind in kinds if kind.gpu_name}
    types = {kind.instance_type for kind in kinds}
    regions = {offer.place.region for offer in kept}
    sample = {offer.place.region for offer in kept if offer.kind.instance_type == expected.everywhere}
    missing_gpus = [
        gpu
        for gpu in expected.gpus.split()
        if gpu not in names and not (gpu[-1] == "-" and any(n.startswith(gpu) for n in names))
    ]
    missing_types = [start for start in expected.types.split() if not any(name.startswith(start) for name in types)]
    missing_counts = [
        count for count in expected.counts.split() if int(count) not in {kind.gpu_count for kind in kinds}
    ]
    _missing(found, "GPUs", missing_gpus, len(expected.gpus.split()))
    _missing(found, "instance types", missing_types, len(expected.types.split()))
    _missing(found, "numbers of GPUs", missing_counts, len(expected.counts.split()))
    _missing(found, "locations", sorted(set(expected.locations.split()) - regions), len(expected.locations.split()))
    if expected.everywhere:
        _missing(found, f"regions with {expected.everywhere}", sorted(regions - sample), len(regions))
    spots = {kind.spot for kind in kinds}
    if expected.spot is not False and False not in spots:
        found.add(CONTENT, "no on-demand offers")
    if expected.spot and True not in spots:
        found.add(CONTENT, "no spot offers")
    if expected.spot is False and True in spots:
        found.add(CONTENT_SEEN, "spot offers, which it does not have")
    if expected.without_gpu and all(kind.gpu_count for kind in kinds):
        found.add(CONTENT, "no machine without a GPU")


def _missing(found: Findings, what: str, missing: list[str], of: int) -> None:
    if missing:
        shown = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        found.add(CONTENT if len(missing) > of / 3 else CONTENT_SEEN, f"{len(missing)} of {of} {what} missing: {shown}")
