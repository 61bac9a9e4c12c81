"""Whatever happens to a run on AWS, with a real server and worker, nothing of it stays in EC2: each test states how soon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from uuid import UUID

import pytest

from tests.fakes.aws import AwsCloud
from tests.stack import ROOT, Stack, running, wait_until

pytestmark = [pytest.mark.server, pytest.mark.timeout(400)]

AFTER_END_S = 15.0
AFTER_KILL_S = 60.0


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsCloud]:
    cloud = AwsCloud.start(tmp_path_factory.mktemp("aws"))
    yield cloud
    cloud.stop()


@pytest.fixture(scope="module")
def stack(cloud: AwsCloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("stack")) as stack:
        program = f"""
import sys
from tests.fakes.aws import AwsCloud, publish_prices
publish_prices()
AwsCloud({cloud.endpoint_url!r}, {cloud.ssh_port}).block(regions=["us-east-1", "us-west-2"]).save("default")
"""
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=stack.env, check=True, timeout=120)
        yield stack


@pytest.fixture(scope="module")
def provision(stack: Stack) -> UUID:
    return stack.deploy("flows.provision.provision", "aws")


@pytest.fixture(autouse=True)
def _an_empty_account(cloud: AwsCloud) -> None:
    cloud.reset()


def leftovers(cloud: AwsCloud) -> list[str]:
    """What stands in EC2's own books beside machines: disks, interfaces, addresses."""
    found: list[str] = []
    for region in ("us-east-1", "us-west-2", "eu-west-1"):
        ec2 = cloud.ec2(region)
        found += [one["VolumeId"] for one in ec2.describe_volumes()["Volumes"]]
        found += [one["NetworkInterfaceId"] for one in ec2.describe_network_interfaces()["NetworkInterfaces"]]
        found += [one["AllocationId"] for one in ec2.describe_addresses()["Addresses"]]
    return found


def gone_within(cloud: AwsCloud, seconds: float, since: float) -> None:
    wait_until(lambda: cloud.alive() == [], max(1.0, seconds - (time.monotonic() - since)), "an empty account")
    assert leftovers(cloud) == []


def start_long_job(cloud: AwsCloud, stack: Stack, provision: UUID) -> UUID:
    run_id = stack.run(provision, command="echo started; sleep 300", providers=["aws"])
    stack.wait_for_log(run_id, "started")
    assert [one["state"] for one in cloud.alive()] == ["running"]
    return run_id


def test_a_job_runs_on_a_machine_of_ec2_and_its_machine_is_gone_before_the_run_is_completed(
    cloud: AwsCloud, stack: Stack, provision: UUID
) -> None:
    run_id = stack.run(provision, command="echo hello from $HOME", providers=["aws"])
    stack.wait_for_state(run_id, "Completed")
    assert cloud.alive() == []
    assert leftovers(cloud) == []
    assert stack.message(run_id).startswith("exit 0 in ")
    said = [line for line in stack.logs(run_id) if line.startswith("hello from ")]
    assert [line.strip().endswith("/home") for line in said] == [True], "\n".join(stack.logs(run_id))
    assert len(cloud.calls("RunInstances")) == 1


def test_after_exit_3_the_run_is_failed_and_its_machine_is_gone(cloud: AwsCloud, stack: Stack, provision: UUID) -> None:
    run_id = stack.run(provision, command="exit 3", providers=["aws"])
    stack.wait_for_state(run_id, "Failed")
    assert cloud.alive() == []
    assert leftovers(cloud) == []
    assert stack.message(run_id).startswith("exit 3 in ")


def test_a_lost_answer_and_a_sold_out_zone_end_in_one_job_on_one_machine(
    cloud: AwsCloud, stack: Stack, provision: UUID
) -> None:
    cloud.fail("RunInstances", "InsufficientInstanceCapacity", status=500, zone="us-east-1a", times=None)
    cloud.fail("RunInstances", how="lost", zone="us-east-1b")
    run_id = stack.run(
        provision, command="echo hello", providers=["aws"], requirements={"regions": ["us-east-1"], "cpu": 2}
    )
    stack.wait_for_state(run_id, "Completed")
    assert cloud.alive() == []
    assert "sold out" in stack.message(run_id)
    orders = [call["sent"] for call in cloud.calls("RunInstances")]
    assert [order["Placement.AvailabilityZone"] for order in orders] == ["us-east-1a", "us-east-1b", "us-east-1b"]
    assert orders[0]["ClientToken"] != orders[1]["ClientToken"] == orders[2]["ClientToken"]


def test_after_a_cancel_its_machine_is_gone_within_15_s(cloud: AwsCloud, stack: Stack, provision: UUID) -> None:
    run_id = start_long_job(cloud, stack, provision)
    subprocess.run(
        [sys.executable, "-m", "prefect", "flow-run", "cancel", str(run_id)],
        cwd=ROOT,
        env=stack.env,
        check=True,
        capture_output=True,
        timeout=120,
    )
    gone_within(cloud, AFTER_END_S, time.monotonic())
    stack.wait_for_state(run_id, "Cancelled")


def test_after_kill_9_of_the_flow_process_its_machine_is_gone_within_60_s(
    cloud: AwsCloud, stack: Stack, provision: UUID
) -> None:
    run_id = start_long_job(cloud, stack, provision)
    os.kill(stack.flow_process(run_id), signal.SIGKILL)
    gone_within(cloud, AFTER_KILL_S, time.monotonic())
    stack.wait_for_state(run_id, "Crashed")
