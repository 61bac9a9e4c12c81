"""The file of a snapshot: its format, and how it is written, once."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Final

from prefect_gpu.providers.core.catalog.kinds import About, Kind, Levels, Place, Price
from prefect_gpu.providers.core.gpu.accelerators import find

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

FORMAT: Final = 1  # of the file; another number is another format, and is collected anew
APPLICATION: Final = 0x70677075  # "pgpu": what `file` shows

_SCHEMA: Final = f"""
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {FORMAT};
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE place (id INTEGER PRIMARY KEY, region TEXT NOT NULL, zone TEXT, country TEXT);
CREATE TABLE kind (
    id INTEGER PRIMARY KEY, instance_type TEXT NOT NULL, spot INTEGER NOT NULL,
    cpu REAL, memory_gb REAL, disk_gb REAL, arch TEXT, flags TEXT NOT NULL,
    gpu_name TEXT, gpu_count INTEGER NOT NULL, gpu_memory_gb REAL, gpu_vendor TEXT, raw TEXT NOT NULL,
    gpu_key TEXT, capability INTEGER,                                   -- what filters compare
    offers INTEGER NOT NULL, cheapest REAL NOT NULL, dearest REAL NOT NULL  -- what saves looking at prices
);
CREATE TABLE price (
    kind INTEGER NOT NULL, price REAL NOT NULL, place INTEGER NOT NULL, PRIMARY KEY (kind, price, place)
) WITHOUT ROWID;
"""
_INDEXES: Final = """
CREATE INDEX kind_by_gpu ON kind (gpu_key, gpu_count, spot);
CREATE INDEX price_by_price ON price (price);
CREATE VIEW offer AS SELECT instance_type, region, zone, country, price, spot, cpu, memory_gb, disk_gb, arch, flags,
    gpu_name, gpu_count, gpu_memory_gb, gpu_vendor, raw
    FROM price JOIN kind ON kind.id = price.kind JOIN place ON place.id = price.place;
"""


_INSERT_KIND: Final = f"INSERT INTO kind VALUES ({', '.join('?' * 18)})"  # noqa: S608 - question marks


def write(
    path: Path,
    provider: str,
    prices: Iterable[Price],
    *,
    collected_at: datetime,
    source: str,
    levels: Levels | None = None,
) -> About:
    """Make the file at `path`, which must not exist; in 10 microseconds an offer. Whoever publishes it moves it into place."""
    prices = list(prices)
    kinds: dict[Kind, list[tuple[float, Place]]] = {}
    for kind, place, price in prices:
        kinds.setdefault(kind, []).append((price, place))
    places = {place: number for number, place in enumerate(sorted({p.place for p in prices}, key=repr), 1)}
    numbered = list(enumerate(sorted(kinds, key=repr), 1))
    names = tuple(sorted({kind.gpu_name for kind in kinds if kind.gpu_name}))
    about = About(provider, collected_at, source, len(prices), names, levels or {})
    facts = about._asdict() | {
        "collected_at": collected_at.isoformat(),
        "gpu_names": json.dumps(names),
        "levels": json.dumps(
            [(*machine, level.price, level.at.isoformat()) for machine, level in about.levels.items()]
        ),
    }
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _SCHEMA)
        db.execute("BEGIN")
        db.executemany("INSERT INTO about VALUES (?, ?)", [(name, str(value)) for name, value in facts.items()])
        db.executemany("INSERT INTO place VALUES (?, ?, ?, ?)", [(number, *place) for place, number in places.items()])
        db.executemany(_INSERT_KIND, [_row(number, kind, kinds[kind]) for number, kind in numbered])
        db.executemany(
            "INSERT INTO price VALUES (?, ?, ?)",
            (
                (number, price, place)
                for number, kind in numbered
                for price, place in sorted((price, places[place]) for price, place in kinds[kind])
            ),
        )
        db.execute("COMMIT")
        db.executescript(_INDEXES)
    return about


def _row(number: int, kind: Kind, prices: list[tuple[float, Place]]) -> tuple[object, ...]:
    accelerator = find(kind.gpu_name) if kind.gpu_name and kind.gpu_vendor == "nvidia" else None
    capability = accelerator.compute_capability if accelerator else None
    amounts = [price for price, _ in prices]
    return (
        number,
        kind.instance_type,
        int(kind.spot),
        kind.cpu,
        kind.memory_gb,
        kind.disk_gb,
        kind.arch,
        " ".join(kind.flags),
        kind.gpu_name,
        kind.gpu_count,
        kind.gpu_memory_gb,
        kind.gpu_vendor,
        kind.raw,
        kind.gpu_name.lower() if kind.gpu_name else None,
        capability_number(capability) if capability else None,
        len(prices),
        min(amounts),
        max(amounts),
    )


def capability_number(version: tuple[int, int]) -> int:
    """A compute capability as it is compared."""
    return version[0] * 1000 + version[1]
