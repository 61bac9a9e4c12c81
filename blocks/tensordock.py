"""The credentials block of TensorDock: its API token, and what machines there boot and have beside their GPUs."""

from __future__ import annotations

from typing import Any

from prefect.blocks.abstract import CredentialsBlock
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from typing_extensions import override

from prefect_gpu.blocks.api import ApiAccess, api_field
from prefect_gpu.blocks.budget import AccountBudget, budget_field
from prefect_gpu.blocks.options import options_field
from prefect_gpu.blocks.pages import logo, page


class TensordockOptions(BaseModel):
    """What one order may ask of TensorDock: `options` of a run, over those of the block. Sizes count from the block alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str = Field(
        default="ubuntu2404_ml_pytorch",
        title="Image",
        description="Its name. It must run cloud-init and have NVIDIA's driver, for example ubuntu2404_ml_everything.",
    )
    dedicated_ip: bool = Field(
        default=False,
        title="Address of its own",
        description="Instead of a port of the host's address. It costs extra, and few hosts have one.",
    )
    vcpus_per_gpu: int = Field(
        default=8, ge=1, title="CPU cores for each GPU", description="Where the host has them. A job may ask for more."
    )
    ram_gb_per_gpu: int = Field(
        default=32,
        ge=1,
        title="Memory in GB for each GPU",
        description="Where the host has it. A job may ask for more.",
    )
    disk_gb: int = Field(default=100, ge=100, title="Disk in GB", description="At least 100. A job may ask for more.")


class TensordockCredentials(CredentialsBlock):
    """A TensorDock organization that machines are rented from.

    Example:
        Load a saved account and ask what it runs:

        ```python
        from prefect_gpu.blocks.tensordock import TensordockCredentials

        account = TensordockCredentials.load("BLOCK_NAME")
        account.get_client().get("/instances").json()
        ```
    """

    _block_type_name = "GPU: TensorDock"
    _block_type_slug = "gpu-tensordock"
    _description = "GPU machines of TensorDock's hosts: an account that jobs rent them from."
    _logo_url = logo("tensordock")
    _documentation_url = page("providers/tensordock/")

    api_token: SecretStr = Field(
        title="API token", description="From dashboard.tensordock.com, Developer Settings. It is the organization's."
    )
    options: TensordockOptions = options_field(TensordockOptions)
    budget: AccountBudget = budget_field()
    api: ApiAccess = api_field()

    @override
    def get_client(self) -> Any:
        """An httpx client of https://dashboard.tensordock.com/api/v2 with these credentials, for flows of your own."""
        return self.api.client("https://dashboard.tensordock.com/api/v2", self.api_token)
