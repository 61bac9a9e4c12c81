"""The status of a pod as instances have it: which state it is in, and why, in a user's words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

from providers.core.models import InstanceState
from providers.core.nodes import Json, as_dict, as_list

CONTAINER: Final = "job"  # the container of ours; others may be put beside it by the cluster

_IMAGE: Final = {
    "ErrImagePull": "cannot be pulled",
    "ImagePullBackOff": "cannot be pulled",
    "ErrImageNeverPull": "is not on the node, and the account's block forbids pulling",
    "InvalidImageName": "has a name that is none",
    "ImageInspectError": "cannot be read",
    "RegistryUnavailable": "cannot be pulled: its registry does not answer",
    "SignatureValidationFailed": "is not signed as the cluster demands",
}
_CONTAINER: Final = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff"}
# The kubelet tries all of it again, with growing pauses. These are what trying again does not mend: by reason, and where a reason
# has many causes by the words of containerd, Docker, CRI-O and registries (not where they are part of an image's name).
_FINAL: Final = {"InvalidImageName", "ErrImageNeverPull", "SignatureValidationFailed"}
_FINAL_WORDS: Final = re.compile(
    r"(?<![\w/.:-])("
    r"not found|manifest unknown|name unknown|does not exist|couldn't find key|invalid reference format"
    r"|unauthorized|unauthenticated|authentication required|no basic auth|denied|forbidden"
    r"|no match(ing manifest)? for|does not match the specified platform"
    r"|no such host|connection refused|x509|HTTP response to HTTPS client"
    r"|runAsNonRoot|non-numeric user"
    r")(?![\w/-]|[.:]\w)",
    re.IGNORECASE,
)
_BUSY: Final = re.compile(
    r"too ?many ?requests|\b429\b|quota exceeded", re.IGNORECASE
)  # registries refuse with these too
PATIENCE_S: Final = 120.0  # for the rest, from when the pod had its node
_TAKEN_BACK: Final = {"Evicted", "Preempting", "Preempted", "NodeLost", "NodeShutdown", "Shutdown", "Terminated"}


def state_of(pod: Json, now: datetime, scheduling_timeout_s: float) -> tuple[InstanceState, str]:
    """What a pod's status means, and its reason in a user's words."""
    status: Json = as_dict(pod.get("status"))
    conditions: dict[str, Json] = {one["type"]: one for one in as_list(status.get("conditions"))}
    phase = status.get("phase")
    disrupted = conditions.get("DisruptionTarget")
    if disrupted is not None and disrupted.get("status") == "True":
        return InstanceState.INTERRUPTED, _words(disrupted)
    if status.get("reason") in _TAKEN_BACK:
        return InstanceState.INTERRUPTED, _words(status)
    if phase in {"Failed", "Succeeded"}:
        return _ended(status, str(phase))
    if pod["metadata"].get("deletionTimestamp"):
        return InstanceState.TERMINATING, ""
    has_started = as_dict(_own(status).get("state")).keys() & {"running", "terminated"}
    if phase == "Running" or (phase == "Pending" and has_started):  # pending: a sidecar waits for its image
        return _running(status, conditions, now)
    if phase == "Pending":
        return _pending(status, conditions, now, scheduling_timeout_s)
    return InstanceState.UNKNOWN, f"its phase is {phase}"


def _ended(status: Json, phase: str) -> tuple[InstanceState, str]:
    if phase == "Succeeded" or status.get("reason") == "DeadlineExceeded":
        return InstanceState.TERMINATED, "its lease is over" if phase == "Failed" else "it has ended"
    if end := _end(_own(status)):
        return _end_of_ours(end)
    for container in _all(status):
        if (end := _end(container)) and end.get("exitCode"):
            words = f"its container {container.get('name')} ended with exit code {end['exitCode']}: {_words(end)}"
            return InstanceState.FAILED, words
    return InstanceState.FAILED, _words(status)


def _all(status: Json) -> list[Json]:
    return [*as_list(status.get("initContainerStatuses")), *as_list(status.get("containerStatuses"))]


def _own(status: Json) -> Json:
    return as_dict(
        next((one for one in as_list(status.get("containerStatuses")) if one.get("name") == CONTAINER), None)
    )


def _end(container: Json) -> Json:
    return as_dict(as_dict(container.get("state")).get("terminated"))


def _end_of_ours(end: Json) -> tuple[InstanceState, str]:
    """It is never started again, so its end is the instance's, whatever runs on beside it."""
    if end.get("exitCode") == 0:
        return InstanceState.TERMINATED, "it has ended"
    return InstanceState.FAILED, f"its container ended with exit code {end.get('exitCode')}: {_words(end)}"


def _pending(
    status: Json, conditions: Mapping[str, Json], now: datetime, scheduling_timeout_s: float
) -> tuple[InstanceState, str]:
    scheduled = conditions.get("PodScheduled")
    if scheduled is not None and scheduled.get("status") == "False":
        since = instant(scheduled.get("lastTransitionTime")) or now
        if node := status.get("nominatedNodeName"):  # by preemption: pods of lower priority have their grace to go
            return InstanceState.PROVISIONING, f"others make room for it on the node {node}: {_words(scheduled)}"
        words = f"no node takes it: {_words(scheduled)}"
        if scheduled.get("reason") == "Unschedulable" and (now - since).total_seconds() >= scheduling_timeout_s:
            return InstanceState.FAILED, words
        return InstanceState.PROVISIONING, words
    before = as_list(status.get("initContainerStatuses"))  # ours is not made until they have ended, or run as sidecars
    return _waiting([*before, _own(status)], conditions, now) or (
        InstanceState.PROVISIONING,
        "its container is being made",
    )


def _running(status: Json, conditions: Mapping[str, Json], now: datetime) -> tuple[InstanceState, str]:
    own = _own(status)
    if end := _end(own):
        return _end_of_ours(end)
    if not own.get("ready"):
        return _waiting([own], conditions, now) or (InstanceState.PROVISIONING, "its container is being started")
    # A pod that is not ready although its containers are was made so by the cluster, because its node is silent; unless it
    # waits for a load balancer, which a webhook may have asked for.
    ready = conditions.get("Ready", {})
    are_all_ready = all(one.get("ready") for one in _all(status))  # an init container that has ended is ready too
    if are_all_ready and ready.get("status") != "True" and ready.get("reason") != "ReadinessGatesNotReady":
        return InstanceState.UNKNOWN, f"it does not answer: {_words(ready)}"
    return InstanceState.RUNNING, ""


def _waiting(
    containers: Iterable[Json], conditions: Mapping[str, Json], now: datetime
) -> tuple[InstanceState, str] | None:
    """A container that waits for what will not come, or may not."""
    since = instant(conditions.get("PodScheduled", {}).get("lastTransitionTime")) or now
    for container in containers:
        waiting: Json = as_dict(as_dict(container.get("state")).get("waiting"))
        reason, message = waiting.get("reason"), str(waiting.get("message", ""))
        if reason in _IMAGE:
            words = f"the image {container.get('image')} {_IMAGE[reason]}: {_words(waiting)}"
        elif reason in _CONTAINER:
            words = f"its container cannot be made: {_words(waiting)}"
        else:
            continue
        is_final = reason in _FINAL or (_FINAL_WORDS.search(message) and not _BUSY.search(message))
        is_over = is_final or (now - since).total_seconds() >= PATIENCE_S
        return InstanceState.FAILED if is_over else InstanceState.PROVISIONING, words
    return None


def _words(source: Json) -> str:
    return (
        one_line(": ".join(str(source[key]) for key in ("reason", "message") if source.get(key))) or "no reason given"
    )


def instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def one_line(text: str) -> str:
    return " ".join(text.split())[:500]
