"""The realm: which Prefect server's instances are ours, and the master secret their SSH keys are derived from."""

from __future__ import annotations

import functools
import secrets
import string
from typing import Final, cast

from prefect.blocks.core import Block
from prefect.settings import get_current_settings
from pydantic import Field, SecretStr

NAME: Final = "default"
_ALPHABET = string.ascii_lowercase + string.digits


class GpuRealm(Block):
    """Tells this Prefect server's GPU instances from others on the same account, and holds the secret of their SSH keys.

    Made by itself on first use, once per Prefect server. Losing it loses the way into running instances, not the power to
    terminate them: their names stay readable.

    Example:
        ```python
        from blocks.realm import GpuRealm

        realm = GpuRealm.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "GPU realm"
    _block_type_slug = "gpu-realm"
    _description = "Tells this Prefect server's GPU instances from others on the same account, and holds the secret of their SSH keys."
    _documentation_url = "https://docs.prefect.io/v3/concepts/blocks"  # pyright: ignore[reportAssignmentType] - pydantic reads a string

    realm: str = Field(
        title="Realm",
        description="Four letters or digits that stand in the name of every instance of this Prefect server.",
        pattern=r"^[a-z0-9]{4}$",
    )
    master_secret: SecretStr = Field(
        title="Master secret", description="64 hexadecimal digits; SSH keys are derived from it, never stored."
    )

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
