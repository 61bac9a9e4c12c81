"""instances.insert as Compute Engine takes it: what it refuses at once, what it accepts, and what it refuses afterwards."""

from __future__ import annotations

import re
from typing import Any

from tests.fakes.gcp.life import Operation, Vm, machine_type, seconds
from tests.fakes.gcp.project import ACCELERATORS, HYPERDISK_ONLY, IMAGES, PROJECT, ZONES, error

NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL = re.compile(r"[a-z][-_a-z0-9]{0,62}")
LABEL_VALUE = re.compile(r"[-_a-z0-9]{0,63}")
POOL = "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"

Answer = tuple[int, dict[str, Any]]


def pool_exhausted(zone: str, kind: str, code: str = POOL) -> dict[str, Any]:
    """What an operation holds where a zone has no machine left, as in public reports."""
    help_text = f"A {kind} VM instance is currently unavailable in the {zone} zone."
    return {
        "code": code,
        "message": f"The zone 'projects/{PROJECT}/zones/{zone}' does not have enough resources available to fulfill the request.",
        "errorDetails": [
            {"help": {"links": [{"description": "Troubleshooting", "url": "https://cloud.google.com/compute/docs/resource-error"}]}},
            {"localizedMessage": {"locale": "en-US", "message": help_text}},
            {"errorInfo": {"domain": "compute.googleapis.com", "reason": "resource_availability", "metadatas": {"zone": zone}}},
        ],
    }  # fmt: skip


def problem(
    body: dict[str, Any], zone: str, now: float, subnets: dict[str, str], reservations: dict[str, Any]
) -> Answer | None:
    """Why an order is refused before anything is made."""
    if not NAME.fullmatch(body.get("name", "")):
        return invalid("resource.name", body.get("name"))
    kind = body.get("machineType", "").rpartition("/")[2]
    if not re.fullmatch(rf"zones/{zone}/machineTypes/[a-z0-9-]+", body.get("machineType", "")):
        return invalid("resource.machineType", body.get("machineType"))
    if machine_type(kind) is None:
        return not_found(f"zones/{zone}/machineTypes/{kind}")
    scheduling = body.get("scheduling", {})
    for check in (
        lambda: _scheduling(scheduling, now),
        lambda: _accelerators(body, zone, kind, scheduling),
        lambda: _disk(body, zone, kind),
        lambda: _network(body, zone, subnets),
        lambda: _reservation(body, zone, kind, scheduling, reservations),
    ):
        if (found := check()) is not None:
            return found
    for key, value in body.get("labels", {}).items():
        if not LABEL.fullmatch(key) or not LABEL_VALUE.fullmatch(value):
            return invalid("resource.labels", f"{key}={value}")
    for item in body.get("metadata", {}).get("items", []):
        if len(item["value"].encode()) > 262_144:
            return error(400, "invalid", f"Value for field metadata.items[{item['key']}].value is too large")
    tags = body.get("tags", {}).get("items", [])
    return next((invalid("resource.tags.items", tag) for tag in tags if not NAME.fullmatch(tag)), None)


def _scheduling(scheduling: dict[str, Any], now: float) -> Answer | None:
    if scheduling.get("provisioningModel") == "SPOT" and scheduling.get("automaticRestart", True):
        return error(
            400, "invalid", "Invalid value for field 'scheduling.automaticRestart': spot machines cannot restart"
        )
    ends = scheduling.get("terminationTime")
    limited = ends is not None or "maxRunDuration" in scheduling
    if limited and scheduling.get("preemptible"):
        return error(400, "invalid", "A run time limit is not supported for preemptible instances")
    if limited and scheduling.get("instanceTerminationAction") not in {"STOP", "DELETE"}:
        return error(400, "invalid", "scheduling.instanceTerminationAction must be set with a run time limit")
    if ends is not None and not 30 <= seconds(ends) - now <= 120 * 86400:
        return error(400, "invalid", "scheduling.terminationTime must be between 30 seconds and 120 days from now")
    return None


def _accelerators(body: dict[str, Any], zone: str, kind: str, scheduling: dict[str, Any]) -> Answer | None:
    attached = body.get("guestAccelerators", [])
    for one in attached:
        name = one["acceleratorType"].rpartition("/")[2]
        if one["acceleratorType"] != f"zones/{zone}/acceleratorTypes/{name}" or name not in ACCELERATORS:
            return not_found(f"zones/{zone}/acceleratorTypes/{name}")
        if not kind.startswith("n1-"):
            return error(400, "badRequest", f"[{kind}] does not support attaching accelerators")
    found = machine_type(kind)
    has_gpus = bool(attached) or bool(found and found[2])
    if (has_gpus or scheduling.get("provisioningModel") == "SPOT") and scheduling.get(
        "onHostMaintenance"
    ) != "TERMINATE":
        return error(400, "badRequest", "Instances with guest accelerators do not support live migration.")
    return None


def _disk(body: dict[str, Any], zone: str, kind: str) -> Answer | None:
    disks = body.get("disks", [])
    if len(disks) != 1 or not disks[0].get("boot"):
        return error(400, "invalid", "Invalid value for field 'resource.disks': one boot disk is required")
    params = disks[0]["initializeParams"]
    found = re.fullmatch(r"projects/([^/]+)/global/images/([^/]+)", params["sourceImage"])
    image = next((one for (project, _), one in IMAGES.items() if found and (project, one[0]) == found.groups()), None)
    if image is None:
        return not_found(params["sourceImage"].partition("/global")[2].strip("/"))
    if int(params["diskSizeGb"]) < image[1]:
        return error(400, "invalid", f"Requested disk size cannot be smaller than the image size ({image[1]} GB)")
    arch = machine_type(kind)
    if arch is not None and image[2] != arch[3]:
        return error(400, "invalid", f"The image is {image[2]} and the machine type is {arch[3]}")
    disk_type = params["diskType"].rpartition("/")[2]
    if params["diskType"] != f"zones/{zone}/diskTypes/{disk_type}":
        return invalid("resource.disks[0].initializeParams.diskType", params["diskType"])
    if kind.startswith(HYPERDISK_ONLY) and not disk_type.startswith("hyperdisk"):
        return error(
            400, "badRequest", f"[{kind}] features and [{disk_type}] are not compatible for creating instance."
        )
    return None


def _network(body: dict[str, Any], zone: str, subnets: dict[str, str]) -> Answer | None:
    region = zone.rpartition("-")[0]
    for interface in body.get("networkInterfaces", []):
        subnet = interface.get("subnetwork", "")
        if f"/regions/{region}/" not in subnet:
            return error(
                400, "invalid", f"Invalid value for field 'resource.networkInterfaces[0].subnetwork': '{subnet}'"
            )
        if subnet not in subnets:
            return not_found(subnet.partition(f"{PROJECT}/")[2] or subnet)
        if interface.get("network") not in (None, subnets[subnet]):
            return error(400, "invalid", "The subnetwork is not of this network")
    return (
        None if body.get("networkInterfaces") else error(400, "required", "At least one network interface is required")
    )


def _reservation(
    body: dict[str, Any], zone: str, kind: str, scheduling: dict[str, Any], reservations: dict[str, Any]
) -> Answer | None:
    affinity = body.get("reservationAffinity")
    if affinity is None:
        return None
    assert affinity["consumeReservationType"] == "SPECIFIC_RESERVATION"
    assert affinity["key"] == "compute.googleapis.com/reservation-name"
    (name,) = affinity["values"]
    found = reservations.get(f"{zone}/{name.rpartition('/')[2]}")
    if found is None:
        return not_found(f"zones/{zone}/reservations/{name}")
    specific = found["specificReservation"]
    if scheduling.get("provisioningModel") == "SPOT" or specific["instanceProperties"]["machineType"] != kind:
        return error(400, "invalid", "The reservation does not match the instance")
    if int(specific["inUseCount"]) >= int(specific["count"]):
        words = f"Specified reservations [{name}] do not have available resources for the request."
        return error(400, "invalid", words)
    return None


def invalid(where: str, value: object) -> Answer:
    return error(400, "invalid", f"Invalid value for field '{where}': '{value}'.")


def not_found(what: str) -> Answer:
    return error(404, "notFound", f"The resource 'projects/{PROJECT}/{what}' was not found")


def disk_row(vm: Vm, now: float, url: str, *, is_used: bool) -> dict[str, Any]:
    return {
        "kind": "compute#disk", "id": str(vm.number + 1), "name": vm.name, "zone": f"{url}/zones/{vm.zone}", "status": "READY",
        "sizeGb": vm.body["disks"][0]["initializeParams"]["diskSizeGb"],
        **({"users": [f"{url}/{vm.target}"]} if is_used else {}),
    }  # fmt: skip


__all__ = ["POOL", "ZONES", "Answer", "Operation", "disk_row", "invalid", "not_found", "pool_exhausted", "problem"]
