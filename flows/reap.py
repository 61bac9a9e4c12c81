"""The net under the flow and its hook: the scheduled flow that finds what nobody ended.

It never touches a name that does not parse, nor one of another realm unless the operator names that realm, nor anything from a copy
of the Prefect server's database. Reaps may overlap: none waits for a slot, and one that has nothing to add ends at once.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Final

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Completed
from pydantic import Field

from prefect_gpu.blocks.realm import NotItsServer
from prefect_gpu.flows.reaping import by_hand
from prefect_gpu.flows.reaping.memory import keep, recall
from prefect_gpu.flows.reaping.siblings import SKIPPED, has_a_wish, has_looked_since
from prefect_gpu.flows.reaping.stuck import SECOND_LOOK, crash, resume, schedule_again, silent
from prefect_gpu.flows.reaping.sweep import Sweep
from prefect_gpu.flows.report import text
from prefect_gpu.flows.run import outliving
from prefect_gpu.flows.run.failure import failed
from prefect_gpu.flows.run.own_realm import own_realm

SILENT_S: Final = 90  # three heartbeats; the second look takes two more


@flow(name="reap")
def reap(
    dry_run: Annotated[
        bool, Field(title="Dry run", description="Say what would be terminated, terminate nothing.")
    ] = False,
    realm: Annotated[
        str | None,
        Field(title="Another realm", description="Reap this realm too: of a Prefect server that is gone, for example."),
    ] = None,
    trust_server: Annotated[
        bool,
        Field(
            title="Trust this server",
            description="Once, after the Prefect server got a new address or took over another's database: its instances are this one's.",
        ),
    ] = False,
    silent_s: Annotated[
        int, Field(title="Seconds of silence", description="After which a running run's process may be gone.", ge=30)
    ] = SILENT_S,
) -> State[Any]:
    """Terminate every instance whose lease is over or whose run has ended, and finish what is owed.

    Args:
        dry_run: Say what would be terminated, terminate nothing.
        realm: Reap this realm too, for example of a Prefect server that is gone. Only its overdue instances are touched.
        trust_server: The realm belongs to this Prefect server from now on: say it once after the server moved.
        silent_s: After so many seconds without a sign of life it is looked whether a running run's process is gone.
    """
    outliving.outlive_worker()
    logger: Any = get_run_logger()  # typed as logging's adapter, which lacks getChild
    log = logger.getChild("steps")
    if realm is not None and not re.fullmatch("[a-z0-9]{4}", realm):
        return failed(f"{realm!r} is not a realm: write the four letters or digits that follow pg- in the names")
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("reap runs as a Prefect flow")
    memory, artifact = recall()
    if not has_a_wish(context.parameters or {}) and has_looked_since(memory.looked_at, context.flow_run):
        return Completed(name=SKIPPED, message="another reap has looked since this one was called for")
    try:
        own = own_realm(trust_server=trust_server).realm
    except NotItsServer as other:
        return failed(str(other))
    sweep = Sweep(own, realm, dry_run=dry_run, log=log)
    sweep.run(memory, context.flow_run.id)
    again = [] if dry_run else schedule_again(sweep.now)
    for run in again:
        log.warning("%s was taken by a worker that started no process for it: scheduled again", run.name)
    for run in [] if dry_run else resume(sweep.records, sweep.now):
        log.warning("%s crashed: scheduled again, and it goes on with what it has", run.name)
    message = sweep.message()
    if not dry_run:
        keep(sweep.memory, sweep.page(message), artifact)
        # What is silent gets a second look, after everything else is done.
        if gone := crash(silent(sweep.now, timedelta(seconds=silent_s)), SECOND_LOOK * silent_s):
            log.warning("%s crashed: no sign of life", text.counted(len(gone), "run"))
            memory, artifact = recall()
            sweep = Sweep(own, realm, dry_run=False, log=log)
            sweep.run(memory, context.flow_run.id)
            message = sweep.message()
            keep(sweep.memory, sweep.page(message), artifact)
            for run in resume([one for one in sweep.records if one.run_id in gone], sweep.now, timedelta(0)):
                log.warning("%s goes on with its instance in another process", run.name)
    log.info(message)
    if not dry_run and (late := by_hand.overdue(sweep.doomed, sweep.now)):
        for one in late:
            log.error(by_hand.told(one))
            by_hand.tell(one)
        return failed("; ".join(by_hand.told(one) for one in late), found=sweep.reaped(message))
    return Completed(message=message, data=sweep.reaped(message))
