"""The real cluster, one namespace of it for all tests here; and an API server that answers as it is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect_gpu.providers.core.models import (
    Instance,
    InstanceState,
)
from prefect_gpu.providers.kubernetes.driver import Kubernetes
from tests.conformance import launch_spec, lease_name
from tests.fakes.kubernetes import KEPT, Cluster
from tests.fakes.kubernetes_api import FakeApi, write_kubeconfig
from tests.providers.kubernetes.on_cluster import H100, until


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    path = os.environ.get("PREFECT_GPU_TEST_KUBECONFIG")
    if not path:
        pytest.skip("no cluster: set PREFECT_GPU_TEST_KUBECONFIG to an administrator's kubeconfig")
    cluster = Cluster(Path(path))
    try:
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def driver(cluster: Cluster, tmp_path: Path) -> Iterator[Kubernetes]:
    driver = Kubernetes(cluster.credentials(tmp_path))
    yield driver
    cluster.clear()


@pytest.fixture(scope="session")
def pod(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kubernetes, Instance]]:
    driver = Kubernetes(cluster.credentials(tmp_path_factory.mktemp("pod")))
    offer = driver.fetch_offers(H100)[0]
    made = driver.create_instance(offer, launch_spec(driver, lease_name(KEPT)))
    instance = until(driver, made, InstanceState.RUNNING)
    yield driver, instance
    driver.terminate_instance(instance.id)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    fake = FakeApi()
    yield fake
    fake.close()


@pytest.fixture
def faked(api: FakeApi, tmp_path: Path) -> Kubernetes:
    block = write_kubeconfig(tmp_path / "kubeconfig", {"server": api.url}, {"token": "s3cret-token"})
    return Kubernetes(block, timeout_s=0.5)
