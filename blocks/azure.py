"""The credentials block of Azure: who pays, and where in the subscription machines may stand."""

from __future__ import annotations

import atexit
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from prefect.blocks.abstract import CredentialsBlock
from prefect_azure.credentials import AzureContainerInstanceCredentials
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from typing_extensions import override

from prefect_gpu.blocks.api import ApiAccess, api_field, pem
from prefect_gpu.blocks.budget import AccountBudget, budget_field
from prefect_gpu.blocks.network import Network, network_field
from prefect_gpu.blocks.pages import logo, page

_GUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_GROUP: Final = re.compile(r"[A-Za-z0-9_().-]{0,89}[A-Za-z0-9_()-]", re.ASCII)
_RESOURCE: Final = re.compile(r"/(subscriptions|communitygalleries|sharedgalleries)/[^\s?#]+", re.IGNORECASE | re.ASCII)
_URN: Final = re.compile(r"[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+){3}", re.ASCII)


class Cloud(NamedTuple):
    """One of Azure's clouds: where one logs in, and where its Resource Manager answers."""

    login: str
    manager: str


CLOUDS: Final = {
    "public": Cloud("https://login.microsoftonline.com", "https://management.azure.com"),
    "china": Cloud("https://login.chinacloudapi.cn", "https://management.chinacloudapi.cn"),
    "us-government": Cloud("https://login.microsoftonline.us", "https://management.usgovcloudapi.net"),
}


def checked_resource(text: str | None) -> str | None:
    """A resource's id without spaces around it; None for an empty one. ValueError, in a sentence, for anything else."""
    if text is None or not text.strip():
        return None
    if not _RESOURCE.fullmatch(text.strip()):
        raise ValueError(
            f"{text[:80]!r} is not the id of a resource: write for example /subscriptions/.../resourceGroups/..."
        )
    return text.strip().rstrip("/")


class AzureImage(BaseModel):
    """A machine image. It must run cloud-init."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: str = Field(
        title="Image",
        description="publisher:offer:sku:version of the marketplace, or the id of an image or of a gallery's image.",
    )
    port: int = Field(default=22, ge=1, le=65535, title="SSH port", description="Where the image's sshd listens.")
    has_plan: bool = Field(
        default=False,
        title="Has a purchase plan",
        description="Whether the marketplace sells it with terms, which the subscription has accepted.",
    )

    @field_validator("reference")
    @classmethod
    def _names_an_image(cls, text: str) -> str:
        text = text.strip()
        if not _URN.fullmatch(text) and not _RESOURCE.fullmatch(text):
            raise ValueError(
                f"{text[:80]!r} is not an image: write publisher:offer:sku:version, or an id that begins with /subscriptions/"
            )
        return text


class AzureCredentials(CredentialsBlock):
    """An Azure subscription that machines are rented from: its credentials, and where in it machines may stand.

    Only the subscription must be named: without other credentials the default chain of azure-identity is used (environment,
    workload identity, managed identity, `az login`), in all regions, in a resource group and networks that are made for it.

    Example:
        Load a saved account and ask whose it is:

        ```python
        from prefect_gpu.blocks.azure import AzureCredentials

        account = AzureCredentials.load("BLOCK_NAME")
        account.get_client().get(f"/subscriptions/{account.subscription_id}", params={"api-version": "2022-12-01"}).json()
        ```
    """

    _block_type_name = "GPU: Azure"
    _block_type_slug = "gpu-azure"
    _description = "Virtual machines with GPUs, on demand and spot: an Azure subscription that jobs rent them from."
    _logo_url = logo("azure")
    _documentation_url = page("providers/azure/")

    subscription_id: str = Field(title="Subscription", description="Its id, as `az account show` prints it.")
    azure: AzureContainerInstanceCredentials | None = Field(
        default=None,
        title="Azure credentials",
        description="A saved Azure Container Instance Credentials block of prefect-azure: tenant, client and secret.",
    )
    tenant_id: str | None = Field(default=None, title="Tenant", description="Of the service principal.")
    client_id: str | None = Field(
        default=None,
        title="Client",
        description="The service principal's application id, or a managed identity's client id.",
    )
    client_secret: SecretStr | None = Field(
        default=None, title="Client secret", description="Of the service principal."
    )
    certificate: SecretStr | None = Field(
        default=None,
        title="Certificate",
        description="Instead of the secret: PEM text with certificate and private key, or the path of such a file on the worker.",
    )
    managed_identity: bool = Field(
        default=False,
        title="Managed identity",
        description="Log in as the identity of the machine that the worker runs on; Client says which, where it has several.",
    )
    cloud: Literal["public", "china", "us-government"] = Field(
        default="public", title="Cloud", description="Which of Azure's clouds has the subscription."
    )
    resource_group: str = Field(
        default="prefect-gpu",
        title="Resource group",
        description="Machines and all that belongs to them stand in it. It is made where it is missing.",
    )
    regions: list[str] = Field(
        default_factory=list,
        title="Regions",
        description="Where machines may be rented, for example westeurope. Empty: in every region.",
    )
    subnets: list[str] = Field(
        default_factory=list,
        title="Subnets",
        description="Ids of the subnets to use, of any region. Empty: one network a region is made.",
    )
    security_group: str | None = Field(
        default=None,
        title="Security group",
        description="Id of an existing group that admits SSH, in the machines' region. Empty: one is made that admits nothing but SSH.",
    )
    budget: AccountBudget = budget_field()
    network: Network = network_field()
    gpu_image: AzureImage | None = Field(
        default=None,
        title="Image of GPU machines",
        description="Empty: the newest Ubuntu-HPC 22.04 with the driver of the GPU's generation.",
    )
    cpu_image: AzureImage | None = Field(
        default=None, title="Image of other machines", description="Empty: the newest Ubuntu 24.04."
    )
    disk_type: Literal["Premium_LRS", "StandardSSD_LRS", "Standard_LRS"] = Field(
        default="StandardSSD_LRS", title="Disk type", description="Of the operating system's disk."
    )
    identity: str | None = Field(
        default=None,
        title="Identity of machines",
        description="Id of a user-assigned managed identity that machines get. Empty: none, so jobs have no rights in Azure.",
    )
    capacity_reservation_group: str | None = Field(
        default=None,
        title="Capacity reservation group",
        description="Its id. On-demand orders of a type and place that it reserves are placed in it.",
    )
    api: ApiAccess = api_field()

    _are_resources = field_validator("security_group", "identity", "capacity_reservation_group")(checked_resource)

    @field_validator("subscription_id")
    @classmethod
    def _is_an_id(cls, text: str) -> str:
        if not _GUID.fullmatch(text.strip()):
            raise ValueError(f"{text[:80]!r} is not a subscription's id: az account show --query id prints yours")
        return text.strip().lower()

    @field_validator("resource_group")
    @classmethod
    def _is_a_group(cls, text: str) -> str:
        if not _GROUP.fullmatch(text.strip()):
            raise ValueError(
                f"{text[:80]!r} is not a resource group's name: write its name alone, for example prefect-gpu"
            )
        return text.strip()

    @field_validator("subnets")
    @classmethod
    def _are_subnets(cls, ids: list[str]) -> list[str]:
        found = [one for text in ids if (one := checked_resource(text)) is not None]
        if wrong := [one for one in found if "/subnets/" not in one.lower()]:
            raise ValueError(f"{wrong[0][:80]!r} is not a subnet's id: it ends in /virtualNetworks/.../subnets/...")
        return found

    @model_validator(mode="after")
    def _logs_in_one_way(self) -> AzureCredentials:
        ways = {
            "a prefect-azure block": self.azure,
            "a client secret": self.client_secret,
            "a certificate": self.certificate,
            "a managed identity": self.managed_identity,
        }
        given = [name for name, value in ways.items() if value]
        if len(given) > 1:
            raise ValueError(f"this names {' and '.join(given)}: keep one way to log in")
        if (self.client_secret or self.certificate) and not (self.tenant_id and self.client_id):
            raise ValueError(f"{given[0]} needs the tenant and the client that it belongs to")
        return self

    def get_credential(self) -> Any:
        """A credential of azure-identity as this block says, by way of its proxy and its company's CA."""
        import azure.identity as login  # it takes 0.2 s

        ca = self.api.ca
        proxy = self.api.proxy.get_secret_value() if self.api.proxy else None
        way: dict[str, Any] = {"authority": CLOUDS[self.cloud].login}
        if proxy:
            way["proxies"] = {"https": proxy, "http": proxy}
        if ca:
            way["connection_verify"] = _file_of(ca)
        if self.azure is not None and self.azure.client_secret is not None:
            theirs = self.azure
            secret = theirs.client_secret.get_secret_value() if theirs.client_secret else ""
            return login.ClientSecretCredential(
                theirs.tenant_id or "", theirs.client_id or "", secret, **{**way, **theirs.credential_kwargs}
            )
        if self.azure is not None:
            return login.DefaultAzureCredential(**{**way, **self.azure.credential_kwargs})
        if self.client_secret is not None:
            secret = self.client_secret.get_secret_value()
            return login.ClientSecretCredential(self.tenant_id or "", self.client_id or "", secret, **way)
        if self.certificate is not None:
            text = self.certificate.get_secret_value()
            given: dict[str, Any] = (
                {"certificate_data": text.encode()} if "-----BEGIN" in text else {"certificate_path": text.strip()}
            )
            return login.CertificateCredential(self.tenant_id or "", self.client_id or "", **given, **way)
        if self.managed_identity:  # asked of the machine itself: no proxy, no CA
            return login.ManagedIdentityCredential(client_id=self.client_id)
        return login.DefaultAzureCredential(
            **way, **({"managed_identity_client_id": self.client_id} if self.client_id else {})
        )

    @override
    def get_client(self) -> Any:
        """An httpx client of Azure's Resource Manager, logged in for about an hour, for flows of your own."""
        manager = CLOUDS[self.cloud].manager
        token = self.get_credential().get_token(f"{manager}/.default").token
        return self.api.client(manager, token)


@cache
def _file_of(ca: str) -> str:
    """A file of certificates for libraries that take no text: the public ones and the company's. It goes with this process."""
    import certifi

    with tempfile.NamedTemporaryFile("w", prefix="prefect-gpu-ca-", suffix=".pem", delete=False) as file:
        file.write(Path(certifi.where()).read_text() + "\n" + pem(ca))
    atexit.register(Path(file.name).unlink, missing_ok=True)
    return file.name
