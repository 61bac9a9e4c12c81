"""The rules that collected prices pass, each with the reason it exists, and what they found.

A rule *leaves out* what cannot be true or is in doubt, *mends* what can be known better, *notes* what a person should see, or
*refuses* the whole collection: then the last good snapshot stays. gpuhunt's own integrity checks are among them (its tests run on
live data before it publishes; ours run on what arrived).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from prefect_gpu.providers.core.catalog.changes import Changes
from prefect_gpu.providers.core.catalog.kinds import Price

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
GPU_MEMORY_UNIT = Rule(
    "gpu-memory-unit", "leaves out", "more memory than any GPU of this name has, by far, is memory in another unit"
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
    "row-count", "refuses", "a fifth of the offers gone, or three times as many, from one refresh to the next"
)
PRICE_LEVEL = Rule("price-level", "refuses", "most prices three times up or down is a wrong unit, not a market")
SAME_SIZE = Rule(
    "same-size", "leaves out", "a machine that grew or shrank eight times since the last snapshot is in another unit"
)
GPU_LEVEL = Rule(
    "gpu-level", "leaves out", "all prices of one GPU three times up or down is a wrong unit, not a market"
)
MARKET = Rule("market", "leaves out", "four times below or above whatever anybody else asks for this GPU is a mistake")
SWAPPED = Rule("swapped", "leaves out", "where spot costs more than on-demand in most places the two are swapped")
PER_MACHINE = Rule(
    "per-machine", "leaves out", "eight GPUs for the price of one: the price is that of a GPU, not of the machine"
)
CUT = Rule("cut", "refuses", "a file that ends within a line has lost its rest")
CONTENT = Rule("content", "refuses", "most of what this provider always has is missing")

DOUBTS: Final = (SAME_SIZE, GPU_LEVEL, MARKET, SWAPPED, PER_MACHINE)  # a person who has looked may accept these
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
    changes: Changes | None = None  # since the last good snapshot, of all that was collected

    @property
    def refusals(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.rule.action == "refuses"]

    @property
    def held_back(self) -> list[Finding]:
        """What was collected and is not offered, for this refresh at least."""
        return [finding for finding in self.findings if finding.rule.action == "leaves out"]


class Findings:
    """Findings as they come, in the order of the rules."""

    def __init__(self) -> None:
        self._by_rule: dict[str, Finding] = {}

    def add(self, rule: Rule, example: str, count: int = 1) -> None:
        self._by_rule.setdefault(rule.name, Finding(rule)).add(example, count)

    def has(self, rule: Rule) -> bool:
        return rule.name in self._by_rule

    def add_many(self, rule: Rule, count: int) -> None:
        if count:
            self._by_rule.setdefault(rule.name, Finding(rule)).count += count

    def all(self) -> list[Finding]:
        order = [rule.name for rule in RULES]
        return sorted(self._by_rule.values(), key=lambda finding: order.index(finding.rule.name))


def text_of(offer: Price) -> str:
    """A price in an example: what, where, how much."""
    place = offer.place.zone or offer.place.region
    spot = " spot" if offer.kind.spot else ""
    return f"{offer.kind.instance_type[:60]} {place[:40]}{spot} ${offer.price:g}"
