"""Credentials of a container registry that a job's image comes from."""

from __future__ import annotations

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from prefect_gpu.blocks.pages import logo, page


class GpuRegistry(Block):
    """Credentials of the container registry that a GPU job's image comes from: `job.registry` names it.

    Example:
        ```python
        from prefect_gpu.blocks.registry import GpuRegistry

        registry = GpuRegistry.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "GPU registry"
    _block_type_slug = "gpu-registry"
    _description = "Who may pull the container image of a job from a private registry."
    _logo_url = logo("registry")
    _documentation_url = page("jobs/#images")

    server: str = Field(
        default="docker.io", title="Registry", description="The registry's host name, for example ghcr.io."
    )
    username: str = Field(title="User name", description="The user that pulls.")
    password: SecretStr = Field(
        title="Password", description="The user's password, or better a token that may only pull."
    )
