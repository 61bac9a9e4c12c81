"""Operations: what Compute Engine accepts first and carries out later, and what they tell of a machine that is gone.

An operation that is not done when the time for it is over is not a success: the machine stays `provisioning` until it shows itself.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from prefect_gpu.providers.core.errors import ProviderError, Transient
from prefect_gpu.providers.core.models import Instance, InstanceState
from prefect_gpu.providers.gcp import errors
from prefect_gpu.providers.gcp.api import Api, dict_of, last
from prefect_gpu.providers.gcp.instances import instance_id, is_name, region_of

WAIT_S: Final = 30.0  # a refusal for want of capacity comes within it, as a rule
# What Google does to a machine by itself: https://cloud.google.com/compute/docs/instances/spot#preemption-process
TAKEN_BACK: Final = {
    "compute.instances.preempted": "Google took this spot machine back",
    "compute.instances.hostError": "the machine's host failed",
    "compute.instances.terminateOnHostMaintenance": "Google ended it for maintenance of its host",
}


def waited(api: Api, *path: str, doing: str) -> dict[str, Any]:
    """The operation as it is when it is done, or when WAIT_S are over; empty where it cannot be asked: then it is not known."""
    with suppress(ProviderError):
        done = api.http.post(api.path(*path, "wait"), what=f"wait until it could {doing}", timeout_s=WAIT_S)
        if isinstance(done, dict):
            return done
    return {}


def carried_out(api: Api, answer: dict[str, Any], *scope: str, doing: str) -> None:
    """Wait for an operation that must be done before the next step. Transient where it is not done in time."""
    done = waited(api, *scope, "operations", str(answer.get("name")), doing=doing)
    if (refused := errors.in_operation(done, doing)) is not None:
        raise refused
    if done.get("status") != "DONE":
        raise Transient(f"Google Cloud has not finished to {doing} yet")


def told(api: Api, zone: str, name: str) -> list[dict[str, Any]]:
    """The operations on a machine, the newest first; they are kept for two weeks and more."""
    only = f'targetLink eq ".*/zones/{zone}/instances/{name}"'
    rows = [
        row
        for row in api.rows("zones", zone, "operations", what=f"look for what became of {name}", only=only)
        if last(row.get("targetLink")) == name
    ]
    return sorted(rows, key=_when, reverse=True)


def _when(row: dict[str, Any]) -> tuple[str, bool]:
    return str(row.get("insertTime") or ""), row.get("operationType") != "insert"


def ended(api: Api, zone: str, name: str) -> Instance | None:
    """A machine that is not there any more, as its operations tell: taken back, given back, or never made. None where they tell nothing.

    A name has one order, so what was done under it last is what became of it.
    """
    if not is_name(name):
        return None
    try:
        rows = told(api, zone, name)
    except ProviderError:
        return None  # not allowed, or not now: then nothing is known
    latest = [*(row for row in rows if row.get("operationType") in {"insert", "delete"}), dict_of(None)][0]
    reason, refused = taken_back(rows), errors.in_operation(latest, f"make {name}")
    if latest.get("operationType") == "insert" and refused is not None:
        reason = reason or refused.message
    is_given_back = latest.get("operationType") == "delete" and latest.get("status") == "DONE" and refused is None
    if not reason and not is_given_back:
        return None
    return Instance(
        id=instance_id(zone, name),
        name=name,
        provider="gcp",
        state=InstanceState.TERMINATED,
        region=region_of(zone),
        zone=zone,
        reason=reason,
        raw={"status": "", "taken_back": taken_back(rows)},
    )


def taken_back(rows: list[dict[str, Any]]) -> str:
    """Why Google ended a machine, of whose operations these are; empty where it did not."""
    for row in rows:
        kind = str(row.get("operationType"))
        if kind in TAKEN_BACK:
            words = " ".join(str(row.get("statusMessage") or "").split())[:200]
            return f"{TAKEN_BACK[kind]} ({kind})" + (f": {words}" if words else "")
    return ""
