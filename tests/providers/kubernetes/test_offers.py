"""Nodes as offers."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect_gpu import providers as registry
from prefect_gpu.flows.run import unseen
from prefect_gpu.providers import ProviderName
from prefect_gpu.providers.core.catalog.explain import explain
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import (
    Availability,
    Offer,
)
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.core.requests import GpuRequest, Requirements, Spot
from prefect_gpu.providers.kubernetes.driver import Kubernetes
from prefect_gpu.providers.kubernetes.options import KubernetesOptions
from prefect_gpu.providers.kubernetes.pod import pod as make_pod
from tests.conformance import launch_spec, lease_name
from tests.fakes.kubernetes_api import GKE_MIG, GKE_SHARING, FakeApi, node


class TestOffersOfNodes:
    def offers(
        self, api: FakeApi, faked: Kubernetes, nodes: list[Any], requirements: Requirements, **block: Any
    ) -> list[Offer]:
        api.answers[("GET", "/api/v1/nodes")] = (200, {"items": nodes}, {})
        api.answers[("GET", "/api/v1/pods")] = (200, {"items": []}, {})
        faked.credentials = faked.credentials.model_copy(update=block)
        return faked.fetch_offers(requirements)

    def test_nodes_of_one_shape_are_one_offer_and_it_tells_of_the_emptiest(
        self, api: FakeApi, faked: Kubernetes
    ) -> None:
        gpu = {"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "23034"}
        nodes = [node({"nvidia.com/gpu": "4"}, gpu, name=f"n{number}") for number in range(3)]
        nodes[1]["spec"]["unschedulable"] = True
        other = node({"nvidia.com/gpu": "8"}, gpu, name="big")
        offers = self.offers(api, faked, [*nodes, other], Requirements(gpu=parse_gpu("L4:2")))
        assert sorted(offer.gpu for offer in offers) == ["L4:2", "L4:2"]
        assert all(offer.availability is Availability.AVAILABLE for offer in offers)

    def test_whole_gpus_slices_and_shares_of_the_same_kind_are_offers_of_their_own(
        self, api: FakeApi, faked: Kubernetes
    ) -> None:
        kind = {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}
        one = {"nvidia.com/gpu": "7"}
        nodes = [
            node(one, kind, name="whole"),
            node(one, {**kind, GKE_MIG: "1g.5gb"}, name="sliced"),
            node(one, {**kind, GKE_SHARING: "mps"}, name="shared"),
        ]
        offers = self.offers(api, faked, nodes, Requirements(gpu=parse_gpu("..")))
        assert sorted(str(offer.gpu_name) for offer in offers) == ["A100", "A100-MIG-1g.5gb", "A100-SHARED"]
        by_name = {offer.gpu_name: offer for offer in offers}
        assert by_name["A100-MIG-1g.5gb"].raw["node_selector"][GKE_MIG] == "1g.5gb"
        assert by_name["A100-SHARED"].raw["node_selector"][GKE_SHARING] == "mps"
        (whole,) = self.offers(api, faked, nodes, Requirements(gpu=parse_gpu("A100")))
        assert whole.gpu_name == "A100"

    def test_a_pod_for_whole_gpus_or_on_demand_does_not_stand_on_a_node_that_is_less(
        self, api: FakeApi, faked: Kubernetes
    ) -> None:
        kind = {"cloud.google.com/gke-accelerator": "nvidia-tesla-a100"}
        nodes = [node({"nvidia.com/gpu": "7"}, kind), node({"nvidia.com/gpu": "7"}, {**kind, GKE_MIG: "1g.5gb"})]
        spec = launch_spec(faked, lease_name())
        for offer in self.offers(api, faked, nodes, Requirements(gpu=parse_gpu(".."))):
            affinity = make_pod(offer, spec, KubernetesOptions(), faked.credentials)["spec"]["affinity"]["nodeAffinity"]
            (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
            *lesser, windows = term["matchExpressions"]
            assert windows == {"key": "kubernetes.io/os", "operator": "NotIn", "values": ["windows"]}
            assert {one["operator"] for one in lesser} == {"DoesNotExist"}
            absent = {one["key"] for one in lesser}
            assert {"cloud.google.com/gke-spot", GKE_SHARING} <= absent
            assert (GKE_MIG in absent) is (offer.gpu_name == "A100")

    def test_the_fewest_gpus_that_do_are_offered(self, api: FakeApi, faked: Kubernetes) -> None:
        gpu = {"nvidia.com/gpu.product": "NVIDIA-L4", "nvidia.com/gpu.memory": "23034"}
        nodes = [node({"nvidia.com/gpu": "8"}, gpu)]
        for text, count in (("L4:2..4", 2), ("L4", 1), ("L4:total=90GB", 4)):
            try:
                asked = Requirements(gpu=parse_gpu(text))
            except ValueError:
                continue  # not how totals are written
            assert [offer.gpu_count for offer in self.offers(api, faked, nodes, asked)] == [count]

    def test_prices_come_from_the_block_by_node_or_by_gpu(self, api: FakeApi, faked: Kubernetes) -> None:
        labels = {"nvidia.com/gpu.product": "NVIDIA-L4", "node.kubernetes.io/instance-type": "g2-48"}
        nodes = [node({"nvidia.com/gpu": "4"}, labels)]
        asked = Requirements(gpu=parse_gpu("L4:2"))
        (free,) = self.offers(api, faked, nodes, asked)
        (by_gpu,) = self.offers(api, faked, nodes, asked, price_per_gpu_hour={"l4": 0.7})
        (by_node,) = self.offers(api, faked, nodes, asked, node_price_per_hour={"g2-48": 4.0})
        assert (free.price, by_gpu.price, by_node.price) == (0, 1.4, 2.0)
        assert by_node.instance_type == "g2-48"

    def test_spot_nodes_are_spot_offers(self, api: FakeApi, faked: Kubernetes) -> None:
        nodes = [node(labels={"cloud.google.com/gke-spot": "true"})]
        assert self.offers(api, faked, nodes, Requirements()) == []
        (offer,) = self.offers(api, faked, nodes, Requirements(spot=Spot.SPOT))
        assert offer.spot

    def test_full_nodes_are_worth_a_try_where_an_autoscaler_has_time(self, api: FakeApi, faked: Kubernetes) -> None:
        nodes = [node({"nvidia.com/gpu": "1"}, {"nvidia.com/gpu.product": "NVIDIA-L4"})]
        asked = Requirements(gpu=parse_gpu("L4"))
        taken = {"spec": {"nodeName": "n1", "containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]}}
        self.offers(api, faked, nodes, asked)
        api.answers[("GET", "/api/v1/pods")] = (200, {"items": [taken]}, {})
        (full,) = faked.fetch_offers(asked)
        assert full.availability is Availability.UNAVAILABLE
        faked.credentials = faked.credentials.model_copy(update={"scheduling_timeout_s": 300.0})
        (patient,) = faked.fetch_offers(asked)
        assert patient.availability is Availability.UNKNOWN

    def test_a_selector_of_the_block_leaves_other_nodes_out(self, api: FakeApi, faked: Kubernetes) -> None:
        nodes = [node(labels={"pool": "gpu"}), node(name="n2")]
        (offer,) = self.offers(api, faked, nodes, Requirements(), node_selector={"pool": "gpu"})
        assert offer.gpu == "none"

    def test_a_job_that_asks_for_more_than_is_free_gets_no_offer(self, api: FakeApi, faked: Kubernetes) -> None:
        assert self.offers(api, faked, [node()], Requirements(cpu=9)) == []
        assert self.offers(api, faked, [node()], Requirements(memory_gb=65)) == []
        assert self.offers(api, faked, [node()], Requirements(disk_gb=101)) == []
        assert len(self.offers(api, faked, [node()], Requirements(cpu=8, memory_gb=64, disk_gb=100))) == 1

    @pytest.mark.parametrize(
        ("asked", "says"),
        [
            ({"gpu": parse_gpu("H100:9")}, "No H100:9. kubernetes has H100, at most 8 in one machine."),
            ({"gpu": parse_gpu("A100:80GB")}, "No A100:80GB. A100 comes with 40 GB here."),
            (
                {"gpu": parse_gpu("H100:8"), "cpu": 200},
                "No H100:8. With at most 8 cores: H100:8 $0 kubernetes ns.",
            ),
            ({"cpu": 200}, "No machine. With at most 8 cores: amd64-node $0 kubernetes ns."),
            ({"memory_gb": 500}, "No machine. With at most 64 GB of memory: amd64-node $0 kubernetes ns."),
            ({"disk_gb": 500}, "No machine. With at most 100 GB of disk: amd64-node $0 kubernetes ns."),
            ({"regions": ("mars",)}, "No machine in mars. Elsewhere: amd64-node $0 kubernetes ns."),
            ({"gpu": parse_gpu("T4:9")}, "No T4:9. kubernetes has no T4."),
        ],
        ids=str,
    )
    def test_what_no_node_has_is_said_with_what_there_is(
        self, api: FakeApi, faked: Kubernetes, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], says: str
    ) -> None:
        gpus = {"nvidia.com/gpu": "8"}
        nodes = [
            node(name="plain"),
            node(gpus, {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}, name="h"),
            node(gpus, {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"}, name="a"),
        ]
        wanted = Requirements(**asked)
        assert self.offers(api, faked, nodes, wanted) == []
        library = TaskLibrary(Kubernetes)
        library.connections.drivers["default"] = faked
        monkeypatch.setattr(registry, "library", lambda _: library)
        seen = unseen.with_nearest([], [ProviderName.KUBERNETES], wanted, "default", {})
        assert explain(wanted, ["kubernetes"], seen) == says

    def test_windows_nodes_are_no_offers_and_no_pods_place(self, api: FakeApi, faked: Kubernetes) -> None:
        windows = node({"nvidia.com/gpu": "8"}, {"kubernetes.io/os": "windows", "nvidia.com/gpu.product": "NVIDIA-L4"})
        assert self.offers(api, faked, [windows], Requirements()) == []
        assert self.offers(api, faked, [windows], Requirements(gpu=parse_gpu("L4"))) == []
        (offer,) = self.offers(api, faked, [windows, node(name="n2")], Requirements())  # n2 does not say
        spec = make_pod(offer, launch_spec(faked, lease_name()), KubernetesOptions(), faked.credentials)["spec"]
        (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"
        ]
        assert {"key": "kubernetes.io/os", "operator": "NotIn", "values": ["windows"]} in term["matchExpressions"]

    @pytest.mark.parametrize(
        ("has", "labels"),
        [
            ({"nvidia.com/gpu": "8"}, {"nvidia.com/gpu.product": "NVIDIA-H20"}),
            ({"nvidia.com/gpu": "8"}, {"nvidia.com/gpu.product": "Quadro-P9999"}),
            ({"nvidia.com/mig-1g.5gb": "7"}, {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"}),
            ({"nvidia.com/gpu": "4"}, {"nvidia.com/gpu.product": "Tesla-T4-SHARED"}),
            ({"amd.com/gpu": "8"}, {}),
            ({"nvidia.com/gpu": "8"}, {}),
        ],
        ids=str,
    )
    def test_every_offered_name_can_be_asked_for(
        self, api: FakeApi, faked: Kubernetes, has: dict[str, str], labels: dict[str, str]
    ) -> None:
        nodes = [node(has, labels)]
        (offer,) = self.offers(api, faked, nodes, Requirements(gpu=parse_gpu("..")))
        assert offer.gpu_name
        try:
            asked = parse_gpu(f"{offer.gpu_name}:2")
        except ValueError:
            asked = parse_gpu(f"={offer.gpu_name}:2")  # one that no price list knows
        (same,) = self.offers(api, faked, nodes, Requirements(gpu=asked))
        assert (same.gpu_name, same.gpu_count) == (offer.gpu_name, 2)

    def test_an_instance_type_is_a_node_with_all_of_its_gpus(self, api: FakeApi, faked: Kubernetes) -> None:
        labels = {"nvidia.com/gpu.product": "NVIDIA-L4", "node.kubernetes.io/instance-type": "g6.12xlarge"}
        nodes = [node({"nvidia.com/gpu": "4"}, labels), node(name="n2")]
        asked = (GpuRequest(instance_type="g6.12xlarge", count_min=0),)
        (offer,) = self.offers(api, faked, nodes, Requirements(gpu=asked))
        assert (offer.instance_type, offer.gpu_count) == ("g6.12xlarge", 4)

    def test_slices_that_are_in_use_are_said(self, api: FakeApi, faked: Kubernetes) -> None:
        mig = "nvidia.com/mig-1g.5gb"
        nodes = [node({mig: "7"}, {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"})]
        self.offers(api, faked, nodes, Requirements())
        taken = {"spec": {"nodeName": "n1", "containers": [{"resources": {"limits": {mig: "7"}}}]}}
        api.answers[("GET", "/api/v1/pods")] = (200, {"items": [taken]}, {})
        (offer,) = faked.fetch_offers(Requirements(gpu=parse_gpu("..")))
        assert offer.availability is Availability.UNAVAILABLE
        assert offer.unavailable_because == f"the node n1 has 0 of {mig} free, 7 in use"
