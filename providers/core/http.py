"""JsonApi: a vendor's JSON API over httpx, its statuses and codes told apart as the errors of errors.py.

| what came | a call without side effects | an order |
|---|---|---|
| no connection | Transient, after retries | Transient: nothing was sent |
| timeout or reset after sending, 5xx, a body that is no JSON | Transient, after retries of a GET | Unconfirmed |
| 429 | RateLimited | RateLimited |
| 401 or 403; 402; 404 | AuthFailed; InsufficientFunds; NotFound | the same |
| any other 3xx or 4xx | InvalidRequest with the vendor's words | the same |

A vendor's own code, where it is mapped, goes before its status, and counts in a 200 too. Messages are made of the vendor's words,
the method and the path: no header, no query string, and the credentials cut out should the vendor repeat them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple, TypeAlias, cast
from urllib.parse import quote

import httpx
from pydantic import SecretStr
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from providers.core.errors import (
    AuthFailed,
    InsufficientFunds,
    InvalidRequest,
    NotFound,
    ProviderError,
    RateLimited,
    Transient,
    Unconfirmed,
)

Json: TypeAlias = dict[str, Any] | list[Any] | str | int | float | bool | None
Params: TypeAlias = Mapping[str, str | int | float | bool | None]

CONNECT_S: Final = 10.0
GET_ATTEMPTS: Final = 3
MAX_PAGES: Final = 1000  # a cursor that turns in a circle ends here
_WORDS: Final = 300  # of a vendor's explanation
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
_BY_STATUS: Final[Mapping[int, type[ProviderError]]] = {
    401: AuthFailed,
    402: InsufficientFunds,
    403: AuthFailed,
    404: NotFound,
    408: Transient,
    410: NotFound,
    429: RateLimited,
}


class Problem(NamedTuple):
    """What a vendor says went wrong: its own code, where it has codes, and its words."""

    code: str | None
    message: str


def problem_in(body: Json) -> Problem | None:
    """The usual envelopes: `{"error": {"code": ..., "message": ...}}`, `{"error": "words"}`, `{"code": ..., "message": ...}`."""
    if not isinstance(body, dict):
        return None
    found: object = body.get("error") or body.get("errors") or body
    if isinstance(found, list) and found:
        found = cast("list[object]", found)[0]
    if not isinstance(found, dict):
        return Problem(None, str(cast("object", found))) if found else None
    fields = cast("dict[str, object]", found)
    code = fields.get("code") or fields.get("type")
    words = fields.get("message") or fields.get("detail") or fields.get("msg")
    if code is None and words is None:
        return None
    return Problem(None if code is None else str(code), str(words or code))


class JsonApi:
    """One vendor's API with one account's credentials. Usable from many threads; a driver keeps one.

    `codes` maps the vendor's codes to errors; `problem` finds code and words in a body that came with an error status;
    `problem_in_success` in one that came with 2xx, for vendors that report errors so. `secrets` are cut out of every message.
    """

    def __init__(
        self,
        vendor: str,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        auth: httpx.Auth | None = None,
        secrets: tuple[SecretStr, ...] = (),
        codes: Mapping[str, type[ProviderError]] | None = None,
        problem: Callable[[Json], Problem | None] = problem_in,
        problem_in_success: Callable[[Json], Problem | None] | None = None,
        timeout_s: float = 30.0,
        retry_wait_s: float = 0.5,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._vendor = vendor
        self._secrets = [one.get_secret_value() for one in secrets if one.get_secret_value()]
        self._codes = codes or {}
        self._problem = problem
        self._problem_in_success = problem_in_success
        self._client = httpx.Client(
            base_url=base_url,
            headers={"accept": "application/json", **(headers or {})},
            auth=auth,
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_S, pool=CONNECT_S),
            transport=transport,
            trust_env=False,  # a driver reads no environment: no proxy, no ~/.netrc
        )
        self._get = Retrying(
            stop=stop_after_attempt(GET_ATTEMPTS),
            wait=wait_exponential(multiplier=retry_wait_s) + wait_random(0, retry_wait_s),
            retry=retry_if_exception(_is_mended_by_waiting),
            reraise=True,
        )

    def get(self, path: str, params: Params | None = None) -> Json:
        """The answer; asked again a few times while it is Transient (a RateLimited is the caller's to wait for)."""
        return self._get.copy()(self._send, "GET", path, params, None, is_order=False)

    def post(self, path: str, body: Json = None, params: Params | None = None) -> Json:
        """The answer, asked once. For what costs money there is `order`."""
        return self._send("POST", path, params, body, is_order=False)

    def put(self, path: str, body: Json = None, params: Params | None = None) -> Json:
        """The answer, asked once. For what costs money there is `order`."""
        return self._send("PUT", path, params, body, is_order=False)

    def patch(self, path: str, body: Json = None, params: Params | None = None) -> Json:
        """The answer, asked once."""
        return self._send("PATCH", path, params, body, is_order=False)

    def delete(self, path: str, params: Params | None = None) -> Json:
        """The answer, asked once. NotFound when it is gone already."""
        return self._send("DELETE", path, params, None, is_order=False)

    def order(self, path: str, body: Json, *, method: str = "POST", params: Params | None = None) -> Json:
        """The answer to a call that may buy something: sent once. Unconfirmed when it was sent and no definite answer came."""
        return self._send(method, path, params, body, is_order=True)

    def pages(
        self,
        path: str,
        params: Params | None = None,
        *,
        cursor: str,
        next_cursor: Callable[[Any], str | None],
    ) -> Iterator[Json]:
        """All pages of a listing: `next_cursor` finds in a page what the query parameter `cursor` is on the next, None at the end.

        A cursor that stands still or never ends is Transient: half a listing must not pass for a whole one.
        """
        asked: dict[str, str | int | float | bool | None] = dict(params or {})
        for _ in range(MAX_PAGES):
            page = self.get(path, asked)
            yield page
            following = next_cursor(page)
            if not following:
                return
            if following == asked.get(cursor):
                break
            asked[cursor] = following
        raise Transient(f"{self._vendor} does not come to an end of {_shown(path)}")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _send(self, method: str, path: str, params: Params | None, body: Json, *, is_order: bool) -> Json:
        what = f"{method} {_shown(path)}"
        try:
            response = self._client.request(method, path, params=params, json=body)
        except _NEVER_SENT as error:
            raise Transient(f"{self._vendor} cannot be reached for {what}: {type(error).__name__}") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            lost = Unconfirmed if is_order else Transient
            raise lost(f"{self._vendor}'s answer to {what} was lost: {type(error).__name__}") from None
        return self._read(response, what, is_order=is_order)

    def _read(self, response: httpx.Response, what: str, *, is_order: bool) -> Json:
        is_readable = True
        answer: Json = None
        try:
            answer = response.json() if response.content else None
        except ValueError:
            is_readable = False
        status = response.status_code
        find = self._problem_in_success if response.is_success else self._problem
        problem = find(answer) if find is not None and is_readable else None
        mapped = self._codes.get(problem.code) if problem is not None and problem.code is not None else None
        if response.is_success and problem is None:
            if is_readable and not (is_order and answer is None):
                return answer
            unclear = Unconfirmed if is_order else Transient
            raise unclear(f"{self._vendor}'s answer to {what} ({status}) cannot be read")
        kind = mapped or _BY_STATUS.get(status, Transient if status >= 500 else InvalidRequest)
        if (
            is_order and kind is Transient
        ):  # whatever the vendor calls it: an order may be sent again only when it was not carried out
            kind = Unconfirmed
        words = problem.message if problem is not None else ("" if is_readable else response.text)
        message = f"{self._vendor} refused {what} ({status})" + (f": {self._clean(words)}" if words.strip() else "")
        code = problem.code if problem is not None and problem.code is not None else str(status)
        if issubclass(kind, RateLimited):
            raise kind(message, code=code, retry_after_s=_retry_after_s(response))
        raise kind(message, code=code)

    def _clean(self, words: str) -> str:
        for secret in self._secrets:
            for form in {secret, quote(secret, safe=""), json.dumps(secret)[1:-1]}:
                words = words.replace(form, "***")
        line = " ".join(words.split())
        return line if len(line) <= _WORDS else line[: _WORDS - 1] + "…"


def _is_mended_by_waiting(error: BaseException) -> bool:
    return isinstance(error, Transient) and not isinstance(error, RateLimited)


def _shown(path: str) -> str:
    return httpx.URL(path).path


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds to wait by the header Retry-After, which holds seconds or a date; None where it says nothing."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:  # "-0000": UTC by an unknown clock
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
