"""How rented machines are reached: jump host, private addresses and who may use SSH, in the one shape that every credentials block has.

A block holds it as `network`, and reads with `with_network` what its first version stored in flat fields:

    network: Network = network_field()
    _reads_flat_fields = model_validator(mode="before")(with_network)
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final, cast

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

ANYWHERE: Final = ("0.0.0.0/0", "::/0")

_HOST_KEY = re.compile(r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-[a-z0-9]+) [A-Za-z0-9+/]+={0,3}([ \t][^\n\r]*)?", re.ASCII)
_FLAT: Final = {
    "jump_host": "address",
    "jump_port": "port",
    "jump_user": "user",
    "jump_private_key": "private_key",
    "jump_host_key": "host_key",
}


def checked_host_key(line: str | None) -> str | None:
    """A host's public key line without spaces around it; None for an empty one. ValueError, in a sentence, for anything else."""
    if line is None or not line.strip():
        return None
    if not _HOST_KEY.fullmatch(line.strip()):
        raise ValueError(
            "this is not a host key: paste a line of /etc/ssh/ssh_host_ed25519_key.pub, ssh-ed25519 AAAA..."
        )
    return line.strip()


class Hop(BaseModel):
    """A host on the way to machines, without what logs in to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = Field(title="Address", description="Host name or IP address.")
    port: int = Field(default=22, ge=1, le=65535, title="Port", description="Where its sshd listens.")
    user: str = Field(default="root", title="User", description="Who logs in there.")
    host_key: str | None = Field(
        default=None,
        title="Host key",
        description="For example `ssh-ed25519 AAAA...`. Empty: pinned on first use, and said so.",
    )

    _is_host_key = field_validator("host_key")(checked_host_key)


class JumpHost(Hop):
    """A host on the way to machines that have no public address."""

    private_key: SecretStr | None = Field(
        default=None, title="Private key", description="Logs in there. In OpenSSH's format, without a passphrase."
    )


class Network(BaseModel):
    """How an account's machines are reached."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    private: bool = Field(
        default=False,
        title="Private addresses only",
        description="Machines get no public address: the worker stands in their network, or a jump host leads there.",
    )
    ssh_from: list[str] = Field(
        default_factory=lambda: list(ANYWHERE),
        title="SSH is admitted from",
        description="Address ranges that firewalls made for machines admit, for example 203.0.113.0/24 or 203.0.113.7.",
    )
    jump: JumpHost | None = Field(
        default=None, title="Jump host", description="On the way to machines with private addresses."
    )

    @field_validator("ssh_from")
    @classmethod
    def _are_address_ranges(cls, ranges: list[str]) -> list[str]:
        canonical: list[str] = []
        for text in ranges:
            try:
                canonical.append(str(ipaddress.ip_network(text.strip())))
            except ValueError:
                raise ValueError(f"{text!r} is not an address range: write for example 203.0.113.0/24") from None
        return canonical


def network_field() -> Any:
    """The field of a credentials block that holds it."""
    return Field(
        default_factory=Network,
        title="Network",
        description="Private addresses, a jump host, and who may reach machines by SSH.",
    )


def with_network(values: Any) -> Any:
    """A block's fields, where what stood in `private`, `ssh_from` and `jump_...` before stands in `network`."""
    flat = {"private", "ssh_from", *_FLAT}
    if not isinstance(values, dict) or not flat & cast("dict[str, Any]", values).keys():
        return cast("Any", values)
    fields = cast("dict[str, Any]", values)
    old = {name: value for name, value in fields.items() if name in flat and value is not None}
    rest = {name: value for name, value in fields.items() if name not in flat}
    # `jump_port` and `jump_user` were always stored, with their defaults.
    hop = {ours: old[name] for name, ours in _FLAT.items() if name in old} if old.get("jump_host") else None
    network = {name: old[name] for name in ("private", "ssh_from") if name in old}
    if hop is not None:
        network["jump"] = _as_it_was({"user": "ubuntu", **hop})
    given = rest.get("network")
    if isinstance(given, Network):
        given = {name: getattr(given, name) for name in given.model_fields_set}
    return {**rest, "network": {**network, **cast("dict[str, Any]", given or {})}}


def _as_it_was(hop: dict[str, Any]) -> JumpHost:
    """Nobody checked a host key then, and a saved block must load. One that is not a key matches no host's, as before."""
    try:
        return JumpHost.model_validate(hop)
    except ValidationError:
        as_is = JumpHost.model_validate({**hop, "host_key": None})
        return as_is.model_copy(update={"host_key": hop.get("host_key")})
