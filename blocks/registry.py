"""Credentials of a container registry that a job's image comes from."""

from __future__ import annotations

from prefect.blocks.core import Block
from pydantic import Field, SecretStr


class GpuRegistry(Block):
    """A container registry's credentials, for `job.registry`."""

    _block_type_name = "GPU registry"
    _block_type_slug = "gpu-registry"
    _description = "Credentials of the container registry that a GPU job's image comes from."

    server: str = Field(default="docker.io", title="Registry", description="Its host name, for example ghcr.io.")
    username: str = Field(title="User name")
    password: SecretStr = Field(title="Password or token")
