"""No net rests on one worker, one slot or one run: what a real server and worker do when they die at the wrong moment."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_gpu.flows.reap import reap
from prefect_gpu.flows.reaping import stuck
from prefect_gpu.flows.terminal.automations import automations, make_automations
from prefect_gpu.providers.core.models import utc_now
from tests.stack import Stack, wait_until

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]


@pytest.fixture
def client(stack: Stack) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: stack.api}), get_client(sync_client=True) as client:
        yield client


def of_deployment(stack: Stack, deployment: UUID, *states: str) -> list[dict[str, Any]]:
    question: dict[str, Any] = {
        "deployments": {"id": {"any_": [str(deployment)]}},
        "flow_runs": {"state": {"type": {"any_": states}}},
    }
    return stack.client.post("/flow_runs/filter", json=question).raise_for_status().json()


def test_a_reap_that_its_worker_took_and_did_not_start_holds_up_no_other(stack: Stack) -> None:
    """With a deployment limit its slot was never free again, and no reap ever ran."""
    reaping = stack.deploy("prefect_gpu.flows.reap.reap", "reap-nets")
    lost = stack.run(reaping)
    wait_until(lambda: stack.flow_run(lost)["state"]["type"] == "PENDING", 60, "a worker to take it")
    stack.kill("worker")
    try:
        stack.kill("server")
        time.sleep(1)
        stack.start_server()
    finally:
        stack.start_worker()
    later = stack.run(reaping)
    stack.wait_for_state(later, "Completed", within_s=120)
    with temporary_settings({PREFECT_API_URL: stack.api}):  # as a reap five minutes later does
        stuck.schedule_again(utc_now() + stuck.STARTING + timedelta(minutes=1))
    stack.wait_for_state(lost, "Completed", "Skipped", within_s=120)


def test_a_deployment_that_had_a_limit_loses_it_with_the_next_deploy(client: SyncPrefectClient) -> None:
    from prefect_gpu.flows.terminal.deploy import deploy

    deployment = client.create_deployment(
        flow_id=client.create_flow(reap), name="default", concurrency_limit=1, entrypoint="prefect_gpu.flows.reap.reap"
    )
    assert client.read_deployment(deployment).global_concurrency_limit is not None
    made = deploy(client)
    try:
        assert made["reap/default"] == deployment
        for one in made.values():
            assert client.read_deployment(one).global_concurrency_limit is None
    finally:
        for one in automations(client, made):
            client.delete_automation(client.read_automations_by_name(one.name)[0].id)
        for one in made.values():
            client.delete_deployment(one)


@pytest.fixture
def dead_host(stack: Stack) -> Iterator[None]:
    """A block of two machines, one of which takes connections and never says a word."""
    from prefect_gpu.blocks.ssh import SshHost, SshMachines
    from prefect_gpu.providers.core.machine.keys import derive

    key = derive(b"k" * 32, "nets", "client").private
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(50)
        port = mute.getsockname()[1]
        with stack.account(
            SshMachines(hosts=[SshHost(address="127.0.0.1", port=port, user="nobody")], private_key=key)
        ):
            yield


def test_of_20_runs_that_fail_at_once_the_reaps_drain_though_a_host_is_dead_and_one_give_back_owed(
    stack: Stack, client: SyncPrefectClient, dead_host: None
) -> None:
    from prefect_gpu.flows.provision import provision
    from prefect_gpu.flows.run.attempt import Attempt
    from prefect_gpu.flows.run.record import Record
    from prefect_gpu.providers.core.lease import Lease

    deployments = {
        "provision/default": stack.deploy("prefect_gpu.flows.provision.provision", "nets"),
        "reap/default": stack.deploy("prefect_gpu.flows.reap.reap", "reap-drain"),
    }
    realm = stack.realm() or "none"
    run_id = uuid4()
    lease = Lease(realm=realm, run_id=run_id, deadline=utc_now() + timedelta(hours=1), run_count=1, attempt=0)
    owed = Attempt(
        attempt=0, name=lease.name, provider="ssh", account="default", account_id="x", scope="s", machine="m", gpu="none",
        spot=False, price=1.0, ordered_at=utc_now(), outcome="owed", instance_id="s-1",
    )  # fmt: skip
    Record(run_id, [owed]).write()
    make_automations(client, deployments)
    try:
        earlier = len(of_deployment(stack, deployments["reap/default"], "COMPLETED"))
        began = time.monotonic()
        for _ in range(20):
            run = client.create_flow_run(provision, parameters={"command": "true"})
            stack.client.post(f"/flow_runs/{run.id}/set_state", json={"state": {"type": "FAILED"}, "force": True})
        wait_until(
            lambda: len(of_deployment(stack, deployments["reap/default"], "COMPLETED")) > earlier, 200, "the first reap"
        )
        wait_until(
            lambda: not of_deployment(stack, deployments["reap/default"], "SCHEDULED", "PENDING", "RUNNING"),
            200,
            "an empty queue of reaps",
        )
        assert time.monotonic() - began < 300
        assert len(of_deployment(stack, deployments["reap/default"], "COMPLETED")) - earlier <= 5
    finally:
        for one in automations(client, deployments):
            client.delete_automation(client.read_automations_by_name(one.name)[0].id)
