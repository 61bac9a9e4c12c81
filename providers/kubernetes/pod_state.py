"""The status of a pod as instances have it: which state it is in, and why, in a user's words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final, NamedTuple

from prefect_gpu.providers.core.models import InstanceState
from prefect_gpu.providers.kubernetes.objects import Json, as_dict, as_list, as_number, as_text, instant, one_line

CONTAINER: Final = "job"  # the container of ours; others may be put beside it by the cluster
PATIENCE_S: Final = 120.0  # for what the kubelet tries again, from when the pod had its node

_IMAGE: Final = {
    "ErrImagePull": "cannot be pulled",
    "ImagePullBackOff": "cannot be pulled",
    "ErrImageNeverPull": "is not on the node, and the account's block forbids pulling",
    "InvalidImageName": "is not a valid image name",
    "ImageInspectError": "cannot be read",
    "RegistryUnavailable": "cannot be pulled: its registry does not answer",
    "SignatureValidationFailed": "is not signed as the cluster demands",
}
_CONTAINER: Final = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff"}
# The kubelet tries all of it again, with growing pauses. These are what trying again does not mend: by reason, and where a reason
# has many causes by the words of containerd, Docker, CRI-O and registries (not where they are part of an image's name).
_NO_NAME: Final = re.compile(r"parse image reference|invalid reference format|apply default image tag", re.IGNORECASE)
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
_NON_ROOT: Final = re.compile(r"runAsNonRoot|non-numeric user", re.IGNORECASE)
_BACK_OFF: Final = re.compile(r"back-?off", re.IGNORECASE)
_TAKEN_BACK: Final = {"Evicted", "Preempting", "Preempted", "NodeLost", "NodeShutdown", "Shutdown", "Terminated"}


class Waiting(NamedTuple):
    """What a pod waits for, where the API server knows more of it than the pod's status says: its events."""

    image: str
    since: datetime | None  # when it had its node


def state_of(pod: Json, now: datetime, scheduling_timeout_s: float) -> tuple[InstanceState, str]:
    """What a pod's status means, and its reason in a user's words."""
    status = as_dict(pod.get("status"))
    conditions = {as_text(one.get("type"), 100): one for one in as_list(status.get("conditions"))}
    phase = status.get("phase")
    disrupted = conditions.get("DisruptionTarget")
    if disrupted is not None and disrupted.get("status") == "True":
        return InstanceState.INTERRUPTED, _words(disrupted)
    if as_text(status.get("reason")) in _TAKEN_BACK:
        return InstanceState.INTERRUPTED, _words(status)
    if phase in ("Failed", "Succeeded"):
        return _ended(pod, status, str(phase))
    if as_dict(pod.get("metadata")).get("deletionTimestamp"):
        return InstanceState.TERMINATING, ""
    has_started = as_dict(_own(status).get("state")).keys() & {"running", "terminated"}
    if phase == "Running" or (phase == "Pending" and has_started):  # pending: a sidecar waits for its image
        return _running(pod, status, conditions, now)
    if phase == "Pending":
        return _pending(status, conditions, now, scheduling_timeout_s)
    return InstanceState.UNKNOWN, f"its phase is {as_text(phase, 60) or 'not known'}"


def wants_events(pod: Json, state: InstanceState) -> Waiting | None:
    """What to look for among the pod's events; None where its status says all: the kubelet writes there only "back-off", or nothing."""
    status = as_dict(pod.get("status"))
    if status.get("phase") != "Pending" or state not in {InstanceState.PROVISIONING, InstanceState.FAILED}:
        return None
    scheduled = next((one for one in as_list(status.get("conditions")) if one.get("type") == "PodScheduled"), Json())
    if scheduled.get("status") != "True":
        return None
    before = as_list(status.get("initContainerStatuses"))
    for container in (*before, _own(status)):
        waiting = as_dict(as_dict(container.get("state")).get("waiting"))
        reason, message = as_text(waiting.get("reason"), 100), as_text(waiting.get("message"))
        if reason in {"ContainerCreating", "PodInitializing", ""} or is_back_off(message) or not message:
            return Waiting(as_text(container.get("image"), 300), instant(scheduled.get("lastTransitionTime")))
    return None


def with_cause(state: InstanceState, cause: str, waiting: Waiting, now: datetime) -> tuple[InstanceState, str]:
    """The same, with the cause that the pod's newest event tells; it fails where trying again does not mend that."""
    if is_image_trouble(cause):
        what = _IMAGE["InvalidImageName"] if _NO_NAME.search(cause) else "cannot be pulled"
        words = f"the image {waiting.image or 'of the job'} {what}: {cause}"
        is_final = bool(_FINAL_WORDS.search(cause)) and not _BUSY.search(cause)
    else:
        words, is_final = f"its container cannot be made: {cause}", False
    waited_s = (now - waiting.since).total_seconds() if waiting.since else 0.0
    if state is InstanceState.FAILED or is_final or waited_s >= PATIENCE_S:
        return InstanceState.FAILED, one_line(words)
    return InstanceState.PROVISIONING, one_line(words)


def is_back_off(message: str) -> bool:
    """Whether the words only say that something is tried again later; newer kubelets add of what."""
    return bool(_BACK_OFF.match(message)) and ": " not in message


def is_image_trouble(cause: str) -> bool:
    """Whether an event speaks of the image."""
    return "pull" in cause.lower() or "image" in cause.lower()


def _ended(pod: Json, status: Json, phase: str) -> tuple[InstanceState, str]:
    if phase == "Succeeded" or status.get("reason") == "DeadlineExceeded":
        return InstanceState.TERMINATED, "its lease is over" if phase == "Failed" else "it has ended"
    if end := _end(_own(status)):
        return _end_of_ours(pod, end)
    for container in _all(status):
        if (end := _end(container)) and end.get("exitCode"):
            name, code = as_text(container.get("name"), 63), as_number(end["exitCode"])
            return InstanceState.FAILED, f"its container {name} ended with exit code {code}: {_words(end)}"
    return InstanceState.FAILED, _words(status)


def _all(status: Json) -> list[Json]:
    return [*as_list(status.get("initContainerStatuses")), *as_list(status.get("containerStatuses"))]


def _own(status: Json) -> Json:
    return next((one for one in as_list(status.get("containerStatuses")) if one.get("name") == CONTAINER), Json())


def _end(container: Json) -> Json:
    return as_dict(as_dict(container.get("state")).get("terminated"))


def _end_of_ours(pod: Json, end: Json) -> tuple[InstanceState, str]:
    """It is never started again, so its end is the instance's, whatever runs on beside it."""
    code = as_number(end.get("exitCode"))
    if code == 0 and "exitCode" in end:
        return InstanceState.TERMINATED, "it has ended"
    if end.get("reason") == "OOMKilled":
        limit = _memory_limit(pod)
        more = f"it used more than its memory limit of {limit}" if limit else "the node had no memory left for it"
        return (
            InstanceState.FAILED,
            f"it was killed because {more} (exit code {code}: OOMKilled): ask for more memory_gb",
        )
    return InstanceState.FAILED, f"its container ended with exit code {code}: {_words(end)}"


def _memory_limit(pod: Json) -> str:
    containers = as_list(as_dict(pod.get("spec")).get("containers"))
    ours = next((one for one in containers if one.get("name") == CONTAINER), Json())
    return as_text(as_dict(as_dict(ours.get("resources")).get("limits")).get("memory"), 40)


def _pending(
    status: Json, conditions: Mapping[str, Json], now: datetime, scheduling_timeout_s: float
) -> tuple[InstanceState, str]:
    scheduled = conditions.get("PodScheduled")
    if scheduled is not None and scheduled.get("status") == "False":
        since = instant(scheduled.get("lastTransitionTime")) or now
        if node := as_text(
            status.get("nominatedNodeName"), 253
        ):  # by preemption: pods of lower priority have their grace to go
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


def _running(pod: Json, status: Json, conditions: Mapping[str, Json], now: datetime) -> tuple[InstanceState, str]:
    own = _own(status)
    if end := _end(own):
        return _end_of_ours(pod, end)
    if own.get("ready") is not True:
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
        waiting = as_dict(as_dict(container.get("state")).get("waiting"))
        reason, message = as_text(waiting.get("reason"), 100), as_text(waiting.get("message"))
        image = as_text(container.get("image"), 300)
        if reason in _IMAGE:
            words = f"the image {image} {_IMAGE[reason]}: {_words(waiting)}"
        elif reason in _CONTAINER:
            words = f"its container cannot be made of the image {image}: {_words(waiting)}"
            if _NON_ROOT.search(message):
                words += (
                    "; set run_as_user, for example 1000, in the account's block, or choose an image with another user"
                )
        else:
            continue
        is_final = reason in _FINAL or (_FINAL_WORDS.search(message) and not _BUSY.search(message))
        is_over = is_final or (now - since).total_seconds() >= PATIENCE_S
        return InstanceState.FAILED if is_over else InstanceState.PROVISIONING, words
    return None


def _words(source: Json) -> str:
    told = (as_text(source.get(key)) for key in ("reason", "message"))
    return one_line(": ".join(one for one in told if one)) or "no reason given"
