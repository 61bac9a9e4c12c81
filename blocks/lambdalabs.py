"""The credentials block of Lambda: its API key, and what machines there boot and mount."""

from __future__ import annotations

from typing import Any

from prefect.blocks.abstract import CredentialsBlock
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from typing_extensions import override

from prefect_gpu.blocks.api import ApiAccess, api_field
from prefect_gpu.blocks.budget import AccountBudget, budget_field
from prefect_gpu.blocks.options import options_field
from prefect_gpu.blocks.pages import logo, page


class LambdalabsOptions(BaseModel):
    """What one order may ask of Lambda: `options` of a run, over those of the block."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_family: str | None = Field(
        default=None,
        title="Image family",
        description="Of GET /images, for example lambda-stack-24-04. Empty: the newest Lambda Stack.",
    )
    image_id: str | None = Field(
        default=None, title="Image", description="Its id in GET /images, instead of a family. It must run cloud-init."
    )
    file_system_names: list[str] = Field(
        default_factory=list[str],
        title="File systems",
        description="Mounted under /lambda/nfs. Only machines in their region can be ordered with them.",
    )
    firewall_ruleset_id: str | None = Field(
        default=None, title="Firewall ruleset", description="Its id in GET /firewall-rulesets. It must admit SSH."
    )

    def of_an_order(self) -> dict[str, Any]:
        """As the body of an order has it."""
        image = {"id": self.image_id} if self.image_id else {"family": self.image_family} if self.image_family else None
        rules = [{"id": self.firewall_ruleset_id}] if self.firewall_ruleset_id else []
        asked = {"image": image, "file_system_names": self.file_system_names, "firewall_rulesets": rules}
        return {name: value for name, value in asked.items() if value}


class LambdalabsCredentials(CredentialsBlock):
    """A Lambda account that machines are rented from.

    Example:
        Load a saved account and ask which file systems it has:

        ```python
        from prefect_gpu.blocks.lambdalabs import LambdalabsCredentials

        account = LambdalabsCredentials.load("BLOCK_NAME")
        account.get_client().get("/file-systems").json()
        ```
    """

    _block_type_name = "GPU: Lambda"
    _block_type_slug = "gpu-lambdalabs"
    _description = "GPU machines of Lambda, on demand: an account that jobs rent them from."
    _logo_url = logo("lambdalabs")
    _documentation_url = page("providers/lambdalabs/")

    api_key: SecretStr = Field(title="API key", description="From cloud.lambda.ai/api-keys.")
    options: LambdalabsOptions = options_field(LambdalabsOptions)
    budget: AccountBudget = budget_field()
    api: ApiAccess = api_field()

    @override
    def get_client(self) -> Any:
        """An httpx client of https://cloud.lambda.ai/api/v1 with these credentials, for flows of your own."""
        return self.api.client("https://cloud.lambda.ai/api/v1", self.api_key)
