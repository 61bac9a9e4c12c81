"""Whatever happens to a run on AWS, with a real server and worker, nothing of it stays in EC2: each test states how soon."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from uuid import UUID

import pytest

from prefect_gpu.flows.report import text
from prefect_gpu.flows.run.attempt import Attempt
from prefect_gpu.providers.aws import tasks
from tests.clean_up import Asked, CleanUp, Left
from tests.fakes.aws import AwsCloud
from tests.stack import Stack, wait_until

pytestmark = [pytest.mark.server, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsCloud]:
    cloud = AwsCloud.start(tmp_path_factory.mktemp("aws"))
    yield cloud
    cloud.stop()


@pytest.fixture(scope="module")
def provision(stack: Stack, cloud: AwsCloud) -> Iterator[UUID]:
    stack.python("from tests.fakes.aws import publish_prices; publish_prices()")
    with stack.account(cloud.block(regions=["us-east-1", "us-west-2"])):
        yield stack.deploy("prefect_gpu.flows.provision.provision", "aws")


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


@pytest.fixture
def asked() -> Asked:
    return {"providers": ["aws"]}


@pytest.fixture
def left(cloud: AwsCloud) -> Left:
    return lambda: [*(one["id"] for one in cloud.alive()), *leftovers(cloud)]


class TestAws(CleanUp):
    """What every provider must survive."""

    is_short = True


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


COUNTING = """
mkdir -p keep; n=$(( $(cat keep/count 2>/dev/null || echo 0) + 1 ))
echo $n >.new && mv .new keep/count; echo "machine $n"; [ $n = 3 ] || sleep 600
"""


def test_a_spot_job_that_is_taken_back_twice_ends_well_and_costs_what_its_three_machines_cost(
    cloud: AwsCloud, stack: Stack, provision: UUID
) -> None:
    job = {"checkpoint": ["keep"], "checkpoint_every_s": 1}
    asked = {"regions": ["us-east-1"], "cpu": 2, "spot": "spot"}
    run_id = stack.run(provision, command=COUNTING, providers=["aws"], requirements=asked, job=job)
    for number in (1, 2):
        stack.wait_for_log(run_id, f"machine {number}")
        wait_until(
            lambda n=number: sum("checkpoint kept" in line for line in stack.logs(run_id)) == n, 60, "the checkpoint"
        )
        (taken,) = cloud.alive()
        cloud.take_back(taken["id"])
    assert stack.wait_for_state(run_id, "Completed", "Failed") == "Completed", stack.message(run_id)
    assert cloud.alive() == []
    assert leftovers(cloud) == []
    assert len(cloud.calls("RunInstances")) == 3
    attempts = [Attempt.model_validate(one) for one in stack.record(run_id)]
    assert [one.outcome for one in attempts] == ["interrupted", "interrupted", "gone"]
    assert "machine 3" in stack.logs(run_id)
    for one, after in itertools.pairwise(attempts):
        assert one.gone_at is not None
        assert one.gone_at <= after.ordered_at, "the next is ordered when the last is seen gone"
    for one in attempts:
        assert one.gone_at is not None
        stayed = (one.gone_at - one.ordered_at).total_seconds()
        assert one.cost == pytest.approx(tasks.capabilities.billing.cost(one.price, stayed)), one
    total = sum(one.cost or 0.0 for one in attempts)
    assert text.dollars(total) in stack.message(run_id)
