"""A log that a vendor uploads to some storage and names the address of: fetched within bounds, without the account's login."""

from __future__ import annotations

from typing import Final

import httpx
from tenacity import RetryError, Retrying, retry_if_result, stop_after_attempt, wait_fixed

from prefect_gpu.blocks.api import ApiAccess
from prefect_gpu.providers.core.errors import Transient
from prefect_gpu.providers.core.toolkit.login import Login, by_way_of
from prefect_gpu.providers.core.toolkit.wire import Request, Transport, Wire

TRIES: Final = 10  # the upload takes a moment
EVERY_S: Final = 0.5
MAX_BYTES: Final = 8_000_000


def fetched(vendor: str, address: str, access: ApiAccess, transport: Transport | None = None) -> str:
    """The text at an https address that the vendor told, empty where it is not there within some seconds.

    Raises Transient where the address is no such thing, or who has it does not answer.
    """
    try:
        url = httpx.URL(address)
        is_place = url.scheme == "https" and bool(url.host)
    except (httpx.InvalidURL, ValueError):
        url, is_place = httpx.URL(), False
    if not is_place:
        raise Transient(f"{vendor} names no place from which a log can be fetched")
    origin = f"https://{url.netloc.decode()}"
    wire = Wire(vendor, origin, {}, by_way_of(Login(), proxy=access.proxy, ca=access.ca), transport)
    path = url.raw_path.decode()

    def once() -> str | None:
        request = Request("GET", path, None, None, "", 15.0, MAX_BYTES)
        response, content = wire.exchange(request, "fetch a log", is_order=False)
        return content.decode(errors="replace") if response.is_success else None

    def is_missing(found: str | None) -> bool:
        return found is None

    trying = Retrying(stop=stop_after_attempt(TRIES), wait=wait_fixed(EVERY_S), retry=retry_if_result(is_missing))
    try:
        return trying(once) or ""
    except RetryError:
        return ""
