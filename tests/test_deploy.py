"""What a server holds for us: made from prefect.yaml, made twice without harm, and left alone where a person changed it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.flows import load_flow_from_entrypoint

from flows import deploy as deploying
from flows.deploy import deploy
from flows.environment import POOL, PROJECT

NAMES = {"provision/default", "plan/default", "reap/default", "refresh-catalog/default"}


@pytest.fixture
def client(prefect_api: None) -> Any:
    del prefect_api
    with get_client(sync_client=True) as client:
        yield client


def test_all_deployments_are_made_as_prefect_yaml_has_them(client: SyncPrefectClient) -> None:
    made = deploy(client)
    assert set(made) == NAMES
    provision = client.read_deployment(made["provision/default"])
    assert provision.job_variables["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert provision.work_queue_name == "default"
    assert provision.global_concurrency_limit is None
    assert list(provision.parameter_openapi_schema["properties"])[:4] == ["command", "gpu", "max_price", "providers"]
    reap = client.read_deployment(made["reap/default"])
    assert reap.work_queue_name == "reap"
    assert reap.global_concurrency_limit.limit == 1
    assert [schedule.schedule.cron for schedule in reap.schedules] == ["*/5 * * * *"]
    assert {queue.name for queue in client.read_work_queues(work_pool_name=POOL)} == {"default", "reap"}


def test_a_second_time_changes_nothing(client: SyncPrefectClient) -> None:
    first = deploy(client)
    automations = {one.name: one for one in client.read_automations()}
    assert deploy(client) == first
    assert {one.name: one for one in client.read_automations()} == automations
    assert len([name for name in automations if name.startswith("prefect-gpu: ")]) == 4


def test_an_automation_that_a_person_disabled_stays_disabled(client: SyncPrefectClient) -> None:
    deploy(client)
    name = "prefect-gpu: alert when nobody reaps"
    client.pause_automation(client.read_automations_by_name(name)[0].id)
    deploy(client)
    assert not client.read_automations_by_name(name)[0].enabled


def test_a_limit_that_a_person_set_on_a_queue_stays(client: SyncPrefectClient) -> None:
    deploy(client)
    queue = client.read_work_queue_by_name("default", work_pool_name=POOL)
    client.update_work_queue(queue.id, concurrency_limit=7)
    deploy(client)
    assert client.read_work_queue_by_name("default", work_pool_name=POOL).concurrency_limit == 7


def test_the_automations_run_reap_for_provision_runs_only(client: SyncPrefectClient) -> None:
    made = deploy(client)
    flow_id = client.read_flow_by_name("provision").id
    for one in deploying.automations(client, made)[:2]:
        assert one.actions[0].deployment_id == made["reap/default"]
        assert one.trigger.match_related.root["prefect.resource.id"] == f"prefect.flow.{flow_id}"


def test_the_block_types_are_known_to_the_server(client: SyncPrefectClient) -> None:
    deploy(client)
    for block in deploying.block_types():
        assert client.read_block_type_by_slug(block.get_block_type_slug())


def test_every_deployment_is_of_a_flow_that_can_be_imported_by_its_module() -> None:
    project = yaml.safe_load((PROJECT / "prefect.yaml").read_text())
    flows = [load_flow_from_entrypoint(one["entrypoint"]) for one in project["deployments"]]
    assert {f"{flow.name}/default" for flow in flows} == NAMES
