"""Giving back, of what is called by a name of ours in our resource group: machines, and what is left of them."""

from __future__ import annotations

from prefect_gpu.providers.azure.api import Arm
from prefect_gpu.providers.azure.instances import BROUGHT, MACHINES, proved_name, split
from prefect_gpu.providers.core.errors import InvalidRequest, NotFound
from prefect_gpu.providers.core.lease import Lease


def terminate(arm: Arm, instance_id: str) -> None:
    """End a machine, with what it brought along, or remove what is left of one."""
    try:
        group, kind, name = split(instance_id)
    except NotFound:
        return
    ours = Lease.parse(name) is not None if kind is None else bool(proved_name(name))
    if not ours:
        raise InvalidRequest(f"{instance_id} is left alone: it was not ordered under a name of ours")
    base = arm.group_named(group)
    if kind is None:
        # Without waiting for the machine to shut down, which a job may hinder while it is billed:
        # https://learn.microsoft.com/azure/virtual-machines/delete
        arm.delete(f"{base}{MACHINES}/{name}", what=f"delete {name}", forceDeletion="true")
    else:
        path, for_people = BROUGHT[kind]
        arm.delete(f"{base}{path}/{name}", what=f"remove the {for_people} {name}")
