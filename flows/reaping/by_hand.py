"""What nobody could end in time: an event, and how a person ends it, by the provider's console or a command."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final, NamedTuple

from prefect.events import emit_event

from prefect_gpu.flows.reaping.found import Found, named
from prefect_gpu.providers.core.lease import Lease


class ByHand(NamedTuple):
    """Where a person sees a provider's machines, and what ends one: `{id}` is the provider's own, `{place}` its region or zone."""

    console: str
    command: str


BY_HAND: Final[Mapping[str, ByHand]] = {
    "local": ByHand("the processes of this machine", "prefect-gpu reap"),
    "ssh": ByHand("the machine itself", "prefect-gpu reap"),
    "aws": ByHand(
        "https://console.aws.amazon.com/ec2/home#Instances:",
        "aws ec2 terminate-instances --region {place} --instance-ids {id}",
    ),
    "azure": ByHand(
        "https://portal.azure.com/#browse/Microsoft.Compute%2FVirtualMachines",
        "az vm delete --yes --resource-group {place} --name {id}",
    ),
    "gcp": ByHand(
        "https://console.cloud.google.com/compute/instances",
        "gcloud compute instances delete {id} --zone {place} --quiet",
    ),
    "kubernetes": ByHand("your cluster", "kubectl delete pod {id} --namespace {place}"),
    "vultr": ByHand("https://my.vultr.com/", "vultr-cli instance delete {id}"),
    "verda": ByHand(
        "https://console.verda.com/",
        'curl -X PUT -H "Authorization: Bearer $TOKEN" https://api.verda.com/v1/instances --json \'{{"id": ["{id}"], "action": "delete"}}\'',
    ),
    "lambdalabs": ByHand(
        "https://cloud.lambda.ai/instances",
        'curl -u $KEY: https://cloud.lambda.ai/api/v1/instance-operations/terminate --json \'{{"instance_ids": ["{id}"]}}\'',
    ),
    "tensordock": ByHand(
        "https://dashboard.tensordock.com/",
        'curl -X DELETE -H "Authorization: Bearer $KEY" https://dashboard.tensordock.com/api/v2/instances/{id}',
    ),
    "runpod": ByHand(
        "https://console.runpod.io/pods",
        'curl -X DELETE -H "Authorization: Bearer $KEY" https://api.runpod.io/v2/pods/{id}',
    ),
    "vastai": ByHand("https://cloud.vast.ai/instances/", "vastai destroy instance {id}"),
}


def overdue(doomed: list[Found], now: datetime) -> list[Found]:
    """What was asked to end and is still seen, though its lease is over."""
    late: list[Found] = []
    for one in doomed:
        lease = Lease.parse(one.name)
        if not one.is_gone and lease is not None and lease.deadline <= now:
            late.append(one)
    return late


def told(one: Found) -> str:
    """The sentence that a person needs."""
    whole = one.machines[0] if one.machines else one.ids[0] if one.ids else one.name
    place, _, own_id = whole.rpartition("/")
    how = BY_HAND.get(one.provider)
    said = (
        f"{one.name} ({whole}) on {named(one.provider, one.account)} does not end and may cost money ({one.came_of_it})"
    )
    if how is None:
        return f"{said}: end it in the provider's console"
    return f"{said}: see {how.console} or run `{how.command.format(id=own_id, place=place or 'PLACE', whole=whole)}`"


def tell(one: Found) -> None:
    """The event `prefect-gpu.termination.overdue`, for any automation."""
    emit_event(
        "prefect-gpu.termination.overdue",
        resource={"prefect.resource.id": f"prefect-gpu.instance.{one.name}", "prefect.resource.name": one.name},
        payload={"name": one.name, "provider": one.provider, "account": one.account, "said": told(one)},
    )
