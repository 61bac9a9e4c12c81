"""The realm: which Prefect server's instances are ours, and the master secret their SSH keys are derived from."""

from __future__ import annotations

import functools
import secrets
import string
from typing import Final, cast

from prefect.blocks.core import Block
from prefect.settings import get_current_settings
from pydantic import Field, SecretStr

from prefect_gpu.blocks.pages import logo, page
from prefect_gpu.blocks.server import NAMED, this_server

NAME: Final = "default"
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

    def is_of(self, server: str) -> bool:
        """Whether this realm is that server's: it was made by it, or an operator said so, or nobody knows whose it is."""
        return not self.servers or any(one == server or one.startswith(f"{server} ") for one in self.servers)

    @property
    def is_named(self) -> bool:
        """Whether it is known by the name of its server."""
        return any(one.startswith(NAMED) for one in self.servers)

    def must_be_of(self, server: str) -> None:
        """Raise NotItsServer where this realm was made by another Prefect server than the one that is asked now."""
        if self.is_of(server):
            return
        raise NotItsServer(
            f"the realm {self.realm} belongs to the Prefect server {self.servers[0]}, and this is {server}: nothing was bought or "
            "terminated. If it is the same server under a new address, or its successor, say so once with "
            "`prefect deployment run reap/default -p trust_server=true`; if it is a copy, delete its block gpu-realm/default"
        )

    def trust(self, server: str) -> GpuRealm:
        """This realm belongs to that server too, from now on."""
        if server in self.servers:
            return self
        saved = self._load()  # what an operator changed meanwhile stays
        trusted = saved.model_copy(update={"servers": [*(one for one in saved.servers if one != server), server]})
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
