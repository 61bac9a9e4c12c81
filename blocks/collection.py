"""All our blocks in one list: what the entry point `prefect.collections` names, so that Prefect finds their types by itself.

Importing it imports the SDK of every provider that is installed; nothing of ours does so but `make up` and `make deploy`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from prefect.blocks.core import Block

# The module in this folder, and its block. tests/core/test_blocks.py holds the list to the files.
BLOCKS: Final = {
    "aws": "AwsCredentials",
    "azure": "AzureCredentials",
    "gcp": "GcpCredentials",
    "kubernetes": "KubernetesCredentials",
    "lambdalabs": "LambdalabsCredentials",
    "realm": "GpuRealm",
    "registry": "GpuRegistry",
    "runpod": "RunpodCredentials",
    "ssh": "SshMachines",
    "tensordock": "TensordockCredentials",
    "vastai": "VastaiCredentials",
    "verda": "VerdaCredentials",
    "vultr": "VultrCredentials",
}


def installed() -> list[type[Block]]:
    """The blocks that can be used here: those of a provider whose extra is not installed are left out."""
    found: list[type[Block]] = []
    for module, name in BLOCKS.items():
        try:
            found.append(getattr(importlib.import_module(f"prefect_gpu.blocks.{module}"), name))
        except ModuleNotFoundError as missing:
            if (missing.name or "").startswith("prefect_gpu"):
                raise
    return found


installed()
