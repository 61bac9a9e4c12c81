"""What changed from one snapshot to the next: offers that are new or gone, prices that went up or down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from providers.core.snapshot import Price

_NOTICED: Final = 0.005  # half a per cent: below it is rounding


class Move(NamedTuple):
    """One price that changed."""

    instance_type: str
    where: str
    spot: bool
    gpu: str
    was: float
    now: float

    @property
    def ratio(self) -> float:
        return self.now / self.was

    def __str__(self) -> str:
        spot = " spot" if self.spot else ""
        return f"{self.instance_type} {self.where}{spot} ${self.was:g} -> ${self.now:g}"


@dataclass(frozen=True)
class Changes:
    """From `before` offers to `after`, of which `common` are in both."""

    before: int
    after: int
    common: int
    moves: tuple[Move, ...]  # what was once and is now, at another price

    @property
    def new(self) -> int:
        return self.after - self.common

    @property
    def gone(self) -> int:
        return self.before - self.common

    @property
    def up(self) -> int:
        return sum(move.ratio > 1 for move in self.moves)

    @property
    def down(self) -> int:
        return sum(move.ratio < 1 for move in self.moves)

    def biggest(self, count: int) -> list[Move]:
        """The moves that matter most: by how many times, and of those by how many dollars."""
        return sorted(self.moves, key=lambda move: (-max(move.ratio, 1 / move.ratio), -abs(move.now - move.was)))[
            :count
        ]


def compare(before: Iterable[Price], after: Iterable[Price]) -> Changes:
    """What is the same thing to buy has the same type, place, spot and GPUs, whatever else is said about it."""
    old, new = _cheapest(before), _cheapest(after)
    common = old.keys() & new.keys()
    moves = [
        Move(key[0], key[2] or key[1], key[3], f"{key[4]}:{key[5]}" if key[4] else "none", old[key], new[key])
        for key in common
        if abs(new[key] - old[key]) > _NOTICED * old[key]
    ]
    return Changes(len(old), len(new), len(common), tuple(moves))


_Key = tuple[str, str, str | None, bool, str | None, int]


def _cheapest(prices: Iterable[Price]) -> dict[_Key, float]:
    cheapest: dict[_Key, float] = {}
    for kind, place, price in prices:
        key = (kind.instance_type, place.region, place.zone, kind.spot, kind.gpu_name, kind.gpu_count)
        if price < cheapest.get(key, float("inf")):
            cheapest[key] = price
    return cheapest
