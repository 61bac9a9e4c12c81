"""One order: the machine that Azure is sent, with its interface, address and disk; the same bytes for the same offer and spec."""

from __future__ import annotations

import base64
import math
from typing import Any, Final, Literal

from prefect_gpu.blocks.azure import AzureCredentials
from prefect_gpu.providers.azure.images import Image
from prefect_gpu.providers.azure.instances import LOGIN_TAG, USER
from prefect_gpu.providers.azure.network import Place
from prefect_gpu.providers.azure.reservations import Reservation
from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.models import LaunchSpec, Model, Offer
from prefect_gpu.providers.core.toolkit import cloud_init, notice

DEFAULT_DISK_GB: Final = 100.0
MOST_DISK_GB: Final = 4095  # of the operating system's disk
# Half a minute before Azure takes a spot machine back, and nowhere else in time:
# https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events
AZURE_SPOT: Final = notice.Notice(
    url="http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01",
    header="Metadata: true",
    says='"EventType": *"Preempt"',
)
# Azure's agent takes a machine for provisioned only when it has the RSA host key that cloud-init makes where it is given none:
# https://github.com/Azure/WALinuxAgent/blob/master/azurelinuxagent/pa/provision/cloudinit.py
FOR_THE_AGENT: Final = "cp /etc/ssh/ssh_host_ed25519_key.pub /etc/ssh/ssh_host_rsa_key.pub"
_CUSTOM_DATA_BYTES: Final = 65_535  # before base64
_TAG_SIGNS: Final = str.maketrans("", "", "<>%&\\?/")


class AzureOptions(Model):
    """What one order may ask of Azure beside its offer (`LaunchSpec.options`)."""

    image: str | None = None  # publisher:offer:sku:version or an id; None: the block's
    disk_type: Literal["Premium_LRS", "StandardSSD_LRS", "Standard_LRS"] | None = None  # None: the block's
    identity: str | None = None  # id of a user-assigned identity; None: the block's
    capacity_reservation_group: str | None = None  # its id; None: the block's
    max_spot_price: float | None = None  # USD per hour; None: up to the on-demand price


def user_data(offer: Offer, spec: LaunchSpec) -> str:
    """What the machine boots with. InvalidRequest where Azure would not take it: ask before anything is made."""
    services = {"notice": notice.script(AZURE_SPOT)} if offer.spot else {}
    last = [FOR_THE_AGENT] if spec.host_key is not None else []
    # A machine that powers itself off goes on costing money, so it does not.
    text = cloud_init.user_data(spec, powers_off=False, services=services, last=last)
    if (size := len(text.encode())) > _CUSTOM_DATA_BYTES:
        raise InvalidRequest(f"the machine's user data has {size} bytes, Azure takes {_CUSTOM_DATA_BYTES}")
    return text


def disk_gb(offer: Offer, spec: LaunchSpec) -> int:
    """The disk's size. InvalidRequest above Azure's limit."""
    asked = math.ceil(spec.disk_gb or offer.disk_gb or DEFAULT_DISK_GB)
    if asked > MOST_DISK_GB:
        raise InvalidRequest(
            f"a disk of {asked} GB is asked for, Azure's for operating systems have at most {MOST_DISK_GB}"
        )
    return asked


def request(
    credentials: AzureCredentials,
    offer: Offer,
    spec: LaunchSpec,
    options: AzureOptions,
    *,
    image: Image,
    place: Place,
    reservation: Reservation | None,
    is_private: bool,
) -> dict[str, Any]:
    """The body of PUT virtualMachines."""
    name = spec.name
    tags = {key.translate(_TAG_SIGNS)[:512]: text[:256] for key, text in [*spec.tags.items()][:45]}
    tags |= {"managed-by": "prefect-gpu", LOGIN_TAG: f"{'private' if is_private else 'public'}:{image.port}"}
    key = {"path": f"/home/{USER}/.ssh/authorized_keys", "keyData": spec.client_public_key}
    disk_type = options.disk_type or credentials.disk_type
    properties: dict[str, Any] = {
        "hardwareProfile": {"vmSize": offer.instance_type},
        "storageProfile": {
            "imageReference": image.of_order(),
            "osDisk": {
                "name": name,
                "createOption": "FromImage",
                "deleteOption": "Delete",
                "diskSizeGB": disk_gb(offer, spec),
                "managedDisk": {"storageAccountType": disk_type},
            },
        },
        "osProfile": {
            "computerName": name,
            "adminUsername": USER,
            # Not `userData`, which every process on the machine can ask for.
            "customData": base64.b64encode(user_data(offer, spec).encode()).decode(),
            "linuxConfiguration": {"disablePasswordAuthentication": True, "ssh": {"publicKeys": [key]}},
        },
        "networkProfile": _network(offer, name, place, is_private),
    }
    body: dict[str, Any] = {"location": offer.region, "tags": tags, "properties": properties}
    if identity := options.identity or credentials.identity:
        body["identity"] = {"type": "UserAssigned", "userAssignedIdentities": {identity: {}}}
    if (plan := image.plan()) is not None:
        body["plan"] = plan
    if offer.zone is not None:
        body["zones"] = [offer.zone.rpartition("-")[2]]
    if reservation is not None:
        properties["capacityReservation"] = {"capacityReservationGroup": {"id": reservation.group}}
        if reservation.zone is not None:
            body["zones"] = [reservation.zone]
    if offer.spot:
        limits = [limit for limit in (options.max_spot_price, spec.max_price) if limit is not None]
        highest = round(min(limits), 5) if limits else -1  # up to the on-demand price
        properties |= {"priority": "Spot", "evictionPolicy": "Delete", "billingProfile": {"maxPrice": highest}}
    return body


def _network(offer: Offer, name: str, place: Place, is_private: bool) -> dict[str, Any]:
    """Interface and address as part of the order: made with the machine, and gone with it."""
    address: dict[str, Any] = {"primary": True, "subnet": {"id": place.subnet}}
    if not is_private:
        address["publicIPAddressConfiguration"] = {
            "name": name,
            "sku": {"name": "Standard", "tier": "Regional"},
            "properties": {"deleteOption": "Delete", "publicIPAllocationMethod": "Static"},
        }
    interface = {
        "primary": True,
        "deleteOption": "Delete",
        "enableAcceleratedNetworking": bool(offer.raw.get("accelerated_networking")),
        "networkSecurityGroup": {"id": place.security_group},
        "ipConfigurations": [{"name": name, "properties": address}],
    }
    return {
        "networkApiVersion": "2020-11-01",  # the only one that compute's 2024-07-01 names
        "networkInterfaceConfigurations": [{"name": name, "properties": interface}],
    }
