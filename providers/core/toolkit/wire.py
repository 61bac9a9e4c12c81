"""Wire: one login's connections to an API, and one exchange over them that ends in time, whatever the other side does."""

from __future__ import annotations

import json
import re
import ssl
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import httpx

from prefect_gpu.providers.core.aside import Aside
from prefect_gpu.providers.core.errors import InvalidRequest, ProviderError, Transient, Unconfirmed
from prefect_gpu.providers.core.toolkit.answers import cleaned
from prefect_gpu.providers.core.toolkit.login import Login

Params: TypeAlias = Mapping[str, str | int | float | bool | None]
Transport: TypeAlias = httpx.BaseTransport | Callable[[httpx.BaseTransport], httpx.BaseTransport]

CONNECT_S: Final = 10.0
CONNECTIONS: Final = 50
_NEVER_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
)


class _TooLarge(Exception):
    pass


class _Abandoned(Exception):
    pass


@dataclass(frozen=True)
class Stream:
    """How long events are listened to: until `until` came, none comes for `pause_s`, or `within_s` are over."""

    pause_s: float
    within_s: float
    until: bytes = b""
    max_bytes: int = 4_000_000


@dataclass
class Request:
    """One request as it goes over the wire; `is_abandoned` when nobody waits for it any more."""

    method: str
    path: str
    params: Params | None
    body: Any
    content_type: str
    limit_s: float
    max_bytes: int
    is_abandoned: bool = False
    stream: Stream | None = None

    def again(self) -> Request:
        """The same, for another login."""
        return replace(self, is_abandoned=False)

    def send(self, client: httpx.Client, extensions: Mapping[str, Any]) -> tuple[httpx.Response, bytes]:
        """The answer and its bytes, read until there are too many."""
        has_body = self.body is not None
        connect_s = min(CONNECT_S, self.limit_s)
        headers = {"content-type": self.content_type} if has_body else {}
        with client.stream(
            self.method,
            self.path,
            params=self.params,
            content=json.dumps(self.body, sort_keys=True).encode() if has_body else None,
            headers={**headers, "accept": "text/event-stream"} if self.stream else headers,
            timeout=httpx.Timeout(self.limit_s, connect=connect_s, pool=connect_s),
            extensions={"trace": self._trace, **extensions},
        ) as response:
            if self.stream is not None and response.is_success:
                return response, self._begun(response, self.stream)
            content = bytearray()
            for piece in response.iter_bytes():
                content += piece
                if len(content) > self.max_bytes or self.is_abandoned:
                    raise _TooLarge
        return response, bytes(content)

    def _begun(self, response: httpx.Response, stream: Stream) -> bytes:
        """What has come of an answer that perhaps never ends, when it pauses, its time is over or there is enough of it."""
        response.request.extensions["timeout"]["read"] = stream.pause_s  # httpcore looks it up before each read
        end, content = time.monotonic() + stream.within_s, bytearray()
        enough = re.compile(re.escape(stream.until) + rb"[^\n]*\n")
        with suppress(httpx.ReadTimeout):
            for piece in response.iter_bytes():
                content += piece
                is_there = stream.until and enough.search(content)
                if is_there or len(content) > stream.max_bytes or self.is_abandoned or time.monotonic() > end:
                    break
        return bytes(content[: stream.max_bytes])

    def _trace(self, event: str, _info: object) -> None:
        """Httpcore tells each step here: an order that nobody waits for any more is not sent after all."""
        if self.is_abandoned and event.endswith("send_request_headers.started"):
            raise _Abandoned


class Wire:
    """The connections of one login; they close when nobody uses them any more."""

    def __init__(
        self, vendor: str, url: str, headers: Mapping[str, str], login: Login, transport: Transport | None
    ) -> None:
        self.login = login
        self._vendor = vendor
        if not isinstance(transport, httpx.BaseTransport):
            real = httpx.HTTPTransport(
                verify=login.tls if login.tls is not None else True,
                proxy=login.proxy,
                limits=httpx.Limits(max_connections=CONNECTIONS),
            )
            transport = transport(real) if transport is not None else real
        self._client = httpx.Client(
            base_url=url,
            headers={**headers, **login.headers},
            transport=transport,
            trust_env=False,  # a driver reads no environment: no proxy, no ~/.netrc
        )
        weakref.finalize(self, self._client.close)

    def exchange(self, request: Request, doing: str, *, is_order: bool) -> tuple[httpx.Response, bytes]:
        """One request and its whole answer; an answer that drips for ever is left to a thread of its own."""
        extensions = {"sni_hostname": self.login.server_name} if self.login.server_name else {}
        client = self._client
        call = Aside(lambda: request.send(client, extensions))
        lost = Unconfirmed if is_order else Transient
        try:
            is_done = call.wait(request.limit_s + (request.stream.within_s if request.stream else 0.0))
        finally:  # out of time, or a signal: what was not sent yet never is
            request.is_abandoned = True
        if not is_done:
            raise lost(f"{self._vendor} did not finish its answer to {doing} in {request.limit_s:g} s")
        try:
            return call.result()
        except _NEVER_SENT as error:
            raise self._unreachable(error, doing) from None
        except _TooLarge:
            raise lost(f"{self._vendor}'s answer to {doing} is larger than {request.max_bytes:,} bytes") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise lost(f"{self._vendor}'s answer to {doing} was lost: {type(error).__name__}") from None

    def _unreachable(self, error: Exception, doing: str) -> ProviderError:
        root: BaseException = error
        while (cause := root.__cause__ or root.__context__) is not None:
            root = cause
        if isinstance(root, ssl.SSLCertVerificationError):
            return InvalidRequest(
                f"{self._vendor}'s certificate is not trusted ({root.verify_message}): behind a company's proxy, name its CA "
                "in the account's block"
            )
        words = cleaned(str(error), self.login.secrets) if isinstance(error, httpx.ConnectError) else ""
        return Transient(
            f"{self._vendor} cannot be reached for {doing}: {type(error).__name__}" + (f" ({words})" if words else "")
        )
