"""What a GPU cost, where, over time: each refresh appends the prices per GPU-hour that changed.

One file a provider, published like a snapshot (store.py). A series is a GPU with its memory, spot or on-demand, in a region; its
value is the cheapest offer per GPU-hour. A point is kept when the price changed, so a price holds until the next point; after two
weeks one point a day remains, the cheapest.
"""

from __future__ import annotations

import secrets
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from prefect_gpu.providers.core.catalog import store
from prefect_gpu.providers.core.models import utc_now

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from prefect_gpu.providers.core.catalog.kinds import Price

KEPT_DAYS: Final = 400
FINE_DAYS: Final = 14

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS series (
    id INTEGER PRIMARY KEY, gpu_name TEXT NOT NULL, gpu_memory_gb REAL NOT NULL, spot INTEGER NOT NULL,
    region TEXT NOT NULL, country TEXT NOT NULL, UNIQUE (gpu_name, gpu_memory_gb, spot, region, country)
);
CREATE TABLE IF NOT EXISTS point (
    series INTEGER NOT NULL, at INTEGER NOT NULL, price REAL, PRIMARY KEY (series, at)  -- price NULL: not offered any more
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refresh (at INTEGER PRIMARY KEY);
"""


class Series(NamedTuple):
    """The prices of a GPU in one place, in USD per GPU-hour; None from when it was no longer offered."""

    provider: str
    gpu_name: str
    gpu_memory_gb: float
    spot: bool
    region: str
    country: str | None
    points: tuple[tuple[datetime, float | None], ...]  # each holds until the next

    @property
    def now(self) -> float | None:
        return self.points[-1][1]

    @property
    def lowest(self) -> float | None:
        return min((price for _, price in self.points if price is not None), default=None)


def append(provider: str, offers: Iterable[Price], at: datetime) -> None:
    """Add what changed since the last refresh; `at` is when we looked, by our clock."""
    place = _folder(provider)
    place.mkdir(parents=True, exist_ok=True)
    unfinished = place / f".{secrets.token_hex(8)}.unfinished"
    before = store.latest(place)
    try:
        if before is not None:
            shutil.copyfile(place / before.file, unfinished)
        with closing(sqlite3.connect(unfinished, isolation_level=None)) as db:
            db.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_SCHEMA}")
            _append(db, _cheapest(offers), int(at.timestamp()))
        store.install_next(place, unfinished)
    finally:
        unfinished.unlink(missing_ok=True)


def of(
    gpu: str,
    *,
    days: float = 30,
    spot: bool | None = None,
    providers: Sequence[str] | None = None,
    now: datetime | None = None,
) -> list[Series]:
    """What a GPU cost over the last days, where: all its series of these providers (None: all), cheapest now first."""
    since = (now or utc_now()) - timedelta(days=days)
    names = store.providers() if providers is None else providers
    found = [series for name in names for series in _read(name, gpu, since, spot)]
    return sorted(found, key=lambda one: (one.now is None, one.now or 0.0, one.provider, one.region))


def cheapest_anywhere(series: Iterable[Series]) -> dict[tuple[str, bool], list[tuple[datetime, float | None]]]:
    """By provider and spot: the cheapest of all regions and memory sizes at each moment that anything changed."""
    grouped: dict[tuple[str, bool], list[Series]] = {}
    for one in series:
        grouped.setdefault((one.provider, one.spot), []).append(one)
    merged: dict[tuple[str, bool], list[tuple[datetime, float | None]]] = {}
    for key, of_key in grouped.items():
        changes = sorted(
            (at, number, price) for number, one in enumerate(of_key) for at, price in _sortable(one.points)
        )
        held: dict[int, float] = {}
        line = merged[key] = []
        for at, number, price in changes:
            held[number] = price
            lowest = min(held.values())
            value = None if lowest == _GONE else lowest
            if line and line[-1][0] == at:
                line[-1] = (at, value)
            elif not line or line[-1][1] != value:
                line.append((at, value))
    return merged


_GONE: Final = float("inf")


def _sortable(points: Iterable[tuple[datetime, float | None]]) -> list[tuple[datetime, float]]:
    return [(at, _GONE if price is None else price) for at, price in points]


_SeriesKey = tuple[str, float, int, str, str]


def _cheapest(offers: Iterable[Price]) -> dict[_SeriesKey, float]:
    cheapest: dict[_SeriesKey, float] = {}
    for kind, place, price in offers:
        if kind.gpu_name and kind.gpu_count:
            key = (kind.gpu_name, kind.gpu_memory_gb or 0.0, int(kind.spot), place.region, place.country or "")
            per_gpu = price / kind.gpu_count
            if per_gpu < cheapest.get(key, float("inf")):
                cheapest[key] = per_gpu
    return cheapest


def _append(db: sqlite3.Connection, cheapest: dict[_SeriesKey, float], at: int) -> None:
    db.execute("BEGIN")
    for table in ("point", "refresh"):  # of a clock that was ahead of ours by more than clocks differ
        db.execute(f"DELETE FROM {table} WHERE at > ?", (at + 86400,))  # noqa: S608 - names from the line above
    (newest,) = db.execute("SELECT max(at) FROM refresh").fetchone()
    if newest is not None and newest >= at:
        at = newest + 1
    db.execute("INSERT INTO refresh VALUES (?)", (at,))
    last: dict[_SeriesKey, tuple[int, float | None]] = {
        tuple(key): (number, price)
        for number, price, *key in db.execute(
            "SELECT id, (SELECT price FROM point WHERE series = id ORDER BY at DESC LIMIT 1),"
            " gpu_name, gpu_memory_gb, spot, region, country FROM series"
        )
    }
    for key in cheapest.keys() - last.keys():
        cursor = db.execute(
            "INSERT INTO series (gpu_name, gpu_memory_gb, spot, region, country) VALUES (?, ?, ?, ?, ?)", key
        )
        last[key] = (cursor.lastrowid or 0, None)
    points = [
        (number, at, cheapest.get(key)) for key, (number, price) in last.items() if _differ(price, cheapest.get(key))
    ]
    db.executemany("INSERT INTO point VALUES (?, ?, ?)", points)
    _thin(db, at)
    db.execute("COMMIT")


def _differ(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is not other
    return abs(one - other) > 1e-6 * one


def _thin(db: sqlite3.Connection, at: int) -> None:
    """After two weeks the cheapest of a day stays; after KEPT_DAYS only what still holds."""
    fine, kept = at - FINE_DAYS * 86400, at - KEPT_DAYS * 86400
    db.execute(
        "DELETE FROM point WHERE (series, at) IN (SELECT series, at FROM (SELECT series, at, row_number() OVER"
        " (PARTITION BY series, at / 86400 ORDER BY price IS NULL, price, at) AS nth FROM point WHERE at < ?) WHERE nth > 1)",
        (fine,),
    )
    db.execute(
        "DELETE FROM point WHERE at < ? AND at < (SELECT max(at) FROM point AS other WHERE other.series = point.series)",
        (kept,),
    )
    db.execute("DELETE FROM refresh WHERE at < ?", (kept,))


def _read(provider: str, gpu: str, since: datetime, spot: bool | None) -> list[Series]:
    place = _folder(provider)
    edition = store.latest(place)
    if edition is None:
        return []
    first = int(since.timestamp())
    with closing(sqlite3.connect(f"{(place / edition.file).as_uri()}?mode=ro&immutable=1", uri=True)) as db:
        series = db.execute(
            "SELECT id, gpu_name, gpu_memory_gb, spot, region, country FROM series"
            " WHERE lower(gpu_name) = lower(?) AND (? IS NULL OR spot = ?)",
            (gpu, spot, spot),
        ).fetchall()
        found: list[Series] = []
        for number, name, memory, is_spot, region, country in series:
            points = db.execute("SELECT at, price FROM point WHERE series = ? ORDER BY at", (number,)).fetchall()
            # The price that held when the window begins is its first point.
            held = [(first, price) for at, price in points if at < first][-1:]
            shown = [*held, *((at, price) for at, price in points if at >= first)]
            if any(price is not None for _, price in shown):
                told = tuple((datetime.fromtimestamp(at, UTC), price) for at, price in shown)
                found.append(Series(provider, name, memory, bool(is_spot), region, country or None, told))
    return found


def _folder(provider: str) -> Path:
    return store.folder_of(provider) / "history"
