"""Where in a project machines stand: the block's subnet of their region, a shared one too, or that of the network `default`."""

from __future__ import annotations

from typing import Any, NamedTuple

from prefect_gpu.providers.core.errors import NotFound, RegionClosed
from prefect_gpu.providers.core.models import Unread
from prefect_gpu.providers.gcp.api import Api, last

DEFAULT = "default"


class Subnet(NamedTuple):
    """A subnet that an order names."""

    link: str  # projects/P/regions/R/subnetworks/N
    project: str  # another one where the VPC is shared
    network: str  # projects/P/global/networks/N


def subnet_in(api: Api, region: str) -> Subnet:
    """The subnet of a region. RegionClosed where it has none."""
    named = api.credentials.subnet_in(region)
    if named is None and api.credentials.subnets:
        raise RegionClosed(no_subnet(api, region))
    project, name = named or (None, DEFAULT)
    path = api.path("regions", region, "subnetworks", name, project=project)
    try:
        row = api.http.row(path, "", what=f"look for the subnet {name} in {region}")
    except NotFound as missing:
        raise RegionClosed(no_subnet(api, region), code=missing.code) from None
    return Subnet(path.removeprefix("/"), project or api.project, network_of(row))


def network_of(row: dict[str, Any]) -> str:
    """The network that a subnet or firewall rule is of, as `projects/P/global/networks/N`."""
    url = str(row.get("network") or "")
    return url[url.find("projects/") :] if "projects/" in url else url


def regions_with_one(api: Api, unread: list[Unread]) -> set[str]:
    """The regions that orders find a subnet in, without asking each."""
    if api.credentials.subnets:
        return api.credentials.subnet_regions()
    rows = api.everywhere(
        "subnetworks", unread, what="look for the subnets of the network default", only=f"name eq {DEFAULT}"
    )
    return {region for region, row in rows if row.get("name") == DEFAULT and last(row.get("network")) == DEFAULT}


def no_subnet(api: Api, region: str) -> str:
    """What is missing, and what to do."""
    if named := api.credentials.subnets:
        return f"no subnet in {region}: the block names {', '.join(named[:3])}"
    return f"no subnet of the network default in {region}: name one in the block"
