"""The cause that a pod's events tell."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect_gpu.providers.core.models import InstanceState
from prefect_gpu.providers.kubernetes.events import cause
from prefect_gpu.providers.kubernetes.pod_state import wants_events, with_cause
from tests.fakes.kubernetes_api import waiting_pod

BUSY = (
    'Failed to pull image "x": rpc error: code = Unknown desc = toomanyrequests: You have reached your pull rate limit'
)
BACK_OFF = 'Back-off pulling image "x"'
MOUNT = 'MountVolume.SetUp failed for volume "mount-0" : configmap "c" not found'


def event(seconds: int, reason: str, message: str, kind: str = "Warning") -> dict[str, Any]:
    at = f"2030-01-01T00:{seconds // 60:02d}:{seconds % 60:02d}Z"
    return {"type": kind, "reason": reason, "message": message, "lastTimestamp": at}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ([], ""),
        ([event(1, "Failed", BUSY), event(2, "Failed", "Error: ErrImagePull"), event(9, "BackOff", BACK_OFF)], BUSY),
        ([event(5, "Failed", BUSY), event(9, "Pulling", 'Pulling image "x"', "Normal")], BUSY),  # once more
        ([event(5, "Failed", BUSY), event(9, "Pulled", "Successfully pulled", "Normal")], ""),
        ([event(5, "FailedMount", MOUNT)], MOUNT),
        ([event(5, "FailedMount", MOUNT), event(9, "Pulling", 'Pulling image "x"', "Normal")], ""),  # it was mounted
        ([event(1, "FailedScheduling", "0/1 nodes are available")], ""),  # it has its node by now
        ([event(1, "FailedMount", MOUNT), event(5, "MissingClusterDNS", "Falling back to Default policy.")], MOUNT),
        ([event(1, "FailedMount", "first"), event(9, "FailedCreatePodSandBox", "then")], "then"),
    ],
)
def test_the_newest_warning_that_names_one(told: list[dict[str, Any]], words: str) -> None:
    assert cause(told) == cause(list(reversed(told))) == words


@pytest.mark.parametrize(
    ("reason", "message", "asked"),
    [
        ("ContainerCreating", "", True),
        ("ImagePullBackOff", BACK_OFF, True),
        ("ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: manifest unknown', False),  # from 1.31 on
        ("ErrImagePull", "toomanyrequests: slow down", False),
    ],
)
def test_events_are_asked_only_where_the_status_says_nothing(reason: str, message: str, asked: bool) -> None:
    pod, _ = waiting_pod(reason, message, scheduled_s_ago=1)
    assert (wants_events(pod, InstanceState.PROVISIONING) is not None) is asked


@pytest.mark.parametrize(
    ("told", "scheduled_s_ago", "state"),
    [
        (BUSY, 10, InstanceState.PROVISIONING),
        (BUSY, 130, InstanceState.FAILED),
        ('Failed to pull image "x": manifest unknown', 1, InstanceState.FAILED),
        (MOUNT, 10, InstanceState.PROVISIONING),  # who makes the map after the pod has two minutes
        (MOUNT, 130, InstanceState.FAILED),
    ],
)
def test_what_the_cause_makes_of_a_pod_that_waits(told: str, scheduled_s_ago: float, state: InstanceState) -> None:
    pod, now = waiting_pod("ImagePullBackOff", BACK_OFF, scheduled_s_ago)
    waiting = wants_events(pod, InstanceState.PROVISIONING)
    assert waiting is not None
    seen, reason = with_cause(InstanceState.PROVISIONING, told, waiting, now)
    assert seen is state
    assert told in reason
    assert "ack-off" not in reason
    if "pull" in told:
        assert "the image x cannot be pulled" in reason


def test_a_pod_that_has_no_node_yet_has_no_events_to_ask() -> None:
    pod, _ = waiting_pod("ContainerCreating", "", 1)
    pod["status"]["conditions"][0]["status"] = "False"
    assert wants_events(pod, InstanceState.PROVISIONING) is None
