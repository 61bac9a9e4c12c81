"""What the credentials may not do and should: the project's own answer for each right, which harms nothing."""

from __future__ import annotations

from typing import Final

from prefect_gpu.providers.core.errors import AuthFailed, InvalidRequest, NotFound
from prefect_gpu.providers.gcp.api import Api, dict_of

# docs/gcp-role.yaml holds the same; a test compares both with the calls of a whole life.
NEEDED: Final[tuple[str, ...]] = (
    "compute.disks.create",
    "compute.disks.delete",
    "compute.disks.list",
    "compute.disks.setLabels",
    "compute.firewalls.create",
    "compute.firewalls.get",
    "compute.globalOperations.get",
    "compute.instances.create",
    "compute.instances.delete",
    "compute.instances.get",
    "compute.instances.list",
    "compute.instances.setLabels",
    "compute.instances.setMetadata",
    "compute.instances.setTags",
    "compute.networks.updatePolicy",
    "compute.projects.get",
    "compute.regions.list",
    "compute.subnetworks.get",
    "compute.subnetworks.list",
    "compute.subnetworks.use",
    "compute.subnetworks.useExternalIp",
    "compute.zoneOperations.get",
    "compute.zoneOperations.list",
)
RESERVATIONS: Final = "compute.reservations.get"
_OF_RULES: Final = (
    "compute.firewalls.create",
    "compute.firewalls.get",
    "compute.networks.updatePolicy",
    "compute.globalOperations.get",
)
_OF_THE_SUBNET: Final = (
    "compute.subnetworks.get",
    "compute.subnetworks.list",
    "compute.subnetworks.use",
    "compute.subnetworks.useExternalIp",
)


def missing(api: Api) -> list[str]:
    """The rights that these credentials lack in the project. AuthFailed when they are no good at all."""
    api.http.text(api.path(), "name", what="look at the project")
    wanted: list[str] = [*NEEDED]
    block = api.credentials
    if block.network_tags:
        wanted = [one for one in wanted if one not in _OF_RULES]
    if block.network.private:
        wanted.remove("compute.subnetworks.useExternalIp")
    if any(text.startswith("projects/") and f"projects/{api.project}/" not in text for text in block.subnets):
        wanted = [one for one in wanted if one not in _OF_THE_SUBNET]  # they are given in the host project
    if block.options.reservation:
        wanted.append(RESERVATIONS)
    try:
        path = f"/projects/{api.project}:testIamPermissions"
        answer = api.rights.post(path, {"permissions": list(wanted)}, what="ask which rights there are")
    except (AuthFailed, InvalidRequest, NotFound) as denied:
        return [f"whatever they are, they could not be asked for ({denied.message})"]
    granted = dict_of(answer).get("permissions") or ()
    return [one for one in wanted if one not in granted]
