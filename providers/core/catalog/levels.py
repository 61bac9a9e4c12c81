"""Prices judged GPU by GPU: against the last good snapshot, against what others ask, and against each other.

One GPU of a provider may be all wrong while the rest is right: its prices in another unit or currency, spot and on-demand swapped,
the price of one GPU for a machine of eight. What is in doubt is left out; the rest is published.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final, NamedTuple, Protocol

from prefect_gpu.providers.core.catalog.changes import Changes
from prefect_gpu.providers.core.catalog.findings import (
    GPU_LEVEL,
    MARKET,
    PER_MACHINE,
    SAME_SIZE,
    SWAPPED,
    Findings,
    Rule,
)
from prefect_gpu.providers.core.catalog.kinds import Kind, Level, Levels, Machine, Place, Price

_STEP: Final = 3.0  # times up or down, of the median price of a GPU from one refresh to the next
_FAR: Final = 4.0  # times below the cheapest or above the dearest of at least two others
_NEAR: Final = 2.0  # and so near to them a step is believed
_OTHERS: Final = 2
_SIZE: Final = 8.0
_PAIRS: Final = 3
_REMEMBERED: Final = timedelta(days=30)  # what a machine cost when it was last believed


class Group(NamedTuple):
    """The offers of one GPU (None: without one), spot or on-demand."""

    gpu_name: str | None
    spot: bool

    def __str__(self) -> str:
        return f"{self.gpu_name or 'machines without a GPU'}{' spot' if self.spot else ''}"


class Last(Protocol):
    """The last good snapshot, as far as it is compared with."""

    def all(self) -> Iterable[Price]: ...

    def kinds(self) -> Iterable[Kind]: ...

    def levels(self) -> Levels: ...


def group_of(kind: Kind) -> Group:
    return Group(kind.gpu_name, kind.spot)


def leave_out(
    prices: list[Price],
    last: Last | None,
    compared: Changes | None,
    market: Mapping[Group, tuple[float, ...]],
    found: Findings,
) -> tuple[list[Price], set[Group]]:
    """The prices that are not in doubt, and the groups that are; why, is among the findings. Equal kinds are one object."""
    by_kind = _by_kind(prices)
    resized = _resized(by_kind, last)
    ratios = _ratios(by_kind, compared, last.levels() if last is not None else {})
    doubts = _doubts(by_kind, ratios, market)
    left_out: set[int] = set()
    told: dict[tuple[Group, Rule], int] = defaultdict(int)
    for number, (kind, of_kind) in by_kind.items():
        doubt = doubts.get(group_of(kind))
        if why := resized.get(number):
            for _ in of_kind:
                found.add(SAME_SIZE, why)
        elif doubt is None or (doubt.only_several and kind.gpu_count < 2):
            continue
        else:
            told[group_of(kind), doubt.rule] += len(of_kind)
        left_out.add(number)
    for (group, rule), count in told.items():
        found.add(rule, f"{group}: {doubts[group].why}", count)
    kept = [offer for offer in prices if id(offer.kind) not in left_out] if left_out else prices
    return kept, set(doubts)


_ByKind = Mapping[int, tuple[Kind, list[Price]]]


def _by_kind(prices: list[Price]) -> _ByKind:
    """By a kind's id, which is looked up in a tenth of the time that its hash takes."""
    found: dict[int, tuple[Kind, list[Price]]] = {}
    for offer in prices:
        kind = offer[0]
        of_kind = found.get(id(kind))
        if of_kind is None:
            of_kind = found[id(kind)] = (kind, [])
        of_kind[1].append(offer)
    return found


class _Doubt(NamedTuple):
    rule: Rule
    why: str
    only_several: bool = False  # machines with one GPU are right


def remembered(prices: list[Price], last: Last | None, now: datetime) -> Levels:
    """What each machine costs now, and what those cost that were left out or are gone, when they were last believed."""
    before: Levels = last.levels() if last is not None else {}
    kept = {machine: level for machine, level in before.items() if now - level.at < _REMEMBERED}
    return kept | {
        machine: Level(statistics.median(of_machine), now)
        for machine, of_machine in _machines(_by_kind(prices)).items()
    }


def _machines(by_kind: _ByKind) -> dict[Machine, list[float]]:
    found: dict[Machine, list[float]] = defaultdict(list)
    for kind, of_kind in by_kind.values():
        if kind.gpu_name:
            found[Machine(kind.gpu_name, kind.gpu_count, kind.spot)] += [price for _, _, price in of_kind]
    return found


def _ratios(by_kind: _ByKind, compared: Changes | None, levels: Levels) -> dict[Machine, list[float]]:
    """What prices are now over what they were: of the same offers, else of the machine when it was last believed."""
    if compared is None:
        return {}
    now = {
        machine: [statistics.median(of_machine) / levels[machine].price]
        for machine, of_machine in _machines(by_kind).items()
        if machine in levels
    }
    return now | dict(compared.ratios)


def _doubts(
    by_kind: _ByKind, ratios: Mapping[Machine, list[float]], market: Mapping[Group, tuple[float, ...]]
) -> dict[Group, _Doubt]:
    """The first doubt of each group."""
    per_unit = _per_unit(by_kind)
    doubts: dict[Group, _Doubt] = {}
    for found in (
        _swapped(by_kind),
        _per_machine(per_unit),
        _steps(ratios, per_unit, market),
        _far_from_others(per_unit, market),
    ):
        for group, doubt in found.items():
            doubts.setdefault(group, doubt)
    return doubts


def _per_unit(by_kind: _ByKind) -> dict[Group, dict[int, list[float]]]:
    """By group and number of GPUs: USD per GPU-hour, or of the machine where there is none."""
    units: dict[Group, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for kind, of_kind in by_kind.values():
        gpus = max(1, kind.gpu_count)
        units[group_of(kind)][kind.gpu_count] += [price / gpus for _, _, price in of_kind]
    return units


def _resized(by_kind: _ByKind, last: Last | None) -> dict[int, str]:
    """By id: kinds whose cores, memory or GPU memory are another number by far than they were."""
    if last is None:
        return {}
    once: dict[tuple[str, int], list[Kind]] = defaultdict(list)
    for kind in last.kinds():
        once[kind.instance_type, kind.gpu_count].append(kind)
    found: dict[int, str] = {}
    for number, (kind, _) in by_kind.items():
        before = once.get((kind.instance_type, kind.gpu_count))
        if before:
            why = _size_step(kind, before)
            if why:
                found[number] = f"{kind.instance_type}: {why}"
    return found


def _size_step(kind: Kind, before: list[Kind]) -> str | None:
    for what, unit in (("cpu", " cores"), ("memory_gb", " GB"), ("gpu_memory_gb", " GB per GPU")):
        now, once = getattr(kind, what), [size for one in before if (size := getattr(one, what))]
        if now and once and not any(1 / _SIZE < now / size < _SIZE for size in once):
            return f"{now:g}{unit}, {once[0]:g}{unit} before"
    return None


def _swapped(by_kind: _ByKind) -> dict[Group, _Doubt]:
    """GPUs whose spot price is above the on-demand price of the same machine in most places that have both."""
    places: dict[tuple[str | None, str, int], tuple[dict[Place, float], dict[Place, float]]] = {}
    for kind, of_kind in by_kind.values():
        both = places.setdefault((kind.gpu_name, kind.instance_type, kind.gpu_count), ({}, {}))
        both[kind.spot].update((place, price) for _, place, price in of_kind)
    above: dict[str | None, list[bool]] = defaultdict(list)
    for (gpu_name, *_), (on_demand, spot) in places.items():
        above[gpu_name] += [spot[place] > on_demand[place] * 1.01 for place in on_demand.keys() & spot.keys()]
    return {
        Group(gpu_name, spot): _Doubt(SWAPPED, f"spot is dearer in {sum(is_above)} of {len(is_above)} places")
        for gpu_name, is_above in above.items()
        if len(is_above) >= _PAIRS and sum(is_above) > len(is_above) / 2
        for spot in (False, True)
    }


def _per_machine(per_unit: Mapping[Group, Mapping[int, list[float]]]) -> dict[Group, _Doubt]:
    """GPUs of which a machine with several costs what one with a single one does."""
    found: dict[Group, _Doubt] = {}
    for group, by_count in per_unit.items():
        several = [statistics.median(units) * count for count, units in by_count.items() if count > 3]
        if group.gpu_name and by_count.get(1) and several:
            single = statistics.median(by_count[1])
            if all(machine < single * 1.5 for machine in several):
                found[group] = _Doubt(
                    PER_MACHINE, f"several cost ${min(several):.2f}, one ${single:.2f}", only_several=True
                )
    return found


def _steps(
    of_machines: Mapping[Machine, list[float]],
    per_unit: Mapping[Group, Mapping[int, list[float]]],
    market: Mapping[Group, tuple[float, ...]],
) -> dict[Group, _Doubt]:
    """GPUs whose prices are others by far than at the last refresh, unless they are now what others ask."""
    ratios: dict[Group, list[float]] = defaultdict(list)
    found: dict[Group, _Doubt] = {}
    by_count: dict[Group, dict[int, float]] = defaultdict(dict)
    for machine, of_machine in of_machines.items():
        group = Group(machine.gpu_name, machine.spot)
        ratios[group] += of_machine
        by_count[group][machine.gpu_count] = statistics.median(of_machine)
    for group, of_counts in by_count.items():
        if len(of_counts) > 1 and all(abs(level * count - 1) < 0.02 for count, level in of_counts.items()):
            count = max(of_counts)
            found[group] = _Doubt(PER_MACHINE, f"{count} cost 1/{count} of what they did", only_several=True)
    for group, of_group in ratios.items():
        level = statistics.median(of_group)
        if group not in found and not 1 / _STEP < level < _STEP and not _is_near_others(group, per_unit, market):
            found[group] = _Doubt(GPU_LEVEL, f"the median price is {level:.2g} times what it was")
    return found


def _is_near_others(
    group: Group, per_unit: Mapping[Group, Mapping[int, list[float]]], market: Mapping[Group, tuple[float, ...]]
) -> bool:
    others = market.get(group, ())
    lowest = min((min(units) for units in per_unit.get(group, {}).values()), default=0.0)
    return len(others) >= _OTHERS and min(others) / _NEAR <= lowest <= max(others) * _NEAR


def _far_from_others(
    per_unit: Mapping[Group, Mapping[int, list[float]]], market: Mapping[Group, tuple[float, ...]]
) -> dict[Group, _Doubt]:
    """GPUs whose cheapest price is below or above everybody else's by far."""
    found: dict[Group, _Doubt] = {}
    for group, by_count in per_unit.items():
        others = market.get(group, ())
        if not group.gpu_name or len(others) < _OTHERS:
            continue
        lowest = min(min(units) for units in by_count.values())
        if not min(others) / _FAR <= lowest <= max(others) * _FAR:
            asked = f"others ask ${min(others):.2f} to ${max(others):.2f}"
            found[group] = _Doubt(MARKET, f"from ${lowest:.2f} per GPU-hour, {asked}")
    return found
