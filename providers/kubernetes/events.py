"""What the cluster says about a pod beside its status: the newest event that tells why it does not start.

A kubelet writes a cause into the pod's status for a second or two, and "Back-off pulling image" for the minutes after it; of a volume
that cannot be mounted, or a sandbox that cannot be made, it writes nothing there. Its events keep all of that for an hour.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from prefect_gpu.providers.kubernetes.objects import Json, as_dict, as_text, instant
from prefect_gpu.providers.kubernetes.pod_state import is_back_off, is_image_trouble

_SAYS_NOTHING: Final = re.compile(r"Error: \w+$|Back-off |Failed to pull image \S+$")
_PROGRESS: Final = {"Pulled", "Created", "Started", "SuccessfulAttachVolume"}
# Warnings that say why a container is not there. Others are of no consequence: MissingClusterDNS, ImageGCFailed, Unhealthy.
_CAUSES: Final = {
    "Failed",
    "FailedAttachVolume",
    "FailedCreatePodContainer",
    "FailedCreatePodSandBox",
    "FailedMapVolume",
    "FailedMount",
    "FailedPrepareDynamicResources",
    "InspectFailed",
    "NetworkNotReady",
}
_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)


def cause(events: Iterable[Json]) -> str:
    """The cause by the newest warning that names one; empty where none does, or where the pod has come further since."""
    warned: tuple[datetime, str] = (_EARLIEST, "")
    came_on = pulling = _EARLIEST
    for event in events:
        at, reason, message = _time(event), as_text(event.get("reason"), 100), as_text(event.get("message"))
        if reason in _PROGRESS:
            came_on = max(came_on, at)
        elif reason == "Pulling":
            pulling = max(pulling, at)
        elif _names_one(event.get("type"), reason, message):
            warned = max(warned, (at, message))
    # "Pulling" comes before each try to pull: it only outdates what is not about the image.
    outdated = came_on if is_image_trouble(warned[1]) else max(came_on, pulling)
    return warned[1] if warned[0] >= outdated else ""


def _names_one(kind: object, reason: str, message: str) -> bool:
    is_cause = kind == "Warning" and reason in _CAUSES
    return is_cause and bool(message) and not is_back_off(message) and not _SAYS_NOTHING.match(message)


def _time(event: Json) -> datetime:
    series = as_dict(event.get("series"))
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return next((moment for moment in map(instant, times) if moment is not None), _EARLIEST)
