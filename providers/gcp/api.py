"""Compute Engine's API with one project's credentials: paths, listings over all zones, and which zones they could not read."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final, cast

import httpx

from prefect_gpu.blocks.gcp import GcpCredentials
from prefect_gpu.providers.core.errors import Transient
from prefect_gpu.providers.core.models import Unread
from prefect_gpu.providers.core.toolkit.http import JsonApi
from prefect_gpu.providers.gcp.errors import MEANINGS
from prefect_gpu.providers.gcp.login import Account

ENDPOINT: Final = "https://compute.googleapis.com"
RIGHTS_ENDPOINT: Final = "https://cloudresourcemanager.googleapis.com/v1"
PAGE: Final = 500
_EMPTY: Final = "NO_RESULTS_ON_PAGE"


class Api:
    """One project's API."""

    def __init__(self, credentials: GcpCredentials, transport: httpx.BaseTransport | None = None) -> None:
        self.credentials = credentials
        self._account = Account(credentials, transport)
        how: dict[str, Any] = {"login": self._account.login, "meanings": MEANINGS, "transport": transport}
        self.http = JsonApi("Google Cloud", f"{credentials.endpoint or ENDPOINT}/compute/v1", **how)
        self.rights = JsonApi("Google Cloud", RIGHTS_ENDPOINT, **how)
        self._lock = threading.Lock()

    @property
    def project(self) -> str:
        """The id of the project that machines are rented in."""
        return self._account.project()

    def path(self, *rest: str, project: str | None = None) -> str:
        """`/projects/P/...`."""
        return "/".join(("/projects", project or self.project, *rest))

    def now(self) -> datetime:
        """Now by Google's clock."""
        return self.http.now()

    def rows(self, *rest: str, what: str, only: str = "") -> Iterator[dict[str, Any]]:
        """All rows of a listing of one scope. An empty list has no `items` at all."""
        params = {"maxResults": PAGE, **({"filter": only} if only else {})}
        for page in self.http.pages(self.path(*rest), params, cursor="pageToken", next_at="nextPageToken"):
            rows = _fields(page, what).get("items", [])
            if not isinstance(rows, list):
                raise Transient(f"Google Cloud's answer to {what} has no list")
            yield from dicts_of(rows)

    def everywhere(
        self, kind: str, unread: list[Unread], *, what: str, only: str = ""
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Zone (or region) and row, of all zones and pages; what could not be read is added to `unread`.

        A zone that is down is named by a warning in its place or by `unreachables`: unread is not empty.
        """
        params = {"maxResults": PAGE, **({"filter": only} if only else {})}
        path = self.path("aggregated", kind)
        for page in self.http.pages(path, params, cursor="pageToken", next_at="nextPageToken"):
            fields = _fields(page, what)
            if "items" not in fields and not str(fields.get("kind")).endswith("AggregatedList"):
                raise Transient(f"Google Cloud's answer to {what} has no zones")
            missing: dict[str, str] = {
                str(one).rpartition("/")[2]: "Google Cloud calls it unreachable"
                for one in fields.get("unreachables") or ()
            }
            for scope, found in dict_of(fields.get("items")).items():
                place = scope.rpartition("/")[2]
                warning = dict_of(dict_of(found).get("warning"))
                if warning and warning.get("code") != _EMPTY:
                    missing.setdefault(place, _said(warning))
                for row in dicts_of(dict_of(found).get(kind)):
                    yield place, row
            warning = dict_of(fields.get("warning"))
            if warning and warning.get("code") != _EMPTY and not missing:
                missing[kind] = _said(warning)
            known = {one.scope for one in unread}
            unread += [Unread(scope=place, reason=why) for place, why in missing.items() if place not in known]


def dict_of(value: Any) -> dict[str, Any]:
    """An object; an empty one for anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def dicts_of(value: Any) -> list[dict[str, Any]]:
    """The objects in a list; none for anything else."""
    return (
        [dict_of(one) for one in cast("list[Any]", value) if isinstance(one, dict)] if isinstance(value, list) else []
    )


def last(url: object) -> str:
    """What a URL of Google's names: the zone, network or machine type at its end."""
    return str(url or "").rstrip("/").rpartition("/")[2]


def _said(warning: Mapping[str, Any]) -> str:
    words = " ".join(str(warning.get("message") or "no reason is given").split())[:300]
    return f"Google Cloud says {str(warning.get('code'))[:60]}: {words}"


def _fields(page: Any, what: str) -> dict[str, Any]:
    if not isinstance(page, dict) or "error" in page:
        raise Transient(f"Google Cloud's answer to {what} cannot be read")
    return cast("dict[str, Any]", page)
