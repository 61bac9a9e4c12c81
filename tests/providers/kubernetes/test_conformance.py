"""The contract, on a real cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect_gpu.providers.kubernetes.driver import Kubernetes
from tests.conformance import ProviderConformance, Subject, lease_name
from tests.fakes.kubernetes import Cluster, KubernetesFaults, Wire
from tests.providers.kubernetes.on_cluster import H100


@pytest.mark.kubernetes
class TestConformance(ProviderConformance):
    @pytest.fixture
    def subject(self, cluster: Cluster, tmp_path: Path) -> Iterator[Subject]:
        wires: list[Wire] = []

        def wire(real: httpx.BaseTransport) -> Wire:
            wires.append(Wire(real))
            return wires[0]

        driver = Kubernetes(cluster.credentials(tmp_path), transport=wire)
        driver.account_id()

        def shrink() -> None:
            driver._page = 1

        yield Subject(
            provider=driver,
            secrets=(cluster.token,),
            unknown_id=f"{cluster.namespace}/{lease_name()}",
            requirements=H100,
            faults=KubernetesFaults(cluster, wires[0], shrink),
            pass_time=lambda seconds: time.sleep(min(seconds, 0.2)),
        )
        wires[0].armed.clear()
        cluster.clear()
