"""Offers of the real cluster."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect_gpu.blocks.kubernetes import KubernetesCredentials
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import (
    Availability,
)
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.kubernetes.driver import Kubernetes
from tests.fakes.kubernetes import Cluster
from tests.providers.kubernetes.on_cluster import H100, create


@pytest.mark.kubernetes
class TestOffers:
    def test_what_other_pods_have_is_taken_off(self, cluster: Cluster, driver: Kubernetes) -> None:
        eight = Requirements(gpu=parse_gpu("H100:8"))
        create(driver)
        (offer,) = driver.fetch_offers(eight)
        assert offer.availability is Availability.UNAVAILABLE
        assert "nvidia.com/gpu free" in (offer.unavailable_because or "")

    def test_without_the_right_to_list_all_pods_an_offer_says_what_it_does_not_know(
        self, cluster: Cluster, driver: Kubernetes
    ) -> None:
        (offer,) = driver.fetch_offers(H100)
        assert offer.availability is Availability.UNKNOWN
        assert offer.raw["counted"] == f"the pods of the namespace {cluster.namespace}"
        assert (offer.gpu, offer.gpu_memory_gb, offer.price, offer.arch) == ("H100:1", 80.0, 2.0, "x86_64")

    def test_with_it_an_offer_is_known_to_be_available(self, cluster: Cluster) -> None:
        admin = Kubernetes(KubernetesCredentials(kubeconfig=os.environ["PREFECT_GPU_TEST_KUBECONFIG"], cpu=0.01))
        (offer,) = admin.fetch_offers(H100)
        assert offer.raw["counted"] == "all pods"
        assert offer.availability is Availability.AVAILABLE

    def test_a_cordoned_node_is_passed_over_and_says_why(self, cluster: Cluster, driver: Kubernetes) -> None:
        cluster.patch("/api/v1/nodes/node1", {"spec": {"unschedulable": True}})
        try:
            (offer,) = driver.fetch_offers(H100)
        finally:
            cluster.patch("/api/v1/nodes/node1", {"spec": {"unschedulable": None}})
        assert offer.availability is Availability.UNAVAILABLE
        assert (
            offer.unavailable_because == "the node node1 is cordoned: kubectl uncordon node1 makes it available again"
        )
