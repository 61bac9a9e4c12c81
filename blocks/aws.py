"""The credentials block of AWS: who pays, and where in the account machines may stand."""

from __future__ import annotations

import ipaddress
from typing import Any, Literal

import boto3  # pyright: ignore[reportMissingTypeStubs] - it has none
from prefect.blocks.abstract import CredentialsBlock
from prefect_aws import AwsCredentials as PrefectAwsCredentials
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from typing_extensions import override


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
        from blocks.aws import AwsCredentials

        account = AwsCredentials.load("BLOCK_NAME")
        account.get_client("sts").get_caller_identity()
        ```
    """

    _block_type_name = "GPU: AWS"
    _block_type_slug = "gpu-aws"
    _logo_url = "https://cdn.sanity.io/images/3ugk85nk/production/d74b16fe84ce626345adf235a47008fea2869a60-225x225.png"  # pyright: ignore[reportAssignmentType] - Prefect parses it
    _documentation_url = "https://docs.aws.amazon.com/AWSEC2/latest/APIReference/"  # pyright: ignore[reportAssignmentType] - Prefect parses it

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
        description="Name or id of an existing group that admits SSH. Empty: one that admits nothing but SSH is made.",
    )
    ssh_from: list[str] = Field(
        default_factory=lambda: ["0.0.0.0/0", "::/0"],
        title="SSH is admitted from",
        description="Address ranges that the group which is made admits, for example 203.0.113.0/24 or 203.0.113.7.",
    )
    private: bool = Field(
        default=False,
        title="Private addresses only",
        description="Machines get no public address and are reached from inside the VPC or by the jump host.",
    )
    jump_host: str | None = Field(
        default=None, title="Jump host", description="Host name or address on the way to private machines."
    )
    jump_port: int = Field(default=22, ge=1, le=65535, title="Jump host: port", description="Its SSH port.")
    jump_user: str = Field(default="ubuntu", title="Jump host: user", description="Who logs in there.")
    jump_private_key: SecretStr | None = Field(
        default=None, title="Jump host: private key", description="In OpenSSH's format, without a passphrase."
    )
    jump_host_key: str | None = Field(
        default=None,
        title="Jump host: host key",
        description="For example `ssh-ed25519 AAAA...`. Empty: pinned on first use, and said so.",
    )
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

    @field_validator("ssh_from")
    @classmethod
    def _are_address_ranges(cls, ranges: list[str]) -> list[str]:
        canonical: list[str] = []
        for text in ranges:
            try:
                canonical.append(str(ipaddress.ip_network(text)))
            except ValueError:
                raise ValueError(f"{text!r} is no address range: write for example 203.0.113.0/24") from None
        return canonical

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
