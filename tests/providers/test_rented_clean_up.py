"""Whatever happens to a run on Lambda, RunPod, TensorDock, Vast.ai or Verda, with a real server and worker, nothing of it stays there.

The flow's own process reaches each vendor's fake under the vendor's name, by way of a company's proxy and CA, and its machines by SSH.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from pydantic import SecretStr

from prefect_gpu.blocks.api import ApiAccess
from prefect_gpu.blocks.lambdalabs import LambdalabsCredentials
from prefect_gpu.blocks.runpod import RunpodCredentials
from prefect_gpu.blocks.tensordock import TensordockCredentials
from prefect_gpu.blocks.vastai import VastaiCredentials
from prefect_gpu.blocks.verda import VerdaCredentials
from prefect_gpu.flows.run import resuming
from tests.clean_up import ALL, Asked, CleanUp, Left
from tests.fakes.lambdalabs import FakeLambda
from tests.fakes.rented import ssh_is_possible
from tests.fakes.runpod import FakeRunpod, Process
from tests.fakes.served import served
from tests.fakes.tensordock import FakeTensordock
from tests.fakes.vastai import FakeVastai
from tests.fakes.verda import FakeVerda
from tests.stack import Stack

pytestmark = [
    pytest.mark.server,
    pytest.mark.root,
    pytest.mark.timeout(400),
    pytest.mark.skipif(ssh_is_possible() is not None, reason=str(ssh_is_possible())),
]
DEATHS = {
    "test_after_kill_9": "lambdalabs",
    "test_a_run_whose_process_dies": "vastai",
}  # of a machine's run, of a container's
SPEED = 10.0  # seconds at a vendor for one here


class Vendor(NamedTuple):
    """One provider as this module has it."""

    name: str
    host: str
    fake: Callable[[], Any]
    block: Callable[[ApiAccess], Any]
    left: Callable[[Any], list[str]]
    flow: str = "prefect_gpu.flows.provision.provision"


def left_at_verda(cloud: FakeVerda) -> list[str]:
    alive = [one["body"]["hostname"] for one in cloud.machines.values() if one["gone_at"] is None]
    things = (cloud.disks, cloud.trash, cloud.scripts, cloud.sshkeys)
    return [*alive, *(one["name"] for kept in things for one in kept.values())]


def vastai() -> FakeVastai:
    cloud = FakeVastai("key-1", machines="process", speed=SPEED)
    cloud.is_taken = False  # each run finds what the last one did
    cloud.logs_at = "https://console.vast.ai"  # behind the one name that the proxy leads to
    return cloud


VENDORS = (
    Vendor(
        "lambdalabs",
        "cloud.lambda.ai",
        lambda: FakeLambda("key-1", has_ssh=True, speed=SPEED),
        lambda api: LambdalabsCredentials(api_key=SecretStr("key-1"), api=api),
        lambda cloud: [*cloud.alive(), *(one["name"] for one in cloud.keys.values())],
    ),
    Vendor(
        "runpod",
        "api.runpod.io",
        lambda: FakeRunpod("key-1", machines=Process, shows_deleted_s=3600, speed=SPEED),
        lambda api: RunpodCredentials(api_key=SecretStr("key-1"), api=api),
        lambda cloud: cloud.left(),
    ),
    Vendor(
        "tensordock",
        "dashboard.tensordock.com",
        lambda: FakeTensordock("token-1", has_ssh=True, shows_deleted_s=3600, speed=SPEED),
        lambda api: TensordockCredentials(api_token=SecretStr("token-1"), api=api),
        lambda cloud: cloud.alive(),
    ),
    Vendor(
        "vastai",
        "console.vast.ai",
        vastai,
        lambda api: VastaiCredentials(api_key=SecretStr("key-1"), api=api),
        lambda cloud: cloud.alive(),
        "tests.fakes.spoiled_flows.provision_that_waits_for_no_list",
    ),
    Vendor(
        "verda",
        "api.verda.com",
        lambda: FakeVerda("client-1", "secret-1", has_ssh=True, speed=SPEED),
        lambda api: VerdaCredentials(client_id="client-1", client_secret=SecretStr("secret-1"), api=api),
        left_at_verda,
    ),
)


class Rented(NamedTuple):
    """A vendor that is on the network, with its account saved and `provision` deployed."""

    vendor: Vendor
    cloud: Any
    deployment: UUID


@pytest.fixture(scope="module", params=VENDORS, ids=[one.name for one in VENDORS])
def at(request: pytest.FixtureRequest, stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rented]:
    vendor: Vendor = request.param
    stack.python(f"from tests.providers.test_rented_clean_up import publish; publish({json.dumps(vendor.name)})")
    with ExitStack() as running:
        cloud = running.enter_context(vendor.fake())
        api = running.enter_context(served(cloud, vendor.host, tmp_path_factory.mktemp(vendor.name)))
        running.enter_context(stack.account(vendor.block(api)))
        yield Rented(vendor, cloud, stack.deploy(vendor.flow, vendor.name))


def publish(name: str) -> None:
    """The price list that the flow's process finds, for those who have one."""
    from datetime import UTC, datetime

    from prefect_gpu.providers.core.catalog import collect, store
    from tests.providers import test_lambdalabs, test_verda

    prices = {"lambdalabs": test_lambdalabs.PRICES, "verda": test_verda.PRICES}
    if name in prices:
        collected = collect.from_offers(prices[name], "these tests")
        store.publish(name, collected.prices, collected_at=datetime.now(UTC), source="these tests")


@pytest.fixture
def provision(at: Rented) -> UUID:
    return at.deployment


@pytest.fixture
def asked(at: Rented) -> Asked:
    return {"providers": [at.vendor.name], "gpu": "H100"}


@pytest.fixture
def left(at: Rented) -> Left:
    return lambda: at.vendor.left(at.cloud)


class TestRented(CleanUp):
    """What every provider must survive."""

    is_short = True

    @pytest.fixture(autouse=True)
    def _one_death_of_each_kind(self, request: pytest.FixtureRequest, at: Rented) -> None:
        dies_at = next((at_one for death, at_one in DEATHS.items() if request.node.name.startswith(death)), None)
        if dies_at not in (None, at.vendor.name) and not os.environ.get(ALL):
            pytest.skip(f"{at.vendor.name} dies both deaths with {ALL}=1")

    def test_a_job_runs_on_a_machine_and_all_that_it_brought_along_is_gone_before_the_run_is_completed(
        self, at: Rented, stack: Stack, asked: Asked, left: Left
    ) -> None:
        before = at.cloud.creates
        run_id = stack.run(at.deployment, command="echo hello from $HOME; nvidia-smi", **asked)
        stack.wait_for_state(run_id, "Completed", "Failed")
        assert stack.message(run_id).startswith("exit 0 in "), "\n".join(stack.logs(run_id))
        assert left() == []
        assert at.cloud.creates == before + 1
        said = [line for line in stack.logs(run_id) if line.startswith("hello from ")]
        assert [line.strip().endswith("/home") for line in said] == [True], "\n".join(stack.logs(run_id))

    def test_a_run_whose_process_dies_goes_on_with_its_machine_in_another_one(
        self, at: Rented, stack: Stack, asked: Asked, left: Left, tmp_path: Path
    ) -> None:
        gate, before = tmp_path / "gate", at.cloud.creates
        command = f"echo started; while [ ! -e {gate} ]; do sleep 0.2; done; echo ends well"
        run_id = stack.run(at.deployment, command=command, **asked)
        stack.wait_for_line(run_id, "started")
        (mine,) = left()
        os.kill(stack.flow_process(run_id), signal.SIGKILL)
        stack.wait_for_state(run_id, "Crashed")
        again = resuming.scheduled().model_dump(mode="json", include={"type", "name", "message"})
        stack.client.post(f"/flow_runs/{run_id}/set_state", json={"state": again, "force": True}).raise_for_status()
        stack.wait_for_log(run_id, "going on with what an earlier execution of this run has")
        assert left() == [mine]
        gate.touch()
        assert stack.wait_for_state(run_id, "Completed", "Failed") == "Completed", stack.message(run_id)
        assert stack.job_output(run_id) == ["started", "ends well"]
        assert (at.cloud.creates, left()) == (before + 1, [])
