"""One execution of `provision`: what was asked for, whose run it is, what was ordered, and how it ends on every way out."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from prefect.exceptions import Abort, TerminationSignal

from prefect_gpu.flows.report import text
from prefect_gpu.flows.run import adopting, run_log, story
from prefect_gpu.flows.run.attempt import GONE, OWED, Attempt
from prefect_gpu.flows.run.budget import Budget
from prefect_gpu.flows.run.giving_back import end, settled, tell
from prefect_gpu.flows.run.limits import Limits
from prefect_gpu.flows.run.offers import Ranked
from prefect_gpu.flows.run.ownership import Ownership, Standing
from prefect_gpu.flows.run.quotas import Asked
from prefect_gpu.flows.run.record import Record
from prefect_gpu.flows.run.unshown import Unshown, show
from prefect_gpu.providers import ProviderName
from prefect_gpu.providers.core.aside import Aside
from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.models import Instance, JobResult, Offer, utc_now
from prefect_gpu.providers.core.renting.give_back import Absence
from prefect_gpu.providers.core.renting.plain_log import flush
from prefect_gpu.providers.core.requests import Job, Requirements

FRESH_S: Final = 1.0  # a reading of the run's state is asked for again after it, before each create and give-back
RESULT_PATIENCE_S: Final = 3600.0  # so long a run that has given its machine back waits for Prefect's API
MOST_INTERRUPTIONS: Final = 20  # of a run: then what is interrupted is passed over as what fails is
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
    options: dict[str, dict[str, Any]]
    providers: list[ProviderName]
    record: Record
    ownership: Ownership
    limits: Limits
    may_follow: bool  # if this process crashes, another one goes on
    log: Any  # the run's logger; Prefect's type for it lacks its own methods
    is_again: bool = False  # an earlier execution of this run left its cards
    quotas: Asked = field(default_factory=Asked)  # of the team
    ranked: list[Ranked] = field(default_factory=list[Ranked])
    failed: list[tuple[Offer, ProviderError]] = field(default_factory=list[tuple[Offer, ProviderError]])
    told: list[tuple[datetime, str]] = field(default_factory=list[tuple[datetime, str]])
    reap_overdue: Aside[str] | None = None
    renaming: Aside[None] | None = None  # of the run, after what it rents
    files_card: Aside[None] | None = None  # begun when the job has ended: a person need not wait for its machine to go
    waited: str = ""  # how long for a machine, and why no longer
    interruptions: int = 0
    adopts: Attempt | None = None  # the line of an earlier execution that this one is about to go on with
    result: JobResult | None = None  # of a job that had ended in an earlier execution
    lost: ProviderError | None = None  # why the machine of a job that must not begin anew is of no use any more
    alarms: set[str] = field(default_factory=set[str])  # that were told
    answered: set[str] = field(default_factory=set[str])  # names whose order this process had the answer of
    unshown: list[Unshown] = field(default_factory=list[Unshown])  # of its jobs
    troubles: dict[str, ProviderError] = field(default_factory=dict[str, ProviderError])

    def __post_init__(self) -> None:
        self.budget = Budget(self.limits.max_cost, self.record, self.log.warning, has_files=bool(self.job.outputs))

    @property
    def current(self) -> Attempt | None:
        """The line of the instance that the run uses or is about to."""
        return next((one for one in reversed(self.record.attempts) if one.may_cost and one.outcome != OWED), None)

    def say(self, *lines: str) -> None:
        """One log record: a fact of the story, as `--watch`, the UI and the terminal show it."""
        said = "\n".join(lines)
        self.told.append((utc_now(), said))
        self.log.info(said)

    def say_progress(self, what: str, seconds: float) -> None:
        """What is waited for, and for how long so far."""
        self.say(story.more(f"{what}, {text.duration(seconds)} so far"))

    def stop_reason(self) -> str | None:
        """Why this process must stop, or None: asked by everything that waits. What was bought is `clean_up`'s to give back."""
        return self.ownership.why if self.ownership.is_lost else self.budget.stop_reason()

    def stop_reason_of_an_order(self) -> str | None:
        """The same, by the server's word of the last second: asked before an order is sent, each time that it is."""
        self.ownership.ask(within_s=5, fresh_s=FRESH_S)
        return self.stop_reason()

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
        self.unshown = show(self.id, self.unshown, self.ownership.still_speaks)  # before the next job's output

    def must_be_heard(self) -> None:
        """Wait for Prefect's API, now that nothing costs any more: a result that nobody takes is lost with this process.

        What the log lost while the API was away is written again: Prefect's own handler gives up, and so does the job's.
        """
        deadline = time.monotonic() + RESULT_PATIENCE_S
        while time.monotonic() < deadline:
            if self.ownership.ask(within_s=10, fresh_s=FRESH_S) is Standing.UNKNOWN:
                time.sleep(0.2)
            elif not self.unshown or self.ownership.is_lost:
                break
            else:
                self.unshown = show(self.id, self.unshown, self.ownership.still_speaks)
        if self.ownership.away_since is not None:
            flush()
            with suppress(Exception):  # the story stands in the result's page all the same
                run_log.tell_again(self.id, self.told, self.ownership.away_since)

    def must_not_be_superseded(self) -> None:
        """Go on unless the run is known not to be this process's: asked before a give-back, which waits for no API."""
        self.ownership.ask(within_s=5, fresh_s=FRESH_S)
        if self.ownership.is_lost:
            raise Abort(f"the run is {self.ownership.why}")

    def accepted(self, instance: Instance) -> None:
        """The order was accepted: on the record, while its machine boots already, and an event."""
        attempt = self.record.accepted(self.record.attempts[-1], instance)
        self.answered.add(attempt.name)
        self.record.write_aside()
        self._tell(
            "instance.created",
            name=attempt.name,
            provider=attempt.provider,
            machine=attempt.machine,
            price=attempt.price,
        )

    def runs(self) -> None:
        """The provider says that the current instance runs: where it bills from then on, the estimate begins."""
        attempt = self.current
        if attempt is not None and attempt.running_at is None:
            self.record.note(attempt, running_at=utc_now())

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
            category=failure.category,
            said=failure.message,
        )

    def interrupted(self, offer: Offer, failure: ProviderError) -> bool:
        """Whether a job's machine was taken back: nothing is wrong with its offer then, and the job begins anew on the best there is."""
        if failure.category != adopting.INTERRUPTED or self.interruptions >= MOST_INTERRUPTIONS:
            return False
        self.interruptions += 1
        self.say(story.more(f"{offer.provider} {offer.instance_type} {offer.scope}: interrupted: {failure.message}"))
        return True

    def tell_lost(self, offer: Offer, result: JobResult) -> None:
        """A job whose machine went while it ran: an event, with what became of the machine."""
        category = "interrupted" if offer.spot else "lost"
        facts = {"provider": offer.provider, "machine": offer.instance_type}
        self._tell("job.lost", **facts, category=category, said=result.trouble)

    def give_back(
        self,
        attempt: Attempt,
        *,
        confirm: bool = True,
        outcome: str = GONE,
        why: str = "",
        as_task: bool = False,
        is_last: bool = False,
    ) -> Absence:
        """Terminate what was ordered under the attempt's name and write what came of it, with its cost; the last with the run's cards."""
        is_ours = attempt.name in self.answered
        attempt = self.record.note(attempt, asked_at=attempt.asked_at or utc_now())
        within_s = None if confirm else 8.0
        absence = end(
            self.id,
            attempt,
            confirm=confirm,
            within_s=within_s,
            is_ours=is_ours,
            as_task=as_task,
            on_progress=self.say_progress,
        )
        self.record.put(settled(self.id, attempt, absence, outcome, why))
        if not is_last:
            self.write_record()
        return absence

    def write_record(self) -> None:
        """Write what happened; what cannot be written now is written with the next fact, and listings tell it meanwhile."""
        try:
            self.record.write()
        except Exception as trouble:  # noqa: BLE001 - whatever Prefect's API says, the instance comes first
            self.log.warning("the record of attempts could not be written: %s", type(trouble).__name__)

    def record_is_written(self) -> None:
        """Wait until what is known so far is on the record; it was begun when it became known."""
        if not self.record.is_written:
            self.write_record()

    def clean_up(self) -> None:
        """The `finally` of the flow: nothing that was bought stays, unless the run is another process's now.

        It calls drivers as plain functions, never as tasks: after Suspend a task raises before it does anything. When a
        signal ends this process there is no time to observe absence: the hook and `reap` do. A signal that is no cancel, as
        that of a worker that is replaced, leaves the instance to the process that resumes the run.
        """
        is_signal = isinstance(sys.exception(), TerminationSignal)
        try:
            left = [one for one in self.record.attempts if one.may_cost and one.outcome != OWED]
            needs_word = bool(left) or is_signal or not self.record.is_written
            standing = self.ownership.ask(within_s=3) if needs_word else None
            is_superseded = standing is Standing.SUPERSEDED
            if not is_superseded:
                stays = is_signal and self.may_follow and standing is not Standing.ENDED
                for attempt in [] if stays else left:
                    self.give_back(attempt, confirm=not is_signal)
                if not self.record.is_written and standing is not Standing.UNKNOWN:
                    self.write_record()
            # A signal must go on to Prefect, which ends the run; but the Crashed of a superseded process would end its successor's.
            if is_superseded or (self.ownership.is_lost and not is_signal):
                raise Abort(f"the run is {self.ownership.why}")
        finally:
            self.ownership.close()

    def _tell(self, what: str, **facts: Any) -> None:
        tell(self.id, what, facts)
