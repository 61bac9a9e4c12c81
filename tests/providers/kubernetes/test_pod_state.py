"""What a pod's status means."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect_gpu.providers.core.models import (
    InstanceState,
    utc_now,
)
from prefect_gpu.providers.kubernetes.pod_state import state_of
from tests.fakes.kubernetes_api import (
    CRASHED,
    ENDED,
    MAKING,
    OOM_KILLED,
    PULLING,
    READY,
    STARTING,
    pod_status,
    waiting_pod,
)


class TestStates:
    @pytest.mark.parametrize(
        ("pod", "state", "words"),
        [
            (pod_status(phase="Pending"), InstanceState.PROVISIONING, ""),
            (
                pod_status(
                    phase="Pending",
                    containerStatuses=[
                        {
                            "name": "job",
                            "image": "x",
                            "state": {"waiting": {"reason": "ErrImagePull", "message": "manifest unknown"}},
                        }
                    ],
                ),
                InstanceState.FAILED,
                "the image x cannot be pulled: ErrImagePull: manifest unknown",
            ),
            (
                pod_status(
                    phase="Pending",
                    containerStatuses=[
                        {
                            "name": "job",
                            "state": {
                                "waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s" not found'}
                            },
                        }
                    ],
                ),
                InstanceState.FAILED,
                'secret "s" not found',
            ),
            (
                pod_status(
                    phase="Running",
                    conditions=[{"type": "Ready", "status": "True"}],
                    containerStatuses=[{"name": "job", "ready": True, "state": {"running": {}}}],
                ),
                InstanceState.RUNNING,
                "",
            ),
            (
                pod_status(
                    phase="Running",
                    conditions=[{"type": "Ready", "status": "False"}],
                    containerStatuses=[{"name": "job", "ready": True, "state": {"running": {}}}],
                ),
                InstanceState.UNKNOWN,
                "does not answer",
            ),
            (
                pod_status(phase="Running", containerStatuses=[{"name": "job", "ready": False, "state": {}}]),
                InstanceState.PROVISIONING,
                "",
            ),
            (pod_status(phase="Running", metadata={"deletionTimestamp": "x"}), InstanceState.TERMINATING, ""),
            (pod_status(phase="Failed", reason="DeadlineExceeded"), InstanceState.TERMINATED, "lease is over"),
            (pod_status(phase="Succeeded"), InstanceState.TERMINATED, ""),
            (pod_status(phase="Failed", reason="Evicted", message="disk"), InstanceState.INTERRUPTED, "Evicted: disk"),
            (
                pod_status(
                    phase="Running",
                    metadata={"deletionTimestamp": "x"},
                    conditions=[
                        {
                            "type": "DisruptionTarget",
                            "status": "True",
                            "reason": "PreemptionByScheduler",
                            "message": "m",
                        }
                    ],
                ),
                InstanceState.INTERRUPTED,
                "PreemptionByScheduler: m",
            ),
            (
                pod_status(
                    phase="Failed",
                    containerStatuses=[
                        {"name": "job", "state": {"terminated": {"exitCode": 128, "reason": "StartError"}}}
                    ],
                ),
                InstanceState.FAILED,
                "exit code 128: StartError",
            ),
            (
                pod_status(phase="Failed", reason="UnexpectedAdmissionError"),
                InstanceState.FAILED,
                "UnexpectedAdmission",
            ),
            (pod_status(phase="Unknown"), InstanceState.UNKNOWN, "Unknown"),
            (pod_status(), InstanceState.UNKNOWN, ""),
        ],
    )
    def test_a_pods_status_is_a_state_and_a_reason(self, pod: dict[str, Any], state: InstanceState, words: str) -> None:
        seen, reason = state_of(pod, utc_now(), 5)
        assert seen is state
        assert words in reason

    @pytest.mark.parametrize(
        ("others", "own", "more", "state", "words"),
        [
            ([("istio-proxy", READY)], OOM_KILLED, {}, InstanceState.FAILED, "exit code 137: OOMKilled"),
            ([("istio-proxy", READY)], ENDED, {}, InstanceState.TERMINATED, "it has ended"),
            ([("istio-proxy", STARTING)], READY, {}, InstanceState.RUNNING, ""),
            ([("helper", ENDED)], READY, {}, InstanceState.RUNNING, ""),
            ([("helper", OOM_KILLED)], READY, {}, InstanceState.RUNNING, ""),
            ([("helper", PULLING)], READY, {"phase": "Pending"}, InstanceState.RUNNING, ""),
            ([("helper", PULLING)], OOM_KILLED, {"phase": "Pending"}, InstanceState.FAILED, "exit code 137: OOMKilled"),
            ([("istio-proxy", READY)], STARTING, {}, InstanceState.PROVISIONING, "being started"),
            ([("istio-proxy", READY)], MAKING, {"phase": "Pending"}, InstanceState.PROVISIONING, "being made"),
            ([("helper", ENDED)], OOM_KILLED, {"phase": "Failed"}, InstanceState.FAILED, "exit code 137: OOMKilled"),
            ([("helper", OOM_KILLED)], ENDED, {"phase": "Failed"}, InstanceState.TERMINATED, "it has ended"),
            (
                [("init", OOM_KILLED)],
                MAKING,
                {"phase": "Failed"},
                InstanceState.FAILED,
                "container init ended with exit",
            ),
        ],
        ids=str,
    )
    def test_the_container_of_ours_decides_whatever_stands_beside_it(
        self,
        others: list[tuple[str, dict[str, Any]]],
        own: dict[str, Any],
        more: dict[str, str],
        state: InstanceState,
        words: str,
    ) -> None:
        for kind in ("containerStatuses", "initContainerStatuses"):
            beside = [{"name": name, "image": name, **status} for name, status in others]
            status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}], **more}
            for ours in (0, len(beside)):  # the order of containers is the cluster's
                containers = list(beside) if kind == "containerStatuses" else []
                containers.insert(ours, {"name": "job", "image": "x", **own})
                initial = beside if kind == "initContainerStatuses" else []
                seen, reason = state_of(
                    pod_status(containerStatuses=containers, initContainerStatuses=initial, **status), utc_now(), 5
                )
                assert (kind, seen) == (kind, state)
                assert words in reason

    def test_a_sidecar_that_restarts_beside_a_running_job_ends_nothing(self) -> None:
        pod = pod_status(
            phase="Running",
            conditions=[{"type": "Ready", "status": "True"}],
            initContainerStatuses=[{"name": "istio-proxy", "ready": False, "state": {"waiting": CRASHED}}],
            containerStatuses=[{"name": "job", **READY}],
        )
        assert state_of(pod, utc_now(), 5) == (InstanceState.RUNNING, "")

    def test_only_a_node_that_does_not_answer_makes_a_pod_unknown(self) -> None:
        for condition, beside, state in (
            ({"status": "False"}, READY, InstanceState.UNKNOWN),  # its node is silent: all were ready when it last told
            ({"status": "Unknown"}, READY, InstanceState.UNKNOWN),
            ({"status": "False", "reason": "ContainersNotReady"}, STARTING, InstanceState.RUNNING),
            ({"status": "False", "reason": "ReadinessGatesNotReady"}, READY, InstanceState.RUNNING),
        ):
            pod = pod_status(
                phase="Running",
                conditions=[{"type": "Ready", **condition}],
                containerStatuses=[{"name": "istio-proxy", **beside}, {"name": "job", **READY}],
            )
            assert state_of(pod, utc_now(), 5)[0] is state

    @pytest.mark.parametrize(
        ("reason", "message"),
        [
            # containerd
            (
                "ErrImagePull",
                'failed to resolve reference "docker.io/library/nosuch:1": docker.io/library/nosuch:1: not found',
            ),
            (
                "ErrImagePull",
                "pull access denied, repository does not exist or may require authorization: server message: x",
            ),
            (
                "ErrImagePull",
                "failed to authorize: unexpected status from GET request to https://ghcr.io/t: 401 Unauthorized",
            ),
            ("ErrImagePull", 'failed to pull and unpack image "x": no match for platform in manifest: not found'),
            # docker, and cri-o
            (
                "ErrImagePull",
                "rpc error: code = Unknown desc = Error response from daemon: manifest for nginx:nosuch not found",
            ),
            ("ErrImagePull", "Error response from daemon: manifest unknown: manifest unknown"),
            (
                "ErrImagePull",
                "Error response from daemon: Get https://r.example/v2/a/manifests/1: no basic auth credentials",
            ),
            ("ErrImagePull", "no matching manifest for linux/arm64/v8 in the manifest list entries"),
            (
                "ErrImagePull",
                "reading manifest 1 in quay.io/a/b: unauthorized: access to the requested resource is not authorized",
            ),
            # a cluster without a way out
            ("ErrImagePull", 'Get "https://ghcr.io/v2/": dial tcp: lookup ghcr.io on 10.0.0.10:53: no such host'),
            ("ErrImagePull", 'Get "http://127.0.0.1:9/v2/": dial tcp 127.0.0.1:9: connect: connection refused'),
            # kubelets from 1.31 on say it here too
            ("ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: reading manifest: manifest unknown'),
            ("InvalidImageName", 'Failed to apply default image tag "UPPER CASE"'),
            ("ErrImageNeverPull", 'Container image "x" is not present with pull policy of Never'),
            ("SignatureValidationFailed", "image policy denies it"),
            ("CreateContainerConfigError", 'configmap "c" not found'),
            ("CreateContainerConfigError", "couldn't find key k in Secret ns/s"),
            ("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
        ],
    )
    def test_what_waiting_does_not_mend_is_told_at_once(self, reason: str, message: str) -> None:
        pod, now = waiting_pod(reason, message, scheduled_s_ago=1)
        state, words = state_of(pod, now, 5)
        assert state is InstanceState.FAILED
        assert message[:100] in words

    @pytest.mark.parametrize(
        ("reason", "message"),
        [
            ("ErrImagePull", "pull QPS exceeded"),
            (
                "ErrImagePull",
                'failed to resolve reference "x": unexpected status from HEAD request: 429 Too Many Requests',
            ),
            ("ErrImagePull", "toomanyrequests: You have reached your unauthenticated pull rate limit"),
            ("ErrImagePull", "denied: Quota exceeded for quota metric 'Requests per project per region'"),
            (
                "ErrImagePull",
                'Get "https://ghcr.io/v2/": dial tcp: lookup ghcr.io on 10.0.0.10:53: read udp: i/o timeout',
            ),
            ("ErrImagePull", "net/http: TLS handshake timeout"),
            ("ErrImagePull", "unexpected EOF"),
            (
                "ImagePullBackOff",
                'Back-off pulling image "ghcr.io/acme/denied:unauthorized"',
            ),  # words of a name, not of a refusal
            ("ImagePullBackOff", 'Back-off pulling image "denied:1"'),
            ("RegistryUnavailable", "image pull failed: the registry is unavailable"),
            ("CreateContainerConfigError", "failed to sync configmap cache: timed out waiting for the condition"),
            ("CreateContainerError", "context deadline exceeded"),
        ],
    )
    def test_what_the_kubelet_tries_again_has_two_minutes_and_is_told_meanwhile(
        self, reason: str, message: str
    ) -> None:
        pod, now = waiting_pod(reason, message, scheduled_s_ago=100)
        state, words = state_of(pod, now, 5)
        assert state is InstanceState.PROVISIONING
        assert message in words
        pod, now = waiting_pod(reason, message, scheduled_s_ago=121)
        assert state_of(pod, now, 5) == (InstanceState.FAILED, words)

    def test_a_pod_that_no_node_takes_fails_when_its_time_is_over(self) -> None:
        now = utc_now()
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available",
            "lastTransitionTime": (now - timedelta(seconds=10)).isoformat(),
        }
        pod = pod_status(phase="Pending", conditions=[condition])
        assert state_of(pod, now, 5) == (
            InstanceState.FAILED,
            "no node takes it: Unschedulable: 0/1 nodes are available",
        )
        assert state_of(pod, now, 60)[0] is InstanceState.PROVISIONING

    def test_a_pod_for_which_others_make_room_goes_on_waiting(self) -> None:
        now = utc_now()
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
            "lastTransitionTime": (now - timedelta(seconds=600)).isoformat(),
        }
        pod = pod_status(phase="Pending", nominatedNodeName="n1", conditions=[condition])
        state, words = state_of(pod, now, 5)
        assert state is InstanceState.PROVISIONING
        assert words.startswith("others make room for it on the node n1: Unschedulable")

    @pytest.mark.parametrize(
        ("limits", "words"),
        [
            ({"memory": "512Mi"}, "it used more than its memory limit of 512Mi"),
            ({}, "the node had no memory left for it"),
        ],
    )
    def test_an_out_of_memory_kill_is_said_with_its_limit(self, limits: dict[str, str], words: str) -> None:
        pod = pod_status(phase="Running", containerStatuses=[{"name": "job", **OOM_KILLED}])
        pod["spec"]["containers"] = [{"name": "job", "resources": {"limits": limits}}]
        state, reason = state_of(pod, utc_now(), 5)
        assert state is InstanceState.FAILED
        assert words in reason
        assert "ask for more memory_gb" in reason

    def test_an_image_that_would_run_as_root_is_named_with_what_to_do(self) -> None:
        pod, now = waiting_pod("CreateContainerConfigError", "container has runAsNonRoot and image will run as root", 1)
        state, reason = state_of(pod, now, 5)
        assert state is InstanceState.FAILED
        assert "the image x" in reason
        assert "set run_as_user" in reason
