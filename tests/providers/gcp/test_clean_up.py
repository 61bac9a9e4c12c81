"""Whatever happens to a run on Google Cloud, with a real server and worker, nothing of it stays there: each test states how soon."""

from __future__ import annotations

import time
from collections.abc import Iterator
from uuid import UUID

import pytest

from tests.clean_up import AFTER_KILL_S, Asked, CleanUp, Left, gone_within, start_long_job
from tests.fakes.gcp import GcpCloud
from tests.stack import Stack, wait_until

pytestmark = [pytest.mark.server, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcpCloud]:
    cloud = GcpCloud.start(tmp_path_factory.mktemp("gcp"))
    yield cloud
    cloud.stop()


@pytest.fixture(scope="module")
def provision(stack: Stack, cloud: GcpCloud) -> Iterator[UUID]:
    stack.python("from tests.fakes.gcp.project import publish_prices; publish_prices()")
    with stack.account(cloud.block()):
        yield stack.deploy("prefect_gpu.flows.provision.provision", "gcp")


@pytest.fixture(autouse=True)
def _an_empty_project(cloud: GcpCloud) -> None:
    cloud.tell("reset")


@pytest.fixture
def asked() -> Asked:
    return {"providers": ["gcp"]}


@pytest.fixture
def left(cloud: GcpCloud) -> Left:
    return lambda: cloud.tell("alive")


class TestGcp(CleanUp):
    """What every provider must survive."""

    is_short = True


def test_a_job_runs_after_a_zone_was_sold_out_and_an_answer_was_lost_and_nothing_is_left(
    cloud: GcpCloud, stack: Stack, provision: UUID, left: Left
) -> None:
    cloud.tell("sell_out", zone="us-central1-a", times=1)
    cloud.tell("lose")
    run_id = stack.run(provision, command="echo hello from $HOME", providers=["gcp"])
    stack.wait_for_state(run_id, "Completed")
    assert left() == []
    assert stack.message(run_id).startswith("exit 0 in ")
    assert "sold out" in stack.message(run_id)
    said = [line for line in stack.logs(run_id) if line.startswith("hello from ")]
    assert [line.strip().endswith("/home") for line in said] == [True], "\n".join(stack.logs(run_id))
    orders = cloud.tell("orders")
    assert [order["machineType"].split("/")[1] for order in orders] == [
        "us-central1-a",
        "us-central1-b",
        "us-central1-b",
    ]
    assert orders[0]["name"] != orders[1]["name"] == orders[2]["name"]
    assert cloud.tell("metadata")[-1] == ["prefect-gpu-login", "block-project-ssh-keys", "enable-oslogin"]


def test_a_spot_machine_that_google_takes_back_is_told_so_and_its_job_begins_anew_on_another(
    cloud: GcpCloud, stack: Stack, provision: UUID, left: Left
) -> None:
    run_id = start_long_job(stack, provision, {"providers": ["gcp"], "requirements": {"spot": "spot"}}, left)
    (first,) = left()
    cloud.tell("take_back")
    stack.wait_for_log(run_id, "Google took this spot machine back (compute.instances.preempted)")
    wait_until(lambda: left() not in ([], [first]), 120, "another machine")
    stack.cancel(run_id)
    gone_within(left, AFTER_KILL_S, time.monotonic())
    stack.wait_for_state(run_id, "Cancelled")
