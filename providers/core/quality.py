"""The gates that collected prices pass before anybody may buy by them: named rules, each with the reason it exists.

A rule *leaves out* what cannot be true, *mends* what can be known better, *notes* what a person should see, or *refuses* the whole
collection: then the last good snapshot stays. gpuhunt's own integrity checks are among them (its tests run on live data before it
publishes; ours run on what arrived).

Long because the rules are read as one list.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from providers.core import accelerators, places
from providers.core.changes import Changes
from providers.core.models import utc_now
from providers.core.snapshot import Kind, Place, Price

if TYPE_CHECKING:
    from collections.abc import Iterable

    from providers.core.collect import Collection

Action = Literal["leaves out", "mends", "notes", "refuses"]
_EXAMPLES: Final = 3


class Rule(NamedTuple):
    """What a rule looks at, what it does, and why it is there."""

    name: str
    action: Action
    reason: str


WELL_FORMED = Rule("well-formed", "leaves out", "a row that is not in the format cannot be read as an offer")
NAMED = Rule("named", "leaves out", "an offer without an instance type or a place cannot be ordered")
PRICED = Rule("priced", "leaves out", "a price of 0, below 0, NaN or infinite would come first, or break every order")
SIZED = Rule("sized", "leaves out", "no machine has 0 cores, 0 memory or a disk of 0")
GPU_TOLD_WHOLE = Rule(
    "gpu-told-whole", "leaves out", "a GPU has a name, memory and a maker; a machine without one has none"
)
PRICE_BOUNDS = Rule(
    "price-bounds", "leaves out", "a price far from what this GPU and these cores cost is a wrong unit or currency"
)
SPOT_FLAG = Rule(
    "spot-flag", "leaves out", "OCI's spot offers carry the flag oci-spot and no others do: the order depends on it"
)
ONCE = Rule(
    "once", "leaves out", "the same offer twice: the dearer price counts, a surprise on the bill is worse than none"
)
VENDOR = Rule("vendor", "mends", "the maker of a known GPU is known: Vast.ai's AMD offers arrive as NVIDIA")
SPOT_BELOW_ON_DEMAND = Rule(
    "spot-below-on-demand", "notes", "spot that costs more than on-demand is nothing to wait for"
)
GPU_MEMORY = Rule(
    "gpu-memory", "notes", "memory that this GPU is not sold with, nor a half, a quarter or an eighth of it"
)
GB_OR_GIB = Rule("gb-or-gib", "notes", "memory a few per cent off is GB taken for GiB: filters by memory may miss it")
GPU_NAME = Rule("gpu-name", "notes", "a name that nobody knows is found only by who knows it")
GPU_COUNT = Rule("gpu-count", "notes", "machines have 1, 2, 4, 8 or 16 GPUs: another number may be a mistake")
PLACE = Rule("place", "notes", "a place that is not known has no country, and filters by country leave it out")
ONE_SHAPE = Rule("one-shape", "notes", "an instance type that comes in several shapes may be two types under one name")
BIG_STEP = Rule("big-step", "notes", "a price that trebled or fell to a third since the last snapshot")
SORTED = Rule("sorted", "notes", "gpuhunt does not sort: what is unsorted here is unsorted for its other users")
FRESH = Rule("fresh", "notes", "prices are collected every hour: older ones say that the publication is stuck")
COLUMNS = Rule("columns", "notes", "a column that is new may mean what we should know")
CONTENT_SEEN = Rule("content-seen", "notes", "something this provider always has is missing")
NOT_EMPTY = Rule("not-empty", "refuses", "a provider with nothing to sell is a collector that failed")
FEW_BAD = Rule("few-bad", "refuses", "where more than a tenth is left out the rest is not to be trusted either")
ROW_COUNT = Rule(
    "row-count", "refuses", "a third of the offers gone, or three times as many, from one refresh to the next"
)
PRICE_LEVEL = Rule("price-level", "refuses", "all prices three times up or down is a wrong unit, not a market")
CONTENT = Rule("content", "refuses", "most of what this provider always has is missing")

RULES: Final = tuple(value for value in list(globals().values()) if isinstance(value, Rule))


@dataclass
class Finding:
    """How often a rule found something, and the first few."""

    rule: Rule
    count: int = 0
    examples: list[str] = field(default_factory=list[str])

    def add(self, example: str, count: int = 1) -> None:
        self.count += count
        if len(self.examples) < _EXAMPLES:
            self.examples.append(example)

    def __str__(self) -> str:
        shown = "; ".join(self.examples)
        return f"{self.rule.name}: {self.count}, {shown}" if self.count > 1 else f"{self.rule.name}: {shown}"


@dataclass
class Checked:
    """What passed, and what the rules found."""

    prices: list[Price]
    findings: list[Finding]

    @property
    def refusals(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.rule.action == "refuses"]


class _Expected(NamedTuple):
    """What a provider always has: gpuhunt's own integrity checks, as data."""

    gpus: str = ""  # names, or how they begin
    types: str = ""  # how instance types begin
    counts: str = ""  # of GPUs
    everywhere: str = ""  # an instance type that every region has
    locations: str = ""
    spot: bool | None = None  # False: never
    without_gpu: bool = False


_EXPECTED: Final = {
    "aws": _Expected("H100 A100 A10G T4 L40S RTXPRO4500 RTXPRO6000 L4", everywhere="m5.large", spot=True),
    "azure": _Expected("A100 A10 H100NVL H200 T4 V100", everywhere="Standard_D2s_v3", spot=True),
    "gcp": _Expected(
        "B200 H100 A100 L4 RTXPRO6000 T4 V100 v2- v3- v5litepod- v5p-", everywhere="e2-highcpu-2", spot=True
    ),
    "verda": _Expected(
        "B200 B300 H200 H100 A100 RTX6000Ada RTXPRO6000 A6000 V100 L40S", locations="FIN-01 FIN-02", spot=True
    ),
    "lambdalabs": _Expected(
        "A10 A100 H100",
        locations="asia-northeast-1 asia-northeast-2 asia-south-1 australia-east-1 europe-central-1 me-west-1 us-east-1 us-east-3"
        " us-midwest-1 us-south-2 us-south-3 us-west-1 us-west-2 us-west-3",
        spot=False,
    ),
    "nebius": _Expected("RTXPRO6000 L40S H100 H200 B200", locations="eu-north1 eu-west1", spot=True, without_gpu=True),
    "oci": _Expected(
        "P100 V100 A10 A100 L40S H100 H200 MI300X MI355X B200 B300 GB200 GB300 RTXPRO6000",
        types="VM.Standard BM.Standard VM.GPU BM.GPU",
        spot=True,
        without_gpu=True,
    ),
    "runpod": _Expected("H100 H200 A100 L40S RTX4090 A40 A6000 L4", without_gpu=True),
    "cloudrift": _Expected("RTX4090 RTX5090", counts="1 2"),
    "vultr": _Expected(spot=False, without_gpu=True),
}

# USD per GPU-hour on demand, about: bounds are far from it on both sides.
_USUAL: Final = {
    "GB300": 8.0, "B300": 7.5, "GB200": 6.0, "B200": 5.2, "H200": 3.6, "H200NVL": 3.4, "H100": 3.0, "H100NVL": 3.0,
    "GH200": 2.0, "A100": 1.6, "L40S": 1.2, "L40": 1.0, "A40": 0.6, "A6000": 0.7, "RTX6000Ada": 0.9, "RTXPRO6000": 1.9,
    "MI300X": 2.6, "MI325X": 3.0, "MI355X": 4.6, "L4": 0.7, "A10G": 1.0, "A10": 0.9, "T4": 0.5, "V100": 1.8, "P100": 1.2,
    "A5000": 0.35, "RTX5090": 0.7, "RTX4090": 0.5, "RTX3090": 0.3, "A4000": 0.25, "RTX4000Ada": 0.35, "RTXPRO4500": 0.8,
}  # fmt: skip
_USUAL_COUNTS: Final = frozenset({1, 2, 4, 8, 16, 32, 64})
_ANY_COUNT: Final = frozenset({"runpod", "vastai"})  # they put machines together as asked


def check(
    provider: str, collection: Collection, changes_since: Callable[[list[Price]], Changes | None] = lambda _: None
) -> Checked:
    """Pass a collection through all rules; `changes_since` compares what is left with the last good snapshot."""
    found = _Findings()
    for example in collection.examples:
        found.add(WELL_FORMED, example, 0)
    found.add_many(WELL_FORMED, collection.malformed)
    kept = _leave_out(provider, collection.prices, found)
    left_out = len(collection.prices) - len(kept) + collection.malformed
    if left_out > 5 and left_out > (len(kept) + left_out) / 10:
        found.add(FEW_BAD, f"{left_out:,} of {len(kept) + left_out:,} left out")
    kept = _once(kept, found)
    if not kept:
        found.add(NOT_EMPTY, "no offer is left")
    _note(provider, collection, kept, found)
    _expect(provider, kept, found)
    changes = changes_since(kept)
    if changes is not None:
        _compare(changes, found)
    return Checked(kept, found.all())


class _Findings:
    def __init__(self) -> None:
        self._by_rule: dict[str, Finding] = {}

    def add(self, rule: Rule, example: str, count: int = 1) -> None:
        self._by_rule.setdefault(rule.name, Finding(rule)).add(example, count)

    def add_many(self, rule: Rule, count: int) -> None:
        if count:
            self._by_rule.setdefault(rule.name, Finding(rule)).count += count

    def all(self) -> list[Finding]:
        order = [rule.name for rule in RULES]
        return sorted(self._by_rule.values(), key=lambda finding: order.index(finding.rule.name))


# --- what cannot be true ----------------------------------------------------------------------------------------------


def _leave_out(provider: str, prices: Iterable[Price], found: _Findings) -> list[Price]:
    """What passes the rules on single offers; a rule on kinds is asked once a kind, not once a price."""
    verdicts: dict[Kind, tuple[Kind, Rule | None, float, float]] = {}
    kept: list[Price] = []
    for offer in prices:
        kind, place, price = offer
        verdict = verdicts.get(kind)
        if verdict is None:
            verdict = verdicts[kind] = _verdict(provider, kind)
        good, rule, low, high = verdict
        if rule is None and not (0 < price < math.inf):
            rule = PRICED
        if rule is None and not low <= price <= high:
            rule = PRICE_BOUNDS
        if rule is None and not _is_text(place.region):
            rule = NAMED
        if rule is not None:
            found.add(rule, _text(offer))
            continue
        if good.gpu_vendor != kind.gpu_vendor:
            found.add(VENDOR, f"{kind.instance_type}: {kind.gpu_name} is {good.gpu_vendor}, not {kind.gpu_vendor}")
        kept.append(offer if good is kind else Price(good, place, price))  # one object a kind, from here on
    return kept


def _verdict(provider: str, kind: Kind) -> tuple[Kind, Rule | None, float, float]:
    """The kind, mended; the rule that leaves it out; the bounds of its price."""
    rule = None
    if not _is_text(kind.instance_type):
        rule = NAMED
    elif not _is_sized(kind):
        rule = SIZED
    elif not _is_gpu_told_whole(kind):
        rule = GPU_TOLD_WHOLE
    elif provider == "oci" and kind.spot != ("oci-spot" in kind.flags):
        rule = SPOT_FLAG
    if rule is not None:
        return kind, rule, 0, 0
    known = accelerators.find(kind.gpu_name) if kind.gpu_name else None
    mended = kind._replace(gpu_vendor=known.vendor) if known and kind.gpu_vendor != known.vendor else kind
    return mended, None, *_bounds(mended)


def _is_text(text: str) -> bool:
    return 0 < len(text) <= 200 and text.isprintable() and "\ufffd" not in text


def _is_sized(kind: Kind) -> bool:
    sizes = [size for size in (kind.cpu, kind.memory_gb, kind.disk_gb) if size is not None]
    return all(0 < size < 1e7 for size in sizes)


def _is_gpu_told_whole(kind: Kind) -> bool:
    if kind.gpu_count == 0:
        return kind.gpu_name is None and kind.gpu_memory_gb is None and kind.gpu_vendor is None
    return (
        0 < kind.gpu_count < 1e5
        and kind.gpu_name is not None
        and _is_text(kind.gpu_name)
        and bool(kind.gpu_vendor)
        and kind.gpu_memory_gb is not None
        and 0 < kind.gpu_memory_gb < 1e5
    )


def _bounds(kind: Kind) -> tuple[float, float]:
    """USD per hour of the whole machine: spot may cost a tenth, eight times the usual price has been seen, cores come on top."""
    machine = (kind.cpu or 0) * 0.15 + (kind.memory_gb or 0) * 0.03 + 0.1
    if not kind.gpu_name or not kind.gpu_memory_gb:
        return 0.0, math.inf if kind.cpu is None else machine
    usual = _USUAL.get(kind.gpu_name)
    if usual is None:
        low, high = kind.gpu_memory_gb * 0.0003, kind.gpu_memory_gb + 2
    else:
        known = accelerators.find(kind.gpu_name)
        part = min(1.0, kind.gpu_memory_gb / min(known.memory_gb)) if known and known.memory_gb else 1.0
        low, high = part * usual / 15, usual * 8  # a fraction of a GPU costs a fraction
    return low * kind.gpu_count, high * kind.gpu_count + machine


def _once(prices: list[Price], found: _Findings) -> list[Price]:
    once: dict[tuple[int, Place], Price] = {}
    for offer in prices:
        key = (id(offer.kind), offer.place)  # equal kinds are one object here, and a kind takes long to hash
        other = once.get(key)
        if other is not None:
            found.add(ONCE, _text(offer))
            if other.price >= offer.price:
                continue
        once[key] = offer
    return list(once.values()) if len(once) < len(prices) else prices


# --- what a person should see -----------------------------------------------------------------------------------------


def _note(provider: str, collection: Collection, kept: list[Price], found: _Findings) -> None:
    counts = Counter(id(offer.kind) for offer in kept)
    kinds = {id(offer.kind): offer.kind for offer in kept}
    shapes: dict[tuple[str, int], set[tuple[object, ...]]] = defaultdict(set)
    for key, kind in kinds.items():
        _note_gpu(kind, counts[key], found)
        if kind.gpu_count not in _USUAL_COUNTS | {0} and provider not in _ANY_COUNT:
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


def _note_gpu(kind: Kind, count: int, found: _Findings) -> None:
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


def _note_spot(kept: list[Price], found: _Findings) -> None:
    on_demand = {(o.kind.instance_type, o.kind.gpu_count, o.place): o.price for o in kept if not o.kind.spot}
    for offer in kept:
        if offer.kind.spot:
            usual = on_demand.get((offer.kind.instance_type, offer.kind.gpu_count, offer.place))
            if usual is not None and offer.price > usual:
                found.add(SPOT_BELOW_ON_DEMAND, f"{_text(offer)}, on-demand ${usual:g}")


# --- what refuses the whole -------------------------------------------------------------------------------------------


def _expect(provider: str, kept: list[Price], found: _Findings) -> None:
    """What gpuhunt checks that a provider has: it wants all of it, here most of it, so a GPU that is retired blocks nothing."""
    expected = _EXPECTED.get(provider)
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
    if expected.spot is not False and provider in _EXPECTED and False not in spots:
        found.add(CONTENT, "no on-demand offers")
    if expected.spot and True not in spots:
        found.add(CONTENT, "no spot offers")
    if expected.spot is False and True in spots:
        found.add(CONTENT_SEEN, "spot offers, which it does not have")
    if expected.without_gpu and all(kind.gpu_count for kind in kinds):
        found.add(CONTENT, "no machine without a GPU")


def _missing(found: _Findings, what: str, missing: list[str], of: int) -> None:
    if missing:
        shown = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        found.add(CONTENT if len(missing) > of / 3 else CONTENT_SEEN, f"{len(missing)} of {of} {what} missing: {shown}")


def _compare(changes: Changes, found: _Findings) -> None:
    if changes.before and not 0.7 <= changes.after / changes.before <= 3:
        found.add(ROW_COUNT, f"{changes.after:,} offers, {changes.before:,} before")
    ratios = [move.ratio for move in changes.moves]
    steps = [move for move in changes.moves if not 1 / 3 < move.ratio < 3]
    for move in steps:
        found.add(BIG_STEP, str(move))
    if not changes.common:
        return
    level = statistics.median([*ratios, *([1.0] * (changes.common - len(ratios)))])
    if not 1 / 3 < level < 3:
        found.add(PRICE_LEVEL, f"the median price is {level:.2g} times what it was")
    elif len(steps) > changes.common / 5:
        found.add(PRICE_LEVEL, f"{len(steps):,} of {changes.common:,} prices trebled or fell to a third")


def _text(offer: Price) -> str:
    place = offer.place.zone or offer.place.region
    spot = " spot" if offer.kind.spot else ""
    return f"{offer.kind.instance_type[:60]} {place[:40]}{spot} ${offer.price:g}"
