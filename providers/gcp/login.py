"""Who asks Google Cloud: google-auth's credentials, their tokens fetched on the way that the block names."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from threading import Lock
from typing import Any, Final

import httpx

from prefect_gpu.blocks.gcp import GcpCredentials
from prefect_gpu.providers.core.errors import AuthFailed, InvalidRequest, Transient
from prefect_gpu.providers.core.models import utc_now
from prefect_gpu.providers.core.toolkit.answers import cleaned
from prefect_gpu.providers.core.toolkit.login import Login, bearer, tls

_SECONDS: Final = 20.0  # for one call of google-auth


class Account:
    """One block's credentials: made when they are first needed, and anew for each token, so that a file that changed is read."""

    def __init__(self, block: GcpCredentials, transport: httpx.BaseTransport | None = None) -> None:
        self._block = block
        self._transport = transport
        self._lock = Lock()
        self._project = block.project
        self._unused: Any = None  # credentials that were made to learn their project

    def project(self) -> str:
        """The project that machines are rented in."""
        if self._project is None:
            self._unused = self._made(self._way())
        if self._project is None:
            raise InvalidRequest("these credentials name no project: give the block's field project its id")
        return self._project

    def login(self) -> Login:
        """A token, and the way to Google; AuthFailed where these credentials give none."""
        way = self._way()
        found, self._unused = self._unused or self._made(way), None
        try:
            found.refresh(way)
        except Exception as trouble:  # noqa: BLE001 - told below, or raised as it is
            raise self._told(trouble) from None
        left_s = (found.expiry.replace(tzinfo=UTC) - utc_now()).total_seconds() if found.expiry else None
        return bearer(found.token, good_for_s=left_s, proxy=self._block.api.proxy, ca=self._block.api.ca)

    def _way(self) -> _Way:
        return _Way(self._block, self._transport)

    def _made(self, way: _Way) -> Any:
        with self._lock:
            try:
                found, project = self._block.get_credentials(way)
            except Exception as trouble:  # noqa: BLE001 - told below, or raised as it is
                raise self._told(trouble) from None
            self._project = self._project or project
            return found

    def _told(self, trouble: Exception) -> Exception:
        """What google-auth raised, as ours."""
        from google.auth import exceptions as google

        if not isinstance(trouble, google.GoogleAuthError | ValueError | OSError):
            return trouble
        key = self._block.key.get_secret_value() if self._block.key is not None else ""
        said = trouble.args[0] if trouble.args and not isinstance(trouble, OSError) else trouble
        words = cleaned(str(said), (key,) if key.lstrip().startswith("{") else ())
        if isinstance(trouble, google.TransportError) or getattr(trouble, "retryable", False):
            return Transient(f"Google did not answer to the login: {words}")
        return AuthFailed(
            f"Google gives these credentials no token: {words}. Look at the block's credentials", reach="provider"
        )


class _Way:
    """google-auth's `Request` over httpx, by way of the block's proxy and with its company's CA."""

    def __init__(self, block: GcpCredentials, transport: httpx.BaseTransport | None) -> None:
        self._transport = transport
        self._proxy = block.api.proxy.get_secret_value() if block.api.proxy else None
        self._ca = block.api.ca

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = _SECONDS,
        **_: Any,
    ) -> _Answer:
        from google.auth import exceptions as google

        settings: Any = {"transport": self._transport} if self._transport is not None else {"proxy": self._proxy}
        if self._ca:
            settings["verify"] = tls(self._ca)
        seconds = min(timeout or _SECONDS, _SECONDS)
        try:
            with httpx.Client(trust_env=False, timeout=seconds, **settings) as client:
                return _Answer(client.request(method, url, content=body, headers=headers))
        except httpx.HTTPError as trouble:
            raise google.TransportError(f"{type(trouble).__name__} at {httpx.URL(url).host}") from None


class _Answer:
    """google-auth's `Response`."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.data = response.content
