"""gpuhunt's published price catalogs, fetched and read row by row: a bad row is counted and left out, never a crash.

The format is read here and not by gpuhunt, whose reader needs 16 microseconds a row where this one needs 2, ends at the first
byte that is not UTF-8, and does not count what it skips. That both read the same is a test (test_catalog_oracle.py). Published at
https://dstack-gpu-pricing.s3.eu-west-1.amazonaws.com/v3/<provider>/version and .../<version>/catalog.zip.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import zipfile
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from operator import itemgetter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, cast

from providers.core.errors import InvalidRequest, NotFound, Transient
from providers.core.models import Offer, utc_now
from providers.core.places import place
from providers.core.snapshot import Kind, Place, Price

if TYPE_CHECKING:
    from collections.abc import Iterable

    import httpx

PUBLISHED: Final = ("aws", "azure", "cloudrift", "gcp", "lambdalabs", "nebius", "oci", "runpod", "verda")
CATALOG_URL: Final = "https://dstack-gpu-pricing.s3.eu-west-1.amazonaws.com/v3"

_KIND_COLUMNS: Final = (
    *("instance_name", "spot", "cpu", "memory", "disk_size", "cpu_arch", "flags"),
    *("gpu_name", "gpu_count", "gpu_memory", "gpu_vendor", "provider_data"),
)
_COLUMNS: Final = (*_KIND_COLUMNS, "location", "price")
_REQUIRED: Final = frozenset({"instance_name", "location", "price", "cpu", "memory", "gpu_count", "spot"})
_VENDORS: Final = frozenset({"nvidia", "amd", "google", "intel", "tenstorrent"})
_ARCHITECTURES: Final = {"": "x86_64", "x86": "x86_64", "arm": "arm64"}
_SHOWN: Final = 5
_LARGEST_MB: Final = 500  # of an unpacked catalog; gcp, the largest, has 20
_TIMEOUT_S: Final = 30.0
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Collection(NamedTuple):
    """What was collected of one provider, before anybody looked whether it can be true."""

    prices: list[Price]
    source: str
    collected_at: datetime
    malformed: int = 0
    examples: tuple[str, ...] = ()  # of what was malformed
    unknown_columns: tuple[str, ...] = ()


def published(provider: str, *, unless: str | None = None) -> Collection | None:
    """The provider's catalog that gpuhunt publishes; None if its source is `unless`, what the last snapshot was made of.

    GPUHUNT_CATALOG_DIR (a folder of CSV files) and GPUHUNT_CATALOG_URL (another address) are honoured. Raises Transient when it
    cannot be fetched, NotFound when nothing is published, InvalidRequest when it is no catalog.
    """
    folder = os.environ.get("GPUHUNT_CATALOG_DIR")
    if folder:
        return _from_folder(Path(folder), provider)
    return _from_address(os.environ.get("GPUHUNT_CATALOG_URL", CATALOG_URL).rstrip("/"), provider, unless)


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
    text = io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="")
    try:
        return _read_rows(provider, csv.reader(text), source, collected_at)
    finally:
        text.detach()  # the file is its opener's


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
        raise ValueError(f"{vendor!r} is no maker of GPUs")
    if spot.lower() not in {"true", "false"}:
        raise ValueError(f"spot is {spot!r}, neither True nor False")
    if arch.lower() not in _ARCHITECTURES:
        raise ValueError(f"{arch!r} is no CPU architecture")
    raw: object = json.loads(data or "{}")
    if not isinstance(raw, dict):
        raise ValueError("provider_data is no JSON object")  # noqa: TRY004 - a bad row like the others
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


def _from_folder(folder: Path, provider: str) -> Collection:
    path = folder / f"{provider}.csv"
    try:
        with path.open("rb") as file:
            changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            return read_csv(provider, file, f"GPUHUNT_CATALOG_DIR, {path.name}", changed)
    except FileNotFoundError:
        raise NotFound(f"there is no {path.name} in GPUHUNT_CATALOG_DIR") from None
    except OSError as unreadable:
        raise Transient(f"{path.name} in GPUHUNT_CATALOG_DIR cannot be read: {unreadable.strerror}") from None


def _from_address(address: str, provider: str, unless: str | None) -> Collection | None:
    import httpx  # not needed where prices are only asked

    with httpx.Client(timeout=_TIMEOUT_S, follow_redirects=True) as client:
        version = _get(client, f"{address}/{provider}/version", provider).text.strip()
        if not _VERSION.fullmatch(version):
            raise InvalidRequest(f"the version of the catalog of {provider} is {version[:40]!r}: that is no version")
        source = f"gpuhunt {version}"
        if source == unless:
            return None
        answer = _get(client, f"{address}/{provider}/{version}/catalog.zip", provider)
    collected_at = _published_at(answer.headers.get("last-modified"), version)
    try:
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            member = archive.getinfo(f"{provider}.csv")
            if member.file_size > _LARGEST_MB * 10**6:
                raise InvalidRequest(
                    f"the catalog of {provider} unpacks to more than {_LARGEST_MB} MB: that is no catalog"
                )
            with archive.open(member) as file:
                return read_csv(provider, file, source, collected_at)
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError) as broken:
        raise InvalidRequest(
            f"what is published as the catalog of {provider} is no ZIP with {provider}.csv"
        ) from broken


def _get(client: httpx.Client, url: str, provider: str) -> httpx.Response:
    import httpx
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

    retrying = Retrying(
        retry=retry_if_exception_type(Transient),
        stop=stop_after_attempt(3),
        wait=wait_random_exponential(multiplier=0.2, max=5),
        reraise=True,
    )
    for attempt in retrying:
        with attempt:
            try:
                answer = client.get(url)
            except httpx.HTTPError as failure:
                raise Transient(
                    f"the price catalog of {provider} could not be fetched: {type(failure).__name__} from {httpx.URL(url).host}"
                ) from failure
            if answer.status_code in {403, 404}:  # S3 says 403 for what is not there
                raise NotFound(f"no price catalog of {provider} is published at {httpx.URL(url).host}")
            if answer.status_code != 200:
                raise Transient(
                    f"{httpx.URL(url).host} answered {answer.status_code} to the price catalog of {provider}"
                )
            return answer
    raise AssertionError("tenacity raises or returns")


def _published_at(last_modified: str | None, version: str) -> datetime:
    """When these prices were published: the server's word, else the date that a version begins with, else now."""
    now = utc_now()
    try:
        if last_modified:
            return min(parsedate_to_datetime(last_modified).astimezone(UTC), now)
        return min(datetime.strptime(version[:8], "%Y%m%d").replace(tzinfo=UTC), now)
    except ValueError:
        return now
