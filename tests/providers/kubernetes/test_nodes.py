"""Nodes and their GPUs, told by labels as clusters write them."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect_gpu.blocks.kubernetes import KubernetesToleration
from prefect_gpu.providers.kubernetes.nodes import Node
from prefect_gpu.providers.kubernetes.objects import quantity, requests
from tests.fakes.kubernetes_api import GKE_MIG, GKE_SHARING, node


class TestNodes:
    @pytest.mark.parametrize(
        ("labels", "resource", "name", "memory_gb"),
        [
            (
                {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.memory": "81559"},
                "nvidia",
                "H100",
                80,
            ),
            (
                {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB", "nvidia.com/gpu.memory": "40960"},
                "nvidia",
                "A100",
                40,
            ),
            ({"nvidia.com/gpu.product": "Tesla-T4", "nvidia.com/gpu.memory": "15360"}, "nvidia", "T4", 16),
            (
                {"nvidia.com/gpu.product": "NVIDIA-GeForce-RTX-4090", "nvidia.com/gpu.memory": "24564"},
                "nvidia",
                "RTX4090",
                24,
            ),
            (
                {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", "nvidia.com/gpu.memory": "4864"},
                "nvidia",
                "A100-MIG-1g.5gb",
                5,
            ),
            (
                {"nvidia.com/gpu.product": "Tesla-T4-SHARED", "nvidia.com/gpu.memory": "15360"},
                "nvidia",
                "T4-SHARED",
                15,
            ),
            ({"nvidia.com/gpu.product": "Quadro-P9999"}, "nvidia", "Quadro-P9999", None),
            ({"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}, "nvidia", "H100", 80),
            (
                {"karpenter.k8s.aws/instance-gpu-name": "l4", "karpenter.k8s.aws/instance-gpu-memory": "22888"},
                "nvidia",
                "L4",
                24,
            ),
            ({"cloud.google.com/gke-accelerator": "nvidia-h100-mega-80gb"}, "nvidia", "H100", 80),
            (
                {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100", GKE_MIG: "1g.5gb"},
                "nvidia",
                "A100-MIG-1g.5gb",
                5,
            ),
            (
                {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb", GKE_MIG: "3g.40gb"},
                "nvidia",
                "H100-MIG-3g.40gb",
                40,
            ),
            (
                {"cloud.google.com/gke-accelerator": "nvidia-l4", GKE_SHARING: "time-sharing"},
                "nvidia",
                "L4-SHARED",
                None,
            ),
            ({"cloud.google.com/gke-accelerator": "nvidia-l4", GKE_SHARING: "mps"}, "nvidia", "L4-SHARED", None),
            (
                {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100", GKE_MIG: "2g.10gb", GKE_SHARING: "mps"},
                "nvidia",
                "A100-MIG-2g.10gb-SHARED",
                10,
            ),
            (
                {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb-SHARED", "nvidia.com/gpu.memory": "4864"},
                "nvidia",
                "A100-MIG-1g.5gb-SHARED",
                5,
            ),
            (
                {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb.me", "nvidia.com/gpu.memory": "9984"},
                "nvidia",
                "H100-MIG-1g.10gb.me",
                10,
            ),
            ({"amd.com/gpu.product-name": "AMD_Instinct_MI300X_VF", "amd.com/gpu.vram": "192G"}, "amd", "MI300X", 192),
            ({"amd.com/gpu.product-name": "AMD_Instinct_MI308X_HF_VF"}, "amd", "MI308X", None),
            ({"amd.com/gpu.device-id": "74a2"}, "amd", "MI308X", None),
            ({"amd.com/gpu.device-id": "74a8"}, "amd", "MI308X", None),
            ({"amd.com/gpu.device-id": "74a9"}, "amd", "MI300X", None),
            ({"amd.com/gpu.device-id": "74b5"}, "amd", "MI300X", None),
            ({"amd.com/gpu.device-id": "74b9"}, "amd", "MI325X", None),
            ({"amd.com/gpu.device-id": "74bd"}, "amd", "MI300X", None),
            ({"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.vram": "192G"}, "amd", "MI300X", 192),
            ({"amd.com/gpu.device-id": "74a1", "amd.com/gpu.vram": "192G"}, "amd", "MI300X", 192),
            ({"beta.amd.com/gpu.device-id.740f": "8", "beta.amd.com/gpu.vram.64G": "8"}, "amd", "MI210", 64),
        ],
    )
    def test_gpus_are_told_by_the_labels_that_clusters_write(
        self, labels: dict[str, str], resource: str, name: str, memory_gb: float | None
    ) -> None:
        (gpu,) = Node(node({f"{resource}.com/gpu": "8"}, labels)).gpus
        assert (gpu.name, gpu.memory_gb, gpu.vendor) == (name, memory_gb, resource)

    def test_a_node_without_gpus_has_none_whatever_its_labels_say(self) -> None:
        assert Node(node({"nvidia.com/gpu": "0"}, {"nvidia.com/gpu.product": "Tesla-T4"})).gpus == []

    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("2", 2),
            ("1930m", 1.93),
            ("24581696Ki", 24581696 * 1024),
            ("1.5Gi", 1.5 * 2**30),
            ("129e6", 129000000.0),
            ("129M", 129000000.0),
            ("100n", 1e-07),
            ("nonsense", 0),
            ("", 0),
            ("12Qi", 0),
        ],
    )
    def test_quantities_are_numbers(self, text: str, number: float) -> None:
        assert quantity(text) == pytest.approx(number)

    def test_a_pods_requests_are_its_containers_or_its_biggest_init_container(self) -> None:
        def asks(cpu: str, **more: str) -> dict[str, Any]:
            return {"resources": {"requests": {"cpu": cpu}}, **more}

        spec = {
            "containers": [asks("1"), asks("500m"), {"resources": {"limits": {"nvidia.com/gpu": "2"}}}],
            "initContainers": [asks("4"), asks("250m", restartPolicy="Always")],
            "overhead": {"cpu": "100m"},
        }
        assert requests(spec) == {"pods": 1, "cpu": pytest.approx(4.1), "nvidia.com/gpu": 2}

    def test_taints_need_a_toleration_but_gpu_pods_bear_the_usual_one(self) -> None:
        wants = {"cpu": 1.0, "nvidia.com/gpu": 1.0}
        usual = Node(node({"nvidia.com/gpu": "8"}, taints=[{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]))
        assert usual.problem(wants, (), usual.gpus[0]) is None
        assert "taint nvidia.com/gpu" in str(usual.problem({"cpu": 1.0}, ()))
        team = Node(node({"nvidia.com/gpu": "8"}, taints=[{"key": "team", "value": "a", "effect": "NoExecute"}]))
        assert "taint team" in str(team.problem(wants, ()))
        assert team.problem(wants, (KubernetesToleration(key="team", operator="Equal", value="a"),)) is None
        assert team.problem(wants, (KubernetesToleration(key="team", operator="Equal", value="b"),)) is not None
        assert team.problem(wants, (KubernetesToleration(key="team", effect="NoSchedule"),)) is not None
        soft = Node(node({"nvidia.com/gpu": "8"}, taints=[{"key": "x", "effect": "PreferNoSchedule"}]))
        assert soft.problem(wants, ()) is None

    def test_a_node_that_is_not_ready_or_full_says_so(self) -> None:
        raw = node({"nvidia.com/gpu": "8"})
        raw["status"]["conditions"][0]["status"] = "Unknown"
        assert "not ready" in str(Node(raw).problem({"cpu": 1.0}, ()))
        full = Node(node({"nvidia.com/gpu": "8"})).problem({"nvidia.com/gpu": 9.0}, ())
        assert full is not None
        assert full.is_full
        assert full.words == "the node n1 has 8 of nvidia.com/gpu free"

    def test_each_profile_of_the_mig_strategy_mixed_is_a_kind_of_its_own(self) -> None:
        labels = {
            "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB",
            "nvidia.com/gpu.memory": "40960",
            "nvidia.com/mig-1g.5gb.product": "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb",
            "nvidia.com/mig-1g.5gb.memory": "4864",
        }
        has = {"nvidia.com/gpu": "2", "nvidia.com/mig-1g.5gb": "7", "nvidia.com/mig-3g.20gb": "2"}
        kinds = {gpu.resource: (gpu.name, gpu.memory_gb) for gpu in Node(node(has, labels)).gpus}
        assert kinds == {
            "nvidia.com/gpu": ("A100", 40),
            "nvidia.com/mig-1g.5gb": ("A100-MIG-1g.5gb", 5),
            "nvidia.com/mig-3g.20gb": ("A100-MIG-3g.20gb", 20),  # whose own labels are not there
        }
        assert (
            Node(node({"nvidia.com/gpu": "0", "nvidia.com/mig-1g.5gb": "7"}, labels)).gpus[0].name == "A100-MIG-1g.5gb"
        )

    def test_shared_gpus_that_were_renamed_are_shares(self) -> None:
        (gpu,) = Node(node({"nvidia.com/gpu.shared": "16"}, {"nvidia.com/gpu.product": "Tesla-T4"})).gpus
        assert (gpu.name, gpu.resource) == ("T4-SHARED", "nvidia.com/gpu.shared")

    @pytest.mark.parametrize(
        ("labels", "runs"),
        [
            ({"kubernetes.io/os": "windows"}, False),
            ({"kubernetes.io/os": "linux"}, True),
            ({"beta.kubernetes.io/os": "windows"}, False),
            ({}, True),
        ],
    )
    def test_a_node_says_whether_it_runs_linux(self, labels: dict[str, str], runs: bool) -> None:
        assert Node(node(labels=labels)).runs_linux is runs
