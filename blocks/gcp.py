"""The credentials block of Google Cloud: who pays, and where in the project machines may stand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from prefect.blocks.abstract import CredentialsBlock
from prefect_gcp import GcpCredentials as PrefectGcpCredentials  # pyright: ignore[reportMissingTypeStubs] - it has none
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from typing_extensions import override

from prefect_gpu.blocks.api import ApiAccess, api_field
from prefect_gpu.blocks.budget import AccountBudget, budget_field
from prefect_gpu.blocks.network import Network, network_field
from prefect_gpu.blocks.options import options_field
from prefect_gpu.blocks.pages import logo, page

SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
_SUBNET: Final = re.compile(
    r"(?:(?:https://[a-z./0-9]+/)?projects/([a-z0-9.:-]+)/regions/)?([a-z]+-[a-z]+\d+)/(?:subnetworks/)?([a-z][-a-z0-9]{0,62})"
)
_RESERVATION: Final = re.compile(
    r"(?:projects/([a-z0-9.:-]+)/zones/)?([a-z]+-[a-z]+\d+-[a-z])/(?:reservations/)?([a-z][-a-z0-9]{0,62})"
)


def _is_path(text: str) -> bool:
    return text.strip().startswith(("/", "~"))


class GcpImage(BaseModel):
    """A machine image, looked up at each order: the newest of a family, or one by its name. It must run cloud-init."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: str = Field(title="Project", description="Where the image is, for example ubuntu-os-cloud.")
    family: str | None = Field(default=None, title="Family", description="The newest image of it is used.")
    name: str | None = Field(default=None, title="Name", description="One image, instead of a family.")
    user: str = Field(default="ubuntu", title="User", description="The user that SSH logs in as: cloud-init's own.")
    port: int = Field(default=22, ge=1, le=65535, title="SSH port", description="Where the image's sshd listens.")


class GcpOptions(BaseModel):
    """What one order may ask of Google Cloud: `options` of a run, over those of the block."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str | None = Field(
        default=None,
        title="Image",
        description="`project/family` instead of the usual one, for example ubuntu-os-cloud/ubuntu-2404-lts-amd64.",
        pattern=r"^[a-z0-9.:-]+/[a-z][-a-z0-9]{0,62}$",
    )
    disk_type: str | None = Field(
        default=None,
        title="Disk type",
        description="Of the boot disk. Empty: pd-balanced, or hyperdisk-balanced where a machine takes nothing else.",
        pattern=r"^[a-z]+-[a-z-]+$",
    )
    service_account: str | None = Field(
        default=None,
        title="Service account of machines",
        description="Its email address; jobs have its rights. Empty: none, so jobs have no rights in Google Cloud.",
    )
    scopes: tuple[str, ...] = Field(
        default=(SCOPE,), title="Scopes", description="What tokens of that service account are good for."
    )
    reservation: str | None = Field(
        default=None,
        title="Reservation",
        description="`zone/name`, or projects/P/zones/Z/reservations/N of a shared one. On-demand orders that fit it are placed in it.",
    )

    @field_validator("reservation")
    @classmethod
    def _is_reservation(cls, text: str | None) -> str | None:
        if text is not None and _RESERVATION.fullmatch(text.strip()) is None:
            raise ValueError(f"{text!r} is not a reservation: write for example us-central1-a/my-reservation")
        return text.strip() if text is not None else None

    def reserved_in(self) -> tuple[str | None, str, str] | None:
        """Project (None: the block's), zone and name of the reservation."""
        found = _RESERVATION.fullmatch(self.reservation or "")
        return (found[1], found[2], found[3]) if found else None


class GcpCredentials(CredentialsBlock):
    """A Google Cloud project that machines are rented in: its credentials, and where in it machines may stand.

    Every field may stay empty: then Application Default Credentials are used (GOOGLE_APPLICATION_CREDENTIALS, gcloud's login,
    workload identity, the machine's service account), in all regions, in the subnets of the network `default`.

    Example:
        Load a saved project and list its zones:

        ```python
        from prefect_gpu.blocks.gcp import GcpCredentials

        account = GcpCredentials.load("BLOCK_NAME")
        account.get_client("zones").list(project=account.project)
        ```
    """

    _block_type_name = "GPU: Google Cloud"
    _block_type_slug = "gpu-gcp"
    _description = (
        "Compute Engine machines with GPUs, on demand and spot: a Google Cloud project that jobs rent them from."
    )
    _logo_url = logo("gcp")
    _documentation_url = page("providers/gcp/")

    project: str | None = Field(
        default=None,
        title="Project",
        description="The id of the project that machines are rented in. Empty: the one that the credentials name.",
        pattern=r"^[a-z0-9.:-]+$",
    )
    key: SecretStr | None = Field(
        default=None,
        title="Service account key",
        description="The whole JSON of a key file, or the path of the file on the worker. Empty: Application Default Credentials.",
    )
    gcp: PrefectGcpCredentials | None = Field(
        default=None,
        title="GCP credentials",
        description="A saved GCP Credentials block of prefect-gcp, instead of a key.",
    )
    impersonate: str | None = Field(
        default=None,
        title="Service account to act as",
        description="Its email address. The credentials need the right to make tokens for it.",
    )
    regions: list[str] = Field(
        default_factory=list,
        title="Regions",
        description="Where machines may be rented, for example us-central1. Empty: in every region that has a subnet for them.",
    )
    subnets: list[str] = Field(
        default_factory=list,
        title="Subnets",
        description="`region/name`, or projects/P/regions/R/subnetworks/N of a shared VPC. Empty: those of the network `default`.",
    )
    network_tags: list[str] = Field(
        default_factory=list,
        title="Network tags",
        description="Of machines, whose firewall rules are yours and admit SSH. Empty: rules are made that admit nothing but SSH.",
    )
    budget: AccountBudget = budget_field()
    network: Network = network_field()
    gpu_image: GcpImage | None = Field(
        default=None, title="Image of GPU machines", description="Empty: Google's, by the GPU's generation."
    )
    cpu_image: GcpImage | None = Field(
        default=None, title="Image of other machines", description="Empty: the newest Ubuntu 24.04."
    )
    options: GcpOptions = options_field(GcpOptions)
    endpoint: str | None = Field(
        default=None,
        title="Endpoint",
        description="Where the Compute Engine API answers, where that is not https://compute.googleapis.com: Private Service Connect.",
        pattern=r"^https?://[^/]+$",
    )
    api: ApiAccess = api_field()

    @field_validator("key")
    @classmethod
    def _is_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is None or not key.get_secret_value().strip():
            return None
        if _is_path(key.get_secret_value()):
            return key
        try:
            told = json.loads(key.get_secret_value())
            is_key = all(isinstance(told[name], str) for name in ("client_email", "private_key", "token_uri"))
        except (ValueError, KeyError, TypeError):
            is_key = False
        if not is_key:
            raise ValueError(
                "this is not a service account's key: paste the whole JSON file, from { to }, or write its path"
            )
        return key

    @field_validator("subnets")
    @classmethod
    def _are_subnets(cls, subnets: list[str]) -> list[str]:
        for text in subnets:
            if _SUBNET.fullmatch(text.strip()) is None:
                raise ValueError(f"{text!r} is not a subnet: write for example us-central1/my-subnet")
        return [text.strip() for text in subnets]

    @field_validator("network_tags")
    @classmethod
    def _are_tags(cls, tags: list[str]) -> list[str]:
        for text in tags:
            if re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", text.strip()) is None:
                raise ValueError(f"{text!r} is not a network tag: write for example allow-ssh")
        return [text.strip() for text in tags]

    def subnet_in(self, region: str) -> tuple[str | None, str] | None:
        """Project (None: the block's) and name of the subnet to use in a region; None where the block names none there."""
        for text in self.subnets:
            found = _SUBNET.fullmatch(text)
            if found is not None and found[2] == region:
                return found[1], found[3]
        return None

    def subnet_regions(self) -> set[str]:
        """The regions that the block names a subnet in."""
        return {found[2] for text in self.subnets if (found := _SUBNET.fullmatch(text)) is not None}

    def get_credentials(self, request: Any = None) -> tuple[Any, str | None]:
        """Credentials of google-auth, and the project that they name; `request` is google-auth's way to the network."""
        import google.auth
        from google.auth import impersonated_credentials
        from google.oauth2 import service_account

        auth: Any = google.auth
        if self.key is not None:
            text = self.key.get_secret_value()
            told = json.loads(Path(text.strip()).expanduser().read_text() if _is_path(text) else text)
            found: Any = service_account.Credentials.from_service_account_info(told, scopes=[SCOPE])  # pyright: ignore[reportUnknownMemberType] - google-auth is typed in parts
            project = told.get("project_id")
        elif self.gcp is not None and (self.gcp.service_account_info or self.gcp.service_account_file):
            found = self.gcp.get_credentials_from_service_account()
            project = self.gcp.project or found.project_id
        else:
            found, project = auth.default(scopes=[SCOPE], request=request)
            project = (self.gcp.project if self.gcp is not None else None) or project
        if self.impersonate:
            as_whom: Any = impersonated_credentials
            found = as_whom.Credentials(
                source_credentials=found, target_principal=self.impersonate, target_scopes=[SCOPE], lifetime=3600
            )
        return found, self.project or project

    @override
    def get_client(self, client_type: str = "instances") -> Any:
        """A client of google-cloud-compute, `instances` or `machine_types` for example, for flows of your own."""
        import google.cloud.compute_v1 as compute

        name = "".join(word.capitalize() for word in client_type.split("_")) + "Client"
        options = {"api_endpoint": self.endpoint} if self.endpoint else None
        return getattr(compute, name)(credentials=self.get_credentials()[0], client_options=options)
