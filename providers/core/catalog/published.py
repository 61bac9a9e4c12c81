"""gpuhunt's published price catalogs, fetched.

They stand at https://dstack-gpu-pricing.s3.eu-west-1.amazonaws.com/v3/<provider>/version and .../<version>/catalog.zip.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prefect_gpu.providers.core.catalog.collect import Collection, read_csv
from prefect_gpu.providers.core.errors import InvalidRequest, NotFound, Transient
from prefect_gpu.providers.core.models import utc_now

if TYPE_CHECKING:
    import httpx

PROVIDERS: Final = ("aws", "azure", "cloudrift", "gcp", "lambdalabs", "nebius", "oci", "runpod", "verda")
CATALOG_URL: Final = "https://dstack-gpu-pricing.s3.eu-west-1.amazonaws.com/v3"

_LARGEST_MB: Final = 500  # of an unpacked catalog; gcp, the largest, has 20
_LARGEST_ANSWER_MB: Final = 100
_LONGEST_VERSION: Final = 1000  # bytes
_TIMEOUT_S: Final = 30.0
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def catalog(provider: str, *, unless: str | None = None) -> Collection | None:
    """The provider's catalog that gpuhunt publishes; None if its source is `unless`, what the last snapshot was made of.

    GPUHUNT_CATALOG_DIR (a folder of CSV files) and GPUHUNT_CATALOG_URL (another address) are honoured. Raises Transient when it
    cannot be fetched, NotFound when nothing is published, InvalidRequest when it is not a catalog.
    """
    folder = os.environ.get("GPUHUNT_CATALOG_DIR")
    if folder:
        return _from_folder(Path(folder), provider)
    return _from_address(os.environ.get("GPUHUNT_CATALOG_URL", CATALOG_URL).rstrip("/"), provider, unless)


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
        content, _ = _get(client, f"{address}/{provider}/version", provider)
        version = content[:_LONGEST_VERSION].decode(errors="replace").strip()
        if not _VERSION.fullmatch(version):
            raise InvalidRequest(f"the version of the catalog of {provider} is {version[:40]!r}: that is not a version")
        source = f"gpuhunt {version}"
        if source == unless:
            return None
        content, changed = _get(client, f"{address}/{provider}/{version}/catalog.zip", provider)
    collected_at = _published_at(changed, version)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            member = archive.getinfo(f"{provider}.csv")
            if member.file_size > _LARGEST_MB * 10**6:
                what = f"the catalog of {provider} unpacks to more than {_LARGEST_MB} MB: that is not a catalog"
                raise InvalidRequest(what)
            with archive.open(member) as file:
                return read_csv(provider, file, source, collected_at)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError) as broken:
        what = f"what is published as the catalog of {provider} is not a ZIP file with {provider}.csv"
        raise InvalidRequest(what) from broken


def _content(answer: httpx.Response, provider: str) -> bytes:
    content = bytearray()
    for chunk in answer.iter_bytes():
        content += chunk
        if len(content) > _LARGEST_ANSWER_MB * 10**6:
            raise InvalidRequest(
                f"the catalog of {provider} is larger than {_LARGEST_ANSWER_MB} MB: that is not a catalog"
            )
    return bytes(content)


def _get(client: httpx.Client, url: str, provider: str) -> tuple[bytes, str | None]:
    """The content, and when the server says that it changed."""
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
            host = httpx.URL(url).host
            try:
                with client.stream("GET", url) as answer:
                    content = _content(answer, provider)
            except httpx.HTTPError as failure:
                trouble = f"the price catalog of {provider} could not be fetched: {type(failure).__name__} from {host}"
                raise Transient(trouble) from failure
            if answer.status_code in {403, 404}:  # S3 says 403 for what is not there
                raise NotFound(f"no price catalog of {provider} is published at {host}")
            if answer.status_code != 200:
                raise Transient(f"{host} answered {answer.status_code} to the price catalog of {provider}")
            return content, answer.headers.get("last-modified")
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
