"""One execution of `provision`: what was asked for, whose run it is, what was ordered, and how it ends on every way out."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.exceptions import Abort, TerminationSignal
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogHandler

import providers as registry
from blocks.realm import GpuRealm
from flows import inputs, story
from flows.ownership import Ownership, Standing
from flows.ranking import Ranked
from flows.record import GONE, OWED, Attempt, Record, cost_until
from providers import ProviderName
from providers.core import accounts
from providers.core.errors import ProviderError
from providers.core.lease import MAX_RUN_COUNT
from providers.core.models import Instance, Job, Offer, Requirements, utc_now
from providers.core.orders import Absence

FRESH_S: Final = 1.0  # a reading of the run's state is asked for again after it, before each create and give-back
API_PATIENCE_S: Final = 15 * 60.0  # so long nothing is bought while Prefect's API does not answer; then the run fails


@dataclass
class Run:
    """What the six steps share."""

    id: UUID
    count: int
    realm: str
    command: str | tuple[str, ...]
    requirements: Requirements
    job: Job
    order: str
    account: str | dict[str, str]
    providers: list[ProviderName]
    record: Record
    ownership: Ownership
    log: Any  # the run's logger; Prefect's type for it lacks its own methods
    ranked: list[Ranked] = field(default_factory=list[Ranked])
    failed: list[tuple[Offer, ProviderError]] = field(default_factory=list[tuple[Offer, ProviderError]])
    troubles: dict[str, ProviderError] = field(default_factory=dict[str, ProviderError])

    @property
    def current(self) -> Attempt | None:
        """The line of the instance that the run uses or is about to."""
        return next((one for one in reversed(self.record.attempts) if one.may_cost and one.outcome != OWED), None)

    def say(self, *lines: str) -> None:
        """One log record: a fact of the story, as `--watch`, the UI and the terminal show it."""
        self.log.info("\n".join(lines))

    def stop_reason(self) -> str | None:
        """Why this process must stop, or None: asked by everything that waits. What was bought is `clean_up`'s to give back."""
        return self.ownership.why if self.ownership.is_lost else None

    def must_be_owner(self) -> None:
        """Go on only with the server's word that the run is still this process's: asked before each create."""
        deadline, said = time.monotonic() + API_PATIENCE_S, False
        while (standing := self.ownership.ask(within_s=10, fresh_s=FRESH_S)) is Standing.UNKNOWN:
            if time.monotonic() > deadline:
                raise RuntimeError("Prefect's API did not answer for 15 min: nothing was bought")
            if not said:
                self.log.warning("Prefect's API does not answer: nothing is bought until it does")
                said = True
        if standing is not Standing.OWNER:
            raise Abort(f"the run is {self.ownership.why}")

    def must_not_be_superseded(self) -> None:
        """Go on unless the run is known not to be this process's: asked before a give-back, which waits for no API."""
        self.ownership.ask(within_s=5, fresh_s=FRESH_S)
        if self.ownership.is_lost:
            raise Abort(f"the run is {self.ownership.why}")

    def accepted(self, instance: Instance) -> None:
        """The order was accepted: on the record, and an event."""
        attempt = self.record.accepted(self.record.attempts[-1], instance)
        self.write_record()
        self._tell(
            "instance.created",
            name=attempt.name,
            provider=attempt.provider,
            machine=attempt.machine,
            price=attempt.price,
        )

    def refused(self, offer: Offer, failure: ProviderError) -> None:
        """An offer came to nothing: in the story, in the log where it is somebody's mistake, and an event."""
        self.failed.append((offer, failure))
        self.say(
            story.more(f"{offer.provider} {offer.instance_type} {offer.scope}: {failure.short}: {failure.message}")
        )
        if failure.is_loud:
            self.log.warning("%s: %s", offer.provider, failure.message)
        self._tell(
            "offer.refused",
            provider=offer.provider,
            machine=offer.instance_type,
            scope=offer.scope,
            why=failure.short,
        )

    def give_back(self, attempt: Attempt, *, confirm: bool = True, outcome: str = GONE, why: str = "") -> Absence:
        """Terminate what was ordered under the attempt's name and note what came of it; a plain function, no task."""
        absence = end_attempt(attempt, confirm=confirm, within_s=None if confirm else 8.0)
        self.given_back(attempt, absence, outcome, why)
        return absence

    def given_back(self, attempt: Attempt, absence: Absence, outcome: str = GONE, why: str = "") -> None:
        """What came of giving back: on the record with its cost, and an event."""
        settle(self.record, attempt, absence, outcome, why)
        self.write_record()

    def write_record(self) -> None:
        """Write what happened; what cannot be written now is written with the next fact, and listings tell it meanwhile."""
        try:
            self.record.write()
        except Exception as trouble:  # noqa: BLE001 - whatever Prefect's API says, the instance comes first
            self.log.warning("the record of attempts could not be written: %s", type(trouble).__name__)

    def clean_up(self) -> None:
        """The `finally` of the flow: nothing that was bought stays, unless the run is another process's now.

        It calls drivers as plain functions, never as tasks: after Suspend a task raises before it does anything. When a
        signal ends this process there is no time to observe absence: the hook and `reap` do.
        """
        is_signal = isinstance(sys.exception(), TerminationSignal)
        try:
            left = [one for one in self.record.attempts if one.may_cost and one.outcome != OWED]
            needs_word = bool(left) or is_signal or not self.record.is_written
            standing = self.ownership.ask(within_s=3) if needs_word else None
            is_superseded = standing is Standing.SUPERSEDED
            if not is_superseded:
                for attempt in left:
                    self.give_back(attempt, confirm=not is_signal)
                if not self.record.is_written and standing is not Standing.UNKNOWN:
                    self.write_record()
            # A signal must go on to Prefect, which ends the run; but the Crashed of a superseded process would end its successor's.
            if is_superseded or (self.ownership.is_lost and not is_signal):
                raise Abort(f"the run is {self.ownership.why}")
        finally:
            self.ownership.close()

    def _tell(self, what: str, **facts: Any) -> None:
        _tell(self.id, what, facts)


def begin(
    command: str | list[str],
    gpu: str,
    max_price: float | None,
    providers: list[ProviderName],
    order: str,
    requirements: Requirements,
    job: Job,
    account: str | dict[str, str],
) -> Run:
    """Refuse nonsense, claim the flow run, give back what an earlier execution of it left."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("provision runs as a Prefect flow")
    flow_run = context.flow_run
    if flow_run.run_count > MAX_RUN_COUNT:
        raise inputs.Refused(f"this run was started {flow_run.run_count} times: start a new one")
    checked_command = inputs.checked_command(command)
    wanted = inputs.checked_requirements(gpu, max_price, requirements)
    checked_job = inputs.checked_job(job, Path.cwd())
    accounts.secrets(job.secrets)  # asked for now, while nothing is bought
    if job.registry:
        accounts.registry(job.registry)
    run = Run(
        id=flow_run.id,
        count=flow_run.run_count,
        realm=GpuRealm.current().realm,
        command=checked_command,
        requirements=wanted,
        job=checked_job,
        order=order,
        account=account,
        providers=inputs.checked_providers(providers, registry.enabled(account, providers), account),
        record=Record.read(flow_run.id) if _ran_before(flow_run) else Record(flow_run.id),
        ownership=Ownership(flow_run.id, flow_run.run_count).start(),
        log=_steps_logger(),
    )
    try:
        _settle_earlier_execution(run)
    except BaseException:
        run.ownership.close()
        raise
    return run


def _ran_before(flow_run: FlowRun) -> bool:
    """Whether an earlier execution of the run may have left a record. After Suspend Prefect may count no second one."""
    return flow_run.run_count > 1 or flow_run.total_run_time > timedelta(0)


def _settle_earlier_execution(run: Run) -> None:
    left = [one for one in run.record.attempts if one.may_cost]
    if not left:
        return
    run.must_be_owner()
    run.say(f"giving back what an earlier execution of this run left: {story.counted(len(left), 'order')}")
    for attempt in left:
        run.give_back(attempt)


def end_attempt(attempt: Attempt, *, confirm: bool = True, within_s: float | None = None) -> Absence:
    """Give back what was ordered under an attempt's name; a plain function.

    It never raises: whatever a provider, its driver or the account's block does, the next attempt's turn comes, and what could not
    be done is owed.
    """
    ids = (attempt.instance_id,) if attempt.instance_id else ()
    try:
        library = registry.library(attempt.provider)
        if (here := library.driver(attempt.account).account_id()) != attempt.account_id:
            evidence = f"it was ordered on {attempt.account_id}, and from here {here} is seen"
            return Absence(is_gone=False, evidence=evidence, owed=ids or (attempt.name,))
        return library.give_back(
            attempt.name, ids, attempt.account, attempt.ordered_at, confirm=confirm, within_s=within_s
        )
    except Exception as trouble:  # noqa: BLE001 - see above
        evidence = trouble.message if isinstance(trouble, ProviderError) else f"{type(trouble).__name__} in the driver"
        return Absence(is_gone=False, evidence=evidence, owed=ids or (attempt.name,))


def settle(
    record: Record,
    attempt: Attempt,
    absence: Absence,
    outcome: str = GONE,
    why: str = "",
    costs_until: datetime | None = None,
) -> None:
    """Note on the record what came of giving an attempt's instance back, with its cost until now or then; not yet written."""
    line = next(one for one in record.attempts if one.name == attempt.name)
    if line.instance_id is None and absence.machines:  # its answer was lost, and it is paid for all the same
        line = record.note(line, instance_id=absence.machines[0])
    now = utc_now()
    try:
        cost = cost_until(line, registry.library(line.provider).capabilities.billing, costs_until or now)
    except ProviderError:  # this worker lacks the provider's extra
        cost = line.cost
    if absence.is_gone:
        record.note(line, outcome=outcome, why=why, gone_at=now, cost=cost)
    else:
        record.note(line, outcome=OWED, why=absence.evidence, cost=cost)
    facts = {"name": line.name, "provider": line.provider, "evidence": absence.evidence, "cost": cost}
    _tell(record.run_id, "instance.gone" if absence.is_gone else "termination.owed", facts)


def flush_logs() -> None:
    """Send what is logged so far, so that what is posted directly does not overtake it."""
    for handler in logging.getLogger("prefect.flow_runs").handlers:
        if isinstance(handler, APILogHandler):
            handler.flush()


def _steps_logger() -> Any:
    logger: Any = get_run_logger()  # typed as logging's adapter, which lacks getChild
    return logger.getChild("steps")


def _tell(run_id: UUID, what: str, facts: dict[str, Any]) -> None:
    """An event `prefect-gpu.<what>`, for any automation."""
    emit_event(
        f"prefect-gpu.{what}",
        resource={"prefect.resource.id": f"prefect-gpu.run.{run_id}", "prefect.resource.name": str(run_id)},
        related=[{"prefect.resource.id": f"prefect.flow-run.{run_id}", "prefect.resource.role": "flow-run"}],
        payload=facts,
    )
