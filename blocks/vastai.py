"""The credentials block of Vast.ai: its API key, and which hosts of the marketplace are good enough."""

from __future__ import annotations

from typing import Any

from prefect.blocks.abstract import CredentialsBlock
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from typing_extensions import override

from prefect_gpu.blocks.api import ApiAccess, api_field
from prefect_gpu.blocks.budget import AccountBudget, budget_field
from prefect_gpu.blocks.options import options_field
from prefect_gpu.blocks.pages import logo, page


class VastaiOptions(BaseModel):
    """What one order may ask of Vast.ai: `options` of a run, over those of the block. Which hosts are looked for counts from the block alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str = Field(
        default="vastai/base-image:@vastai-automatic-tag",
        max_length=1024,
        title="Container image",
        description="Of jobs that name none.",
    )
    min_reliability: float = Field(
        default=0.95,
        ge=0,
        le=1,
        title="Reliability, at least",
        description="Of a host, as Vast.ai measures it, from 0 to 1.",
    )
    unverified: bool = Field(
        default=False,
        title="Unverified hosts too",
        description="Those that Vast.ai has not checked, for jobs that ask for no more trust than any.",
    )
    min_download_mbps: float = Field(
        default=100,
        ge=0,
        title="Download in Mbit/s, at least",
        description="An image comes over it before anything runs.",
    )
    lasts_h: float = Field(
        default=24,
        ge=0,
        title="Hours that an offer must last",
        description="A host ends its containers when its offer ends.",
    )
    max_traffic_per_gb: float | None = Field(
        default=None, ge=0, title="USD per GB of traffic, at most", description="In each direction. Empty: any price."
    )
    disk_gb: int = Field(
        default=32, ge=8, title="Disk in GB", description="Its size is fixed by the order. A job may ask for more."
    )
    bid_over: float = Field(
        default=0.1,
        ge=0,
        le=10,
        title="Bid over the lowest",
        description="For spot: by this share of the lowest bid that runs now. What is bid is paid.",
    )


class VastaiCredentials(CredentialsBlock):
    """A Vast.ai account that containers are rented from.

    Example:
        Load a saved account and ask for its balance:

        ```python
        from prefect_gpu.blocks.vastai import VastaiCredentials

        account = VastaiCredentials.load("BLOCK_NAME")
        account.get_client().get("/v0/users/current/").json()
        ```
    """

    _block_type_name = "GPU: Vast.ai"
    _block_type_slug = "gpu-vastai"
    _description = "GPU containers of Vast.ai's hosts: an account that jobs rent them from."
    _logo_url = logo("vastai")
    _documentation_url = page("providers/vastai/")

    api_key: SecretStr = Field(
        title="API key",
        description="From cloud.vast.ai, Keys. It needs the rights of instances, of the user and of billing.",
    )
    options: VastaiOptions = options_field(VastaiOptions)
    budget: AccountBudget = budget_field()
    api: ApiAccess = api_field()

    @override
    def get_client(self) -> Any:
        """An httpx client of https://console.vast.ai/api with these credentials, for flows of your own."""
        return self.api.client("https://console.vast.ai/api", self.api_key)
