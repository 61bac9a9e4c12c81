"""The gates that collected prices pass before anybody may buy by them: offer by offer, GPU by GPU, and as a whole."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from prefect_gpu.providers.core.catalog import changes, levels
from prefect_gpu.providers.core.catalog.changes import Changes
from prefect_gpu.providers.core.catalog.expected import USUAL, expect
from prefect_gpu.providers.core.catalog.findings import (
    BIG_STEP,
    CUT,
    FEW_BAD,
    GPU_MEMORY_UNIT,
    GPU_TOLD_WHOLE,
    NAMED,
    NOT_EMPTY,
    ONCE,
    PRICE_BOUNDS,
    PRICE_LEVEL,
    PRICED,
    ROW_COUNT,
    SIZED,
    SPOT_FLAG,
    VENDOR,
    WELL_FORMED,
    Checked,
    Findings,
    Rule,
    text_of,
)
from prefect_gpu.providers.core.catalog.kinds import Kind, Place, Price
from prefect_gpu.providers.core.catalog.levels import Group, Last, group_of
from prefect_gpu.providers.core.catalog.notes import note
from prefect_gpu.providers.core.gpu import accelerators

if TYPE_CHECKING:
    from prefect_gpu.providers.core.catalog.collect import Collection

_MOST_CPU: Final = 5_000  # EC2's u7i have 1,920
_MOST_MEMORY_GB: Final = 100_000  # EC2's u7i have 49,152
_LEAST_PER_CORE: Final = 0.0003  # USD per hour: EC2's smallest spot machines cost twice that


def check(
    provider: str,
    collection: Collection,
    last: Last | None = None,
    market: Mapping[Group, tuple[float, ...]] | None = None,
    *,
    accept_suspicious: bool = False,
) -> Checked:
    """Pass a collection through all rules.

    `last` is the last good snapshot of this provider, `market` what each other provider asks per GPU-hour at the least.
    `accept_suspicious`: a person has looked, and what is in doubt is kept.
    """
    found = Findings()
    for example in collection.examples:
        found.add(WELL_FORMED, example, 0)
    found.add_many(WELL_FORMED, collection.malformed)
    if collection.is_cut:
        found.add(CUT, f"after {len(collection.prices):,} offers")
    kept = _leave_out(provider, collection, found)
    kept = _once(kept, found)
    if not kept:
        found.add(NOT_EMPTY, "no offer is left")
    expect(provider, kept, found)
    compared = changes.compare(last.all(), kept) if last is not None else None
    if compared is not None:
        _count_rows(len(collection.prices), compared.before, found)
    trusted, doubted = kept, set[Group]()
    if not accept_suspicious:
        trusted, doubted = levels.leave_out(kept, last, compared, market or {}, found)
    note(provider, collection, trusted, found)
    if compared is not None:
        _compare(compared, doubted, found)
    if len(trusted) < len(kept) / 2 and not found.has(PRICE_LEVEL):
        found.add(PRICE_LEVEL, f"{len(kept) - len(trusted):,} of {len(kept):,} offers are in doubt")
    return Checked(trusted, found.all(), compared)


# --- what cannot be true ----------------------------------------------------------------------------------------------


def _leave_out(provider: str, collection: Collection, found: Findings) -> list[Price]:
    """What passes the rules on single offers; a rule on kinds is asked once a kind, not once a price."""
    verdicts: dict[Kind, tuple[Kind, Rule | None, float, float]] = {}
    kept: list[Price] = []
    bad: Counter[Group] = Counter()
    for offer in collection.prices:
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
            found.add(rule, text_of(offer))
            bad[group_of(kind)] += 1
            continue
        if good.gpu_vendor != kind.gpu_vendor:
            found.add(VENDOR, f"{kind.instance_type}: {kind.gpu_name} is {good.gpu_vendor}, not {kind.gpu_vendor}")
        kept.append(offer if good is kind else Price(good, place, price))  # one object a kind, from here on
    _count_bad(collection, kept, bad, found)
    return kept


def _count_bad(collection: Collection, kept: list[Price], bad: Counter[Group], found: Findings) -> None:
    """Whether the rest is to be trusted: one GPU that is all wrong says nothing of the others, bad rows everywhere do."""
    if not bad and not collection.malformed:
        return
    good = Counter(group_of(offer.kind) for offer in kept)
    scattered = sum(count for group, count in bad.items() if count < 9 * good[group]) + collection.malformed
    left_out, all_rows = bad.total() + collection.malformed, len(collection.prices) + collection.malformed
    if (scattered > 5 and scattered > all_rows / 10) or left_out > max(5, all_rows / 2):
        found.add(FEW_BAD, f"{left_out:,} of {all_rows:,} left out")


def _verdict(provider: str, kind: Kind) -> tuple[Kind, Rule | None, float, float]:
    """The kind, mended; the rule that leaves it out; the bounds of its price."""
    rule = None
    if not _is_text(kind.instance_type):
        rule = NAMED
    elif not _is_sized(kind):
        rule = SIZED
    elif not _is_gpu_told_whole(kind):
        rule = GPU_TOLD_WHOLE
    elif _is_gpu_memory_in_another_unit(kind):
        rule = GPU_MEMORY_UNIT
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
    sizes = ((kind.cpu, _MOST_CPU), (kind.memory_gb, _MOST_MEMORY_GB), (kind.disk_gb, 1e7))
    if not all(size is None or 0 < size < most for size, most in sizes):
        return False
    return not kind.cpu or not kind.memory_gb or 0.1 <= kind.memory_gb / kind.cpu <= 100


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


def _is_gpu_memory_in_another_unit(kind: Kind) -> bool:
    known = accelerators.find(kind.gpu_name) if kind.gpu_name else None
    largest = max(known.memory_gb, default=2_000) if known else 2_000
    return kind.gpu_memory_gb is not None and kind.gpu_memory_gb > largest * 1.5


def _bounds(kind: Kind) -> tuple[float, float]:
    """USD per hour of the whole machine: spot may cost a tenth, eight times the usual price has been seen, cores come on top."""
    machine = (kind.cpu or 0) * 0.15 + (kind.memory_gb or 0) * 0.03 + 0.1
    if not kind.gpu_name or not kind.gpu_memory_gb:
        return (kind.cpu or 1) * _LEAST_PER_CORE, math.inf if kind.cpu is None else machine
    usual = USUAL.get(kind.gpu_name)
    if usual is None:
        low, high = kind.gpu_memory_gb * 0.0003, kind.gpu_memory_gb + 2
    else:
        known = accelerators.find(kind.gpu_name)
        part = min(1.0, kind.gpu_memory_gb / min(known.memory_gb)) if known and known.memory_gb else 1.0
        low, high = part * usual / 15, usual * 8  # a fraction of a GPU costs a fraction
    return low * kind.gpu_count, high * kind.gpu_count + machine


def _once(prices: list[Price], found: Findings) -> list[Price]:
    once: dict[tuple[int, Place], Price] = {}
    for offer in prices:
        key = (id(offer.kind), offer.place)  # equal kinds are one object here, and a kind takes long to hash
        other = once.get(key)
        if other is not None:
            found.add(ONCE, text_of(offer))
            if other.price >= offer.price:
                continue
        once[key] = offer
    return list(once.values()) if len(once) < len(prices) else prices


# --- since the last snapshot ------------------------------------------------------------------------------------------


def _count_rows(now: int, before: int, found: Findings) -> None:
    if before and not 0.8 <= now / before <= 3:
        found.add(ROW_COUNT, f"{now:,} offers, {before:,} before")


def _compare(compared: Changes, doubted: set[Group], found: Findings) -> None:
    steps = [move for move in compared.moves if not 1 / 3 < move.ratio < 3]
    for move in steps:
        found.add(BIG_STEP, str(move))
    if not compared.common:
        return
    ratios = [move.ratio for move in compared.moves]
    level = statistics.median([*ratios, *([1.0] * (compared.common - len(ratios)))])
    if not 1 / 3 < level < 3:
        found.add(PRICE_LEVEL, f"the median price is {level:.2g} times what it was")
        return
    # Of what is left: a GPU that is in doubt is left out already.
    steps = [move for move in steps if Group(move.machine.gpu_name, move.spot) not in doubted]
    common = sum(
        len(of) for machine, of in compared.ratios.items() if Group(machine.gpu_name, machine.spot) not in doubted
    )
    if len(steps) > common / 5:
        found.add(PRICE_LEVEL, f"{len(steps):,} of {common:,} prices trebled or fell to a third")
