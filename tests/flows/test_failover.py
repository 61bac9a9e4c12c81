"""One run whose first three providers fail, each in a way of its own: it ends on the fourth, tells the story and leaves nothing anywhere.

EC2 is moto's (tests/fakes/aws/) and sells out; the cluster is real and its only node is full of another team's pod, which our
rights do not let us see; the team's machine is a real OpenSSH server that loses power after it was offered; `local` is this machine.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

pytest.importorskip("boto3", reason="needs the extra aws")
pytest.importorskip("kubernetes", reason="needs the extra kubernetes")

from prefect.client.orchestration import get_client

from prefect_gpu import providers as registry
from prefect_gpu.blocks.realm import GpuRealm
from prefect_gpu.flows.provision import provision
from prefect_gpu.flows.run import cards
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers import ProviderName
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.local.driver import Local
from tests.fakes import sshd_hosts as machines
from tests.fakes.aws import AwsCloud, publish_prices
from tests.fakes.kubernetes import Cluster
from tests.fakes.sshd_hosts import SshdHost, block, sshd_hosts
from tests.stack import wait_until

KUBECONFIG = os.environ.get("PREFECT_GPU_TEST_KUBECONFIG", "")
WHY_NO_MACHINES = machines.missing()
pytestmark = [
    pytest.mark.usefixtures("prefect_api"),
    pytest.mark.root,
    pytest.mark.openssh,
    pytest.mark.kubernetes,
    pytest.mark.timeout(300),
    pytest.mark.skipif(WHY_NO_MACHINES is not None, reason=f"machines of one's own: {WHY_NO_MACHINES}"),
    pytest.mark.skipif(not KUBECONFIG, reason="no cluster: set PREFECT_GPU_TEST_KUBECONFIG to a kubeconfig"),
]

IN_ORDER = [ProviderName.AWS, ProviderName.KUBERNETES, ProviderName.SSH, ProviderName.LOCAL]
ONE_CORE = Requirements(cpu=1)
SOLD_OUT = "We currently do not have sufficient m5.large capacity in the Availability Zone you requested"


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[AwsCloud]:
    folder = tmp_path / "aws"
    folder.mkdir()
    cloud = AwsCloud.start(folder)
    yield cloud
    cloud.stop()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(Path(KUBECONFIG))
    try:
        yield cluster
    finally:
        cluster.remove()


@pytest.fixture
def host() -> Iterator[SshdHost]:
    with sshd_hosts("bench") as (one,):
        yield one


@pytest.fixture
def _accounts(
    cloud: AwsCloud, cluster: Cluster, host: SshdHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Blocks of all three, saved as `default`, and prices of EC2 in a folder that goes with the test."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    publish_prices()
    zone = [{"Name": "availability-zone", "Values": ["us-east-1a"]}]
    subnet = cloud.ec2().describe_subnets(Filters=zone)["Subnets"][0]["SubnetId"]
    blocks = {
        "aws": cloud.block(regions=["us-east-1"], subnets=[subnet]),
        "kubernetes": cluster.credentials(tmp_path),
        "ssh": block(host, timeout_s=3.0),
    }
    for name, one in blocks.items():
        one.save("default")
        monkeypatch.setattr(registry.library(name).connections, "drivers", {})
    yield
    for one in blocks.values():
        type(one).delete("default")


@pytest.fixture
def _a_full_node(cluster: Cluster) -> Iterator[None]:
    """Another team's pod takes the node's free cores, in a namespace whose pods our service account may not list."""
    (node,) = cluster.get("/api/v1/nodes")["items"]
    name = f"other-team-{uuid4().hex[:8]}"
    resources = {"requests": {"cpu": str(float(node["status"]["allocatable"]["cpu"]) - 0.6)}}
    image = {"name": "c", "image": "sshd:local", "imagePullPolicy": "Never", "command": ["sleep", "600"]}
    spec = {"containers": [{**image, "resources": resources}], "terminationGracePeriodSeconds": 0}
    cluster.post("/api/v1/namespaces/default/pods", {"metadata": {"name": name}, "spec": spec})
    path = f"/api/v1/namespaces/default/pods/{name}"
    try:
        cluster.wait(lambda: cluster.get(path)["status"]["phase"] == "Running")
        yield
    finally:
        cluster.http.delete(path, params={"gracePeriodSeconds": 0})
        cluster.wait(lambda: cluster.http.get(path).status_code == 404)


def artifact(key: str) -> str:
    question = {"artifacts": {"key": {"any_": [key]}}, "limit": 1}
    with get_client(sync_client=True) as client:
        return client.request("POST", "/artifacts/latest/filter", json=question).json()[0]["data"]


def left(cloud: AwsCloud, cluster: Cluster, host: SshdHost) -> list[str]:
    """Whatever still stands anywhere, by what each place itself knows."""
    ec2 = cloud.ec2()
    found = [one["id"] for one in cloud.alive()]
    found += [one["VolumeId"] for one in ec2.describe_volumes()["Volumes"]]
    found += [one["NetworkInterfaceId"] for one in ec2.describe_network_interfaces()["NetworkInterfaces"]]
    found += [one["metadata"]["name"] for one in cluster.pods()]
    found += [path.name for path in host.claims.glob("*") if path.name != "lock"]
    found += [path.name for path in host.home.glob(".prefect-gpu/*")]
    found += [line for line in (host.home / ".ssh" / "authorized_keys").read_text().splitlines() if "pg-" in line]
    return found + [one.name for one in Local().list_instances(f"pg-{GpuRealm.current().realm}").instances]


@pytest.mark.usefixtures("_accounts", "_a_full_node")
def test_sold_out_then_unschedulable_then_down_ends_on_this_machine_and_is_told(
    cloud: AwsCloud, cluster: Cluster, host: SshdHost
) -> None:
    cloud.fail("RunInstances", "InsufficientInstanceCapacity", status=500, message=SOLD_OUT, times=None)

    def lose_power() -> None:
        wait_until(lambda: bool(cloud.calls("RunInstances")), 120, "the first order")
        host.power_off()

    power = threading.Thread(target=lose_power)
    power.start()
    state: Any = provision(
        "true",
        providers=IN_ORDER,
        order="given",
        max_price=0.2,
        requirements=ONE_CORE,
        return_state=True,
    )
    power.join()
    message = "4 offers tried (aws sold out, kubernetes boot failed, ssh host down)"
    assert state.is_completed(), state.message
    assert state.message.startswith("exit 0 in ")
    assert state.message.endswith(f", $0.00, {message}")
    assert left(cloud, cluster, host) == []

    attempts = Record.read(state.state_details.flow_run_id).attempts
    assert [(one.provider, one.outcome) for one in attempts] == [
        ("aws", "sold out"),
        ("kubernetes", "boot failed"),
        ("ssh", "host down"),
        ("local", "gone"),
    ]
    assert [one.attempt for one in attempts] == [0, 1, 2, 3]
    assert len({one.name for one in attempts}) == 4
    assert [one.instance_id is not None for one in attempts] == [False, True, False, True]
    assert all(one.gone_at is not None and one.cost == 0.0 for one in attempts)
    whys = [
        f"InsufficientInstanceCapacity: {SOLD_OUT}",
        "no node takes it: Unschedulable: 0/1 nodes are available: 1 Insufficient cpu.",
        f"bench is out of reach: {host.address}:22 does not answer: Connection refused",
    ]
    assert all(why in one.why for why, one in zip(whys, attempts, strict=False)), [one.why for one in attempts]

    offers = [line for line in artifact(cards.TRIED.key).splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert [line.split(" | ")[:2] for line in offers] == [
        ["| 1", "aws"],
        ["| 2", "kubernetes"],
        ["| 3", "ssh"],
        ["| 4", "local"],
    ]
    told = [line.split(" | ")[-1].removesuffix(" |") for line in offers]
    assert told[0].startswith("sold out: ")
    assert told[1].startswith("boot failed: ")
    assert told[2].startswith("host down: ")
    assert all(why in line for why, line in zip(whys, told, strict=False)), told
    assert told[3] == "used, and given back"
    assert message in artifact(cards.TRIED.key)
    assert "exit 0 in " in artifact(cards.FILES.key)
    cost = artifact(cards.COST.key)
    assert all(why in cost for why in whys)
