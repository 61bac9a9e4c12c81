"""What a Prefect server must hold for us: work pool and queues, block types, the deployments of prefect.yaml, automations.

One process through the client API, where the CLI starts one of several seconds for each step. Safe to repeat: what is there is
brought up to date, and what others made there is not touched.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import yaml
from prefect.automations import AutomationCore, EventTrigger, Posture
from prefect.blocks.core import Block
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.actions import ChangeFlowRunState, DoNothing, RunDeployment, SendNotification
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.workers.process import ProcessWorker

import blocks
from flows.environment import POOL, PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect.client.orchestration import SyncPrefectClient

# Reap has the higher priority (1), and a queue of its own so that a limit on jobs never holds it up.
QUEUES = {"reap": 1, "default": 2}
ALERT_BLOCK = "gpu-alerts"  # a notification block of this name, of any kind, gets the alerts
REAP_INTERVAL = timedelta(minutes=5)
# Eight heartbeats: a network that fails for less costs no job. With reap's minute it stays below the six that are promised.
HEARTBEAT_MISSING = timedelta(minutes=4)
_NO_HEARTBEAT_IN = (
    *("Completed", "Failed", "Crashed", "Cancelled", "Cancelling"),
    *("Scheduled", "AwaitingRetry", "Paused", "Suspended"),
)


def deploy(client: SyncPrefectClient) -> dict[str, UUID]:
    """Bring a server up to date; gives the id of each deployment by its full name ("provision/default")."""
    make_work_pool(client)
    deployments = make_deployments(client)
    register_blocks()
    make_automations(client, deployments)
    return deployments


def provision_deployment(client: SyncPrefectClient) -> UUID | None:
    """The id of provision/default, or None where nothing was deployed yet."""
    try:
        return client.read_deployment_by_name("provision/default").id
    except ObjectNotFound:
        return None


def has_online_worker(client: SyncPrefectClient) -> bool:
    """Whether a worker of our pool reports to this server."""
    try:
        return any(worker.status == "ONLINE" for worker in client.read_workers_for_work_pool(POOL))
    except ObjectNotFound:
        return False


def make_work_pool(client: SyncPrefectClient) -> None:
    """The work pool of processes and its queues. Limits that people set on them stay."""
    try:
        client.create_work_pool(
            WorkPoolCreate(
                name=POOL,
                type=ProcessWorker.type,
                description="Flows of prefect-gpu: each run is a process beside its worker; the jobs run on rented machines.",
                base_job_template=ProcessWorker.get_default_base_job_template(),
            )
        )
    except ObjectAlreadyExists:
        pool = client.read_work_pool(POOL)
        if not pool.base_job_template:  # made by hand, without one
            client.update_work_pool(
                POOL, WorkPoolUpdate(base_job_template=ProcessWorker.get_default_base_job_template())
            )
    existing = {queue.name: queue for queue in client.read_work_queues(work_pool_name=POOL)}
    for name, priority in QUEUES.items():
        if name not in existing:
            client.create_work_queue(name=name, work_pool_name=POOL, priority=priority)


def read_project() -> list[dict[str, Any]]:
    """The deployments as prefect.yaml has them."""
    project = yaml.safe_load((PROJECT / "prefect.yaml").read_text())
    return [dict(deployment) for deployment in project["deployments"]]


def make_deployments(client: SyncPrefectClient) -> dict[str, UUID]:
    """The deployments of prefect.yaml, made or brought up to date."""
    made: dict[str, UUID] = {}
    for wanted in read_project():
        flow: Flow[..., Any] = load_flow_from_entrypoint(wanted["entrypoint"], use_placeholder_flow=False)
        pool = wanted["work_pool"]
        made[f"{flow.name}/{wanted['name']}"] = client.create_deployment(
            flow_id=client.create_flow(flow),
            name=wanted["name"],
            entrypoint=wanted["entrypoint"],
            description=wanted.get("description") or flow.description,
            tags=wanted.get("tags", []),
            version=flow.version,
            parameters=wanted.get("parameters", {}),
            parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
            enforce_parameter_schema=True,
            schedules=[
                DeploymentScheduleCreate(schedule=CronSchedule(cron=schedule["cron"], timezone="UTC"), active=True)
                for schedule in wanted.get("schedules", [])
            ],
            concurrency_limit=wanted.get("concurrency_limit"),
            work_pool_name=pool["name"],
            work_queue_name=pool["work_queue_name"],
            job_variables=pool["job_variables"],
            pull_steps=[],
        )
    return made


def block_types() -> Iterator[type[Block]]:
    """The credentials blocks, one module a provider; one whose extra is not installed here is left out."""
    for module_info in pkgutil.iter_modules(blocks.__path__):
        try:
            module = importlib.import_module(f"blocks.{module_info.name}")
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "blocks":
                raise
            continue
        for _, block in inspect.getmembers(
            module, lambda member: inspect.isclass(member) and issubclass(member, Block)
        ):
            if block.__module__ == module.__name__ and not inspect.isabstract(block):
                yield block


def register_blocks() -> None:
    """Make the block types known to the server, so that its UI shows their forms."""
    for block in block_types():
        block.register_type_and_schema()


def make_automations(
    client: SyncPrefectClient, deployments: dict[str, UUID], heartbeat_missing: timedelta = HEARTBEAT_MISSING
) -> None:
    """Make the automations, or bring them up to date; one that a person disabled stays disabled."""
    for wanted in automations(client, deployments, heartbeat_missing):
        existing = client.read_automations_by_name(wanted.name)
        if not existing:
            client.create_automation(wanted)
            continue
        first = existing[0]
        current = AutomationCore.model_validate(first.model_dump(include=set(AutomationCore.model_fields)))
        update = wanted.model_copy(update={"enabled": first.enabled})
        if current.model_dump(mode="json") != update.model_dump(
            mode="json"
        ):  # an update forgets what it was waiting for
            client.update_automation(first.id, update)


def automations(
    client: SyncPrefectClient, deployments: dict[str, UUID], heartbeat_missing: timedelta = HEARTBEAT_MISSING
) -> list[AutomationCore]:
    """What the server does by itself: reap at once where a run left something, and tell when nobody reaps."""
    reap = deployments["reap/default"]
    of_provision: dict[str, str | list[str]] = {
        "prefect.resource.role": "flow",
        "prefect.resource.id": _flow_resource(client, "provision"),
    }
    of_reap: dict[str, str | list[str]] = {
        "prefect.resource.role": "flow",
        "prefect.resource.id": _flow_resource(client, "reap"),
    }
    run_reap = RunDeployment(source="selected", deployment_id=reap, parameters={}, job_variables=None)
    each_run = {"prefect.resource.id"}
    silence = 3 * REAP_INTERVAL
    return [
        AutomationCore(
            name="prefect-gpu: reap after a run that went wrong",
            description="A provision run ended Crashed, Cancelled or Failed: what it may have left is given back now.",
            trigger=EventTrigger(
                posture=Posture.Reactive,
                expect={"prefect.flow-run.Crashed", "prefect.flow-run.Cancelled", "prefect.flow-run.Failed"},
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=of_provision,
                for_each=each_run,
                threshold=1,
                within=timedelta(0),
            ),
            actions=[run_reap],
        ),
        AutomationCore(
            name="prefect-gpu: reap after a cancel that nobody hears",
            description="A provision run stays in Cancelling for 60 s: its process is gone, and nobody else gives its machine back.",
            trigger=EventTrigger(
                posture=Posture.Proactive,
                after={"prefect.flow-run.Cancelling"},
                expect={f"prefect.flow-run.{state}" for state in ("Cancelled", "Completed", "Crashed", "Failed")},
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=of_provision,
                for_each=each_run,
                threshold=1,
                within=timedelta(seconds=60),
            ),
            actions=[run_reap],
        ),
        AutomationCore(
            name="prefect-gpu: a run whose process is gone is crashed",
            description=(
                f"A provision run gave no sign of life for {heartbeat_missing.seconds} s: its worker or host died, or is cut off. "
                "Crashed, it is reaped."
            ),
            trigger=EventTrigger(
                posture=Posture.Proactive,
                after={"prefect.flow-run.heartbeat"},
                expect={f"prefect.flow-run.{what}" for what in ("heartbeat", *_NO_HEARTBEAT_IN)},
                match={"prefect.resource.id": "prefect.flow-run.*"},
                # Runs of other deployments send one every 180 s, or none.
                match_related={
                    "prefect.resource.role": "deployment",
                    "prefect.resource.id": f"prefect.deployment.{deployments['provision/default']}",
                },
                for_each=each_run,
                threshold=1,
                within=heartbeat_missing,
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    name="Crashed",
                    force=False,  # who has just ended has the last word
                    message=f"No sign of life for {heartbeat_missing.seconds} s: its worker or host died, or is cut off.",
                )
            ],
        ),
        AutomationCore(
            name="prefect-gpu: alert when nobody reaps",
            description=(
                f"No reap run completed within {silence.seconds // 60} minutes: is a worker of the pool {POOL} running? "
                f"Save a notification block named {ALERT_BLOCK} and deploy again to be told."
            ),
            trigger=EventTrigger(
                posture=Posture.Proactive,
                expect={"prefect.flow-run.Completed"},
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=of_reap,
                threshold=1,
                within=silence,
            ),
            actions=_alert(client, f"No reap run of prefect-gpu completed for {silence.seconds // 60} minutes"),
        ),
    ]


def _alert(client: SyncPrefectClient, text: str) -> list[Any]:
    """A notification, where a block for it was saved; else the automation's own event is all that tells."""
    for document in client.read_block_documents(limit=200):
        if document.name == ALERT_BLOCK:
            body = f"{text}: rented machines may stay. Is a worker of the work pool {POOL} running?"
            return [SendNotification(block_document_id=document.id, subject=text, body=body)]
    return [DoNothing()]


def _flow_resource(client: SyncPrefectClient, name: str) -> str:
    try:
        return f"prefect.flow.{client.read_flow_by_name(name).id}"
    except ObjectNotFound:
        raise LookupError(f"the server does not know the flow {name}") from None
