"""One order: what instances.insert is sent, the same bytes for the same offer and spec."""

from __future__ import annotations

import math
import re
import uuid
from datetime import UTC, timedelta
from typing import Any, Final

from prefect_gpu.blocks.gcp import GcpCredentials, GcpOptions
from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.models import LaunchSpec, Offer, utc_now
from prefect_gpu.providers.core.toolkit import cloud_init, notice
from prefect_gpu.providers.gcp import machines
from prefect_gpu.providers.gcp.images import Image
from prefect_gpu.providers.gcp.instances import LOGIN
from prefect_gpu.providers.gcp.network import Subnet
from prefect_gpu.providers.gcp.reservations import KEY, Reservation

DEFAULT_DISK_GB: Final = 100.0
MOST_DISK_GB: Final = 65_536  # of a disk of any of the usual types
LONGEST: Final = timedelta(days=120)  # https://cloud.google.com/compute/docs/instances/limit-vm-runtime
USER_DATA: Final = "user-data"
_USER_DATA_BYTES: Final = 262_144  # of one value of the metadata
_MOST_LABELS: Final = 64
# True for about 30 s before Compute Engine ends a spot machine: https://cloud.google.com/compute/docs/instances/spot#preemption-process
GCP_SPOT: Final = notice.Notice(
    url="http://metadata.google.internal/computeMetadata/v1/instance/preempted",
    header="Metadata-Flavor: Google",
    says="TRUE",
    every_s=3.0,
)
# Google's guest agent makes new host keys at the first boot, after cloud-init has placed ours:
# https://github.com/GoogleCloudPlatform/guest-agent, google_guest_agent/instance_setup.go. A second section of a name is read as one.
KEEP_HOST_KEYS: Final = (
    "f=/etc/default/instance_configs.cfg; grep -qs '^set_host_keys = false' $f || "
    "printf '\\n[InstanceSetup]\\nset_host_keys = false\\n' >> $f"
)


def user_data(offer: Offer, spec: LaunchSpec) -> str:
    """What the machine boots with. InvalidRequest where Compute Engine would not take it: ask before anything is made."""
    text = cloud_init.user_data(
        spec,
        powers_off=False,  # Compute Engine deletes it; a machine that is only switched off keeps its disk
        services={"notice": notice.script(GCP_SPOT)} if offer.spot else {},
        first=[KEEP_HOST_KEYS],
    )
    if (size := len(text.encode())) > _USER_DATA_BYTES:
        raise InvalidRequest(f"the machine's user data has {size} bytes, Google Cloud takes {_USER_DATA_BYTES}")
    if spec.deadline - utc_now() > LONGEST:
        raise InvalidRequest(
            f"the lease ends in {(spec.deadline - utc_now()).days} days, and Google Cloud ends machines within {LONGEST.days}: "
            "give the job a shorter timeout"
        )
    return text


def disk_gb(offer: Offer, spec: LaunchSpec, image: Image) -> int:
    """The boot disk's size: what was asked for, and no less than the image needs. InvalidRequest above Google's limit."""
    asked = math.ceil(max(spec.disk_gb or offer.disk_gb or DEFAULT_DISK_GB, image.disk_gb))
    if asked > MOST_DISK_GB:
        raise InvalidRequest(f"a disk of {asked} GB is asked for, Google Cloud's have at most {MOST_DISK_GB}")
    return asked


def request_id(name: str, zone: str) -> str:
    """What tells a repeated order from another one: of the name in its zone."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"prefect-gpu/{zone}/{name}"))


def request(
    credentials: GcpCredentials,
    offer: Offer,
    spec: LaunchSpec,
    options: GcpOptions,
    *,
    image: Image,
    subnet: Subnet,
    tags: list[str],
    reservation: Reservation | None,
) -> dict[str, Any]:
    """The body of instances.insert."""
    here = f"zones/{offer.zone}"
    named = labels(spec)
    metadata = {
        USER_DATA: user_data(offer, spec),
        LOGIN: f"{image.user}:{image.port}",
        # Nobody else's keys open it: neither those of the project nor those of OS Login.
        "block-project-ssh-keys": "TRUE",
        "enable-oslogin": "FALSE",
    }
    if image.installs_driver and offer.gpu_count:
        metadata["install-nvidia-driver"] = "True"
    interface: dict[str, Any] = {"subnetwork": subnet.link, "network": subnet.network}
    if not (credentials.network.private or spec.network == "private"):
        interface["accessConfigs"] = [{"type": "ONE_TO_ONE_NAT", "name": "External NAT"}]
    body: dict[str, Any] = {
        "name": spec.name,
        "description": "rented by prefect-gpu for one job",
        "machineType": f"{here}/machineTypes/{offer.instance_type}",
        "labels": named,
        "metadata": {"items": [{"key": key, "value": value} for key, value in metadata.items()]},
        "disks": [
            {
                "boot": True,
                "autoDelete": True,
                "initializeParams": {
                    "sourceImage": image.link,
                    "diskSizeGb": str(disk_gb(offer, spec, image)),
                    "diskType": f"{here}/diskTypes/{options.disk_type or machines.disk_type(offer.instance_type)}",
                    "labels": named,
                },
            }
        ],
        "networkInterfaces": [interface],
        "tags": {"items": tags},
        "scheduling": _scheduling(offer, spec, reservation),
    }
    if attached := machines.accelerator(offer):
        body["guestAccelerators"] = [
            {"acceleratorType": f"{here}/acceleratorTypes/{attached}", "acceleratorCount": offer.gpu_count}
        ]
    if options.service_account:
        body["serviceAccounts"] = [{"email": options.service_account, "scopes": list(options.scopes)}]
    if reservation is not None:
        body["reservationAffinity"] = {
            "consumeReservationType": "SPECIFIC_RESERVATION",
            "key": KEY,
            "values": [reservation.value],
        }
    return body


def _scheduling(offer: Offer, spec: LaunchSpec, reservation: Reservation | None) -> dict[str, Any]:
    """How it is bought, and when Compute Engine deletes it: the net that needs neither us nor the machine."""
    found: dict[str, Any] = {
        "terminationTime": spec.deadline.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "instanceTerminationAction": "DELETE",
        "automaticRestart": False,  # a job does not begin again by itself
        "provisioningModel": "SPOT" if offer.spot else "STANDARD",
    }
    if offer.gpu_count or offer.spot:
        found["onHostMaintenance"] = "TERMINATE"  # machines with GPUs cannot be moved
    if reservation is not None and machines.is_only_reserved(offer):
        found["provisioningModel"] = "RESERVATION_BOUND"
    return found


def labels(spec: LaunchSpec) -> dict[str, str]:
    """The tags as labels: lower case, and of what labels may have. The name stands in one, so that a bill shows it."""
    found = {"prefect-gpu-name": spec.name}
    for key, value in spec.tags.items():
        plain = re.sub(r"^[^a-z]+", "", _label(key))
        if plain and len(found) < _MOST_LABELS:
            found.setdefault(plain, _label(value))
    return found


def _label(text: str) -> str:
    return re.sub(r"[^a-z0-9_-]", "_", text.lower())[:63]
