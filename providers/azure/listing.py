"""All that stands in the resource group under names of ours: machines, and what is left of those that are gone."""

from __future__ import annotations

from typing import Any

from prefect_gpu.providers.azure.api import Arm
from prefect_gpu.providers.azure.instances import BROUGHT, MACHINES, described, id_of, proved_name
from prefect_gpu.providers.core.errors import NotFound
from prefect_gpu.providers.core.models import Leftover, Listing
from prefect_gpu.providers.core.toolkit import scopes


def everything(arm: Arm, prefix: str) -> Listing:
    """One group holds the machines of all regions; which of its lists could not be read is said."""
    read = scopes.read_each(["virtualMachines", *BROUGHT], lambda kind: _rows(arm, kind))
    group = arm.credentials.resource_group
    interfaces, addresses = (_by_id(read.found.get(kind, [])) for kind in ("networkInterfaces", "publicIPAddresses"))
    machines = read.found.get("virtualMachines", [])
    every = [described(row, group, interfaces, addresses, arm.credentials) for row in machines if row.get("name")]
    listing = scopes.listing(scopes.Read({"virtualMachines": every}, read.unread), prefix)
    if "virtualMachines" not in read.found:  # then nothing is known to be left over
        return listing
    standing = {instance.name for instance in every}
    left: list[Leftover] = []
    for kind, (_, for_people) in BROUGHT.items():
        for row in read.found.get(kind, []):
            name = proved_name(row.get("name"))
            if name and name.startswith(prefix) and name not in standing:
                region = str(row.get("location") or "").lower()
                left.append(
                    Leftover(id=id_of(group, str(row["name"]), kind), kind=for_people, name=name, region=region)
                )
    return listing.model_copy(update={"leftovers": tuple(left)})


def _rows(arm: Arm, kind: str) -> list[dict[str, Any]]:
    path = MACHINES if kind == "virtualMachines" else BROUGHT[kind][0]
    try:
        return list(arm.rows(f"{arm.group}{path}", what=f"list {kind}"))
    except NotFound:
        return []  # there is no such group, by the subscription's own list: the first order makes it


def _by_id(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {str(row.get("id")).lower(): row for row in rows}
