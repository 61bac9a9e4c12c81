"""What the server does by itself: reap at once where a run left something, and tell when nobody reaps."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.automations import AutomationCore, EventTrigger, Posture
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, DoNothing, RunDeployment, SendNotification
from prefect.exceptions import ObjectNotFound

from prefect_gpu.flows.reap import SILENT_S
from prefect_gpu.flows.run.resuming import BY_ITSELF
from prefect_gpu.flows.terminal.place import POOL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import BlockDocument

ALERT_BLOCK = "gpu-alerts"  # a notification block of this name, of any kind, gets the alerts
REAP_INTERVAL = timedelta(minutes=5)
HEARTBEAT_MISSING = timedelta(seconds=SILENT_S)  # three heartbeats; then a reap listens for two more
SILENCE = 3 * REAP_INTERVAL  # so long no reap may complete before a person is told
AT_ONCE = timedelta(seconds=10)
PAGE = 200  # the most that the API gives at once
FORMER = ("prefect-gpu: a run whose process is gone is crashed",)  # names of what earlier versions made
_NOT_LEFT_ALONE = (
    *("Scheduled", "Pending", "Running", "AwaitingRetry", "Late"),
    *("Cancelling", "Cancelled", "Completed", "Failed"),
)
_NO_HEARTBEAT_IN = (
    *("Completed", "Failed", "Crashed", "Cancelled", "Cancelling"),
    *("Scheduled", "AwaitingRetry", "Paused", "Suspended"),
)


def make_automations(
    client: SyncPrefectClient,
    deployments: dict[str, UUID],
    heartbeat_missing: timedelta = HEARTBEAT_MISSING,
    silence: timedelta = SILENCE,
) -> None:
    """Make the automations, or bring them up to date; one that a person disabled stays disabled."""
    for wanted in automations(client, deployments, heartbeat_missing, silence):
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
    for name in FORMER:
        for left in client.read_automations_by_name(name):
            client.delete_automation(left.id)


def automations(
    client: SyncPrefectClient,
    deployments: dict[str, UUID],
    heartbeat_missing: timedelta = HEARTBEAT_MISSING,
    silence: timedelta = SILENCE,
) -> list[AutomationCore]:
    """What the server does by itself.

    Only one of them changes a run's state, to Scheduled and never with force: whoever runs it then looks whether it may go on.
    """
    of_provision: dict[str, str | list[str]] = {
        "prefect.resource.role": "flow",
        "prefect.resource.id": _flow_resource(client, "provision"),
    }
    of_reap: dict[str, str | list[str]] = {
        "prefect.resource.role": "flow",
        "prefect.resource.id": _flow_resource(client, "reap"),
    }
    each_run = {"prefect.resource.id"}

    def run_reap(**parameters: object) -> list[Any]:
        reap = deployments["reap/default"]
        return [RunDeployment(source="selected", deployment_id=reap, parameters=parameters, job_variables=None)]

    return [
        AutomationCore(
            name="prefect-gpu: reap after a run that went wrong",
            description="A provision run ended Crashed, Cancelled or Failed: what it may have left is given back now.",
            trigger=EventTrigger(
                posture=Posture.Reactive,
                expect={"prefect.flow-run.Crashed", "prefect.flow-run.Cancelled", "prefect.flow-run.Failed"},
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=of_provision,
                threshold=1,
                # It fires with the first. Who fails in the seconds that the reap needs to start is seen by the same one.
                within=AT_ONCE,
            ),
            actions=run_reap(),
        ),
        AutomationCore(
            name="prefect-gpu: resume a run whose process is gone",
            description=(
                f"A provision run stays Crashed for {AT_ONCE.seconds} s: it is scheduled again, and goes on with its machine and its job. "
                "With resume off it gives back what is left, and ends."
            ),
            trigger=EventTrigger(
                posture=Posture.Proactive,
                after={"prefect.flow-run.Crashed"},
                expect={f"prefect.flow-run.{state}" for state in _NOT_LEFT_ALONE},
                match={"prefect.resource.id": "prefect.flow-run.*"},
                # Nobody picks up a run that belongs to no deployment.
                match_related=[
                    of_provision,
                    {"prefect.resource.role": "deployment", "prefect.resource.id": "prefect.deployment.*"},
                ],
                for_each=each_run,
                threshold=1,
                within=AT_ONCE,
            ),
            actions=[ChangeFlowRunState(name="Scheduled", state=StateType.SCHEDULED, message=BY_ITSELF, force=False)],
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
            actions=run_reap(),
        ),
        AutomationCore(
            name="prefect-gpu: look at a run that gives no sign of life",
            description=(
                f"A provision run was silent for {heartbeat_missing.seconds} s: its worker or host died, or is cut off. A reap listens "
                "once more; what is still Running and silent then is crashed and reaped."
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
            actions=run_reap(**_silent_s(heartbeat_missing)),
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


def _silent_s(missing: timedelta) -> dict[str, object]:
    """Nothing where it is the flow's own default: such a reap counts as any other."""
    return {} if missing == HEARTBEAT_MISSING else {"silent_s": missing.seconds}


def _alert(client: SyncPrefectClient, text: str) -> list[Any]:
    """A notification, where a block for it was saved; else the automation's own event is all that tells."""
    for document in _all_blocks(client):
        if document.name == ALERT_BLOCK:
            body = f"{text}: rented machines may stay. Is a worker of the work pool {POOL} running?"
            return [SendNotification(block_document_id=document.id, subject=text, body=body)]
    return [DoNothing()]


def _all_blocks(client: SyncPrefectClient) -> Iterator[BlockDocument]:
    """Page after page, to the end."""
    offset = 0
    while page := client.read_block_documents(limit=PAGE, offset=offset, include_secrets=False):
        yield from page
        offset += len(page)


def _flow_resource(client: SyncPrefectClient, name: str) -> str:
    try:
        return f"prefect.flow.{client.read_flow_by_name(name).id}"
    except ObjectNotFound:
        raise LookupError(f"the server does not know the flow {name}") from None
