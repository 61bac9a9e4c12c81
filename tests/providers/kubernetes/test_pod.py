"""The pod that is ordered."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect_gpu.blocks.kubernetes import KubernetesCredentials, KubernetesMount
from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.models import (
    LaunchSpec,
    utc_now,
)
from prefect_gpu.providers.kubernetes.options import KubernetesOptions, merged
from prefect_gpu.providers.kubernetes.pod import pod as make_pod
from tests.conformance import lease_name
from tests.fakes.kubernetes_api import (
    OFFER,
)
from tests.fakes.kubernetes_policies import restricted


def test_the_same_spec_is_the_same_pod() -> None:
    name = lease_name()
    spec = LaunchSpec(name=name, deadline=utc_now() + timedelta(hours=1), client_public_key="k", tags={"a": "b"})
    block = KubernetesCredentials()
    one, other = (make_pod(OFFER, spec, KubernetesOptions(), block) for _ in range(2))
    for made in (one, other):
        made["spec"].pop("activeDeadlineSeconds")
    assert json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def test_a_pod_is_not_moved_by_who_tidies_up_nodes_unless_the_job_says_so() -> None:
    spec = LaunchSpec(name=lease_name(), deadline=utc_now() + timedelta(hours=1), client_public_key="k")
    evict = "cluster-autoscaler.kubernetes.io/safe-to-evict"
    notes = make_pod(OFFER, spec, KubernetesOptions(), KubernetesCredentials())["metadata"]["annotations"]
    assert notes.items() >= {"karpenter.sh/do-not-disrupt": "true", evict: "false"}.items()
    options = KubernetesOptions(annotations={evict: "true"})
    assert make_pod(OFFER, spec, options, KubernetesCredentials())["metadata"]["annotations"][evict] == "true"


def made(block: KubernetesCredentials, limits_of: frozenset[str] = frozenset(), **options: Any) -> dict[str, Any]:
    spec = LaunchSpec(
        name=lease_name(), deadline=utc_now() + timedelta(hours=1), client_public_key="k", options=options
    )
    return make_pod(OFFER, spec, merged(block, spec.options), block, limits_of)["spec"]


class TestSecurity:
    def test_restricted_is_what_pod_security_admits(self) -> None:
        block = KubernetesCredentials(security="restricted", run_as_user=1000)
        assert restricted({"spec": made(block)}) == ""
        assert restricted({"spec": made(KubernetesCredentials(), security="restricted")}) == ""
        assert "runAsNonRoot" in restricted({"spec": made(KubernetesCredentials())})

    def test_a_user_gets_a_home_and_what_is_mounted(self) -> None:
        block = KubernetesCredentials(run_as_user=1000, mounts=[KubernetesMount(path="/s", secret="s")])
        spec = made(block)
        assert spec["securityContext"] == {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
        (container,) = spec["containers"]
        assert container["env"] == [{"name": "HOME", "value": "/home/prefect-gpu"}]
        assert "/home/prefect-gpu" in {one["mountPath"] for one in container["volumeMounts"]}

    def test_a_secret_can_be_read_by_a_user_that_only_the_image_knows(self) -> None:
        block = KubernetesCredentials(security="restricted", mounts=[KubernetesMount(path="/s", secret="s")])
        (secret,) = [one["secret"] for one in made(block)["volumes"] if "secret" in one]
        assert secret["defaultMode"] == 0o444

    def test_a_read_only_root_leaves_a_home_and_two_folders_to_write_to(self) -> None:
        spec = made(KubernetesCredentials(), read_only_root=True)
        (container,) = spec["containers"]
        assert container["securityContext"] == {"readOnlyRootFilesystem": True}
        assert {"/tmp", "/var/tmp", "/home/prefect-gpu"} <= {one["mountPath"] for one in container["volumeMounts"]}

    def test_the_images_own_says_nothing(self) -> None:
        spec = made(KubernetesCredentials())
        assert "securityContext" not in spec
        assert "securityContext" not in spec["containers"][0]


class TestLimits:
    def test_as_requests_limits_what_is_asked_for(self) -> None:
        (container,) = made(KubernetesCredentials(limits="as requests", cpu=2, memory_gb=3))["containers"]
        assert (
            container["resources"]["limits"]
            == container["resources"]["requests"]
            == {"cpu": "2000m", "memory": "3072Mi"}
        )

    def test_a_limit_of_ones_own_goes_before(self) -> None:
        (container,) = made(KubernetesCredentials(limits="as requests", memory_limit_gb=8), cpu_limit=4)["containers"]
        assert container["resources"]["limits"] == {"cpu": "4000m", "memory": "8192Mi"}

    def test_a_default_above_the_limit_gives_way(self) -> None:
        (container,) = made(KubernetesCredentials(), memory_limit_gb=0.5)["containers"]
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"] == "512Mi"


class TestOptions:
    def test_options_come_on_top_of_the_block(self) -> None:
        block = KubernetesCredentials(labels={"team": "a"}, annotations={"x": "1"}, priority_class="low", cpu_limit=2)
        found = merged(block, {"annotations": {"x": "2"}, "priority_class": "high"})
        assert (found.labels, found.annotations, found.priority_class, found.cpu_limit) == (
            {"team": "a"},
            {"x": "2"},
            "high",
            2,
        )

    @pytest.mark.parametrize(
        ("asked", "words"),
        [
            ({"vollumes": []}, "no option 'vollumes'"),
            ({"cpu_limit": -1}, "cpu_limit"),
            ({"cpu_limit": "inf"}, "cpu_limit"),
            ({"annotations": {"prefect-gpu/price": "0"}}, "this project's own"),
            ({"labels": {"app.kubernetes.io/managed-by": "me"}}, "this project's own"),
        ],
    )
    def test_what_is_wrong_is_named(self, asked: dict[str, Any], words: str) -> None:
        with pytest.raises(InvalidRequest, match=words):
            merged(KubernetesCredentials(), asked)

    def test_a_label_of_the_block_does_not_change_ours(self) -> None:
        with pytest.raises(InvalidRequest, match="account's block"):
            merged(KubernetesCredentials(labels={"prefect-gpu/name": "x"}), {})
