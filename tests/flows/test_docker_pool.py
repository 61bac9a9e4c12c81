"""A work pool of the type `docker`: each run is a container that has prefect-gpu, here this machine's programs and environment, read-only."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any
from uuid import UUID

import pytest
import yaml

from prefect_gpu.flows.terminal.deploy import PROJECT
from tests.stack import ROOT, Stack

pytest.importorskip("prefect_docker", reason="needs the worker of Prefect's own Docker pools")
pytestmark = [pytest.mark.docker, pytest.mark.server, pytest.mark.timeout(600)]

IMAGE = "sshd:local"
POOL = "gpu-containers"


def has_image() -> bool:
    if not shutil.which("docker"):
        return False
    return not subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode


def made(stack: Stack) -> UUID:
    """The deployment of prefect.yaml as it is, in such a pool."""
    from prefect_docker.worker import DockerWorker  # pyright: ignore[reportMissingTypeStubs]

    template: dict[str, Any] = DockerWorker.get_default_base_job_template()
    here: dict[str, Any] = {
        "image": IMAGE,
        "image_pull_policy": "Never",
        "network_mode": "host",
        "auto_remove": True,
        "command": "flow-run execute",
        "container_create_kwargs": {"entrypoint": [f"{sys.prefix}/bin/prefect"], "working_dir": "/tmp"},
        "volumes": [f"{one}:{one}:ro" for one in dict.fromkeys(("/usr", str(ROOT), sys.prefix, sys.base_prefix))],
    }
    for name, value in here.items():
        template["variables"]["properties"][name]["default"] = value
    pool: dict[str, Any] = {"name": POOL, "type": "docker", "base_job_template": template}
    stack.client.post("/work_pools/", json=pool).raise_for_status()
    ours = next(one for one in yaml.safe_load(PROJECT.read_text())["deployments"] if "provision" in one["entrypoint"])
    flow = stack.client.post("/flows/", json={"name": "provision"}).json()
    wanted: dict[str, Any] = {
        "name": "in a container",
        "flow_id": flow["id"],
        "entrypoint": ours["entrypoint"],
        "work_pool_name": POOL,
        "job_variables": ours["work_pool"]["job_variables"],
        "pull_steps": [],
    }
    return UUID(stack.client.post("/deployments/", json=wanted).raise_for_status().json()["id"])


@pytest.mark.skipif(not has_image(), reason=f"no Docker Engine with the image {IMAGE}")
def test_a_run_of_a_docker_pool_goes_the_whole_way_in_its_container(stack: Stack) -> None:
    run_id = stack.run(made(stack), command="test -f /.dockerenv && echo inside", providers=["local"])
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "docker", "--run-once"]
    done = subprocess.run(worker, env=stack.env, capture_output=True, text=True, timeout=500, check=False)
    run = stack.flow_run(run_id)
    assert run is not None
    assert run["state"]["type"] == "COMPLETED", done.stdout + done.stderr
    assert run["state"]["message"].startswith("exit 0 in ")
    asked = {"logs": {"flow_run_id": {"any_": [str(run_id)]}}, "limit": 200}
    said = [one["message"] for one in stack.client.post("/logs/filter", json=asked).json()]
    assert any(one.strip() == "inside" for one in said), said
    assert any(one.startswith("6 give back  gone") for one in said)
