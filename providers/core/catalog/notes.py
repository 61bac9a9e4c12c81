"""What a person should see of prices that are kept all the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from prefect_gpu.providers.core.catalog import facts, places
from prefect_gpu.providers.core.catalog.findings import (
    COLUMNS,
    FRESH,
    GB_OR_GIB,
    GPU_COUNT,
    GPU_MEMORY,
    GPU_NAME,
    ONE_SHAPE,
    PLACE,
    SORTED,
    SPOT_BELOW_ON_DEMAND,
    Findings,
    text_of,
)
from prefect_gpu.providers.core.catalog.kinds import Kind, Price
from prefect_gpu.providers.core.gpu import accelerators
from prefect_gpu.providers.core.models import utc_now

if TYPE_CHECKING:
    from prefect_gpu.providers.core.catalog.collect import Collection


_USUAL_COUNTS: Final = frozenset({1, 2, 4, 8, 16, 32, 64})


def note(provider: str, collection: Collection, kept: list[Price], found: Findings) -> None:
    """What a person should see of a collection and of what is kept of it."""
    counts = Counter(id(offer.kind) for offer in kept)
    kinds = {id(offer.kind): offer.kind for offer in kept}
    shapes: dict[tuple[str, int], set[tuple[object, ...]]] = defaultdict(set)
    for key, kind in kinds.items():
        _note_gpu(kind, counts[key], found)
        if kind.gpu_count not in _USUAL_COUNTS | {0} and not facts.of(provider).any_gpu_count:
            found.add(GPU_COUNT, f"{kind.instance_type}: {kind.gpu_count}", counts[key])
        shapes[kind.instance_type, kind.gpu_count].add((kind.cpu, kind.memory_gb, kind.gpu_name, kind.gpu_memory_gb))
    for (name, _), of_type in shapes.items():
        if len(of_type) > 1:
            found.add(ONE_SHAPE, f"{name}: {len(of_type)} shapes")
    for place in {offer.place for offer in kept}:
        if not place.country and not places.is_known(provider, place):
            found.add(PLACE, place.zone or place.region)
    _note_spot(kept, found)
    amounts = [offer.price for offer in collection.prices]
    is_gpuhunts = "gpuhunt" in collection.source.lower()
    if is_gpuhunts and any(second < first for first, second in pairwise(amounts)):
        found.add(SORTED, "not by price")
    hours = (utc_now() - collection.collected_at).total_seconds() / 3600
    if hours > 48:
        found.add(FRESH, f"{hours / 24:.0f} days old")
    for column in collection.unknown_columns:
        found.add(COLUMNS, column)


def _note_gpu(kind: Kind, count: int, found: Findings) -> None:
    if not kind.gpu_name or not kind.gpu_memory_gb:
        return
    known = accelerators.find(kind.gpu_name)
    if known is None:
        slice_of = accelerators.find(kind.gpu_name.split("-")[0])  # v5litepod-4: a slice of a TPU
        if slice_of is None or slice_of.vendor != "google":
            found.add(GPU_NAME, f"{kind.gpu_name} ({kind.instance_type})", count)
    elif known.memory_gb and not any(size / kind.gpu_memory_gb in {1, 2, 4, 8} for size in known.memory_gb):
        nearest = known.nearest_memory_gb(kind.gpu_memory_gb)
        rule = GB_OR_GIB if nearest in known.memory_gb else GPU_MEMORY
        found.add(rule, f"{kind.instance_type}: {kind.gpu_name} with {kind.gpu_memory_gb:g} GB", count)


def _note_spot(kept: list[Price], found: Findings) -> None:
    on_demand = {(o.kind.instance_type, o.kind.gpu_count, o.place): o.price for o in kept if not o.kind.spot}
    for offer in kept:
        if offer.kind.spot:
            usual = on_demand.get((offer.kind.instance_type, offer.kind.gpu_count, offer.place))
            if usual is not None and offer.price > usual:
                found.add(SPOT_BELOW_ON_DEMAND, f"{text_of(offer)}, on-demand ${usual:g}")
