"""An order carried to a definite answer: plain functions, no Prefect.

| call | what happened | what follows |
|---|---|---|
| create | RateLimited | certainly not carried out: the same order again after `retry_after_s` |
| create | Transient (nothing was sent) | the same order again, a few times |
| create | Unconfirmed, name is a key | the identical order again until the answer is definite or the boot deadline is over |
| create | Unconfirmed, name is no key | list until `listing_lag_s` after giving up; seen: it is ours; unseen in a whole list: the name is owed |
| create | refused after a lost answer | says nothing of the order that is open (it may itself fill the quota): listed as above |
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from prefect_gpu.providers.core.aside import Stopped, never
from prefect_gpu.providers.core.contract import Provider
from prefect_gpu.providers.core.errors import AuthFailed, ProviderError, RateLimited, Transient, Unconfirmed
from prefect_gpu.providers.core.models import Instance, LaunchSpec, Offer, utc_now
from prefect_gpu.providers.core.renting.progress import OnProgress, Waiting, silent

ORDER_RESENDS = 3  # after RateLimited or Transient; more waiting is the next offer's time
POLL_S = 5.0  # between two listings, at most
UNREAD_S = 60.0  # so long a list that cannot be read as a whole is asked for again, after the lag


class Clock:
    """Time as the loops here see it; tests put their own in its place."""

    def now(self) -> float:
        """Seconds on a clock that only goes forward."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Owed(Unconfirmed):
    """The order was sent, no answer came, and it is not seen: its name must be watched until the lease ends."""


def place_order(
    driver: Provider[Any],
    offer: Offer,
    spec: LaunchSpec,
    *,
    should_stop: Callable[[], str | None] = never,
    on_progress: OnProgress = silent,
    clock: Clock | None = None,
) -> Instance:
    """Send one order under one name and answer only when the outcome is definite.

    Raises the ProviderError that settles the offer; Owed when the name must be watched; Stopped when `should_stop`
    said so. It never waits longer than the boot deadline plus the listing lag.
    """
    clock = clock or Clock()
    boot_deadline = clock.now() + (offer.boot_deadline_s or driver.capabilities.boot_deadline_s)
    waiting = Waiting(on_progress, clock)
    resends, wait = 0, 1.0
    is_open = False  # an answer to an earlier sending of this order was lost
    while True:
        if (reason := should_stop()) is not None:
            raise Owed(f"stopped while the answer to {spec.name} was open") if is_open else Stopped(reason)
        failure: ProviderError
        try:
            return driver.create_instance(offer, spec)
        except Unconfirmed as lost:
            if driver.capabilities.create_repeatable is None:
                return _find_lost_order(driver, spec.name, lost, should_stop, clock, waiting)
            is_open, failure = True, lost
        except Transient as unsent:
            resends += 1
            if resends > ORDER_RESENDS and not is_open:
                raise
            failure = unsent
            if isinstance(unsent, RateLimited):
                wait = max(wait, unsent.retry_after_s or 0.0)
        except ProviderError as refused:
            if isinstance(refused, AuthFailed):
                refused.of_an_order()
            if is_open:
                return _find_lost_order(driver, spec.name, refused, should_stop, clock, waiting)
            raise
        if is_open and clock.now() + wait >= boot_deadline:
            return _find_lost_order(driver, spec.name, failure, should_stop, clock, waiting)
        waiting.on(f"the order is sent again: {failure.message}")
        _pause(wait, should_stop, clock)
        wait = min(wait * 2, 30.0)


def find_order(
    driver: Provider[Any],
    name: str,
    *,
    should_stop: Callable[[], str | None] = never,
    on_progress: OnProgress = silent,
    clock: Clock | None = None,
) -> Instance:
    """What an order under this name bought whose sender did not live to hear the answer; Owed where the listing lag shows nothing."""
    clock = clock or Clock()
    gone = Unconfirmed("whoever sent the order is gone before its answer was known")
    return _find_lost_order(driver, name, gone, should_stop, clock, Waiting(on_progress, clock))


def _find_lost_order(
    driver: Provider[Any],
    name: str,
    lost: ProviderError,
    should_stop: Callable[[], str | None],
    clock: Clock,
    waiting: Waiting,
) -> Instance:
    given_up = clock.now()
    while True:
        looked_at, listing = clock.now(), None
        with suppress(ProviderError):
            listing = driver.list_instances(name)
        if listing is not None and (found := listing.named(name)):
            return keep_one(driver, found)
        # What counts is a whole list that was asked for when the lag was over: one that took long to come shows what was before.
        late = looked_at - given_up - driver.capabilities.listing_lag_s
        is_unseen = listing is not None and listing.is_complete and late >= 0
        if should_stop() is not None or is_unseen or late >= UNREAD_S:
            raise Owed(f"{lost.message}; {name} is not listed and stays watched", code=lost.code) from lost
        waiting.on(f"the order's answer was lost and its machine is looked for: {lost.message}")
        _pause(min(POLL_S, driver.capabilities.listing_lag_s or POLL_S), should_stop, clock)


def keep_one(driver: Provider[Any], found: tuple[Instance, ...], recorded_id: str | None = None) -> Instance:
    """Of several instances under one name keep the recorded, else the oldest; terminate the others."""
    kept = next((one for one in found if one.id == recorded_id), None)
    if kept is None:
        kept = min(found, key=lambda one: (one.created_at is None, one.created_at or utc_now(), one.id))
    for other in found:
        if other.id != kept.id:
            with suppress(ProviderError):  # the order stands; what stays is given back with its name
                driver.terminate_instance(other.id)
    return kept


def _pause(seconds: float, should_stop: Callable[[], str | None], clock: Clock) -> None:
    end = clock.now() + seconds
    while should_stop() is None and (left := end - clock.now()) > 0:
        clock.sleep(min(left, 0.2))
