"""Whatever happens to a run on Kubernetes, with a real server, worker and cluster, nothing of it stays there: each test states how soon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

pytest.importorskip("kubernetes", reason="needs the extra: pip install 'prefect-gpu[kubernetes]'")

from tests.fakes.kubernetes import Cluster
from tests.stack import ROOT, Stack, running, wait_until

pytestmark = [pytest.mark.server, pytest.mark.kubernetes, pytest.mark.timeout(400)]

AFTER_END_S = 15.0
AFTER_KILL_S = 60.0


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
def stack(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    # One account whose pods have two GPUs that answer, one whose pods have one: less than what is asked for below.
    with running(folder) as stack, cluster.stand_in(2) as good, cluster.stand_in(1) as bad:
        for account, mounts in (("default", good), ("broken", bad)):
            block = folder / f"{account}.json"
            block.write_text(cluster.credentials(folder, mounts=mounts).model_dump_json())
            program = (
                "import sys; from blocks.kubernetes import KubernetesCredentials; "
                "KubernetesCredentials.model_validate_json(open(sys.argv[1]).read()).save(sys.argv[2])"
            )
            subprocess.run(
                [sys.executable, "-c", program, str(block), account], cwd=ROOT, env=stack.env, check=True, timeout=120
            )
        yield stack


@pytest.fixture(scope="module")
def provision(stack: Stack) -> UUID:
    return stack.deploy("flows.provision.provision", "kubernetes")


@pytest.fixture(autouse=True)
def _an_empty_namespace(cluster: Cluster) -> None:
    cluster.clear()


def left(cluster: Cluster) -> list[str]:
    """What stands in the namespace: pods, and Secrets that bear our label. A pod that has ended and is being deleted is gone: its
    node has stopped it, and Kubernetes forgets it when the node has tidied up (up to 10 s later).
    """
    secrets = cluster.get(f"/api/v1/namespaces/{cluster.namespace}/secrets?labelSelector=app.kubernetes.io/managed-by")
    pods = [
        pod
        for pod in cluster.pods()
        if "deletionTimestamp" not in pod["metadata"] or pod["status"]["phase"] not in {"Succeeded", "Failed"}
    ]
    return [one["metadata"]["name"] for one in (*pods, *secrets["items"])]


def gone_within(cluster: Cluster, seconds: float, since: float) -> None:
    wait_until(lambda: left(cluster) == [], max(1.0, seconds - (time.monotonic() - since)), "an empty namespace")
    wait_until(lambda: cluster.pods() == [], 60, "the cluster to forget the pods")


def start_long_job(cluster: Cluster, stack: Stack, provision: UUID) -> UUID:
    run_id = stack.run(provision, command="echo started; sleep 300", gpu="H100:2", providers=["kubernetes"])
    stack.wait_for_log(run_id, "started")
    assert len(cluster.pods()) == 1
    return run_id


def test_a_job_runs_on_two_gpus_of_a_node_and_its_pod_is_gone_before_the_run_is_completed(
    cluster: Cluster, stack: Stack, provision: UUID
) -> None:
    run_id = stack.run(
        provision, command="nvidia-smi --query-gpu=index,name --format=csv", gpu="H100:2", providers=["kubernetes"]
    )
    stack.wait_for_state(run_id, "Completed")
    assert left(cluster) == []
    assert stack.message(run_id).startswith("exit 0 in ")
    assert sum("NVIDIA H100 80GB HBM3" in line for line in stack.logs(run_id)) >= 1


def test_after_exit_3_the_run_is_failed_and_its_pod_is_gone(cluster: Cluster, stack: Stack, provision: UUID) -> None:
    run_id = stack.run(provision, command="exit 3", gpu="H100:2", providers=["kubernetes"])
    stack.wait_for_state(run_id, "Failed")
    assert left(cluster) == []
    assert stack.message(run_id).startswith("exit 3 in ")


def test_an_image_that_cannot_be_had_ends_the_run_and_is_told(cluster: Cluster, stack: Stack, provision: UUID) -> None:
    run_id = stack.run(provision, command="true", gpu="H100:2", providers=["kubernetes"], job={"image": "nosuch:local"})
    stack.wait_for_state(run_id, "Failed")
    # Kubernetes 1.20 takes up to a minute to forget a pod whose container never started; until then the run's record says owed.
    gone_within(cluster, 120.0, time.monotonic())
    assert any("the image nosuch:local is not on the node" in line for line in stack.logs(run_id))


def test_a_pod_with_fewer_gpus_than_promised_gets_no_job(cluster: Cluster, stack: Stack, provision: UUID) -> None:
    run_id = stack.run(
        provision, command="echo it ran", gpu="H100:2", providers=["kubernetes"], account={"kubernetes": "broken"}
    )
    stack.wait_for_state(run_id, "Failed")
    assert left(cluster) == []
    assert "it ran" not in stack.logs(run_id)
    assert any("1 of them answer nvidia-smi" in line for line in stack.logs(run_id))


def test_after_a_cancel_its_pod_is_gone_within_15_s(cluster: Cluster, stack: Stack, provision: UUID) -> None:
    run_id = start_long_job(cluster, stack, provision)
    stack.cancel(run_id)
    gone_within(cluster, AFTER_END_S, time.monotonic())
    stack.wait_for_state(run_id, "Cancelled")


def test_after_kill_9_of_the_flow_process_its_pod_is_gone_within_60_s(
    cluster: Cluster, stack: Stack, provision: UUID
) -> None:
    run_id = start_long_job(cluster, stack, provision)
    os.kill(stack.flow_process(run_id), signal.SIGKILL)
    gone_within(cluster, AFTER_KILL_S, time.monotonic())
    stack.wait_for_state(run_id, "Crashed")
