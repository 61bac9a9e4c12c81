"""The credentials block of Vultr: its API key, and what machines there boot."""

from __future__ import annotations

from typing import Any

from prefect.blocks.abstract import CredentialsBlock
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from typing_extensions import override

from prefect_gpu.blocks.api import ApiAccess, api_field
from prefect_gpu.blocks.budget import AccountBudget, budget_field
from prefect_gpu.blocks.options import options_field
from prefect_gpu.blocks.pages import logo, page


class VultrOptions(BaseModel):
    """What one order may ask of Vultr: `options` of a run, over those of the block."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    os_id: int | None = Field(
        default=None, title="Operating system", description="Its number in GET /v2/os. It must run cloud-init."
    )
    image_id: str | None = Field(
        default=None,
        title="Application",
        description="Its image_id in GET /v2/applications, instead of an operating system.",
    )
    firewall_group_id: str | None = Field(
        default=None, title="Firewall group", description="Its id. It must admit SSH."
    )


class VultrCredentials(CredentialsBlock):
    """A Vultr account that machines are rented from.

    Example:
        Load a saved account and ask for its balance:

        ```python
        from prefect_gpu.blocks.vultr import VultrCredentials

        account = VultrCredentials.load("BLOCK_NAME")
        account.get_client().get("/account").json()
        ```
    """

    _block_type_name = "GPU: Vultr"
    _block_type_slug = "gpu-vultr"
    _description = "Cloud GPUs and bare metal of Vultr: an account that jobs rent machines from."
    _logo_url = logo("vultr")
    _documentation_url = page("providers/vultr/")

    api_key: SecretStr = Field(
        title="API key",
        description="From my.vultr.com, Account, API. Its access control must admit the workers' addresses.",
    )
    options: VultrOptions = options_field(VultrOptions)
    budget: AccountBudget = budget_field()
    api: ApiAccess = api_field()

    @override
    def get_client(self) -> Any:
        """An httpx client of https://api.vultr.com/v2 with these credentials, for flows of your own."""
        return self.api.client("https://api.vultr.com/v2", self.api_key)
