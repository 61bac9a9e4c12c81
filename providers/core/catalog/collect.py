"""Prices as they are collected, read row by row: a bad row is counted and left out, never a crash.

The format of gpuhunt's catalogs is read here and not by gpuhunt, whose reader needs 16 microseconds a row where this one needs 2,
ends at the first byte that is not UTF-8, and does not count what it skips. That both read the same is a test (test_catalog_oracle.py).
"""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime
from operator import itemgetter
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, cast

from typing_extensions import override

from prefect_gpu.providers.core.catalog.kinds import Kind, Place, Price
from prefect_gpu.providers.core.catalog.places import place
from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.models import Offer, utc_now

if TYPE_CHECKING:
    from collections.abc import Iterable


_KIND_COLUMNS: Final = (
    *("instance_name", "spot", "cpu", "memory", "disk_size", "cpu_arch", "flags"),
    *("gpu_name", "gpu_count", "gpu_memory", "gpu_vendor", "provider_data"),
)
_COLUMNS: Final = (*_KIND_COLUMNS, "location", "price")
_REQUIRED: Final = frozenset({"instance_name", "location", "price", "cpu", "memory", "gpu_count", "spot"})
_VENDORS: Final = frozenset({"nvidia", "amd", "google", "intel", "tenstorrent"})
_ARCHITECTURES: Final = {"": "x86_64", "x86": "x86_64", "arm": "arm64"}
_SHOWN: Final = 5
_CHUNK: Final = 1 << 16


class Collection(NamedTuple):
    """What was collected of one provider, before anybody looked whether it can be true."""

    prices: list[Price]
    source: str
    collected_at: datetime
    malformed: int = 0
    examples: tuple[str, ...] = ()  # of what was malformed
    unknown_columns: tuple[str, ...] = ()
    is_cut: bool = False  # the file ends within a line


def from_offers(offers: Iterable[Offer], source: str) -> Collection:
    """What a driver or gpuhunt's online providers collected."""
    prices = [
        Price(
            Kind(
                offer.instance_type,
                offer.spot,
                offer.cpu,
                offer.memory_gb,
                offer.disk_gb,
                offer.arch,
                tuple(map(str, offer.raw.get("flags", ()))),
                offer.gpu_name,
                offer.gpu_count,
                offer.gpu_memory_gb,
                offer.gpu_vendor,
                json.dumps({name: value for name, value in offer.raw.items() if name != "flags"}, default=str),
            ),
            Place(offer.region, offer.zone, offer.country),
            offer.price,
        )
        for offer in offers
    ]
    return Collection(prices, source, utc_now())


def read_csv(provider: str, file: IO[bytes], source: str, collected_at: datetime) -> Collection:
    """Rows in gpuhunt's format. InvalidRequest if it is not that format at all."""
    watched = _Watched(file)
    text = io.TextIOWrapper(io.BufferedReader(watched, _CHUNK), "utf-8-sig", errors="replace", newline="")
    read = _read_rows(provider, csv.reader(text), source, collected_at)
    return read._replace(is_cut=watched.last not in (b"\n", b"\r"))


class _Watched(io.RawIOBase):
    """A file of which the last byte that was read is remembered; closing it leaves the file open, which is its opener's."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.last = b"\n"

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any, /) -> int:
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        self.last = content[-1:] or self.last
        return len(content)


def _read_rows(provider: str, rows: Any, source: str, collected_at: datetime) -> Collection:
    try:
        header = next(rows, list[str]())
    except csv.Error:
        header = []
    if missing := _REQUIRED - set(header):
        raise InvalidRequest(
            f"the catalog of {provider} has no column {', '.join(sorted(missing))}: it has another format"
        )
    position = {name: number for number, name in enumerate(header)}
    absent = len(header)  # where a row is made to have an empty cell for what an old catalog has no column for
    kind_cells = itemgetter(*(position.get(name, absent) for name in _KIND_COLUMNS))
    location_at, price_at = position["location"], position["price"]
    is_complete = all(name in position for name in _COLUMNS)
    kinds: dict[tuple[str, ...], Kind] = {}
    prices: list[Price] = []
    malformed, examples = 0, list[str]()
    while True:
        try:
            row = next(rows)
            if not row:
                continue
            if len(row) != absent or not is_complete:
                row = [*(row + [""] * absent)[:absent], ""]
            cells = kind_cells(row)
            kind = kinds.get(cells)
            if kind is None:
                kind = kinds[cells] = _kind(*cells)
            prices.append(Price(kind, place(provider, _filled("location", row[location_at])), _price(row[price_at])))
        except StopIteration:
            break
        except (ValueError, RecursionError, csv.Error) as wrong:
            malformed += 1
            if len(examples) < _SHOWN:
                examples.append(f"line {rows.line_num}: {str(wrong)[:120]}")
    unknown = tuple(name[:40] for name in header if name not in _COLUMNS)
    return Collection(prices, source, collected_at, malformed, tuple(examples), unknown)


def _kind(
    name: str,
    spot: str,
    cpu: str,
    memory: str,
    disk: str,
    arch: str,
    flags: str,
    gpu_name: str,
    gpu_count: str,
    gpu_memory: str,
    gpu_vendor: str,
    data: str,
) -> Kind:
    count = int(_filled("gpu_count", gpu_count))
    vendor = gpu_vendor.lower()
    # Catalogs from before the column `gpu_vendor` write TPUs as tpu-v2-8, and mean NVIDIA by the rest.
    if gpu_name.startswith("tpu-"):
        gpu_name = gpu_name.removeprefix("tpu-")
        vendor = vendor or "google"
    elif count:
        vendor = vendor or "nvidia"
    if vendor and vendor not in _VENDORS:
        raise ValueError(f"{vendor!r} is not a maker of GPUs")
    if spot.lower() not in {"true", "false"}:
        raise ValueError(f"spot is {spot!r}, neither True nor False")
    if arch.lower() not in _ARCHITECTURES:
        raise ValueError(f"{arch!r} is not a CPU architecture")
    raw: object = json.loads(data or "{}")
    if not isinstance(raw, dict):
        raise ValueError("provider_data is not a JSON object")  # noqa: TRY004 - a bad row like the others
    return Kind(
        _filled("instance_name", name),
        spot.lower() == "true",
        int(_filled("cpu", cpu)),
        float(_filled("memory", memory)),
        float(disk) if disk else None,
        _ARCHITECTURES[arch.lower()],
        tuple(flags.split()),
        gpu_name or None,
        count,
        float(gpu_memory) if gpu_memory else None,
        vendor or None,
        json.dumps(cast("dict[str, Any]", raw)),
    )


def _filled(column: str, cell: str) -> str:
    if not cell:
        raise ValueError(f"{column} is empty")
    return cell


def _price(cell: str) -> float:
    return float(_filled("price", cell))
