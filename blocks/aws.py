"""The credentials block of AWS: who pays, and where in the account machines may stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from prefect.blocks.abstract import CredentialsBlock
from prefect_aws import AwsCredentials as PrefectAwsCredentials
from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import override

from prefect_gpu.blocks.budget import AccountBudget, budget_field
from prefect_gpu.blocks.network import Network, network_field, with_network
from prefect_gpu.blocks.pages import logo, page

if TYPE_CHECKING:
    import boto3  # pyright: ignore[reportMissingTypeStubs] - it has none


class AwsImage(BaseModel):
    """A machine image, looked up by owner and name at each order: the newest that matches is used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    owner: str = Field(title="Owner", description="Account id, `self` or `amazon`.")
    name: str = Field(title="Name", description="With * for any characters, for example `my-image-*`.")
    user: str = Field(default="ubuntu", title="User", description="The user that SSH logs in as.")
    port: int = Field(default=22, ge=1, le=65535, title="SSH port", description="Where the image's sshd listens.")


class AwsCredentials(CredentialsBlock):
    """An AWS account that machines are rented from: its credentials, and where in it machines may stand.

    Every field may stay empty: then boto3's default chain is used (environment, `~/.aws`, the machine's role), in all
    enabled regions, in their default VPCs.

    Example:
        Load a saved account and ask who it is:

        ```python
        from prefect_gpu.blocks.aws import AwsCredentials

        account = AwsCredentials.load("BLOCK_NAME")
        account.get_client("sts").get_caller_identity()
        ```
    """

    _block_type_name = "GPU: AWS"
    _block_type_slug = "gpu-aws"
    _description = "EC2 machines with GPUs, on demand and spot: an AWS account that jobs rent them from."
    _logo_url = logo("aws")
    _documentation_url = page("providers/aws/")

    aws: PrefectAwsCredentials | None = Field(
        default=None,
        title="AWS credentials",
        description="A saved AWS Credentials block of prefect-aws. Empty: boto3's default chain.",
    )
    regions: list[str] = Field(
        default_factory=list,
        title="Regions",
        description="Where machines may be rented, for example us-east-1. Empty: in every enabled region.",
    )
    subnets: list[str] = Field(
        default_factory=list,
        title="Subnets",
        description="Ids of the subnets to use, of any region. Empty: the default subnet of each zone.",
    )
    security_group: str | None = Field(
        default=None,
        title="Security group",
        description="Name or id of an existing group that admits SSH. Empty: one is made that admits nothing but SSH.",
    )
    budget: AccountBudget = budget_field()
    network: Network = network_field()
    gpu_image: AwsImage | None = Field(
        default=None,
        title="Image of GPU machines",
        description="Empty: the newest AWS Deep Learning Base image (Ubuntu 22.04, NVIDIA drivers).",
    )
    cpu_image: AwsImage | None = Field(
        default=None, title="Image of other machines", description="Empty: the newest Ubuntu 24.04."
    )
    volume_type: Literal["gp3", "gp2", "io2"] = Field(
        default="gp3",
        title="Disk type",
        description="Of the root volume. io2 comes with 3,000 IOPS, for about $0.27 an hour more that no cost here counts.",
    )
    instance_profile: str | None = Field(
        default=None,
        title="Instance profile",
        description="Name of an IAM instance profile that machines get. Empty: none, so jobs have no rights in AWS.",
    )
    capacity_reservation: str | None = Field(
        default=None,
        title="Capacity reservation",
        description="Id of a reservation or capacity block (cr-...). On-demand orders of its type in its zone are placed in it.",
    )

    _reads_flat_fields = model_validator(mode="before")(with_network)

    def get_session(self) -> boto3.Session:
        """A new boto3 session with these credentials; asks STS first where they name a role to assume."""
        return (self.aws or PrefectAwsCredentials()).get_boto3_session()

    @override
    def get_client(self, client_type: str = "ec2", region_name: str | None = None) -> Any:
        """A boto3 client of one service, for flows of your own."""
        region = region_name or (self.aws and self.aws.region_name) or next(iter(self.regions), None)
        settings = self.aws.aws_client_parameters.get_params_override() if self.aws else {}
        session: Any = self.get_session()
        return session.client(client_type, **{"region_name": region, **settings})
