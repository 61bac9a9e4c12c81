"""Pods on the real cluster: ordered, looked at, given back."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect_gpu.providers.core.errors import (
    InstanceFailed,
    InvalidRequest,
    LinkLost,
    NotReady,
    QuotaExceeded,
    Unconfirmed,
)
from prefect_gpu.providers.core.models import (
    InstanceState,
    RegistryAuth,
    utc_now,
)
from prefect_gpu.providers.kubernetes.driver import Kubernetes
from tests.conformance import launch_spec, lease_name
from tests.fakes.kubernetes import Cluster, Wire, is_create, is_get, status
from tests.providers.kubernetes.on_cluster import H100, create, run, until, until_gone


@pytest.mark.kubernetes
class TestPods:
    def test_more_gpus_than_there_are_is_an_instance_that_failed_in_a_users_words(self, driver: Kubernetes) -> None:
        offer = driver.fetch_offers(H100)[0].model_copy(update={"gpu_count": 9})
        began = time.monotonic()
        instance = driver.create_instance(offer, launch_spec(driver, lease_name()))
        failed = until(driver, instance, InstanceState.FAILED, 10)
        assert "no node takes it" in failed.reason
        assert "Insufficient nvidia.com/gpu" in failed.reason
        assert time.monotonic() - began < 8

    def test_a_pod_that_fits_no_node_waits_as_long_as_the_block_says(self, cluster: Cluster, tmp_path: Path) -> None:
        patient = Kubernetes(cluster.credentials(tmp_path, scheduling_timeout_s=300))
        offer = patient.fetch_offers(H100)[0].model_copy(update={"gpu_count": 9})
        instance = patient.create_instance(offer, launch_spec(patient, lease_name()))
        deadline = time.monotonic() + 10
        while "Insufficient" not in (seen := patient.get_instance(instance.id)).reason:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(2)
        assert (seen := patient.get_instance(instance.id)).state is InstanceState.PROVISIONING, seen.reason
        patient.terminate_instance(instance.id)

    @pytest.mark.parametrize(
        ("image", "policy", "words"),
        [
            ("nosuch:local", "Never", "is not on the node"),
            ("127.0.0.1:9/nosuch:1", "IfNotPresent", "cannot be pulled"),
            ("UPPER CASE", "IfNotPresent", "is not a valid image name"),
        ],
    )
    def test_an_image_that_cannot_be_had_is_told_within_seconds(
        self, cluster: Cluster, tmp_path: Path, image: str, policy: str, words: str
    ) -> None:
        driver = Kubernetes(cluster.credentials(tmp_path, image_pull_policy=policy))
        began = time.monotonic()
        instance = create(driver, image=image)
        failed = until(driver, instance, InstanceState.FAILED, 60)
        took = time.monotonic() - began
        assert words in failed.reason
        assert image in failed.reason
        with pytest.raises(
            (InstanceFailed, NotReady)
        ):  # its status may still say that it is being made: no events here
            driver.open_channel(failed)
        driver.terminate_instance(instance.id)
        assert took < 30

    def test_the_jobs_image_is_the_pods(self, cluster: Cluster, driver: Kubernetes) -> None:
        instance = create(driver, image="sshd:local")
        (made,) = [one for one in cluster.pods() if one["metadata"]["name"] == instance.name]
        assert made["spec"]["containers"][0]["image"] == "sshd:local"

    def test_a_pod_has_no_rights_no_restarts_and_an_end(self, cluster: Cluster, driver: Kubernetes) -> None:
        instance = create(
            driver, tags={"prefect-gpu-flow-run": "abc", "prefect-gpu-lease-ends": "2030-01-01T00:00+00:00"}
        )
        (made,) = [one for one in cluster.pods() if one["metadata"]["name"] == instance.name]
        spec, metadata = made["spec"], made["metadata"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["restartPolicy"] == "Never"
        assert 7000 < spec["activeDeadlineSeconds"] <= 7260
        assert metadata["labels"]["prefect-gpu/name"] == instance.name
        assert metadata["labels"]["prefect-gpu/flow-run"] == "abc"
        assert metadata["annotations"]["prefect-gpu/lease-ends"] == "2030-01-01T00:00+00:00"

    def test_the_lease_ends_the_pod_and_it_is_left_to_be_deleted(self, driver: Kubernetes) -> None:
        offer = driver.fetch_offers(H100)[0]
        name = lease_name()
        instance = driver.create_instance(offer, launch_spec(driver, name, deadline=utc_now() + timedelta(seconds=8)))
        until(driver, instance, InstanceState.TERMINATED, 60)
        listing = driver.list_instances(name)
        assert listing.instances == ()
        assert [left.kind for left in listing.leftovers] == ["ended pod"]
        driver.terminate_instance(listing.leftovers[0].id)
        until_gone(driver, instance)
        assert driver.list_instances(name).leftovers == ()

    def test_a_job_ends_with_its_pod(self, driver: Kubernetes) -> None:
        instance = until(driver, create(driver), InstanceState.RUNNING)
        channel = driver.open_channel(instance).open("sleep 100")
        driver.terminate_instance(instance.id)
        try:
            assert channel.recv(10) == b""
            assert channel.exit_status(5) == 137  # killed with its pod
        except LinkLost:
            pass  # the pod was gone before its node told
        channel.close()
        until_gone(driver, instance)

    def test_two_orders_at_once_are_one_pod(self, cluster: Cluster, driver: Kubernetes) -> None:
        offer, name = driver.fetch_offers(H100)[0], lease_name()
        together = threading.Barrier(2)

        def order(_: int) -> str:
            together.wait()
            return driver.create_instance(offer, launch_spec(driver, name)).id

        with ThreadPoolExecutor(2) as pool:
            assert len(set(pool.map(order, range(2)))) == 1
        assert len([one for one in cluster.pods() if one["metadata"]["name"] == name]) == 1

    def test_a_strangers_pod_under_our_name_is_not_taken_for_ours(self, cluster: Cluster, driver: Kubernetes) -> None:
        offer, name = driver.fetch_offers(H100)[0], lease_name()
        container = {"name": "c", "image": "sshd:local", "imagePullPolicy": "Never", "command": ["sleep", "60"]}
        cluster.post(
            f"/api/v1/namespaces/{cluster.namespace}/pods",
            {"metadata": {"name": name}, "spec": {"containers": [container]}},
        )
        with pytest.raises(InvalidRequest, match="not ours"):
            driver.create_instance(offer, launch_spec(driver, name))

    def test_registry_credentials_live_as_long_as_their_pod(self, cluster: Cluster, driver: Kubernetes) -> None:
        registry = RegistryAuth(server="ghcr.io", username="u", password=SecretStr("hunter2"))
        instance = create(driver, registry=registry)
        path = f"/api/v1/namespaces/{cluster.namespace}/secrets/{instance.name}"
        secret = cluster.get(path)
        (owner,) = secret["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"]) == ("Pod", instance.name)
        assert driver.list_instances(instance.name).leftovers == ()
        cluster.http.delete(f"/api/v1/namespaces/{cluster.namespace}/pods/{instance.name}")  # by somebody else
        cluster.wait(lambda: cluster.http.get(path).status_code == 404)

    def test_a_refused_order_leaves_no_registry_credentials(self, cluster: Cluster, tmp_path: Path) -> None:
        wires: list[Wire] = []
        driver = Kubernetes(cluster.credentials(tmp_path), transport=lambda real: wires.append(Wire(real)) or wires[0])
        offer, name = driver.fetch_offers(H100)[0], lease_name()
        wires[0].once(is_create, status(403, 'pods "x" is forbidden: exceeded quota: q', "Forbidden"))
        registry = RegistryAuth(server="ghcr.io", username="u", password=SecretStr("hunter2"))
        with pytest.raises(QuotaExceeded):
            driver.create_instance(offer, launch_spec(driver, name, registry=registry))
        assert driver.list_instances(name).leftovers == ()

    def test_an_order_that_died_between_secret_and_pod_is_left_over(self, cluster: Cluster, tmp_path: Path) -> None:
        wires: list[Wire] = []
        driver = Kubernetes(cluster.credentials(tmp_path), transport=lambda real: wires.append(Wire(real)) or wires[0])
        offer, name = driver.fetch_offers(H100)[0], lease_name()
        wires[0].once(is_create, status(500, "etcdserver: request timed out"))
        registry = RegistryAuth(server="ghcr.io", username="u", password=SecretStr("hunter2"))
        with pytest.raises(Unconfirmed):
            driver.create_instance(offer, launch_spec(driver, name, registry=registry))
        (left,) = driver.list_instances(name).leftovers
        assert left.kind == "pull secret"
        driver.terminate_instance(left.id)
        assert driver.list_instances(name).leftovers == ()

    def test_mounts_come_from_the_block_and_from_the_options(self, cluster: Cluster, tmp_path: Path) -> None:
        with cluster.stand_in(2) as (smi, count):
            driver = Kubernetes(cluster.credentials(tmp_path, mounts=[smi]))
            instance = until(driver, create(driver, options={"mounts": [count.model_dump()]}), InstanceState.RUNNING)
            code, output, error = run(
                driver, instance, "nvidia-smi --query-gpu=index,name --format=csv,noheader; df /dev/shm"
            )
            driver.terminate_instance(instance.id)
        assert code == 0, error
        assert output.count(b"NVIDIA H100 80GB HBM3") == 2
        assert b"tmpfs" in output
        assert b" 65536 " not in output, "/dev/shm is the container's own 64 MB"

    def test_an_option_that_does_not_exist_is_refused_before_anything_is_ordered(
        self, cluster: Cluster, driver: Kubernetes
    ) -> None:
        offer, name = driver.fetch_offers(H100)[0], lease_name()
        with pytest.raises(InvalidRequest, match="vollumes"):
            driver.create_instance(offer, launch_spec(driver, name, options={"vollumes": []}))
        assert name not in {one["metadata"]["name"] for one in cluster.pods()}

    def test_a_node_that_vanished_is_an_interruption(self, cluster: Cluster, tmp_path: Path) -> None:
        wires: list[Wire] = []
        driver = Kubernetes(cluster.credentials(tmp_path), transport=lambda real: wires.append(Wire(real)) or wires[0])
        instance = until(driver, create(driver), InstanceState.RUNNING)

        def silent(request: httpx.Request) -> httpx.Response:
            seen = json.loads(wires[0].real.handle_request(request).read())
            for condition in seen["status"]["conditions"]:
                if condition["type"] == "Ready":
                    condition["status"] = "False"
            return httpx.Response(200, json=seen, request=request)

        wires[0].always(is_get, silent)
        assert driver.get_instance(instance.id).state is InstanceState.UNKNOWN
        wires[0].always(
            lambda request: "/nodes/" in request.url.path, status(404, 'nodes "node1" not found', "NotFound")
        )
        gone = driver.get_instance(instance.id)
        assert gone.state is InstanceState.INTERRUPTED
        assert "node1 is gone" in gone.reason
        assert driver.interruption_reason(gone) == gone.reason
        driver.terminate_instance(instance.id)
