"""The credentials block of RunPod: its API key, and what pods there get beside their GPUs."""

from __future__ import annotations

from typing import Any, Literal

from prefect.blocks.abstract import CredentialsBlock
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from typing_extensions import override

from prefect_gpu.blocks.api import ApiAccess, api_field
from prefect_gpu.blocks.budget import AccountBudget, budget_field
from prefect_gpu.blocks.options import options_field
from prefect_gpu.blocks.pages import logo, page


class RunpodOptions(BaseModel):
    """What one order may ask of RunPod: `options` of a run, over those of the block. Cloud and disk count from the block alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str = Field(
        default="runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404",
        title="Image",
        description="Of a job that names none. One without an SSH server gets it from its distribution while it boots.",
    )
    cloud: Literal["both", "secure", "community"] = Field(
        default="both",
        title="Cloud",
        description="Secure: RunPod's data centers. Community: hosts of strangers, who can read what a job there has.",
    )
    disk_gb: int = Field(
        default=50, ge=1, title="Disk in GB", description="Of the container, with its image. A job may ask for more."
    )
    volume_gb: int | None = Field(
        default=None,
        ge=10,
        le=4096,
        title="Volume in GB",
        description="A network volume of the machine's own at /workspace, gone with it. In the secure cloud only. Empty: none.",
    )


class RunpodCredentials(CredentialsBlock):
    """A RunPod account that machines are rented from.

    Example:
        Load a saved account and ask what it runs:

        ```python
        from prefect_gpu.blocks.runpod import RunpodCredentials

        account = RunpodCredentials.load("BLOCK_NAME")
        account.get_client().get("/pods").json()
        ```
    """

    _block_type_name = "GPU: RunPod"
    _block_type_slug = "gpu-runpod"
    _description = "Containers with GPUs of RunPod: an account that jobs rent them from."
    _logo_url = logo("runpod")
    _documentation_url = page("providers/runpod/")

    api_key: SecretStr = Field(
        title="API key", description="From console.runpod.io, Settings, API Keys, with the right to read and write."
    )
    options: RunpodOptions = options_field(RunpodOptions)
    budget: AccountBudget = budget_field()
    api: ApiAccess = api_field()

    @override
    def get_client(self) -> Any:
        """An httpx client of https://api.runpod.io/v2 with these credentials, for flows of your own."""
        return self.api.client("https://api.runpod.io/v2", self.api_key)
