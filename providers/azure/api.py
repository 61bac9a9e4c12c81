"""Azure's Resource Manager for one block: login, paths and their versions, and listings by `nextLink`."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, cast

import httpx

from prefect_gpu.blocks.azure import CLOUDS, AzureCredentials
from prefect_gpu.providers.azure.errors import MEANINGS, of_login, with_reach
from prefect_gpu.providers.core.errors import NotFound, ProviderError, RegionClosed, Transient
from prefect_gpu.providers.core.toolkit import answers
from prefect_gpu.providers.core.toolkit.http import LISTING_S, MAX_PAGES, JsonApi
from prefect_gpu.providers.core.toolkit.login import Login, bearer
from prefect_gpu.providers.core.toolkit.wire import Transport

COMPUTE: Final = "/providers/Microsoft.Compute"
NETWORK: Final = "/providers/Microsoft.Network"
# By the longest part that a path has. https://learn.microsoft.com/rest/api/azure/
VERSIONS: Final = {
    COMPUTE: "2024-07-01",
    f"{COMPUTE}/disks": "2024-03-02",
    f"{COMPUTE}/skus": "2021-07-01",
    NETWORK: "2024-05-01",
    "/providers/Microsoft.Authorization": "2022-04-01",
    "/providers/Microsoft.Insights": "2015-04-01",
    "/resourcegroups": "2022-09-01",
    "/subscriptions": "2022-12-01",
}


class Arm:
    """Asks Azure with one block's credentials. For many threads. `transport` and `credential` are for tests."""

    def __init__(
        self, credentials: AzureCredentials, transport: Transport | None = None, credential: Any = None
    ) -> None:
        self.credentials = credentials
        cloud = CLOUDS[credentials.cloud]
        self._manager = httpx.URL(cloud.manager)
        self._scope = f"{cloud.manager}/.default"
        self._credential = credential
        how: Any = {"login": self._login, "meanings": MEANINGS, "transport": transport}
        self._api = JsonApi("Azure", cloud.manager, **how)
        # What stands under a name already is never changed by an order: a repeated one is answered by 412.
        self._orders = JsonApi("Azure", cloud.manager, headers={"if-none-match": "*"}, timeout_s=60.0, **how)
        self.subscription = f"/subscriptions/{credentials.subscription_id}"
        self.group = self.group_named(credentials.resource_group)

    def group_named(self, name: str) -> str:
        """The path of a resource group."""
        return f"{self.subscription}/resourceGroups/{name}"

    def get(self, path: str, *, what: str, **params: Any) -> dict[str, Any]:
        """The object that a path answers with. NotFound only where it itself is what is missing."""
        with self._asks(path):
            return self._api.row(path, "", params=_versioned(path, params), what=what)

    def rows(self, path: str, *, what: str, **params: Any) -> Iterator[dict[str, Any]]:
        """All objects of a listing, over all its pages. Transient where one lacks its list: unread is not empty."""
        asked, seen, end = _versioned(path, params), set[str](), time.monotonic() + LISTING_S
        for _ in range(MAX_PAGES):
            with self._asks(path):
                page = self._api.row(path, "", params=asked, what=what)
            found = page.get("value")
            if not isinstance(found, list) or not all(isinstance(row, dict) for row in cast("list[Any]", found)):
                raise Transient(f"Azure's answer to {what} has no list")
            yield from cast("list[dict[str, Any]]", found)
            link = page.get("nextLink")
            if not link:
                return
            if not isinstance(link, str) or link in seen or time.monotonic() > end:
                break
            seen.add(link)
            path, asked = self._following(link)
        raise Transient(f"Azure does not come to an end of what it was asked to {what}")

    def put(self, path: str, body: dict[str, Any], *, what: str) -> None:
        """Make what costs nothing, or make it again as it is."""
        with self._asks(path):
            self._api.put(path, body, _versioned(path, {}), what=what)

    def order(self, path: str, body: dict[str, Any], *, what: str) -> dict[str, Any]:
        """Make what costs money, where nothing stands under this name yet. Sent once."""
        with self._asks(path):
            answer = self._orders.order(path, body, id_at="name", method="PUT", params=_versioned(path, {}), what=what)
        return cast("dict[str, Any]", answer)

    def delete(self, path: str, *, what: str, **params: Any) -> None:
        """Ask for the end of something; gone already is as good."""
        try:
            with self._asks(path):
                self._api.delete(path, _versioned(path, params), missing_ok=True, what=what)
        except NotFound:
            return

    def now(self) -> datetime:
        """Now by Azure's clock, as its last answer told it."""
        return self._api.now()

    def has_group(self, path: str) -> bool:
        """Whether the subscription lists the resource group of this path."""
        name = path.removeprefix(f"{self.subscription}/resourceGroups/").split("/", 1)[0].lower()
        listed = self.rows(f"{self.subscription}/resourcegroups", what="list the resource groups")
        return any(str(row.get("name")).lower() == name for row in listed)

    @contextmanager
    def _asks(self, path: str) -> Generator[None]:
        try:
            yield
        except RegionClosed as missing:
            # A new group is not known everywhere at once, and a wrong subscription has none: only its own list is proof.
            if missing.code == "ResourceGroupNotFound" and path.startswith(f"{self.subscription}/resourceGroups/"):
                is_itself = path.count("/") == self.group.count("/")
                if is_itself or not self.has_group(path):
                    raise NotFound(missing.message, code=missing.code) from None
                raise Transient(missing.message, code=missing.code) from None
            raise with_reach(missing) from None
        except ProviderError as error:
            raise with_reach(error) from None

    def _following(self, link: str) -> tuple[str, dict[str, Any]]:
        url = httpx.URL(link)
        if (url.scheme, url.host, url.port) != (self._manager.scheme, self._manager.host, self._manager.port):
            raise Transient("Azure names a next page at another address: it is not asked for there")
        return url.path, dict(url.params)

    def _login(self) -> Login:
        secrets = self.credentials.client_secret, self.credentials.certificate
        known = tuple(one.get_secret_value() for one in secrets if one is not None)
        try:
            if self._credential is None:
                self._credential = self.credentials.get_credential()
            token = self._credential.get_token(self._scope)
        except Exception as failure:
            if (ours := of_login(failure, known)) is None:
                raise
            raise ours from None
        way: Any = {"proxy": self.credentials.api.proxy, "ca": self.credentials.api.ca}
        return bearer(token.token, good_for_s=max(1.0, token.expires_on - time.time()), **way)


def _versioned(path: str, params: dict[str, Any]) -> dict[str, Any]:
    known = [part for part in VERSIONS if part.lower() in path.lower()]
    named = {f"${name}" if name in ("filter", "expand") else name: value for name, value in params.items()}
    return {"api-version": VERSIONS[max(known, key=len)], **named}


def at(row: Any, path: str, default: Any = None) -> Any:
    """What stands at a dotted path of an answer, where it is of the default's kind; else the default."""
    found = answers.at(row, path)
    if default is None:
        return found
    return found if isinstance(found, type(default)) else default


def each_dict(row: Any, path: str) -> list[dict[str, Any]]:
    """The objects in the list at a dotted path."""
    found: list[Any] = at(row, path, cast("list[Any]", []))
    return [cast("dict[str, Any]", one) for one in found if isinstance(one, dict)]
