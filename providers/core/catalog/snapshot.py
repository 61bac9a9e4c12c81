"""All prices of one provider at one moment: a SQLite file that is written once, never changed, and asked in a millisecond.

An offer is a *kind* (everything but where and how much), a *place* and a price. A provider has thousands of kinds and
hundreds of thousands of prices, and nearly every filter is about the kind: it is decided once a kind, not once a price.
People can ask the file too: `sqlite3 FILE 'SELECT * FROM offer WHERE gpu_name = "H100" ORDER BY price LIMIT 5'`.
"""

from __future__ import annotations

import json
import sqlite3
import weakref
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

from prefect_gpu.providers.core.catalog import facts
from prefect_gpu.providers.core.catalog.filters import Filters
from prefect_gpu.providers.core.catalog.kinds import About, Kind, Level, Levels, Machine, Place, Price
from prefect_gpu.providers.core.catalog.writing import APPLICATION, FORMAT, capability_number
from prefect_gpu.providers.core.gpu.names import is_slice_of
from prefect_gpu.providers.core.models import Availability, Offer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# Filter -> condition on a kind. The text of a condition never depends on the value, so that SQLite prepares each query once.
_GPU_MEMORY = "CASE WHEN gpu_count > 0 THEN coalesce(gpu_memory_gb, 0) ELSE 0 END"
_CONDITIONS: Final = {
    "spot": "spot = :spot",
    "instance_type": "instance_type = :instance_type COLLATE NOCASE",
    "cpu_arch": "arch = :cpu_arch",
    "min_cpu": "cpu >= :min_cpu",
    "max_cpu": "cpu <= :max_cpu",
    "min_memory": "memory_gb >= :min_memory",
    "max_memory": "memory_gb <= :max_memory",
    "min_disk_size": "(disk_gb IS NULL OR disk_gb >= :min_disk_size)",
    "max_disk_size": "(disk_gb IS NULL OR disk_gb <= :max_disk_size)",
    "allowed_flags": "flags IN (SELECT value FROM json_each(:allowed_flags))",
    "min_price": "dearest >= :min_price",
    "max_price": "cheapest <= :max_price",
}
_GPU_CONDITIONS: Final = {
    "gpu_name": "gpu_key IN (SELECT value FROM json_each(:gpu_name))",
    "min_gpu_count": "gpu_count >= :min_gpu_count",
    "max_gpu_count": "gpu_count <= :max_gpu_count",
    "gpu_vendor": "gpu_vendor = :gpu_vendor",
    "min_gpu_memory": f"{_GPU_MEMORY} >= :min_gpu_memory",
    "max_gpu_memory": f"{_GPU_MEMORY} <= :max_gpu_memory",
    "min_total_gpu_memory": f"gpu_count * ({_GPU_MEMORY}) >= :min_total_gpu_memory",
    "max_total_gpu_memory": f"gpu_count * ({_GPU_MEMORY}) <= :max_total_gpu_memory",
    "min_compute_capability": "capability >= :min_compute_capability",
    "max_compute_capability": "capability <= :max_compute_capability",
}


class Cheapest(NamedTuple):
    """The cheapest offer of a GPU: USD per GPU-hour, what and where."""

    price: float
    instance_type: str
    region: str


# A match before an Offer is made of it: price, kind, place.
Found = tuple[float, int, int]


class Snapshot:
    """A snapshot that is open for reading; may be asked from many threads. ValueError if the file is not one."""

    def __init__(self, path: Path) -> None:
        # The file never changes, so SQLite need not lock it nor look for a journal; threads share the connection because
        # SQLite serializes its calls (threadsafety 3) and each question has a cursor of its own.
        self._db = sqlite3.connect(
            f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True, check_same_thread=False, isolation_level=None
        )
        weakref.finalize(self, self._db.close)  # whoever still asks an old snapshot keeps it open
        try:
            self.about = self._read_about()
            self._places = {
                number: Place(*place)
                for number, *place in self._db.execute("SELECT id, region, zone, country FROM place")
            }
            self._flags = [flags for (flags,) in self._db.execute("SELECT DISTINCT flags FROM kind")]
        except (sqlite3.Error, KeyError, ValueError, IndexError) as broken:
            self._db.close()
            raise ValueError(f"{path.name} is not a whole snapshot of format {FORMAT}: refresh the catalog") from broken
        # Offers are made from these: what is the same in all offers of a kind or place is put together once.
        self._of_kind: dict[int, tuple[dict[str, Any], str]] = {}
        self._of_place = {number: place._asdict() for number, place in self._places.items()}

    def close(self) -> None:
        self._db.close()

    def find(self, filters: Filters, limit: int | None = None) -> list[Found]:
        """All that passes, or the cheapest `limit`, by price."""
        conditions, values = self._kind_conditions(filters)
        values["limit"] = -1 if limit is None else limit
        kinds = f"SELECT id FROM kind WHERE {conditions}"  # noqa: S608 - only texts from the tables above
        share = 1.0
        row: list[str] = []
        if filters.min_price is not None:
            row.append("price >= :min_price")
        if filters.restricts_places:
            taken = [number for number, place in self._places.items() if filters.take_place(place)]
            if not taken:
                return []
            share = len(taken) / len(self._places)
            values["places"] = json.dumps(taken)
            row.append("place IN (SELECT value FROM json_each(:places))")
        source = "price"
        if limit is not None and not row:
            # A kind that is not among the `limit` with the cheapest offer has no offer among the cheapest `limit`.
            kinds += " ORDER BY cheapest, id LIMIT :limit"
        elif limit is not None and self._is_faster_by_price(conditions, values, limit, share):
            source = "price INDEXED BY price_by_price"
            row.append("price >= :first")
        if filters.max_price is not None:
            row.append("price <= :max_price")
        where = " AND ".join([f"kind IN ({kinds})", *row])
        sql = f"SELECT price, kind, place FROM {source} WHERE {where} ORDER BY price, kind, place LIMIT :limit"  # noqa: S608 - only texts from the tables above
        return self._db.execute(sql, values).fetchall()

    def offers(self, found: Iterable[Found]) -> list[Offer]:
        """Offers of what `find` found: what `Offer.model_construct` does, in a seventh of its time.

        Checked they were when they were published.
        """
        made: list[Offer] = []
        new, assign = Offer.__new__, object.__setattr__
        of_kind, of_place = self._of_kind, self._of_place
        for price, kind, place in found:
            if kind not in of_kind:
                of_kind[kind] = self._kind(kind)
            fields, raw = of_kind[kind]
            offer = new(Offer)
            values = fields.copy()
            values.update(of_place[place])
            values["price"] = price
            values["raw"] = json.loads(raw) if raw else {}  # each has its own: offers are shared by nobody
            assign(offer, "__dict__", values)
            assign(offer, "__pydantic_fields_set__", _ALL_FIELDS)
            assign(offer, "__pydantic_extra__", None)
            assign(offer, "__pydantic_private__", None)
            made.append(offer)
        return made

    def all(self) -> Iterable[Price]:
        """Everything that is in it, as it was collected."""
        kinds = {row[0]: _kind_of(row[1:]) for row in self._db.execute(f"SELECT id, {_KIND_COLUMNS} FROM kind")}  # noqa: S608 - column names
        for kind, price, place in self._db.execute("SELECT kind, price, place FROM price"):
            yield Price(kinds[kind], self._places[place], price)

    def kinds(self) -> Iterable[Kind]:
        """All kinds that are in it."""
        return [_kind_of(row) for row in self._db.execute(f"SELECT {_KIND_COLUMNS} FROM kind")]  # noqa: S608 - column names

    def levels(self) -> Levels:
        """What machines cost when they were last believed."""
        return self.about.levels

    def cheapest_gpus(self) -> dict[tuple[str, bool], Cheapest]:
        """GPU and whether it is spot -> its cheapest offer per GPU-hour."""
        kinds = self._db.execute(
            "SELECT id, gpu_name, spot, min(cheapest / gpu_count), cheapest, instance_type FROM kind WHERE gpu_count > 0"
            " GROUP BY gpu_name, spot"
        ).fetchall()
        found: dict[tuple[str, bool], Cheapest] = {}
        for number, gpu, spot, per_gpu, price, name in kinds:
            (place,) = self._db.execute(
                "SELECT place FROM price WHERE kind = ? AND price = ? LIMIT 1", (number, price)
            ).fetchone()
            found[gpu, bool(spot)] = Cheapest(per_gpu, name, self._places[place].region)
        return found

    def gpu_counts(self, filters: Filters) -> set[int]:
        """How many GPUs the machines have that pass, whatever they cost and wherever they are."""
        conditions, values = self._kind_conditions(filters)
        sql = f"SELECT DISTINCT gpu_count FROM kind WHERE {conditions}"  # noqa: S608 - only texts from the tables above
        return {count for (count,) in self._db.execute(sql, values)}

    def largest_gpu_memory(self, filters: Filters) -> float:
        """GB of the largest GPU that passes; 0 if none does."""
        conditions, values = self._kind_conditions(filters)
        sql = f"SELECT coalesce(max(gpu_memory_gb), 0) FROM kind WHERE {conditions}"  # noqa: S608 - only texts from the tables above
        return float(self._db.execute(sql, values).fetchone()[0])

    def _read_about(self) -> About:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if (application, version) != (APPLICATION, FORMAT):
            raise ValueError("another format")
        facts: dict[str, str] = dict(self._db.execute("SELECT name, value FROM about"))
        collected_at = datetime.fromisoformat(facts["collected_at"])
        names: list[str] = json.loads(facts["gpu_names"])
        levels = {
            Machine(name, count, bool(spot)): Level(price, datetime.fromisoformat(at))
            for name, count, spot, price, at in json.loads(facts.get("levels", "[]"))
        }
        return About(facts["provider"], collected_at, facts["source"], int(facts["offers"]), tuple(names), levels)

    def _kind_conditions(self, filters: Filters) -> tuple[str, dict[str, object]]:
        values: dict[str, object] = {
            name: value
            for name in (*_CONDITIONS, *_GPU_CONDITIONS)
            if (value := getattr(filters, name)) is not None and value != ""
        }
        if filters.allowed_flags is not None:
            allowed = filters.allowed_flags
            values["allowed_flags"] = json.dumps([f for f in self._flags if all(flag in allowed for flag in f.split())])
        if filters.gpu_name is not None:
            values["gpu_name"] = json.dumps(
                [key for name in filters.gpu_name for key in _keys(name, self.about.gpu_names)]
            )
        for bound in ("min_compute_capability", "max_compute_capability"):
            if version := getattr(filters, bound):
                values[bound] = capability_number(version)
        about_gpus = " AND ".join(text for name, text in _GPU_CONDITIONS.items() if name in values)
        if about_gpus and filters.min_gpu_count == 0:
            about_gpus = f"(gpu_count = 0 OR ({about_gpus}))"
        others = [text for name, text in _CONDITIONS.items() if name in values]
        return " AND ".join([*others, about_gpus] if about_gpus else others) or "1", values

    def has_instance_type(self, name: str) -> bool:
        found = self._db.execute("SELECT 1 FROM kind WHERE instance_type = ? COLLATE NOCASE LIMIT 1", (name,))
        return found.fetchone() is not None

    def _is_faster_by_price(self, conditions: str, values: dict[str, Any], limit: int, share: float) -> bool:
        """Whether walking all prices from the cheapest on meets `limit` matches before all prices of the matching kinds are read.

        `share` of the places count. Sets `:first`, where such a walk may begin.
        """
        matching, first = self._db.execute(
            f"SELECT total(offers), coalesce(min(cheapest), 0) FROM kind WHERE {conditions}",  # noqa: S608 - only texts from the tables above
            values,
        ).fetchone()
        values["first"] = max(first, values.get("min_price", first))
        return matching > 0 and limit * self.about.offers / (matching * share) < matching

    def _kind(self, number: int) -> tuple[dict[str, Any], str]:
        row = self._db.execute(f"SELECT {_KIND_COLUMNS} FROM kind WHERE id = ?", (number,)).fetchone()  # noqa: S608 - column names
        kind = _kind_of(row)
        raw: dict[str, Any] = json.loads(kind.raw)
        if kind.flags:
            raw["flags"] = list(kind.flags)
        known = kind._asdict() | {
            "provider": self.about.provider,
            "priced_at": self.about.collected_at,
            "availability": Availability.UNKNOWN,
            "is_unseen": False,
            "is_alarm": False,
            "trust": facts.trust_in(self.about.provider),
        }
        fields = {
            name: known.get(name) for name in Offer.model_fields
        }  # in the model's order, where and how much to come
        return fields, json.dumps(raw) if raw else ""


_KIND_COLUMNS: Final = ", ".join(Kind._fields)
_ALL_FIELDS: Final = set(Offer.model_fields)


@lru_cache(256)
def _keys(gpu_name: str, written: tuple[str, ...]) -> list[str]:
    """How it is written in a snapshot with these names: a TPU without a size stands for all its slices."""
    key = gpu_name.lower()
    return [key, *(one.lower() for one in written if is_slice_of(one, gpu_name) and one.lower() != key)]


def _kind_of(row: tuple[Any, ...]) -> Kind:
    kind = Kind(*row)
    return kind._replace(spot=bool(kind.spot), flags=tuple(str(kind.flags).split()))
