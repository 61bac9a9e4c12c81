"""The realm: which Prefect server's instances are ours, and the master secret their SSH keys are derived from."""

from __future__ import annotations

import functools
import hashlib
import secrets
import string
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlsplit
from uuid import getnode

import httpx
from prefect.blocks.core import Block
from prefect.context import SyncClientContext
from prefect.settings import get_current_settings
from pydantic import Field, SecretStr

from prefect_gpu.blocks.pages import logo, page

NAME: Final = "default"
_MACHINE_ID: Final = Path("/etc/machine-id")
_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_ALPHABET = string.ascii_lowercase + string.digits


class NotItsServer(Exception):
    """The realm is another Prefect server's: this one may be a copy of its database."""


class GpuRealm(Block):
    """Tells this Prefect server's GPU instances from others on the same account, and holds the secret of their SSH keys.

    Made by itself on first use, once per Prefect server. Losing it loses the way into running instances, not the power to
    terminate them: their names stay readable.

    Example:
        ```python
        from prefect_gpu.blocks.realm import GpuRealm

        realm = GpuRealm.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "GPU realm"
    _block_type_slug = "gpu-realm"
    _description = "Tells this Prefect server's machines from others on the same account, and holds the secret that their SSH keys are made from."
    _logo_url = logo("realm")
    _documentation_url = page("security/")

    realm: str = Field(
        title="Realm",
        description="Four letters or digits that stand in the name of every instance of this Prefect server.",
        pattern=r"^[a-z0-9]{4}$",
    )
    master_secret: SecretStr = Field(
        title="Master secret", description="64 hexadecimal digits; SSH keys are derived from it, never stored."
    )

    servers: list[str] = Field(
        default_factory=list,
        title="Servers",
        description="Whose realm it is: a copy of the server's database elsewhere must not act on these instances.",
    )

    providers_off: list[str] = Field(
        default_factory=list,
        title="Providers turned off",
        description="No run of this server rents from them, whatever it asks for; what they hold is still given back. For example local.",
    )
    secrets_prefix: str = Field(
        default="",
        title="Prefix of jobs' secrets",
        description="Jobs may name only Secret blocks whose names begin with it. Empty: any.",
    )

    def must_be_of(self, server: str) -> None:
        """Raise NotItsServer where this realm was made by another Prefect server than the one that is asked now."""
        if self.servers and not any(one == server or one.startswith(f"{server} ") for one in self.servers):
            raise NotItsServer(
                f"the realm {self.realm} belongs to the Prefect server {self.servers[0]}, and this is {server}: nothing was bought or "
                "terminated. If it is the same server under a new address, or its successor, say so once with "
                "`prefect deployment run reap/default -p trust_server=true`; if it is a copy, delete its block gpu-realm/default"
            )

    def trust(self, server: str) -> GpuRealm:
        """This realm belongs to that server too, from now on."""
        if server in self.servers:
            return self
        trusted = self.model_copy(update={"servers": [*self.servers, server]})
        trusted.save(NAME, overwrite=True, _sync=True)  # pyright: ignore[reportCallIssue] - async dispatch
        _of_server.cache_clear()
        return trusted

    def secret_bytes(self) -> bytes:
        """The master secret as 32 bytes."""
        return bytes.fromhex(self.master_secret.get_secret_value())

    @classmethod
    def current(cls) -> GpuRealm:
        """This server's realm, made now if it has none; asked for once a process, since it never changes."""
        return _of_server(get_current_settings().api.url)

    @classmethod
    def load_or_make(cls) -> GpuRealm:
        """The realm as the server has it, or a new one; when two workers make it at once, the first one's counts."""
        try:
            return cls._load()
        except ValueError:
            pass
        made = cls(
            realm="".join(secrets.choice(_ALPHABET) for _ in range(4)),
            master_secret=SecretStr(secrets.token_hex(32)),
            servers=[this_server()],
        )
        try:
            made.save(NAME, overwrite=False, _sync=True)  # pyright: ignore[reportCallIssue] - async dispatch
        except ValueError:  # another worker was first: its realm counts
            return cls._load()
        return made

    @classmethod
    def _load(cls) -> GpuRealm:
        return cast("GpuRealm", cls.load(NAME, _sync=True))  # pyright: ignore[reportCallIssue] - async dispatch


@functools.cache
def _of_server(url: str | None) -> GpuRealm:
    del url  # the key: another server has another realm
    return GpuRealm.load_or_make()


def this_server(*, with_home: bool = True) -> str:
    """What tells the Prefect server that is asked now from one that has a copy of its database.

    Its address; where a process on this host is meant, whose port may change, the host and the server's own folder, which a call tells. A name without a
    dot means another host in each Kubernetes namespace.
    """
    url = get_current_settings().api.url
    address = urlsplit(url or "")
    host = (address.hostname or "").lower()
    if _is_here(host):
        return f"{_host_id()} {_home_of_server()}" if with_home else _host_id()
    if "." not in host and ":" not in host and _NAMESPACE.exists():
        host = f"{host}.{_NAMESPACE.read_text().strip()}"
    port = f":{address.port}" if address.port else ""
    return f"{host}{port}{address.path.rstrip('/').removesuffix('/api')}"


def _host_id() -> str:
    """This host, by what neither its name nor its network changes. A container has no identity of its own that outlives it."""
    known = ""
    with suppress(OSError):
        known = _MACHINE_ID.read_text().strip()
    if not known and sys.platform != "linux":
        known = str(getnode())
    return f"host-{hashlib.sha256(f'prefect-gpu {known}'.encode()).hexdigest()[:8]}" if known else "container"


def _home_of_server() -> str:
    with SyncClientContext.get_or_create() as prefect:
        try:
            return str(prefect.client.request("GET", "/admin/settings").json()["home"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return ""  # it does not say


def is_own_server() -> bool:
    """Whether the Prefect server is a process of this host, as one's own is, or in this very process."""
    host = (urlsplit(get_current_settings().api.url or "").hostname or "").lower()
    return _is_here(host)


def _is_here(host: str) -> bool:
    return host in {"", "localhost", "::1"} or host.startswith("127.")
