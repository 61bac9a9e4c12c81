"""The realm that this process may act for: it is bound to its Prefect server, and a copy of the server's database acts on nothing."""

from __future__ import annotations

from prefect_gpu.blocks.realm import GpuRealm
from prefect_gpu.blocks.server import given_name, this_server, unnamed_server


def own_realm(*, trust_server: bool = False, with_home: bool = True) -> GpuRealm:
    """This server's realm. Raises NotItsServer where it is another's."""
    own, server = GpuRealm.current(), this_server(with_home=with_home)
    if trust_server or not own.servers:
        return own.trust(this_server())
    if given_name() and not own.is_named and own.is_of(unnamed_server(with_home=with_home)):
        return own.trust(server)  # it was given its name since
    own.must_be_of(server)
    return own
