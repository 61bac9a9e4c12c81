"""The six steps of `provision`: a few lines each over the task libraries."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed

from prefect_gpu import providers as registry
from prefect_gpu.flows.run import (
    adopting,
    cards,
    ledger,
    ordering,
    request,
    story,
    tries,
    unfit,
    unseen,
)
from prefect_gpu.flows.run.attempt import CURRENT, OWED, new_attempt
from prefect_gpu.flows.run.beginning import begin
from prefect_gpu.flows.run.execution import Run
from prefect_gpu.flows.run.failure import OVER_BUDGET, failed
from prefect_gpu.flows.run.limits import checked as checked_limits
from prefect_gpu.flows.run.offers import ask
from prefect_gpu.flows.run.waiting import worth_an_order
from prefect_gpu.providers import account_of
from prefect_gpu.providers.core.aside import Aside, Stopped
from prefect_gpu.providers.core.catalog import explain
from prefect_gpu.providers.core.errors import InstanceFailed, ProviderError
from prefect_gpu.providers.core.lease import MAX_ATTEMPT, Lease
from prefect_gpu.providers.core.models import Instance, JobResult, Offer
from prefect_gpu.providers.core.renting.launch import lease_deadline

__all__ = [
    "begin",
    "checked_limits",
    "choose",
    "create_instance",
    "ended",
    "fetch_offers",
    "give_back",
    "not_found",
    "pass_over",
    "refused",
    "run_job",
    "stopped",
    "wait_ready",
]

# --- 1 ----------------------------------------------------------------------------------------------------------------


def fetch_offers(run: Run) -> list[Offer]:
    """Ask every provider at once; one that is down, slow or refuses is named and holds up nobody."""
    if run.adopts is not None:
        return []  # asked for when what the run has comes to nothing
    started = time.monotonic()
    # The price limit is kept back, so that what is just too dear can be named.
    wanted = run.requirements.model_copy(update={"max_price": None})
    offers, run.troubles = ask(run.providers, wanted, run.account, run.say_progress)
    offers = unseen.with_nearest(offers, run.providers, wanted, run.account, run.troubles, run.stop_reason)
    run.say(story.step(1, "offers", story.asked(len(run.providers), len(run.troubles)), time.monotonic() - started))
    for provider, trouble in run.troubles.items():
        run.say(story.more(f"{provider}: {trouble.message}"))
        if trouble.is_loud:
            run.log.warning("%s: %s", provider, trouble.message)
    unseen.tell(run, offers)
    if run.reap_overdue is not None and run.reap_overdue.wait(1.0):
        with suppress(Exception):  # who cannot be asked now is asked by the next run
            if said := run.reap_overdue.result():
                run.log.warning("%s", said)
    return offers


# --- 2 ----------------------------------------------------------------------------------------------------------------


def choose(run: Run, offers: list[Offer]) -> Iterator[Offer]:
    """The offers in the order they are tried, and what later looks find; those that an earlier failure ruled out are passed over."""
    if run.adopts is not None:
        yield adopting.offer_of(run, run.adopts)
        offers = fetch_offers(run)
    yield from worth_an_order(run, offers, fetch_offers, lambda: _show_offers(run))


# --- 3 ----------------------------------------------------------------------------------------------------------------


def create_instance(run: Run, offer: Offer) -> Instance:
    """One order under a name of its own, on the record before it is sent and when its answer is known.

    An order of an earlier execution is settled first; what it bought is gone on with.
    """
    started = time.monotonic()
    line, run.adopts = run.adopts, None
    if line is not None and line.outcome == CURRENT:
        return adopting.instance_of(line)
    if line is not None:
        return ordering.ordered(run, offer, line, started, is_again=True)
    number = run.record.next_attempt
    if number > MAX_ATTEMPT:
        raise RuntimeError(f"{number} orders were sent in this run: start a new one")
    run.budget.must_pay_for(offer)
    library, account = registry.library(offer.provider), account_of(run.account, offer.provider)
    account_id = library.driver(account).account_id()
    run.must_be_owner()
    deadline = run.budget.lease_until(offer, lease_deadline(offer, library.capabilities, run.job))  # from now on
    lease = Lease(realm=run.realm, run_id=run.id, deadline=deadline, run_count=run.count, attempt=number)
    attempt = run.record.open(new_attempt(number, lease.name, offer, account, account_id), offer)
    return ordering.ordered(run, offer, attempt, started)


# --- 4 ----------------------------------------------------------------------------------------------------------------


def wait_ready(run: Run, offer: Offer, instance: Instance) -> Instance:
    """The machine answers, with the host key that is its own and no other."""
    started = time.monotonic()
    library, account = registry.library(offer.provider), account_of(run.account, offer.provider)
    try:
        ready = library.wait_until_ready(
            instance,
            offer,
            account,
            should_stop=run.stop_reason,
            on_progress=run.say_progress,
            on_running=run.runs,
        )
    except ProviderError as failure:
        adopting.is_of_no_use(run, offer, failure)
        return instance  # `run_job` says that the job is lost
    run.say(story.step(4, "ready", story.ready_at(ready, library.capabilities.host_key), time.monotonic() - started))
    return ready


# --- 5 ----------------------------------------------------------------------------------------------------------------


def run_job(run: Run, offer: Offer, instance: Instance) -> JobResult:
    """The job, its output as it comes, its files; whatever it left is in result storage before the machine is given back.

    A job that ended is never run again on the next offer: what could not be kept of it is said in its result. One that failed is
    tried again here where that was asked for.
    """
    run.say(story.step(5, "run", request.shown(run.command)))
    result = tries.of_job(run, offer, instance)
    if result.trouble:
        run.log.error("%s", result.trouble)
    if result.outcome == "lost":
        run.tell_lost(offer, result)
    if result.is_gone and adopting.begins_anew(run.job, spot=offer.spot):
        raise InstanceFailed(result.trouble, category=adopting.INTERRUPTED)
    run.must_not_be_superseded()  # else whoever goes on takes the job for over, and shows no more of it
    run.record.result = result
    run.write_record()  # before its machine goes: whoever goes on after this process cannot ask there any more
    run.files_card = cards.begin(run.id, *_files(run, result), is_again=run.is_again)
    return result


# --- 6 ----------------------------------------------------------------------------------------------------------------


def give_back(run: Run) -> None:
    """Terminate the instance and observe that it is gone; as a task, so that the story shows it."""
    attempt = run.current
    if attempt is None:
        return
    started = time.monotonic()
    run.must_not_be_superseded()
    absence = run.give_back(attempt, as_task=True, is_last=True)
    run.say(story.step(6, "give back", story.absence(absence), time.monotonic() - started))


# --- between and after ------------------------------------------------------------------------------------------------


def pass_over(run: Run, offer: Offer, failure: ProviderError) -> None:
    """An offer failed: say why, give back what was bought for it; the next offer is tried."""
    attempt = run.current
    is_interrupted = attempt is not None and attempt.began_at is not None and run.interrupted(offer, failure)
    if not is_interrupted:
        run.refused(offer, failure)
        unfit.note(run.id, offer, failure, run.log)
    if attempt is None:
        return  # the refusal is written with the next order's line, or at the end
    run.must_not_be_superseded()
    run.give_back(attempt, outcome=adopting.INTERRUPTED if is_interrupted else failure.short, why=failure.message)


def stopped(run: Run, stop: Stopped) -> State[JobResult]:
    """The final state of a run that its budget stopped, everything given back; a run that is not this process's goes another way."""
    if run.budget.reached is None or run.ownership.is_lost:
        raise stop
    for attempt in [one for one in run.record.attempts if one.may_cost and one.outcome != OWED]:
        run.must_not_be_superseded()
        run.give_back(attempt, why=run.budget.reached)
    run.must_be_heard()
    message = story.stopped_message(run.budget.reached, run.record.attempts, run.failed)
    _publish(run, *_pages(run, message))
    return failed(message, name=OVER_BUDGET)


def refused(why: request.Refused | ProviderError) -> State[Any]:
    """The final state of a request that makes no sense, before anything was bought."""
    return failed(str(why))


def ended(run: Run, result: JobResult) -> State[JobResult]:
    """The final state: its message tells the story, its data is the result or, where that is not good, RunFailed; an exit code other than 0 is Failed."""
    run.must_be_heard()
    cost = ledger.total(run.record.attempts)
    result = result.model_copy(update={"cost": cost.bound, "cost_estimate": cost.estimate})
    message = story.final_message(result, run.record.attempts, run.failed, run.budget.reached)
    run.record.write_aside()
    _publish(run, *_pages(run, message), *([] if _is_written(run.files_card) else [_files(run, result)]))
    run.record_is_written()
    if run.renaming is not None:
        run.renaming.wait(5.0)
    is_good = result.outcome == "exited" and result.exit_code == 0 and not result.trouble
    name = OVER_BUDGET if result.outcome == "over budget" else "Failed"
    return Completed(message=message, data=result) if is_good else failed(message, result, name)


def not_found(run: Run) -> State[JobResult]:
    """The final state when no offer served: what was missing, and the nearest thing that is there."""
    run.record_is_written()
    if run.failed:
        message = story.none_served(run.requirements, run.failed, run.record.attempts) + unseen.ending(run)
    elif said := story.all_passed_over(run.requirements, run.ranked):
        message = said + unseen.ending(run)
    else:
        seen = [one.offer for one in run.ranked]
        answered = [str(name) for name in run.providers if str(name) not in run.troubles]
        message = explain.explain(run.requirements, answered, seen)
        message += "".join(f" {name} {story.no_answer(why)}." for name, why in run.troubles.items())
        message += request.nothing_saved(run.providers)
    if run.waited:
        message += f" {run.waited[0].upper()}{run.waited[1:]}."
    _publish(run, *_pages(run, message))
    return failed(message)


def _show_offers(run: Run) -> None:
    """While the run waits, perhaps for hours."""
    _publish(run, *_pages(run, "Nothing is to be had yet: offers are looked at again"))
    run.is_again = True  # from now on its cards are written over


def _pages(run: Run, message: str) -> list[cards.Page]:
    """The cards that every run has: what it cost, where anything was ordered, and what it tried."""
    tried = cards.tried(message, run.requirements, run.ranked, run.record.attempts, run.failed, run.troubles)
    bill = [(cards.COST, cards.cost(run.record.attempts, run.limits.max_cost))] if run.record.attempts else []
    return [*bill, (cards.TRIED, tried)]


def _files(run: Run, result: JobResult) -> cards.Page:
    return cards.FILES, cards.files(run.id, story.how_it_ended(result, run.budget.reached), result)


def _is_written(card: Aside[None] | None) -> bool:
    """Not where Prefect's API was away, or an earlier execution's job ended."""
    try:
        return card is not None and card.result() is None
    except Exception:  # noqa: BLE001 - whatever stood between us and the API
        return False


def _publish(run: Run, *pages: cards.Page) -> None:
    cards.write_all(run.id, pages, run.log, is_again=run.is_again)
