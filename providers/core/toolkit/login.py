"""Login: what proves to an API who asks, and the way to it: token, certificates, proxy."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from urllib.parse import urlsplit

from pydantic import SecretStr

from prefect_gpu.blocks.api import pem
from prefect_gpu.providers.core.errors import AuthFailed, InvalidRequest

RENEW_BEFORE_S = 60.0  # the end of credentials that say how long they are good


@dataclass(frozen=True)
class Login:
    """What every request carries and how it travels. Two logins that are equal are not worth trying one after the other."""

    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    secrets: tuple[str, ...] = ()  # cut out of every message, should the vendor repeat them
    proxy: str | None = None  # http://user:password@host:port
    tls: ssl.SSLContext | None = field(default=None, compare=False)  # None: the public CAs
    tls_key: object = None  # what tells one `tls` from another: the bytes of the certificates
    server_name: str | None = None  # the name in the server's certificate, where it is not the host's
    good_for_s: float | None = field(default=None, compare=False)  # None: until it is refused


def bearer(
    token: SecretStr | str,
    *,
    proxy: SecretStr | str | None = None,
    ca: str | None = None,
    good_for_s: float | None = None,
) -> Login:
    """A login by `Authorization: Bearer`, by way of the account's proxy and with its company's CA where it has them."""
    secret = _plain(token).strip()
    if not secret or not (secret.isascii() and secret.isprintable()) or " " in secret:
        raise AuthFailed(
            "the saved API key is empty or has characters that no key has: save it again", reach="provider"
        )
    login = Login(headers={"authorization": f"Bearer {secret}"}, secrets=(secret,), good_for_s=good_for_s)
    return by_way_of(login, proxy=proxy, ca=ca)


def by_way_of(login: Login, *, proxy: SecretStr | str | None = None, ca: str | None = None) -> Login:
    """The login, travelling by the account's proxy and trusting its company's CA; what it says of its own way itself goes before."""
    if login.proxy is None and (way := _plain(proxy).strip() if proxy else ""):
        login = replace(login, proxy=way, secrets=(*login.secrets, *_password_of(way)))
    if login.tls is None and ca:
        login = replace(login, tls=tls(ca), tls_key=ca)
    return login


def tls(ca: str | None = None, *, certificate: str | None = None, key: str | None = None) -> ssl.SSLContext:
    """What a server is verified by: the public CAs and `ca`, as PEM text or the path of a file of it; and who we are, by two files.

    Raises InvalidRequest, naming the file, where one cannot be used.
    """
    context = ssl.create_default_context()
    what = "the CA"
    try:
        if ca:
            context.load_verify_locations(cadata=pem(ca))
        if certificate:
            what = f"the client certificate {certificate}"
            context.load_cert_chain(Path(certificate).expanduser(), Path(key).expanduser() if key else None)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = (
            error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else "it is not PEM"
        )
        raise InvalidRequest(f"{what} of the account's block cannot be used on this worker: {reason}") from None
    return context


class Renewed:
    """One account's login, kept while it is good: asked for again before it expires, and once when it was refused."""

    def __init__(self, make: Callable[[], Login]) -> None:
        self._make = make
        self._lock = Lock()
        self._login: Login | None = None
        self._good_until = 0.0

    def current(self) -> Login:
        """The login in use."""
        with self._lock:
            if self._login is None or time.monotonic() >= self._good_until:
                self._take(self._make())
            return self._login or Login()

    def after_refusal(self, refused: Login) -> Login | None:
        """Another login than the one that was refused; None where there is no other."""
        with self._lock:
            if self._login == refused:
                self._take(self._make())
            return self._login if self._login != refused else None

    def _take(self, made: Login) -> None:
        good_for_s = made.good_for_s
        self._login = made
        self._good_until = time.monotonic() + max(1.0, good_for_s - RENEW_BEFORE_S) if good_for_s else float("inf")


def _plain(text: SecretStr | str) -> str:
    return text.get_secret_value() if isinstance(text, SecretStr) else text


def _password_of(proxy: str | None) -> tuple[str, ...]:
    password = urlsplit(proxy).password if proxy else None
    return (password,) if password else ()
