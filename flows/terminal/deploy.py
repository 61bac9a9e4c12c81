"""What a Prefect server must hold for us: work pool and queues, block types, the deployments of prefect.yaml, automations.

One process through the client API, where the CLI starts one of several seconds for each step. Safe to repeat: what is there is
brought up to date, and what others made there is not touched.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import yaml
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.workers.process import ProcessWorker

from prefect_gpu.flows import fields
from prefect_gpu.flows.terminal.automations import make_automations
from prefect_gpu.flows.terminal.messages import Trouble, tell
from prefect_gpu.flows.terminal.place import POOL
from prefect_gpu.providers.core.typed import typed

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

# The checkout's own prefect.yaml: a link beside the flows, and a file once it is installed.
PROJECT: Final = resources.files("prefect_gpu.flows") / "prefect.yaml"

# Reap has the higher priority (1), and a queue of its own so that a limit on jobs never holds it up.
QUEUES = {"reap": 1, "default": 2}

# Earlier versions limited them, and a slot that a dead worker held stopped them for ever.
UNLIMITED = ("reap", "refresh-catalog")


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
    online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
    try:
        return bool(client.read_workers_for_work_pool(POOL, worker_filter=online, limit=1))
    except ObjectNotFound:
        return False


def refuse_paused(client: SyncPrefectClient, deployment: UUID) -> None:
    """A sentence where somebody paused what the run would wait in: it would wait for ever."""
    found = client.read_deployment(deployment)
    if not (pool := found.work_pool_name):
        return
    try:
        if client.read_work_pool(pool).is_paused:
            raise Trouble(f"The work pool {pool} is paused: nothing runs until `prefect work-pool resume {pool}`.")
        queue = found.work_queue_name
        if queue and client.read_work_queue_by_name(queue, work_pool_name=pool).is_paused:
            raise Trouble(
                f"The work queue {queue} of the work pool {pool} is paused: nothing runs until "
                f"`prefect work-queue resume {queue} --pool {pool}`."
            )
    except ObjectNotFound:
        raise Trouble(f"The work pool {pool} is not there any more: `{typed('deploy')}` makes it again.") from None


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
        if pool.type != ProcessWorker.type:  # somebody's own: its runs start elsewhere
            tell(
                f"The work pool {POOL} is of the type {pool.type}: its runs need prefect-gpu where they start, for example an image that "
                f"has it. Set that in the pool, or delete the pool and `{typed('deploy')}` makes one of processes."
            )
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
    project = yaml.safe_load(PROJECT.read_text())
    return [dict(deployment) for deployment in project["deployments"]]


def make_deployments(client: SyncPrefectClient) -> dict[str, UUID]:
    """The deployments of prefect.yaml, made or brought up to date."""
    made: dict[str, UUID] = {}
    for wanted in read_project():
        flow: Flow[..., Any] = load_flow_from_entrypoint(wanted["entrypoint"], use_placeholder_flow=False)
        name = f"{flow.name}/{wanted['name']}"
        try:
            existing = client.read_deployment_by_name(name)
        except ObjectNotFound:
            made[name] = _create(client, flow, wanted)
        else:
            made[name] = existing.id
            _update(client, existing, flow, wanted)
    return made


def _create(client: SyncPrefectClient, flow: Flow[..., Any], wanted: dict[str, Any]) -> UUID:
    pool = wanted["work_pool"]
    return client.create_deployment(
        flow_id=client.create_flow(flow),
        name=wanted["name"],
        entrypoint=wanted["entrypoint"],
        description=wanted.get("description") or flow.description,
        tags=wanted.get("tags", []),
        version=flow.version,
        parameters=wanted.get("parameters", {}),
        parameter_openapi_schema=fields.schema(flow),
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


def _update(
    client: SyncPrefectClient, existing: DeploymentResponse, flow: Flow[..., Any], wanted: dict[str, Any]
) -> None:
    """Bring up to date what is ours: which flow, its form, and job variables that nobody set.

    Schedules, parameters, tags, limits, the pool, and whether it is paused are the people's.
    """
    ours: dict[str, Any] = {
        "entrypoint": wanted["entrypoint"],
        "version": flow.version,
        "parameter_openapi_schema": fields.schema(flow),
        "pull_steps": [],
    }
    if (
        existing.work_pool_name == wanted["work_pool"]["name"]
    ):  # the variables of another kind of pool mean something else
        ours["job_variables"] = _filled(existing.job_variables or {}, wanted["work_pool"]["job_variables"])
    if wanted.get("concurrency_limit") is None and flow.name in UNLIMITED and existing.global_concurrency_limit:
        ours["concurrency_limit"] = None
    client.update_deployment(existing.id, DeploymentUpdate(**ours))


def _filled(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Theirs, and of ours what they do not say."""
    filled = {**ours, **theirs}
    for name in ours.keys() & theirs.keys():
        if isinstance(ours[name], dict) and isinstance(theirs[name], dict):
            filled[name] = {**ours[name], **theirs[name]}
    return filled


def register_blocks() -> None:
    """Make the block types known to the server, so that its UI shows their forms."""
    from prefect_gpu.blocks import collection  # imports every SDK that is installed

    for block in collection.installed():
        block.register_type_and_schema()
