"""What a server holds for us: made from prefect.yaml, made twice without harm, and left alone where a person changed it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolUpdate
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.actions import RunDeployment, SendNotification
from prefect.exceptions import ObjectAlreadyExists
from prefect.flows import load_flow_from_entrypoint

from prefect_gpu.blocks import collection
from prefect_gpu.flows.terminal.automations import ALERT_BLOCK, automations
from prefect_gpu.flows.terminal.deploy import PROJECT, deploy, make_work_pool, refuse_paused
from prefect_gpu.flows.terminal.messages import Trouble
from prefect_gpu.flows.terminal.place import POOL

NAMES = {"provision/default", "plan/default", "reap/default", "refresh-catalog/default", "report/default"}


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
    assert provision.job_variables["env"]["PREFECT_CLIENT_RETRY_EXTRA_CODES"] == "500"
    assert provision.work_queue_name == "default"
    assert provision.global_concurrency_limit is None
    assert list(provision.parameter_openapi_schema["properties"])[:4] == ["command", "gpu", "max_price", "providers"]
    reap = client.read_deployment(made["reap/default"])
    assert reap.work_queue_name == "reap"
    assert reap.global_concurrency_limit is None  # a slot is lost with a worker, and no reap would run again
    assert [schedule.schedule.cron for schedule in reap.schedules] == ["*/5 * * * *"]
    assert {queue.name for queue in client.read_work_queues(work_pool_name=POOL)} == {"default", "reap"}


def test_a_second_time_changes_nothing(client: SyncPrefectClient) -> None:
    first = deploy(client)
    automations = {one.name: one for one in client.read_automations()}
    assert deploy(client) == first
    assert {one.name: one for one in client.read_automations()} == automations
    assert len([name for name in automations if name.startswith("prefect-gpu: ")]) == 5


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
    reaping = [one for one in automations(client, made) if isinstance(one.actions[0], RunDeployment)]
    assert len(reaping) == 3
    assert {one.actions[0].deployment_id for one in reaping} == {made["reap/default"]}
    matched = {one.trigger.match_related.root["prefect.resource.id"] for one in reaping}
    assert matched == {f"prefect.flow.{flow_id}", f"prefect.deployment.{made['provision/default']}"}


def test_the_block_types_are_known_to_the_server(client: SyncPrefectClient) -> None:
    deploy(client)
    for block in collection.installed():
        assert client.read_block_type_by_slug(block.get_block_type_slug())


def test_every_deployment_is_of_a_flow_that_can_be_imported_by_its_module() -> None:
    project = yaml.safe_load(PROJECT.read_text())
    flows = [load_flow_from_entrypoint(one["entrypoint"]) for one in project["deployments"]]
    assert {f"{flow.name}/default" for flow in flows} == NAMES


def test_what_people_set_on_a_deployment_stays(client: SyncPrefectClient) -> None:
    made = deploy(client)
    provision, reap = made["provision/default"], made["reap/default"]
    before = client.read_deployment(reap)
    client.update_deployment(
        provision,
        DeploymentUpdate(
            parameters={"max_price": 20},
            tags=["team"],
            paused=True,
            job_variables={"env": {"HTTPS_PROXY": "http://proxy:3128", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60"}},
        ),
    )
    client.create_deployment_schedules(provision, [(CronSchedule(cron="0 3 * * *"), True)])
    client.update_deployment_schedule(reap, before.schedules[0].id, active=False)
    assert deploy(client) == made
    after = client.read_deployment(provision)
    assert (after.parameters, after.tags, after.paused) == ({"max_price": 20}, ["team"], True)
    assert [one.schedule.cron for one in after.schedules] == ["0 3 * * *"]
    assert after.job_variables["env"]["HTTPS_PROXY"] == "http://proxy:3128"
    assert after.job_variables["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "60"
    assert after.job_variables["env"]["PREFECT_LOGGING_TO_API_BATCH_INTERVAL"] == "0.1", "what nobody set is ours"
    assert [one.active for one in client.read_deployment(reap).schedules] == [False]
    client.update_deployment(provision, DeploymentUpdate(parameters={}, tags=[], paused=False))
    client.delete_deployment_schedule(provision, after.schedules[0].id)
    client.update_deployment_schedule(reap, before.schedules[0].id, active=True)


def test_what_is_ours_is_brought_up_to_date(client: SyncPrefectClient) -> None:
    provision = deploy(client)["provision/default"]
    client.update_deployment(provision, DeploymentUpdate(entrypoint="old.py:old", parameter_openapi_schema=None))
    deploy(client)
    after = client.read_deployment(provision)
    assert after.entrypoint == "prefect_gpu.flows.provision.provision"
    assert "command" in after.parameter_openapi_schema["properties"]


def test_a_run_that_would_wait_for_ever_in_a_paused_pool_or_queue_is_refused(client: SyncPrefectClient) -> None:
    provision = deploy(client)["provision/default"]
    refuse_paused(client, provision)
    client.update_work_pool(POOL, WorkPoolUpdate(is_paused=True))
    with pytest.raises(Trouble, match=rf"^The work pool {POOL} is paused: .* `prefect work-pool resume {POOL}`\.$"):
        refuse_paused(client, provision)
    client.update_work_pool(POOL, WorkPoolUpdate(is_paused=False))
    queue = client.read_work_queue_by_name("default", work_pool_name=POOL)
    client.update_work_queue(queue.id, is_paused=True)
    with pytest.raises(Trouble, match=rf"^The work queue default of the work pool {POOL} is paused"):
        refuse_paused(client, provision)
    client.update_work_queue(queue.id, is_paused=False)


def test_a_pool_of_another_type_is_told_with_what_its_runs_need(capsys: pytest.CaptureFixture[str]) -> None:
    """It said "Deployed", and every run crashed: no module named prefect_gpu."""

    def exists(_: object) -> None:
        raise ObjectAlreadyExists(Exception())

    pool = SimpleNamespace(type="docker", base_job_template={"variables": {}})
    queues = [SimpleNamespace(name="reap"), SimpleNamespace(name="default")]
    client = SimpleNamespace(
        create_work_pool=exists, read_work_pool=lambda _: pool, read_work_queues=lambda **_: queues
    )
    make_work_pool(cast("SyncPrefectClient", client))
    said = capsys.readouterr().err
    assert said.startswith("The work pool gpu-flows is of the type docker: its runs need prefect-gpu where they start")


ALERT = "prefect-gpu: alert when nobody reaps"


def test_a_saved_block_for_alerts_is_told_that_nobody_reaps_however_many_blocks_come_before_it(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = deploy(client)
    assert [action.type for action in client.read_automations_by_name(ALERT)[0].actions] == ["do-nothing"]
    monkeypatch.setattr("prefect_gpu.flows.terminal.automations.PAGE", 2)
    names = ("alerts-a", "alerts-b", "alerts-c", ALERT_BLOCK)
    for name in names:
        CustomWebhookNotificationBlock(name="team", url="https://hooks.example.org/x").save(name, _sync=True)
    try:
        assert ALERT_BLOCK not in {block.name for block in client.read_block_documents(limit=2)}
        assert deploy(client) == made
        (action,) = client.read_automations_by_name(ALERT)[0].actions
        assert isinstance(action, SendNotification)
        assert client.read_block_document(action.block_document_id).name == ALERT_BLOCK
        assert "No reap run of prefect-gpu completed for 15 minutes" in action.subject
        assert "Is a worker of the work pool gpu-flows running?" in action.body
    finally:
        for name in names:
            CustomWebhookNotificationBlock.delete(name, _sync=True)
        deploy(client)
    assert [action.type for action in client.read_automations_by_name(ALERT)[0].actions] == ["do-nothing"]
