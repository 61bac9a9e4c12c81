"""The six steps of `provision`: a few lines each over the task libraries."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

import providers as registry
from flows import inputs, results, story
from flows.artifacts import publish
from flows.asking import ask
from flows.ranking import in_given_order, rank
from flows.record import OWED, new_attempt
from flows.run import Run, begin, end_attempt, flush_logs
from providers import account_of
from providers.core import explain
from providers.core.errors import InstanceFailed, ProviderError
from providers.core.lease import MAX_ATTEMPT, Lease
from providers.core.library import lease_deadline
from providers.core.models import Instance, JobResult, Offer, utc_now
from providers.core.orders import Owed

__all__ = [
    "begin",
    "choose",
    "create_instance",
    "ended",
    "fetch_offers",
    "give_back",
    "not_found",
    "pass_over",
    "run_job",
    "wait_ready",
]

EXPECTED_STAY_H: Final = 1.0  # offers are ranked by the price of such a stay


# --- 1 ----------------------------------------------------------------------------------------------------------------


def fetch_offers(run: Run) -> list[Offer]:
    """Ask every provider at once; one that is down, slow or refuses is named and holds up nobody."""
    started = time.monotonic()
    # The price limit is kept back, so that what is just too dear can be named.
    wanted = run.requirements.model_copy(update={"max_price": None})
    offers, run.troubles = ask(run.providers, wanted, run.account)
    run.say(story.step(1, "offers", story.asked(len(run.providers), len(run.troubles)), time.monotonic() - started))
    for provider, trouble in run.troubles.items():
        run.say(story.more(f"{provider}: {trouble.message}"))
        if trouble.is_loud:
            run.log.warning("%s: %s", provider, trouble.message)
    return offers


# --- 2 ----------------------------------------------------------------------------------------------------------------


def choose(run: Run, offers: list[Offer]) -> Iterator[Offer]:
    """The offers in the order they are tried; those that an earlier failure ruled out are passed over."""
    run.ranked = rank(
        offers, run.requirements, EXPECTED_STAY_H, lambda provider: registry.library(provider).capabilities.billing
    )
    if run.order == "given":
        run.ranked = in_given_order(run.ranked, [str(name) for name in run.providers])
    fitting = [one.offer for one in run.ranked if one.is_buyable]
    if fitting:
        run.say(*(story.more(line) for line in story.offers_table(fitting)))
        if old := story.old_prices(fitting):
            run.say(story.more(old))
        best = "the cheapest" if run.order == "price" else "the first"
        run.say(story.step(2, "choose", f"#1, {best} of {len(fitting)} that {'fits' if len(fitting) == 1 else 'fit'}"))
    for offer in fitting:
        if not any(error.rules_out(failed, offer) for failed, error in run.failed):
            yield offer


# --- 3 ----------------------------------------------------------------------------------------------------------------


def create_instance(run: Run, offer: Offer) -> Instance:
    """One order under a name of its own, on the record before it is sent and when its answer is known."""
    started = time.monotonic()
    number = run.record.next_attempt
    if number > MAX_ATTEMPT:
        raise RuntimeError(f"{number} orders were sent in this run: start a new one")
    library, account = registry.library(offer.provider), account_of(run.account, offer.provider)
    account_id = library.driver(account).account_id()
    run.must_be_owner()
    deadline = lease_deadline(offer, library.capabilities, run.job)  # from now on, after any waiting
    lease = Lease(realm=run.realm, run_id=run.id, deadline=deadline, run_count=run.count, attempt=number)
    attempt = run.record.open(new_attempt(number, lease.name, offer, account, account_id))
    try:
        instance = library.create_instance(
            offer, lease, run.requirements, run.job, account=account, should_stop=run.stop_reason
        )
    except Owed as owed:
        run.record.note(attempt, outcome=OWED, why=owed.message)
        run.write_record()
        raise
    except InstanceFailed as failed:  # it was accepted: something may stand there, which `pass_over` gives back
        run.record.note(attempt, why=failed.message)
        raise
    except ProviderError as refused:
        run.record.note(attempt, outcome=refused.short, why=refused.message, gone_at=utc_now(), cost=0.0)
        raise
    run.accepted(instance)
    until = f"{lease.name}, lease until {story.clock_time(lease.deadline)}"
    run.say(story.step(3, "create", until, time.monotonic() - started))
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
    """The job, its output as it comes, its files; whatever it left is in result storage before the machine is given back.

    A job that ended is never run again on the next offer: what could not be kept of it is said in its result.
    """
    library, account = registry.library(offer.provider), account_of(run.account, offer.provider)
    run.say(story.step(5, "run", inputs.shown(run.command)))
    flush_logs()
    attempt, began = run.record.attempts[-1].attempt, utc_now()
    result: JobResult | None = None
    try:
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
        result = result.model_copy(update={"stored_under": results.place(run.id, attempt)})
    except (OSError, results.NotStored) as trouble:  # this worker's disk, or its storage: no other machine would help
        lost = JobResult(exit_code=None, outcome="lost", started_at=began, ended_at=utc_now())
        said = f"its log and files could not be kept: {trouble}"
        result = (result or lost).model_copy(update={"trouble": said})
    ended = f"exit {result.exit_code}" if result.outcome == "exited" else result.outcome
    run.say(story.more(ended, result.duration_s))
    if result.trouble:
        run.log.error("%s", result.trouble)
    return result


# --- 6 ----------------------------------------------------------------------------------------------------------------


def give_back(run: Run) -> None:
    """Terminate the instance and observe that it is gone; as a task, so that the story shows it."""
    attempt = run.current
    if attempt is None:
        return
    started = time.monotonic()
    run.must_not_be_superseded()
    ids = (attempt.instance_id,) if attempt.instance_id else ()
    library = registry.library(attempt.provider)
    try:
        absence = library.terminate_instance(attempt.name, ids, attempt.account, attempt.ordered_at)
    except Exception:  # noqa: BLE001 - the job's result is not lost over a task that Prefect or a driver broke
        absence = end_attempt(attempt)
    run.given_back(attempt, absence)
    run.say(story.step(6, "give back", story.absence(absence), time.monotonic() - started))


# --- between and after ------------------------------------------------------------------------------------------------


def pass_over(run: Run, offer: Offer, failure: ProviderError) -> None:
    """An offer failed: say why, give back what was bought for it; the next offer is tried."""
    run.refused(offer, failure)
    attempt = run.current
    if attempt is None:
        return  # the refusal is written with the next order's line, or at the end
    run.must_not_be_superseded()
    run.give_back(attempt, outcome=failure.short, why=failure.message)


def ended(run: Run, result: JobResult) -> State[JobResult]:
    """The final state: its message tells the story, its data is the result, an exit code other than 0 is Failed."""
    message = story.final_message(result, run.record.attempts, run.failed)
    _publish_offers(run)
    _publish(run, f"result-{run.id}", story.result_markdown(message, result, run.record.attempts), "How the run ended.")
    is_good = result.outcome == "exited" and result.exit_code == 0 and not result.trouble
    made: Any = Completed if is_good else Failed
    return made(message=message, data=result)


def not_found(run: Run) -> State[JobResult]:
    """The final state when no offer served: what was missing, and the nearest thing that is there."""
    if not run.record.is_written:
        run.write_record()
    if run.failed:
        message = story.none_served(run.requirements, run.failed, run.record.attempts)
    else:
        seen = [one.offer for one in run.ranked]
        message = explain.explain(run.requirements, [str(name) for name in run.providers], seen)
        message += "".join(f" {name} did not answer: {why.message}." for name, why in run.troubles.items())
    _publish_offers(run)
    return Failed(message=message)


def _publish_offers(run: Run) -> None:
    text = story.offers_markdown(run.requirements, run.ranked, run.record.attempts, run.failed, run.troubles)
    _publish(run, "offers", text, "The offers in the order they are tried, and what came of each.")


def _publish(run: Run, key: str, text: str, description: str) -> None:
    try:
        publish(key, "markdown", text, run.id, description)
    except Exception as trouble:  # noqa: BLE001 - a job that ended well has not failed because a page about it is missing
        run.log.warning("the artifact %s could not be written: %s", key, type(trouble).__name__)
