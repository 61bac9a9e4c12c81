"""The six steps of `provision`: a few lines each over the task libraries, and the clean-up that every other way out takes."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.exceptions import Abort, TerminationSignal
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogHandler
from prefect.states import Completed, Failed, State

import providers as registry
from blocks.realm import GpuRealm
from flows import inputs, results, story
from flows.ownership import Ownership, Standing
from flows.record import GONE, OWED, Attempt, Record, cost_until, new_attempt
from providers import ProviderName, account_of
from providers.core import accounts, matching
from providers.core.errors import AuthFailed, ProviderError
from providers.core.lease import MAX_ATTEMPT, MAX_RUN_COUNT, Lease, run_prefix
from providers.core.library import lease_deadline
from providers.core.models import Availability, Instance, Job, JobResult, Offer, Requirements, utc_now
from providers.core.orders import Absence, Owed

PROVIDER_PATIENCE_S = 30.0  # so long a provider may take to answer with its offers
API_PATIENCE_S = 15 * 60.0  # so long nothing is bought while Prefect's API does not answer; then the run fails
EXPECTED_STAY_S = 3600.0  # offers are ranked by the price of such a stay


@dataclass
class Run:
    """One execution of `provision`: what was asked for, whose run it is, what was ordered."""

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
    log: Any
    began: float = field(default_factory=time.monotonic)
    offers: list[Offer] = field(default_factory=list[Offer])
    failed: list[tuple[Offer, ProviderError]] = field(default_factory=list[tuple[Offer, ProviderError]])
    passed_over: list[tuple[Offer, str]] = field(default_factory=list[tuple[Offer, str]])
    troubles: dict[str, str] = field(default_factory=dict[str, str])
    result: JobResult | None = None

    @property
    def prefix(self) -> str:
        return run_prefix(self.realm, self.id)

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

    @property
    def resource(self) -> dict[str, str]:
        """What this project's events are about."""
        return {"prefect.resource.id": f"prefect-gpu.run.{self.id}", "prefect.resource.name": str(self.id)}

    def accepted(self, instance: Instance) -> None:
        """The order was accepted: on the record, and an event."""
        attempt = self.record.accepted(self.record.attempts[-1], instance)
        self._write_record()
        emit_event(
            "prefect-gpu.instance.created",
            resource=self.resource,
            payload={
                "name": attempt.name,
                "provider": attempt.provider,
                "machine": attempt.machine,
                "price": attempt.price,
            },
        )

    def note_failure(self, failure: ProviderError, **changes: Any) -> None:
        """The last order failed: its line says how; written with what follows, or now if nothing was bought."""
        changes.setdefault("outcome", failure.short)
        self.record.note(self.record.attempts[-1], why=failure.message, **changes)
        self._write_record()

    def given_back(self, attempt: Attempt, absence: Absence, outcome: str = GONE) -> None:
        """What came of giving back: the line, its cost, an event."""
        attempt = next(one for one in self.record.attempts if one.name == attempt.name)
        now = utc_now()
        cost = cost_until(attempt, registry.library(attempt.provider).capabilities.billing, now)
        if absence.is_gone:
            self.record.note(attempt, outcome=outcome, gone_at=now, cost=cost)
        else:
            self.record.note(attempt, outcome=OWED, why=absence.evidence, cost=cost)
        self._write_record()
        emit_event(
            "prefect-gpu.instance.gone" if absence.is_gone else "prefect-gpu.termination.owed",
            resource=self.resource,
            payload={"name": attempt.name, "provider": attempt.provider, "evidence": absence.evidence, "cost": cost},
        )

    def _write_record(self) -> None:
        """Write what happened; what cannot be written now is written with the next fact, and listings tell it meanwhile."""
        try:
            self.record.write()
        except Exception as trouble:  # noqa: BLE001 - whatever Prefect's API says, the instance comes first
            self.log.warning("the record of attempts could not be written: %s", type(trouble).__name__)

    def must_be_owner(self) -> None:
        """Go on only with the server's word that the run is still this process's: asked before each create and give-back."""
        deadline, said = time.monotonic() + API_PATIENCE_S, False
        while (standing := self.ownership.ask(within_s=10)) is Standing.UNKNOWN:
            if time.monotonic() > deadline:
                raise ProviderError("Prefect's API did not answer for 15 min: nothing was bought")
            if not said:
                self.log.warning("Prefect's API does not answer: nothing is bought until it does")
                said = True
        if standing is not Standing.OWNER:
            raise Abort(f"the run is {self.ownership.why}")


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
    checked_requirements = inputs.checked_requirements(gpu, max_price, requirements)
    checked_job = inputs.checked_job(job, Path.cwd())
    accounts.secrets(job.secrets)  # asked for now, while nothing is bought
    if job.registry:
        accounts.registry(job.registry)
    asked = inputs.checked_providers(providers, registry.enabled(account), account)
    run = Run(
        id=flow_run.id,
        count=flow_run.run_count,
        realm=GpuRealm.current().realm,
        command=checked_command,
        requirements=checked_requirements,
        job=checked_job,
        order=order,
        account=account,
        providers=asked,
        record=Record.read(flow_run.id) if flow_run.run_count > 1 else Record(flow_run.id),
        ownership=Ownership(flow_run.id, flow_run.run_count).start(),
        log=get_run_logger().getChild("steps"),
    )
    try:
        _settle_earlier_execution(run)
    except BaseException:
        run.ownership.close()
        raise
    return run


def _settle_earlier_execution(run: Run) -> None:
    left = [one for one in run.record.attempts if one.may_cost]
    if not left:
        return
    run.must_be_owner()
    run.say(f"giving back what an earlier execution of this run left: {story.counted(len(left), 'order')}")
    for attempt in left:
        run.given_back(attempt, _terminate(attempt, confirm=True))


def flush_logs() -> None:
    """Send what is logged so far, so that what is posted directly does not overtake it."""
    for handler in logging.getLogger("prefect.flow_runs").handlers:
        if isinstance(handler, APILogHandler):
            handler.flush()


# --- 1 ----------------------------------------------------------------------------------------------------------------


def fetch_offers(run: Run) -> list[Offer]:
    """Ask every provider at once; one that is down, slow or refuses is named and holds up nobody."""
    started = time.monotonic()
    # The price limit is kept back, so that what is just too dear can be named.
    wanted = run.requirements.model_copy(update={"max_price": None})
    answers: dict[str, list[Offer] | str] = {}
    pending: dict[str, Any] = {}
    for provider in run.providers:
        account = account_of(run.account, provider)
        try:
            library = registry.library(provider)
            if len(run.providers) == 1:
                answers[provider] = library.fetch_offers(wanted, account)
            else:
                pending[provider] = library.fetch_offers.submit(wanted, account)
        except ProviderError as trouble:
            answers[provider] = _trouble(run, provider, trouble)
    for provider, future in pending.items():
        future.wait(timeout=max(0.1, started + PROVIDER_PATIENCE_S - time.monotonic()))
        if not future.state.is_final():
            answers[provider] = f"no answer within {PROVIDER_PATIENCE_S:.0f} s"
            continue
        answer = future.result(raise_on_failure=False)
        answers[provider] = _trouble(run, provider, answer) if isinstance(answer, Exception) else answer
    run.troubles = {provider: answer for provider, answer in answers.items() if isinstance(answer, str)}
    offers = [offer for answer in answers.values() if not isinstance(answer, str) for offer in answer]
    who = {provider: run.troubles.get(provider) for provider in answers}
    run.offers = offers
    run.say(story.step(1, "offers", story.asked(who, only=False), time.monotonic() - started))
    for provider, trouble in run.troubles.items():
        run.say(story.more(f"{provider}: {trouble}"))
    return offers


def _trouble(run: Run, provider: str, trouble: Exception) -> str:
    if not isinstance(trouble, ProviderError):
        raise trouble
    if isinstance(trouble, AuthFailed) or trouble.is_loud:
        run.log.warning("%s: %s", provider, trouble.message)
    return trouble.message


# --- 2 ----------------------------------------------------------------------------------------------------------------


def choose(run: Run, offers: list[Offer]) -> Iterator[Offer]:
    """The offers in the order they are tried; those that an earlier failure ruled out are passed over."""
    run.offers = _ranked(run, offers)
    if run.offers:
        run.say(*(story.more(line) for line in story.offers_table(run.offers)))
        best = "the cheapest" if run.order == "price" else "the first"
        fits = "fits" if len(run.offers) == 1 else "fit"
        run.say(story.step(2, "choose", f"#1, {best} of {len(run.offers)} that {fits}"))
    for offer in run.offers:
        ruled_out = next((error for failed, error in run.failed if error.rules_out(failed, offer)), None)
        if ruled_out is None:
            yield offer
        else:
            run.passed_over.append((offer, f"passed over: {ruled_out.short}"))


def _ranked(run: Run, offers: list[Offer]) -> list[Offer]:
    """What fits, by alternative as they were written, then by the price of the expected stay or as providers were given."""
    ranks: list[tuple[tuple[float, ...], Offer]] = []
    for offer in offers:
        why = matching.why_not(offer, run.requirements)
        if offer.availability is Availability.UNAVAILABLE:
            why = offer.unavailable_because or "not available now"
        if why is not None:
            run.passed_over.append((offer, why))
            continue
        billing = registry.library(offer.provider).capabilities.billing
        price = billing.cost(offer.price, EXPECTED_STAY_S)
        given = [str(name) for name in run.providers].index(offer.provider) if run.order == "given" else 0
        ranks.append(((matching.alternative(offer, run.requirements), given, price), offer))
    return [offer for _, offer in sorted(ranks, key=lambda rank: rank[0])]


# --- 3 ----------------------------------------------------------------------------------------------------------------


def create_instance(run: Run, offer: Offer) -> Instance:
    """One order under a name of its own, on the record before it is sent and when its answer is known."""
    started = time.monotonic()
    number = run.record.next_attempt
    if number > MAX_ATTEMPT:
        raise inputs.Refused(f"{number} orders were sent in this run: start a new one")
    library, account = registry.library(offer.provider), account_of(run.account, offer.provider)
    deadline = lease_deadline(offer, library.capabilities, run.job)
    lease = Lease(realm=run.realm, run_id=run.id, deadline=deadline, run_count=run.count, attempt=number)
    account_id = library.driver(account).account_id()
    run.must_be_owner()
    run.record.open(new_attempt(number, lease.name, offer, account, account_id))
    try:
        instance = library.create_instance(
            offer, lease, run.requirements, run.job, account=account, should_stop=run.stop_reason
        )
    except Owed as owed:
        run.note_failure(owed, outcome=OWED)
        raise
    except ProviderError as refused:
        run.note_failure(refused, gone_at=utc_now(), cost=0.0)
        raise
    run.accepted(instance)
    run.say(
        story.step(
            3, "create", f"{lease.name}, lease until {story.clock_time(lease.deadline)}", time.monotonic() - started
        )
    )
    return instance


# --- 4 ----------------------------------------------------------------------------------------------------------------


def wait_ready(run: Run, offer: Offer, instance: Instance) -> Instance:
    """The machine answers, with the host key that is its own and no other."""
    started = time.monotonic()
    library, account = registry.library(offer.provider), account_of(run.account, offer.provider)
    ready = library.wait_until_ready(
        instance,
        offer,
        account,
        should_stop=run.stop_reason,
        on_progress=lambda what, seconds: run.say(story.more(f"{what}, {story.duration(seconds)} so far")),
    )
    run.say(story.step(4, "ready", story.ready_at(ready, library.capabilities.host_key), time.monotonic() - started))
    return ready


# --- 5 ----------------------------------------------------------------------------------------------------------------


def run_job(run: Run, offer: Offer, instance: Instance) -> JobResult:
    """The job, its output as it comes, its files; whatever it left is in result storage before the machine is given back."""
    library, account = registry.library(offer.provider), account_of(run.account, offer.provider)
    run.say(story.step(5, "run", inputs.shown(run.command)))
    flush_logs()  # so that the job's first line does not come before this one
    attempt = run.record.attempts[-1].attempt
    with results.kept(run.id, attempt) as folder:
        result = library.run_job(
            instance,
            offer,
            run.command,
            run.job,
            folder,
            run.requirements,
            account=account,
            should_stop=run.stop_reason,
        )
    run.result = result.model_copy(update={"stored_under": results.place(run.id, attempt)})
    ended = f"exit {result.exit_code}" if result.outcome == "exited" else result.outcome
    run.say(story.more(ended, result.duration_s))
    return run.result


# --- 6 ----------------------------------------------------------------------------------------------------------------


def give_back(run: Run) -> None:
    """Terminate the instance and observe that it is gone; as a task, so that the story shows it."""
    attempt = run.current
    if attempt is None:
        return
    started = time.monotonic()
    run.must_be_owner()
    library = registry.library(attempt.provider)
    absence = library.terminate_instance(
        attempt.name, (attempt.instance_id,) if attempt.instance_id else (), attempt.account, attempt.ordered_at
    )
    run.given_back(attempt, absence)
    how = f"gone: {absence.evidence}" if absence.is_gone else f"NOT seen gone yet ({absence.evidence}): reap goes on"
    run.say(story.step(6, "give back", how, time.monotonic() - started))


def pass_over(run: Run, offer: Offer, failure: ProviderError) -> None:
    """An offer failed: give back what was bought for it and say why; the next offer is tried."""
    run.failed.append((offer, failure))
    run.say(story.more(f"{offer.provider} {offer.instance_type} {offer.scope}: {failure.short}: {failure.message}"))
    (run.log.warning if failure.is_loud else run.log.debug)("%s: %s", offer.provider, failure.message)
    emit_event(
        "prefect-gpu.offer.refused",
        resource=run.resource,
        payload={
            "provider": offer.provider,
            "machine": offer.instance_type,
            "scope": offer.scope,
            "why": failure.short,
        },
    )
    attempt = run.current
    if attempt is None:
        return
    run.note_failure(failure)
    run.must_be_owner()
    run.given_back(attempt, _terminate(attempt, confirm=True), outcome=failure.short)


# --- every other way out ----------------------------------------------------------------------------------------------


def clean_up(run: Run) -> None:
    """The `finally` of the flow: nothing that was bought stays, unless the run is another process's now.

    It calls drivers as plain functions, never as tasks: after Suspend a task raises before it does anything. When a signal
    ends this process there is no time to observe absence: the hook and `reap` do.
    """
    dying = sys.exception()
    is_signal = isinstance(dying, TerminationSignal)
    try:
        left = [one for one in run.record.attempts if one.may_cost and one.outcome != OWED]
        if left and run.ownership.ask(within_s=3) is not Standing.SUPERSEDED:
            for attempt in left:
                run.given_back(attempt, _terminate(attempt, confirm=not is_signal))
        if run.ownership.is_lost and not is_signal:
            raise Abort(f"the run is {run.ownership.why}")
    finally:
        run.ownership.close()


def _terminate(attempt: Attempt, *, confirm: bool) -> Absence:
    library = registry.library(attempt.provider)
    ids = (attempt.instance_id,) if attempt.instance_id else ()
    return library.give_back(
        attempt.name, ids, attempt.account, attempt.ordered_at, confirm=confirm, within_s=None if confirm else 8.0
    )


def ended(run: Run, result: JobResult) -> State[JobResult]:
    """The final state: its message tells the story, its data is the result, exit codes other than 0 are Failed."""
    message = story.final_message(result, run.record.attempts)
    _publish_offers(run)
    create_markdown_artifact(story.result_markdown(message, result, run.record.attempts), key=f"result-{run.id}")
    state = Completed if result.exit_code == 0 and result.outcome == "exited" else Failed
    return state(message=message, data=result)


def not_found(run: Run) -> State[JobResult]:
    """The final state when no offer served: what was missing, and the nearest thing that is there."""
    message = story.none_served_message(run.requirements, run.passed_over, run.troubles, run.record.attempts)
    _publish_offers(run)
    return Failed(message=message)


def _publish_offers(run: Run) -> None:
    text = story.offers_markdown(run.requirements, run.offers, run.passed_over, run.record.attempts, run.troubles)
    create_markdown_artifact(
        text, key="offers", description="The offers in the order they are tried, and what came of each."
    )
