"""The search for a machine: which offers are worth an order, and looking again, cheaply, while nothing is to be had."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Final

from prefect.context import FlowRunContext

from prefect_gpu import providers as registry
from prefect_gpu.flows.report import text
from prefect_gpu.flows.run import sold_out, story, unfit, unseen
from prefect_gpu.flows.run.execution import Run
from prefect_gpu.flows.run.offers import ask_again, in_given_order, rank
from prefect_gpu.providers import ProviderName
from prefect_gpu.providers.core.aside import Stopped, never
from prefect_gpu.providers.core.errors import ProviderError, Transient
from prefect_gpu.providers.core.gpu import matching
from prefect_gpu.providers.core.lease import MAX_ATTEMPT
from prefect_gpu.providers.core.models import Offer, utc_now
from prefect_gpu.providers.core.renting.order import Clock

EXPECTED_STAY_H: Final = 1.0  # offers are ranked by the price of such a stay
FIRST_PAUSE_S: Final = 30.0
LONGEST_PAUSE_S: Final = 300.0
SELDOM_AFTER_S: Final = 12 * 3600.0  # then a look every quarter of an hour will do
SELDOM_S: Final = 900.0
LEAST_COOL_S: Final = 10.0  # what was refused just now is not asked for again before
MOST_ORDERS: Final = 10  # in one look; names for more than 1,295 orders there are not
KEPT_ORDERS: Final = 50  # for what comes after the waiting
COMES_BACK: Final = {"sold_out", "quota", "rate_limit", "network"}


def worth_an_order(
    run: Run, offers: list[Offer], fetch: Callable[[Run], list[Offer]], show: Callable[[], object]
) -> Iterator[Offer]:
    """What is worth an order; where a machine was taken back, of what is there then: hours may have passed."""
    while True:
        before = run.interruptions
        for offer in Search(run, show).offers(offers):
            yield offer
            if run.interruptions > before:
                break
        else:
            return
        offers = fetch(run)


class Search:
    """One search of a run. `offers` gives what is worth an order, one by one, for as long as the run may wait."""

    def __init__(self, run: Run, show: Callable[[], object] = never, clock: Clock | None = None) -> None:
        """`show` is called when the waiting begins: it may last for hours."""
        self._run = run
        self._show = show
        self._clock = clock or Clock()
        self._began_s = self._clock.now()
        self._wait_s = run.limits.wait.total_seconds() - self._waited_before()
        self._failures: list[tuple[float, Offer, ProviderError]] = []
        self._noted = 0  # of the run's own list
        self._offers: list[Offer] = []
        self._credit = 0.0
        self.looks = 0

    def offers(self, found: list[Offer]) -> Iterator[Offer]:
        """What is worth an order, in its order, then what later looks find."""
        self._offers = found
        fitting = self._ranked(found)
        self._tell(fitting)
        yield from self._worth_an_order(fitting)
        while self._may_wait():
            self._pause()
            fitting = self._ranked(self._look_again())
            for offer in self._worth_an_order(fitting):
                if self._credit < 1:
                    break
                self._credit -= 1
                self._run.say(story.more(f"{offer.provider} {offer.instance_type} {offer.scope} may be there again"))
                yield offer

    def _ranked(self, found: Sequence[Offer]) -> list[Offer]:
        run = self._run
        ranked = rank(
            found, run.requirements, EXPECTED_STAY_H, lambda provider: registry.library(provider).capabilities.billing
        )
        if run.order == "given":
            ranked = in_given_order(ranked, [str(name) for name in run.providers])
        told: sold_out.SoldOut = {}
        try:
            if any(registry.library(one.offer.provider).capabilities.sold_out_s for one in ranked if one.is_buyable):
                told = sold_out.lately()
        except Exception as trouble:  # noqa: BLE001 - whatever Prefect's API says: then each run asks for itself
            run.log.debug("what was sold out to other runs is not known: %s", type(trouble).__name__)
        ranked = sold_out.passed_over(ranked, told, run.account, utc_now())
        try:
            run.ranked = unfit.passed_over(ranked)
        except Exception as trouble:  # noqa: BLE001 - as above
            run.log.debug("which hosts failed the check of other runs is not known: %s", type(trouble).__name__)
            run.ranked = ranked
        return [one.offer for one in run.ranked if one.is_buyable]

    def _tell(self, fitting: list[Offer]) -> None:
        run = self._run
        if count := sum(one.passed_over_until is not None for one in run.ranked):
            run.say(story.more(f"{text.counted(count, 'offer')} passed over: sold out to a run a moment ago"))
        if count := sum(one.is_unfit for one in run.ranked):
            run.say(story.more(f"{text.counted(count, 'offer')} passed over: {unfit.WHY}"))
        if not fitting:
            return
        run.say(*(story.more(line) for line in story.offers_table(fitting)))
        if old := story.old_prices(fitting):
            run.say(story.more(old))
        best = "the cheapest" if run.order == "price" else "the first"
        run.say(story.step(2, "choose", f"#1, {best} of {len(fitting)} that {'fits' if len(fitting) == 1 else 'fit'}"))

    def _worth_an_order(self, fitting: list[Offer]) -> Iterator[Offer]:
        for offer in fitting:
            self._note_failures()
            if not any(error.rules_out(failed, offer) for _, failed, error in self._failures):
                yield offer
        self._note_failures()

    def _note_failures(self) -> None:
        """Those that are new, and of all of them those that still count: a long wait has thousands."""
        now = self._clock.now()
        self._failures += [(now, offer, error) for offer, error in self._run.failed[self._noted :]]
        self._noted = len(self._run.failed)
        self._failures = [one for one in self._failures if self._still_counts(*one)]

    def _still_counts(self, since_s: float, failed: Offer, error: ProviderError) -> bool:
        if not self._wait_s or not comes_back(error):
            return True
        return self._clock.now() - since_s < max(
            LEAST_COOL_S, registry.library(failed.provider).capabilities.sold_out_s
        )

    # --- looking again ----------------------------------------------------------------------------------------------------

    def _waited_before(self) -> float:
        """How long an earlier execution of the run waited, where it found nothing."""
        context = FlowRunContext.get()
        start = context.flow_run.start_time if context is not None and context.flow_run is not None else None
        if not self._run.is_again or start is None or any(one.instance_id for one in self._run.record.attempts):
            return 0.0
        return max(0.0, (utc_now() - start).total_seconds())

    @property
    def _waited_s(self) -> float:
        return self._clock.now() - self._began_s

    def _may_wait(self) -> bool:
        run = self._run
        left_s = self._wait_s - self._waited_s
        if run.limits.wait <= timedelta(0):
            return False
        waited = f"waited {text.duration(self._waited_s)} for a machine (max_wait), looked again {_times(self.looks)}"
        if left_s <= 0:
            run.waited = waited
            return False
        if not self._could():
            run.waited = f"{waited}; waiting longer would not help" if self.looks else "waiting would not help"
            return False
        if run.record.next_attempt > MAX_ATTEMPT - KEPT_ORDERS:
            run.waited = f"{waited}; {run.record.next_attempt} orders were sent, which is all that one run may send"
            return False
        if not self.looks:
            until = text.clock_time(utc_now() + timedelta(seconds=left_s))
            run.say(story.more(f"nothing is to be had: offers are looked at again until {until}"))
            self._show()
        return True

    def _could(self) -> list[ProviderName]:
        """Those that may have something later: what fits is sold out or too dear there, or they did not answer."""
        run = self._run
        at_any_price = run.requirements.model_copy(update={"max_price": None})
        lasting = [(offer, error) for offer, error in run.failed if not comes_back(error)]
        fit = {
            one.offer.provider
            for one in run.ranked
            if matching.why_not(one.offer, at_any_price) is None
            and not any(error.rules_out(offer, one.offer) for offer, error in lasting)
            and run.budget.why_not(one.offer) is None
        }
        silent = {name for name, error in run.troubles.items() if isinstance(error, Transient)}
        return [name for name in run.providers if str(name) in fit | silent]

    def _pause(self) -> None:
        waited = self._waited_s
        longest = SELDOM_S if waited > SELDOM_AFTER_S else LONGEST_PAUSE_S
        pause = min(max(FIRST_PAUSE_S, 0.15 * waited), longest) * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
        pause = min(pause, max(0.1, self._wait_s - waited))
        left_s = max(pause, self._wait_s - waited)
        orders = MAX_ATTEMPT - KEPT_ORDERS - self._run.record.next_attempt
        self._credit = min(MOST_ORDERS, self._credit + orders * pause / left_s)
        end = self._clock.now() + pause
        while (left := end - self._clock.now()) > 0:
            if (reason := self._run.stop_reason()) is not None:
                raise Stopped(reason)
            self._clock.sleep(min(left, 0.5))

    def _look_again(self) -> list[Offer]:
        run = self._run
        self.looks += 1
        names = self._could()
        wanted = run.requirements.model_copy(update={"max_price": None})
        offers, troubles = ask_again(names, wanted, run.account, run.stop_reason)
        unseen.tell(run, offers, is_first=False)
        asked = {str(name) for name in names}
        run.troubles = {name: why for name, why in run.troubles.items() if name not in asked} | troubles
        silent = asked & troubles.keys()
        kept = [one for one in self._offers if one.provider not in asked - silent]
        self._offers = [*kept, *offers]
        return [one for one in self._offers if one.provider not in silent]


def comes_back(error: ProviderError) -> bool:
    """Whether what was refused may be had later, without anybody doing anything."""
    return error.category in COMES_BACK or (error.category == "budget" and error.reach == "provider")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
