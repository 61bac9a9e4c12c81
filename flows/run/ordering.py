"""One order: sent by the run's owner alone, and what it came to on the record."""

from __future__ import annotations

import time

from prefect_gpu import providers as registry
from prefect_gpu.flows.report import text
from prefect_gpu.flows.run import naming, quotas, story
from prefect_gpu.flows.run.attempt import OWED, Attempt
from prefect_gpu.flows.run.execution import Run
from prefect_gpu.flows.run.quotas import NoRoom
from prefect_gpu.providers.core.aside import Aside
from prefect_gpu.providers.core.errors import InstanceFailed, OverBudget, ProviderError
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import Instance, Offer, utc_now
from prefect_gpu.providers.core.renting.order import Owed


def ordered(run: Run, offer: Offer, attempt: Attempt, started: float, *, is_again: bool = False) -> Instance:
    """The instance that the order of this line bought; what it came to is on the record."""
    library, lease = registry.library(offer.provider), Lease.parse(attempt.name)
    assert lease is not None  # noqa: S101 - the name was made of one
    lease = lease.model_copy(update={"ordered_at": attempt.ordered_at})
    send = library.settle_order if is_again else library.create_instance
    try:
        if not is_again:  # one that was sent is paid for
            quotas.must_allow(run.record, attempt, run.quotas.now(), run.limits.max_cost)
            attempt = run.record.attempts[-1]
            _must_still_be_owner(run, attempt)
        instance = send(
            offer,
            lease,
            run.requirements,
            run.job,
            run.options.get(offer.provider, {}),
            account=attempt.account,
            should_stop=run.stop_reason_of_an_order,
            on_progress=run.say_progress,
        )
    except Owed as owed:
        run.record.note(attempt, outcome=OWED, why=owed.message)
        run.write_record()
        raise
    except InstanceFailed as failed:  # it was accepted: something may stand there, which `pass_over` gives back
        run.record.note(attempt, why=failed.message)
        raise
    except ProviderError as refused:
        run.record.note(
            run.record.attempts[-1], outcome=refused.short, why=refused.message, gone_at=utc_now(), cost=0.0
        )
        if isinstance(refused, OverBudget | NoRoom):
            run.write_record()  # what it was counted with is free for others at once
        raise
    before = {naming.named(one.gpu, one.provider, run.command) for one in run.record.attempts}
    name = naming.named(offer.gpu, offer.provider, run.command)
    run.renaming = Aside(lambda: naming.rename(run.id, name, before))
    run.accepted(instance)
    until = f"{lease.name}, lease until {text.clock_time(lease.deadline)}"
    run.say(story.step(3, "create", until, time.monotonic() - started))
    return instance


def _must_still_be_owner(run: Run, attempt: Attempt) -> None:
    """Asked once more, when the order is on the record: a process may be stopped at any line while its run goes to another one.

    Where it is not, the order was never sent, and its line says so.
    """
    try:
        run.must_be_owner()
    except BaseException as why:
        run.record.note(attempt, outcome="not sent", why=str(why), gone_at=utc_now(), cost=0.0)
        run.write_record()
        raise
