"""What an earlier execution of a run left: its current instance is taken over, with the job that runs there; the rest is given back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prefect.context import SyncClientContext

from prefect_gpu import providers as registry
from prefect_gpu.flows.report import text
from prefect_gpu.flows.run import resuming
from prefect_gpu.flows.run.attempt import CURRENT, ORDERED, Attempt
from prefect_gpu.flows.run.request import Refused
from prefect_gpu.flows.run.unshown import Unshown
from prefect_gpu.providers.core.errors import InstanceFailed, ProviderError
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import Instance, InstanceState, Offer
from prefect_gpu.providers.core.requests import Job

if TYPE_CHECKING:
    from prefect_gpu.flows.run.execution import Run

INTERRUPTED: Final = "interrupted"  # of a machine: taken back, vanished, restarted
_UNANSWERED: Final = "its provider does not answer yet"


def take_over(run: Run) -> None:
    """Keep the current instance where this execution may go on with it, and give back what else there is.

    A job that had ended is not run again, and its machine only given back: its result is the run's. Raises Refused, with nothing left,
    where the run must not go on; and where it has an instance that is not seen from here: another one would be bought beside it.
    """
    with SyncClientContext.get_or_create() as prefect:
        states = prefect.client.read_flow_run_states(run.id)
    why_not = resuming.why_not(states, run.count, wanted=run.limits.resume)
    may_adopt = resuming.may_adopt(states)
    run.result = run.record.result if may_adopt else None
    if run.result is not None:
        run.say("the job had ended in an earlier execution of this run: its machine is given back")
        run.unshown = [Unshown(run.record.attempts[-1].attempt, run.result.tries)]  # where it may have stopped
    left = [one for one in run.record.attempts if one.may_cost]
    if left:
        run.must_be_owner()
        kept = _current(run) if why_not is None and may_adopt and run.result is None else None
        run.adopts = kept
        if others := [one for one in left if kept is None or one.name != kept.name]:
            run.say(f"giving back what an earlier execution of this run left: {text.counted(len(others), 'order')}")
            for attempt in others:
                run.give_back(attempt)
        if kept is not None:
            run.say(
                f"going on with what an earlier execution of this run has: {kept.provider} {kept.machine}, {kept.name}"
            )
    if why_not and run.result is None:
        raise Refused(why_not)


def _current(run: Run) -> Attempt | None:
    """The line of what the earlier execution used or was about to use; None where that is not to be gone on with."""
    line = run.record.attempts[-1]
    lease = Lease.parse(line.name)
    is_open = line.may_cost and line.outcome in (ORDERED, CURRENT)
    if not is_open or not run.limits.resume or lease is None or lease.is_over:
        return None
    if (lease.realm, lease.run_id) != (run.realm, run.id) or (line.outcome == CURRENT and not line.instance_id):
        return None
    try:
        here = registry.library(line.provider).driver(line.account).account_id()
    except ProviderError:
        return line  # it answers later, or `create_instance` says why not
    if here != line.account_id:
        raise Refused(
            f"{line.name} was ordered on {line.account_id}, and from this worker {here} is seen: nothing is bought beside it"
        )
    return line


def offer_of(run: Run, line: Attempt) -> Offer:
    """What was ordered, as the record has it; where an earlier version wrote none, as much as the line says."""
    if run.record.offer is not None:
        return run.record.offer
    name, _, count = line.gpu.partition(":")
    return Offer(
        provider=line.provider,
        instance_type=line.machine,
        region=line.scope,
        price=line.price,
        spot=line.spot,
        gpu_name=name if count else None,
        gpu_count=int(count or 0),
    )


def instance_of(line: Attempt) -> Instance:
    """The instance of a line, as its provider sees it now. InstanceFailed where that bears another name: it is not the run's."""
    unseen = Instance(
        id=line.instance_id or "",
        name=line.name,
        provider=line.provider,
        state=InstanceState.UNKNOWN,
        region=line.scope,
        reason=_UNANSWERED,
        spot=line.spot,
    )
    try:
        seen = registry.library(line.provider).driver(line.account).get_instance(unseen.id)
    except ProviderError:  # gone, or not heard: what waits for it to be ready finds out, and says so
        return unseen
    if seen.name != line.name:
        raise InstanceFailed(f"{unseen.id} bears the name {seen.name!r}, and was not touched")
    return seen


def begins_anew(job: Job, *, spot: bool) -> bool:
    """Whether a job whose machine is gone is started again on another one: who rents spot, or keeps files for it, has asked for that."""
    return spot or bool(job.checkpoint)


def is_of_no_use(run: Run, offer: Offer, failure: ProviderError) -> None:
    """A machine never got ready: raise why, unless its job had begun and must not begin anew elsewhere; then the job is lost."""
    line = run.record.attempts[-1]
    if line.name in run.answered or line.began_at is None:
        raise failure
    if begins_anew(run.job, spot=offer.spot):
        raise InstanceFailed(failure.message, category=INTERRUPTED) from failure
    run.lost = failure
