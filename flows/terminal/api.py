"""Prefect's own client, the only way to Prefect's API: it knows profiles, passwords, certificates, headers and CSRF protection.

What a server says against us becomes one sentence. Prefect is imported in the functions: its settings are read at import, and a
server of our own sets some of them first.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from prefect_gpu.flows.terminal.messages import Trouble

if TYPE_CHECKING:
    from collections.abc import Generator

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.exceptions import PrefectHTTPStatusError

URL: Final = "PREFECT_API_URL"
PASSWORD: Final = "PREFECT_API_AUTH_STRING"  # noqa: S105 - the name of a variable


def use(**settings: str) -> None:
    """Settings of Prefect for this process and those that it starts, whether Prefect was imported already or not."""
    os.environ.update(settings)
    if "prefect" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()


@contextlib.contextmanager
def asked(url: str, password: str | None = None) -> Generator[SyncPrefectClient]:
    """A client of the server at this address; whatever keeps it from answering is Trouble."""
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        with _client(url, password) as client:
            yield client
    except PrefectHTTPStatusError as error:
        raise Trouble(refusal(url, error)) from error
    except httpx.TransportError as error:
        raise Trouble(f"The Prefect server at {url} does not answer{_why(error)}.") from error


@contextlib.contextmanager
def _client(url: str, password: str | None, **httpx_settings: Any) -> Generator[SyncPrefectClient]:
    from prefect.client.orchestration import get_client

    with _settings(url, password), get_client(httpx_settings=httpx_settings, sync_client=True) as client:
        yield client


def _settings(url: str, password: str | None) -> contextlib.AbstractContextManager[object]:
    """Prefect's settings for this server. To make others takes 50 ms, so those that are right stay."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, get_current_settings, temporary_settings

    now = get_current_settings().api
    known = now.auth_string.get_secret_value() if now.auth_string is not None else None
    if now.url == url and password in (None, known):
        return contextlib.nullcontext()
    settings: dict[Any, Any] = {PREFECT_API_URL: url}
    if password is not None:
        settings[PREFECT_API_AUTH_STRING] = password
    return temporary_settings(settings)


def refusal(url: str, error: PrefectHTTPStatusError) -> str:
    """What a server answered instead of doing it, as a sentence."""
    status = error.response.status_code
    if status in (401, 403):
        return (
            f"{url} refuses ({status}): {_detail(error)}. Are PREFECT_API_KEY and PREFECT_API_AUTH_STRING right, "
            "in the environment or in your Prefect profile?"
        )
    if status in (409, 422):  # parameters that this server's deployment does not take: it may be an older one
        return f"{url} refuses: {_detail(error)}."
    return f"The Prefect server at {url} answers {status}: {_detail(error)}."


def unusable(url: str, password: str | None = None, home: str | None = None) -> str | None:
    """Why there is no Prefect server to use at this address, or None. With `home`: or it keeps its data somewhere else."""
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        with _client(url, password, timeout=5.0) as client:
            client.request("GET", "/health").json()
            if home is not None and client.request("GET", "/admin/settings").json()["home"] != home:
                return "is another one's"
    except PrefectHTTPStatusError as error:
        if error.response.status_code in (
            401,
            403,
        ):  # that credentials are wrong is said where something is done with them
            return None if home is None else "is another one's"
        return f"answers {error.response.status_code}, which is not Prefect's API"
    except httpx.TransportError as error:
        return f"does not answer{_why(error)}"
    except (ValueError, KeyError, TypeError):
        return "answers what is not Prefect's API"
    return None


def meant(url: str) -> str | None:
    """The address that was meant, where this one cannot be one of Prefect's API."""
    text = url.strip()
    if "://" not in text:
        host = text.split("/", 1)[0].partition(":")[0]
        text = f"{'http' if _is_near(host) else 'https'}://{text}"
    parts = urlsplit(text)
    if not parts.path.strip("/"):
        text = f"{text.rstrip('/')}/api"
    return text if text.rstrip("/") != url.rstrip("/") else None


def _is_near(host: str) -> bool:
    return host == "localhost" or host.replace(".", "").isdigit() or "." not in host


def _why(error: Exception) -> str:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f" with a certificate that is trusted here ({text.rpartition(': ')[2].partition(' (_ssl')[0]}): set PREFECT_API_SSL_CERT_FILE"
    return f" ({text})" if text else f" ({type(error).__name__})"


def _detail(error: PrefectHTTPStatusError) -> str:
    """In the server's own words."""
    try:
        answer = error.response.json()
        detail = answer.get("detail") or answer.get("exception_message")
    except (ValueError, AttributeError):
        detail = error.response.text[:500]
    return " ".join(str(detail or "").split()).rstrip(".") or f"status {error.response.status_code}"
