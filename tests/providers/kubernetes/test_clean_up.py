"""Whatever happens to a run on Kubernetes, with a real server, worker and cluster, nothing of it stays there: each test states how soon."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from tests.clean_up import Asked, CleanUp, Left, gone_within
from tests.fakes.kubernetes import Cluster
from tests.stack import Stack

pytestmark = [pytest.mark.server, pytest.mark.kubernetes, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    path = os.environ.get("PREFECT_GPU_TEST_KUBECONFIG")
    if not path:
        pytest.skip("no cluster: set PREFECT_GPU_TEST_KUBECONFIG to an administrator's kubeconfig")
    cluster = Cluster(Path(path))
    try:
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture(scope="module")
def provision(stack: Stack, cluster: Cluster) -> Iterator[UUID]:
    """With two accounts: one whose pods have two GPUs that answer, one whose pods have one, less than what is asked for below."""
    with (
        cluster.stand_in(2) as good,
        cluster.stand_in(1) as bad,
        stack.account(cluster.credentials(stack.folder, mounts=good)),
        stack.account(cluster.credentials(stack.folder, mounts=bad), "broken"),
    ):
        yield stack.deploy("prefect_gpu.flows.provision.provision", "kubernetes")


@pytest.fixture(autouse=True)
def _an_empty_namespace(cluster: Cluster) -> None:
    cluster.clear()


@pytest.fixture
def asked() -> Asked:
    return {"providers": ["kubernetes"], "gpu": "H100:2"}


@pytest.fixture
def left(cluster: Cluster) -> Left:
    """What stands in the namespace: pods, and Secrets that bear our label. A pod that has ended and is being deleted is gone: its
    node has stopped it, and Kubernetes forgets it when the node has tidied up (up to 10 s later).
    """

    def look() -> list[str]:
        secrets = f"/api/v1/namespaces/{cluster.namespace}/secrets?labelSelector=app.kubernetes.io/managed-by"
        pods = [
            pod
            for pod in cluster.pods()
            if "deletionTimestamp" not in pod["metadata"] or pod["status"]["phase"] not in {"Succeeded", "Failed"}
        ]
        return [one["metadata"]["name"] for one in (*pods, *cluster.get(secrets)["items"])]

    return look


class TestKubernetes(CleanUp):
    """What every provider must survive."""


def test_a_job_runs_on_two_gpus_of_a_node_and_its_pod_is_gone_before_the_run_is_completed(
    stack: Stack, provision: UUID, asked: Asked, left: Left
) -> None:
    run_id = stack.run(provision, command="nvidia-smi --query-gpu=index,name --format=csv", **asked)
    stack.wait_for_state(run_id, "Completed")
    assert left() == []
    assert stack.message(run_id).startswith("exit 0 in ")
    assert sum("NVIDIA H100 80GB HBM3" in line for line in stack.logs(run_id)) >= 1


def test_an_image_that_cannot_be_had_ends_the_run_and_is_told(
    stack: Stack, provision: UUID, asked: Asked, left: Left
) -> None:
    run_id = stack.run(provision, command="true", job={"image": "nosuch:local"}, **asked)
    stack.wait_for_state(run_id, "Failed")
    # Kubernetes 1.20 takes up to a minute to forget a pod whose container never started; until then the run's record says owed.
    gone_within(left, 120.0, time.monotonic())
    why = "the image nosuch:local is not on the node"
    assert any(why in line for line in stack.logs(run_id))
    assert why in stack.message(run_id)


def test_a_pod_with_fewer_gpus_than_promised_gets_no_job(
    stack: Stack, provision: UUID, asked: Asked, left: Left
) -> None:
    run_id = stack.run(provision, command="echo it ran", account={"kubernetes": "broken"}, **asked)
    stack.wait_for_state(run_id, "Failed")
    assert left() == []
    assert "it ran" not in stack.logs(run_id)
    assert any("nvidia-smi shows only 1" in line for line in stack.logs(run_id))
