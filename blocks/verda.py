"""The credentials block of Verda (formerly DataCrunch): its API credentials, and what machines there boot."""

from __future__ import annotations

from typing import Any

from prefect.blocks.abstract import CredentialsBlock
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from typing_extensions import override

from prefect_gpu.blocks.api import ApiAccess, api_field
from prefect_gpu.blocks.budget import AccountBudget, budget_field
from prefect_gpu.blocks.options import options_field
from prefect_gpu.blocks.pages import logo, page


class VerdaOptions(BaseModel):
    """What one order may ask of Verda: `options` of a run, over those of the block."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str | None = Field(
        default=None,
        title="Image",
        description="An `image_type` or id of GET /v1/images. Empty: the newest Ubuntu with NVIDIA's driver and Docker.",
    )
    disk_gb: int = Field(
        default=100,
        ge=50,
        title="Disk in GB",
        description="Of the operating system's volume, billed beside the machine.",
    )


class VerdaCredentials(CredentialsBlock):
    """A Verda project that machines are rented from.

    Example:
        Load a saved account and ask for its balance:

        ```python
        from prefect_gpu.blocks.verda import VerdaCredentials

        account = VerdaCredentials.load("BLOCK_NAME")
        account.get_client().get("/balance").json()
        ```
    """

    _block_type_name = "GPU: Verda"
    _block_type_slug = "gpu-verda"
    _description = "GPUs of Verda (DataCrunch), on demand and spot: a project that jobs rent machines from."
    _logo_url = logo("verda")
    _documentation_url = page("providers/verda/")

    client_id: str = Field(title="Client id", description="From console.verda.com, Keys, Cloud API credentials.")
    client_secret: SecretStr = Field(title="Client secret", description="It is shown once, beside the client id.")
    options: VerdaOptions = options_field(VerdaOptions)
    budget: AccountBudget = budget_field()
    api: ApiAccess = api_field()

    @override
    def get_client(self) -> Any:
        """An httpx client of https://api.verda.com/v1, logged in for about an hour, for flows of your own."""
        client = self.api.client("https://api.verda.com/v1")
        secret = self.client_secret.get_secret_value()
        asked = {"grant_type": "client_credentials", "client_id": self.client_id, "client_secret": secret}
        answer = client.post("/oauth2/token", json=asked).raise_for_status().json()
        client.headers["authorization"] = f"Bearer {answer['access_token']}"
        return client
