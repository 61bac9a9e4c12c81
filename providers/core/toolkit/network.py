"""The jump host of an account's block as connections take it."""

from __future__ import annotations

from prefect_gpu.blocks.network import Network
from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.models import SshJump


def jump_of(network: Network) -> SshJump | None:
    """The jump host that leads to private machines, or None. Call it before an order: InvalidRequest where nothing logs in there."""
    jump = network.jump
    if jump is None:
        return None
    if jump.private_key is None:
        raise InvalidRequest(
            f"no private key logs in to the jump host {jump.address}: give the block's jump host its private key"
        )
    return SshJump(
        host=jump.address, port=jump.port, user=jump.user, private_key=jump.private_key, host_key=jump.host_key
    )
