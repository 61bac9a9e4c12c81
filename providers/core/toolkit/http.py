"""JsonApi: a vendor's JSON API over httpx, its codes, words and statuses told apart as the errors of errors.py.

| what came | a call without side effects | an order |
|---|---|---|
| no connection | Transient, after retries | Transient: nothing was sent |
| a certificate that is not trusted | InvalidRequest | the same |
| timeout or reset after sending, 5xx, a body that is no JSON, too large or without an end | Transient, after retries of a GET | Unconfirmed |
| 2xx without the id of what was bought | - | Unconfirmed |
| 429 | RateLimited | RateLimited |
| 401 or 403; 402; 404 | AuthFailed; InsufficientFunds; NotFound | the same |
| any other 3xx or 4xx | InvalidRequest with the vendor's words | the same |

A vendor's own code, where it is mapped, goes before its words, these before its status; a code counts in a 200 too. A 401 is answered by
other credentials, where `login` has others by then: it was certainly not carried out. Messages are made of the vendor's words and what was
asked for: no header, no query string, and the credentials cut out should the vendor repeat them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, cast

import httpx
from pydantic import SecretStr
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from prefect_gpu.blocks.api import ApiAccess
from prefect_gpu.providers.core.errors import InvalidRequest, NotFound, RateLimited, Transient, Unconfirmed
from prefect_gpu.providers.core.models import utc_now
from prefect_gpu.providers.core.toolkit import answers, events
from prefect_gpu.providers.core.toolkit.answers import Json, Meanings
from prefect_gpu.providers.core.toolkit.login import Login, Renewed, bearer, by_way_of
from prefect_gpu.providers.core.toolkit.pace import Pace
from prefect_gpu.providers.core.toolkit.wire import Params, Request, Stream, Transport, Wire

GET_ATTEMPTS: Final = 3
MAX_BYTES: Final = 64_000_000  # of one answer
MAX_PAGES: Final = 1000  # of one listing
LISTING_S: Final = 300.0  # for all its pages


class JsonApi:
    """One vendor's API with one account's credentials. Usable from many threads; a driver keeps one.

    Args:
        vendor: As messages name it.
        base_url: What the paths of calls are appended to.
        token: For `Authorization: Bearer`, where that is all there is to a login.
        access: The block's field `api`: a proxy, a company's CA, also for a `login` that names none itself.
        login: Makes a Login of another kind; asked again before it expires and when it was refused.
        meanings: How the vendor says what went wrong.
        headers: What every request carries beside the login.
        every_s: At least so long between the beginnings of two requests, where a vendor wants that.
        timeout_s: For a whole call, from its connection to the last byte of its answer.
        retry_wait_s: Between the tries of a GET, doubled each time.
        max_bytes: Of one answer.
        transport: For tests: what takes the place of the network, or is wrapped around it.
    """

    def __init__(
        self,
        vendor: str,
        base_url: str,
        *,
        token: SecretStr | None = None,
        access: ApiAccess | None = None,
        login: Callable[[], Login] | None = None,
        meanings: Meanings | None = None,
        headers: Mapping[str, str] | None = None,
        every_s: float = 0.0,
        timeout_s: float = 30.0,
        retry_wait_s: float = 0.5,
        max_bytes: int = MAX_BYTES,
        transport: Transport | None = None,
    ) -> None:
        self._vendor = vendor
        self._url = base_url
        way = access or ApiAccess()
        make = login or (lambda: bearer(token) if token is not None else Login())
        self._logins = Renewed(lambda: by_way_of(make(), proxy=way.proxy, ca=way.ca))
        self._meanings = meanings or Meanings()
        self._headers = {"accept": "application/json", "accept-encoding": "identity", **(headers or {})}
        self._pace = Pace(every_s)
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._transport = transport
        self._lock = threading.Lock()
        self._wire: Wire | None = None
        self._ahead = timedelta(0)
        self._get = Retrying(
            stop=stop_after_attempt(GET_ATTEMPTS),
            wait=wait_exponential(multiplier=retry_wait_s) + wait_random(0, retry_wait_s),
            retry=retry_if_exception(_is_mended_by_waiting),
            reraise=True,
        )

    def get(self, path: str, params: Params | None = None, **how: Any) -> Json:
        """The answer; asked again a few times while it is Transient (a RateLimited is the caller's to wait for)."""
        return self._get.copy()(self._send, "GET", path, params, None, **how)

    def post(self, path: str, body: Json = None, params: Params | None = None, **how: Any) -> Json:
        """The answer, asked once. For what costs money there is `order`.

        `how`, of every call: `what`, the call in a user's words, for messages; `timeout_s`; `content_type`.
        """
        return self._send("POST", path, params, body, **how)

    def put(self, path: str, body: Json = None, params: Params | None = None, **how: Any) -> Json:
        """The answer, asked once. For what costs money there is `order`."""
        return self._send("PUT", path, params, body, **how)

    def patch(self, path: str, body: Json = None, params: Params | None = None, **how: Any) -> Json:
        """The answer, asked once."""
        return self._send("PATCH", path, params, body, **how)

    def delete(
        self, path: str, params: Params | None = None, body: Json = None, *, missing_ok: bool = False, **how: Any
    ) -> Json:
        """The answer, asked once. NotFound when it is gone already; None where that is as good."""
        try:
            return self._send("DELETE", path, params, body, **how)
        except NotFound:
            if missing_ok:
                return None
            raise

    def order(
        self, path: str, body: Json, *, id_at: str, method: str = "POST", params: Params | None = None, **how: Any
    ) -> Json:
        """The answer to a call that may buy something: sent once. Unconfirmed when it was sent and no definite answer came.

        `id_at` is the dotted path to the id of what was bought (`instance.id`; empty: the whole answer is the id).
        """
        answer = self._send(method, path, params, body, is_order=True, **how)
        found = answers.at(answer, id_at)
        if isinstance(found, bool) or not isinstance(found, str | int) or not str(found).strip():
            raise Unconfirmed(f"{self._vendor} accepted {_doing(method, path, how)} and named no id")
        return answer

    def pages(self, path: str, params: Params | None = None, *, cursor: str, next_at: str) -> Iterator[Json]:
        """All pages of a listing: what stands at `next_at` in a page is the query parameter `cursor` of the next.

        A listing that repeats itself or has no end is Transient: half a listing must not pass for a whole one.
        """
        asked: dict[str, str | int | float | bool | None] = dict(params or {})
        seen = {asked.get(cursor)}
        end = time.monotonic() + LISTING_S
        for _ in range(MAX_PAGES):
            page = self.get(path, asked)
            yield page
            following = answers.at(page, next_at)
            if not following:
                return
            if not isinstance(following, str | int) or following in seen or time.monotonic() > end:
                break
            seen.add(following)
            asked[cursor] = following
        raise Transient(f"{self._vendor} does not come to an end of {_shown(path)}")

    def rows(
        self,
        path: str,
        key: str,
        params: Params | None = None,
        *,
        cursor: str = "cursor",
        next_at: str = "",
        is_nullable: bool = False,
    ) -> Iterator[dict[str, Any]]:
        """All objects in the lists at `key` of all pages; without `next_at` there is one page.

        Transient where a page lacks its list, holds something else in it, or is the one before once more: unread is not empty.
        `is_nullable`: null is how this vendor writes an empty list.
        """
        pages = self.pages(path, params, cursor=cursor, next_at=next_at) if next_at else [self.get(path, params)]
        before: list[Any] | None = None
        for page in pages:
            found = answers.at(page, key)
            if found is None and is_nullable:
                found = []
            rows = cast("list[Any]", found) if isinstance(found, list) else [None]
            if not all(isinstance(row, dict) for row in rows):
                raise Transient(f"{self._vendor}'s answer to GET {_shown(path)} has no list of {key}")
            if rows and rows == before:
                raise Transient(f"{self._vendor} does not come to an end of {_shown(path)}: a page came twice")
            before = rows
            yield from cast("list[dict[str, Any]]", rows)

    def row(self, path: str, key: str, **how: Any) -> dict[str, Any]:
        """The object at `key` of an answer. Transient where there is none."""
        found = answers.at(self.get(path, **how), key)
        if not isinstance(found, dict):
            raise Transient(f"{self._vendor}'s answer to {_doing('GET', path, how)} has no {key or 'object'}")
        return cast("dict[str, Any]", found)

    def text(self, path: str, key: str, **how: Any) -> str:
        """The word or number at `key` of an answer. Transient where there is none."""
        found = answers.at(self.get(path, **how), key)
        if isinstance(found, bool) or not isinstance(found, str | int) or not str(found).strip():
            raise Transient(f"{self._vendor}'s answer to {_doing('GET', path, how)} has no {key}")
        return str(found).strip()

    def events(
        self,
        path: str,
        params: Params | None = None,
        *,
        pause_s: float,
        within_s: float,
        until: bytes = b"",
        **how: Any,
    ) -> list[Json]:
        """The data of server-sent events, of which there may be no end: see `Stream`. Asked once."""
        doing, stream = _doing("GET", path, how), Stream(pause_s, within_s, until)
        response, content, secrets = self._asked("GET", path, params, None, doing, stream=stream, **how)
        if not response.is_success:
            self._read(response, content, doing, secrets)  # raises
        return events.data_in(content)

    def now(self) -> datetime:
        """Now by the vendor's clock, as its last answer told it: ages are counted by the clock that wrote the times."""
        return utc_now() + self._ahead

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            self._wire = None

    def _send(
        self, method: str, path: str, params: Params | None, body: Json, *, is_order: bool = False, **how: Any
    ) -> Json:
        doing = _doing(method, path, how)
        response, content, secrets = self._asked(method, path, params, body, doing, is_order=is_order, **how)
        return self._read(response, content, doing, secrets, is_order=is_order)

    def _read(
        self, response: httpx.Response, content: bytes, doing: str, secrets: tuple[str, ...], *, is_order: bool = False
    ) -> Json:
        how: Any = {"doing": doing, "vendor": self._vendor, "is_order": is_order, "secrets": secrets}
        return answers.read(response, content, self._meanings, **how)

    def _asked(
        self,
        method: str,
        path: str,
        params: Params | None,
        body: Json,
        doing: str,
        *,
        is_order: bool = False,
        timeout_s: float | None = None,
        content_type: str = "application/json",
        stream: Stream | None = None,
        **_: Any,
    ) -> tuple[httpx.Response, bytes, tuple[str, ...]]:
        limit_s = timeout_s or self._timeout_s
        request = Request(method, path, params, body, content_type, limit_s, self._max_bytes, stream=stream)
        wire = self._wire_of(self._logins.current())
        try:
            response, content = self._exchange(wire, request, doing, is_order)
        except InvalidRequest:  # a certificate that is not trusted, so nothing was sent: another CA may be there by now
            if (other := self._logins.after_refusal(wire.login)) is None:
                raise
            wire = self._wire_of(other)
            response, content = self._exchange(wire, request.again(), doing, is_order)
        if response.status_code == 401 and (other := self._logins.after_refusal(wire.login)) is not None:
            wire = self._wire_of(other)
            response, content = self._exchange(wire, request.again(), doing, is_order)
        if (date := answers.date_in(response.headers.get("date", ""))) is not None:
            self._ahead = date - utc_now()
        return response, content, wire.login.secrets

    def _exchange(self, wire: Wire, request: Request, doing: str, is_order: bool) -> tuple[httpx.Response, bytes]:
        with self._pace.turn():
            return wire.exchange(request, doing, is_order=is_order)

    def _wire_of(self, login: Login) -> Wire:
        with self._lock:
            if self._wire is None or self._wire.login != login:
                # The old one is not closed: other threads may be using it; it closes with its last answer.
                self._wire = Wire(self._vendor, self._url, self._headers, login, self._transport)
            return self._wire


def _doing(method: str, path: str, how: Mapping[str, Any]) -> str:
    what = how.get("what")
    return f"to {what}" if what else f"{method} {_shown(path)}"


def _is_mended_by_waiting(error: BaseException) -> bool:
    return isinstance(error, Transient) and not isinstance(error, RateLimited)


def _shown(path: str) -> str:
    return httpx.URL(path).path
