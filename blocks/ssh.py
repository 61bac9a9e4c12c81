"""The credentials block of a team's own machines: which they are and how each is reached by SSH."""

from __future__ import annotations

import re

from prefect.blocks.core import Block
from prefect.types import SecretDict
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from prefect_gpu.blocks.budget import AccountBudget, budget_field
from prefect_gpu.blocks.network import Hop, checked_host_key
from prefect_gpu.blocks.pages import logo, page

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class SshJumpHost(Hop):
    """A host in between; its key stands among the block's, since Prefect hides no secret that stands in a list."""

    key: str = Field(
        default="", title="Key", description="Name of one of the block's other keys. Empty: its private key."
    )


class SshHost(BaseModel):
    """One machine of the team."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = Field(
        title="Address", description="Host name or IP address, as seen from the worker or the jump host."
    )
    name: str = Field(
        default="", title="Name", description="How offers call it. Empty: its address. Keep it while jobs run there."
    )
    port: int = Field(default=22, ge=1, le=65535, title="Port")
    user: str = Field(default="root", title="User", description="Who logs in, and who jobs run as.")
    key: str = Field(
        default="", title="Key", description="Name of one of the block's other keys. Empty: its private key."
    )
    host_key: str | None = Field(
        default=None,
        title="Host key",
        description="A line of /etc/ssh/ssh_host_ed25519_key.pub there. Empty: pinned on first use, and said so.",
    )
    jump: SshJumpHost | None = Field(default=None, title="Jump host", description="Empty: the block's own, if any.")
    region: str = Field(default="own", title="Region", description="Where it stands, in your words.")
    country: str | None = Field(default=None, title="Country", description="Two letters: US, DE.", pattern="^[A-Z]{2}$")
    price: float = Field(
        default=0.0, ge=0, title="Price", description="USD per hour for the whole machine or each slice."
    )
    gpu_slices: tuple[str, ...] = Field(
        default=(),
        title="GPU slices",
        description="Each is rented apart, as CUDA_VISIBLE_DEVICES: `0,1` and `2,3`. Empty: the whole machine at once.",
    )
    labels: dict[str, str] = Field(default_factory=dict, title="Labels", description="Yours; offers carry them.")

    _is_host_key = field_validator("host_key")(checked_host_key)

    @field_validator("gpu_slices")
    @classmethod
    def _are_slices(cls, slices: tuple[str, ...]) -> tuple[str, ...]:
        plain = tuple(re.sub(r"\s", "", one) for one in slices)
        devices = [device for one in plain for device in one.split(",")]
        for device in devices:
            if not re.fullmatch(r"[A-Za-z0-9./-]+", device):
                raise ValueError(f"{device!r} is not a GPU: write indices or UUIDs with commas, for example 0,1")
        if len(set(devices)) != len(devices):
            raise ValueError("a GPU is in two slices: each may be in one only")
        return plain

    @model_validator(mode="after")
    def _has_a_name(self) -> SshHost:
        if not self.name:
            object.__setattr__(self, "name", re.sub(r"[^A-Za-z0-9._-]", "-", self.address).strip("-"))
        if not _PLAIN.fullmatch(self.name):
            raise ValueError(f"{self.name!r} cannot be a host's name: use letters, digits, dots and dashes")
        return self


class SshMachines(Block):
    """A team's own machines, each lent to one job at a time.

    Example:
        ```python
        from prefect_gpu.blocks.ssh import SshMachines

        machines = SshMachines.load("BLOCK_NAME")
        [host.name for host in machines.hosts]
        ```
    """

    _block_type_name = "GPU: own machines"
    _block_type_slug = "gpu-ssh"
    _description = (
        "A team's own machines, reached by SSH: each is lent to one job at a time, whole or in slices of GPUs."
    )
    _logo_url = logo("ssh")
    _documentation_url = page("providers/ssh/")

    hosts: list[SshHost] = Field(title="Machines", description="Each with its address and user.", min_length=1)
    private_key: SecretStr | None = Field(
        default=None,
        title="Private key",
        description="Logs in where a machine names no other. In OpenSSH's format, without a passphrase.",
    )
    # Prefect hides no secret that stands in a list, so machines name their keys and the keys stand here.
    other_keys: SecretDict | None = Field(
        default=None, title="Other keys", description="By a name of yours: for machines that name it as their key."
    )
    jump: SshJumpHost | None = Field(
        default=None, title="Jump host", description="On the way to all machines without one."
    )
    budget: AccountBudget = budget_field()
    timeout_s: float = Field(
        default=8.0,
        gt=0,
        le=60,
        title="Patience in seconds",
        description="A machine that does not answer for so long is passed over.",
    )

    @model_validator(mode="after")
    def _names_differ_and_keys_are_there(self) -> SshMachines:
        names = [host.name for host in self.hosts]
        for host in self.hosts:
            if names.count(host.name) > 1:
                raise ValueError(f"two machines are called {host.name}: give each a name of its own")
            jump = host.jump or self.jump
            for key in (host.key, *([jump.key] if jump else [])):
                if self.key(key) is None:
                    missing = f"no other key is called {key!r}" if key else "the block has no private key"
                    raise ValueError(f"nothing logs in to {host.name}: {missing}")
        return self

    def key(self, name: str) -> SecretStr | None:
        """One of the private keys by its name; the block's own for an empty one. None where there is none."""
        if not name:
            return self.private_key
        found: object = (self.other_keys.get_secret_value() if self.other_keys else {}).get(name)
        return SecretStr(found) if isinstance(found, str) else None
