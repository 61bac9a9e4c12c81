"""A cluster as organisations run it: quotas on limits, admission as strict as `restricted`, a Windows node; with the documented rights only."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect_gpu.providers.core.errors import InstanceFailed, InvalidRequest, NotFound
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.models import InstanceState, JobSpec, Offer
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.kubernetes.driver import Kubernetes
from tests.conformance import launch_spec, lease_name
from tests.fakes.kubernetes import Cluster
from tests.fakes.kubernetes_policies import quota, restricted, webhook, windows_node
from tests.providers.kubernetes.on_cluster import H100, create, until

pytestmark = pytest.mark.kubernetes
LIMITS = {"limits__cpu": "4", "limits__memory": "8Gi", "requests__nvidia__com/gpu": "4"}


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Cluster]:
    """A namespace of its own."""
    path = os.environ.get("PREFECT_GPU_TEST_KUBECONFIG")
    if not path:
        pytest.skip("no cluster: set PREFECT_GPU_TEST_KUBECONFIG to an administrator's kubeconfig")
    cluster = Cluster(Path(path))
    try:
        yield cluster
    finally:
        cluster.clear()
        cluster.remove()


def run_job(driver: Kubernetes, offer: Offer, folder: Path, command: str) -> tuple[int | None, str]:
    """A whole job on a pod of this offer: its exit code and output."""
    instance = until(driver, driver.create_instance(offer, launch_spec(driver, lease_name())), InstanceState.RUNNING)
    machine = Machine(lambda: driver.open_channel(instance))
    try:
        result = machine.run(JobSpec(id=f"{instance.name}.{uuid.uuid4().hex[:4]}", command=command), folder / "log")
        assert result is not None
        assert result.outcome == "exited", result.trouble
        return result.exit_code, (folder / "log").read_text()
    finally:
        machine.close()
        driver.terminate_instance(instance.id)
        (folder / "log").unlink(missing_ok=True)


def test_a_cpu_job_and_a_gpu_job_run_under_quotas_restricted_admission_and_beside_windows(
    strict: Cluster, tmp_path: Path
) -> None:
    block: dict[str, Any] = {"security": "restricted", "run_as_user": 65534, "read_only_root": True}
    with windows_node(strict) as windows, webhook(strict, tmp_path, restricted), quota(strict, **LIMITS):
        with strict.stand_in(1) as mounts:
            driver = Kubernetes(strict.credentials(tmp_path, mounts=mounts, **block))
            assert driver.missing_rights() == []
            (cpu,) = driver.fetch_offers(Requirements())
            (gpu,) = driver.fetch_offers(H100)
            assert windows not in f"{cpu}{gpu}"
            told = run_job(
                driver,
                cpu,
                tmp_path,
                "id -u; echo $HOME; touch ~/x /tmp/x /var/tmp/x && echo wrote; touch /x || echo held",
            )
            assert told[0] == 0, told[1]
            assert told[1].split("\n")[0:3] == ["65534", "/home/prefect-gpu", "wrote"]
            assert "held" in told[1]
            code, output = run_job(driver, gpu, tmp_path, "nvidia-smi --query-gpu=index,name --format=csv,noheader")
            assert (code, output.count("H100")) == (0, 1), output
        plain = Kubernetes(strict.credentials(tmp_path))
        with pytest.raises(InvalidRequest, match='violates PodSecurity "restricted'):
            create(plain)


def test_a_webhook_that_cannot_answer_is_a_definite_no_at_once(strict: Cluster, tmp_path: Path) -> None:
    driver = Kubernetes(strict.credentials(tmp_path))
    with webhook(strict, tmp_path, None):
        began = time.monotonic()
        with pytest.raises(InvalidRequest, match="failed calling webhook"):
            create(driver)
        assert time.monotonic() - began < 15
    assert strict.pods() == []


def test_a_pod_whose_volume_is_not_there_says_which(strict: Cluster, tmp_path: Path) -> None:
    driver = Kubernetes(strict.credentials(tmp_path, mounts=[{"path": "/data", "config_map": "no-such-map"}]))
    instance = create(driver)
    strict.wait(lambda: "no-such-map" in driver.get_instance(instance.id).reason, 30)
    assert driver.get_instance(instance.id).state is InstanceState.PROVISIONING


def test_the_cause_that_an_image_cannot_be_pulled_stays_while_the_kubelet_backs_off(
    strict: Cluster, tmp_path: Path
) -> None:
    driver = Kubernetes(strict.credentials(tmp_path, image_pull_policy="IfNotPresent"))
    instance = create(driver, image="127.0.0.1:9/no/such:1")

    def is_backing_off() -> bool:
        (pod,) = strict.pods()
        (told,) = pod["status"].get("containerStatuses") or [{}]
        return told.get("state", {}).get("waiting", {}).get("reason") == "ImagePullBackOff"

    strict.wait(is_backing_off, 60)
    seen = driver.get_instance(instance.id)
    assert "connection refused" in seen.reason
    assert "127.0.0.1:9/no/such:1" in seen.reason
    assert "ack-off" not in seen.reason


def test_a_job_whose_namespace_was_deleted_is_lost_with_that_reason_within_seconds(
    strict: Cluster, tmp_path: Path
) -> None:
    driver = Kubernetes(strict.credentials(tmp_path))
    instance = until(driver, create(driver), InstanceState.RUNNING)
    link = driver.open_channel(instance)
    channel = link.open("echo on; sleep 100")
    assert channel.recv(9) == b"on\n"
    strict.http.delete(f"/api/v1/namespaces/{strict.namespace}")
    strict.clear()
    strict.wait(lambda: strict.http.get(f"/api/v1/namespaces/{strict.namespace}").status_code == 404, 60)
    channel.close()
    with pytest.raises((InstanceFailed, NotFound)) as lost:
        driver.open_channel(instance)
    assert "was deleted" in str(lost.value)
    with pytest.raises(InvalidRequest, match="does not exist"):
        driver.get_instance(instance.id)
    assert not driver.list_instances(instance.name).is_complete
