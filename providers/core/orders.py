"""An order carried to a definite answer, and a give-back carried to observed absence: plain functions, no Prefect.

| call | what happened | what follows |
|---|---|---|
| create | RateLimited | certainly not carried out: the same order again after `retry_after_s` |
| create | Transient (nothing was sent) | the same order again, a few times |
| create | Unconfirmed, name is a key | the identical order again until the answer is definite or the boot deadline is over |
| create | Unconfirmed, name is no key | list until `listing_lag_s` after giving up; seen: it is ours; unseen: the name is owed |
| create | refused after a lost answer | says nothing of the order that is open (it may itself fill the quota): ours if listed, else owed |
| terminate | returns | done only when absence was observed: by a final state, or two complete listings `listing_lag_s` apart |
| terminate | Transient, RateLimited | again until the time given is over; then it is owed |
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

from providers.core.aside import Stopped, never
from providers.core.contract import Provider
from providers.core.errors import NotFound, ProviderError, RateLimited, Transient, Unconfirmed
from providers.core.lease import Lease
from providers.core.models import Instance, LaunchSpec, Model, Offer, utc_now

ORDER_RESENDS = 3  # after RateLimited or Transient; more waiting is the next offer's time
POLL_S = 5.0  # between two listings, at most
ASK_AGAIN_S = 30.0  # a terminate that shows no effect is sent again
_IN_FLIGHT_S = 2.0  # an order that a signal cut off may still reach a provider whose listings do not lag
_FIRST_WAIT_S = 0.05


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
    clock: Clock | None = None,
) -> Instance:
    """Send one order under one name and answer only when the outcome is definite.

    Raises the ProviderError that settles the offer; Owed when the name must be watched; Stopped when `should_stop`
    said so. It never waits longer than the boot deadline plus the listing lag.
    """
    clock = clock or Clock()
    boot_deadline = clock.now() + (offer.boot_deadline_s or driver.capabilities.boot_deadline_s)
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
                return _find_lost_order(driver, spec.name, lost, should_stop, clock)
            is_open, failure = True, lost
        except Transient as unsent:
            resends += 1
            if resends > ORDER_RESENDS and not is_open:
                raise
            failure = unsent
            if isinstance(unsent, RateLimited):
                wait = max(wait, unsent.retry_after_s or 0.0)
        except ProviderError as refused:
            if is_open:
                return _listed(driver, spec.name, refused)
            raise
        if is_open and clock.now() + wait >= boot_deadline:
            raise Owed(failure.message, code=failure.code) from failure
        _pause(wait, should_stop, clock)
        wait = min(wait * 2, 30.0)


def _find_lost_order(
    driver: Provider[Any], name: str, lost: Unconfirmed, should_stop: Callable[[], str | None], clock: Clock
) -> Instance:
    given_up = clock.now()
    while True:
        try:
            return _listed(driver, name, lost)
        except Owed:
            if should_stop() is not None or clock.now() >= given_up + driver.capabilities.listing_lag_s:
                raise
        _pause(min(POLL_S, driver.capabilities.listing_lag_s or POLL_S), should_stop, clock)


def _listed(driver: Provider[Any], name: str, why: ProviderError) -> Instance:
    """What an open order bought, as far as the provider lists it now; Owed where it lists nothing."""
    found: tuple[Instance, ...] = ()
    with suppress(ProviderError):
        found = driver.list_instances(name).named(name)
    if not found:
        raise Owed(f"{why.message}; {name} is not listed and stays watched", code=why.code) from why
    return keep_one(driver, found)


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


class Absence(Model):
    """Whether what was given back is gone, and how that was seen; `owed` names what the reaper must finish."""

    is_gone: bool
    evidence: str  # "absent from the provider's own list", or why it is not known
    owed: tuple[str, ...] = ()  # ids
    machines: tuple[str, ...] = ()  # ids of those that were seen, also where no order's answer had told them


def give_back(
    driver: Provider[Any],
    prefix: str,
    *,
    names: frozenset[str] | None = None,
    known_ids: tuple[str, ...] = (),
    ordered_at: datetime | None = None,
    within_s: float,
    confirm: bool = True,
    clock: Clock | None = None,
) -> Absence:
    """Terminate everything under a prefix, or of it only what bears one of `names`, and observe that it is gone.

    Ids that the caller knows are asked for first, so that a listing that lags cannot hide them; `ordered_at` is when the
    youngest of them was ordered. With `confirm=False` the requests are sent and nothing is waited for: then the answer is
    never `is_gone`. It raises nothing that a provider says: what could not be done is owed.
    """
    clock = clock or Clock()
    end = clock.now() + within_s
    pending, asked = set(known_ids), dict[str, float]()
    is_in_flight = not known_ids  # perhaps: no machine of this order was ever seen
    empty_since: float | None = None
    seen = set[str]()

    def outcome(evidence: str, *, is_gone: bool = False, owed: set[str] | None = None) -> Absence:
        return Absence(is_gone=is_gone, evidence=evidence, owed=tuple(sorted(owed or ())), machines=tuple(sorted(seen)))

    wait = _FIRST_WAIT_S
    while True:
        trouble = _ask(driver, pending, asked, clock.now())
        looked_at = clock.now()
        machines, costing, unread = _look(driver, prefix, names)
        seen |= machines
        is_in_flight = is_in_flight and not machines
        if costing - pending:
            pending |= costing
            wait = _FIRST_WAIT_S
        if unread and not costing and not trouble and _is_one_and_gone(driver, prefix, known_ids, ordered_at):
            return outcome("terminated, by the provider's own word", is_gone=True)
        if costing or unread:
            empty_since = None
            trouble = trouble or unread or "the provider still lists it"
        elif not trouble:
            if empty_since is None:
                empty_since = looked_at
            empty_for_s = looked_at - empty_since
            evidence = _absence(driver, pending, ordered_at, empty_for_s)
            if evidence and not (is_in_flight and empty_for_s < _IN_FLIGHT_S):
                return outcome(evidence, is_gone=True)
            trouble = "absent from one list; the provider's listing lag is not over"
        if not confirm and not (pending - asked.keys()) and (pending or not unread):
            return outcome("asked for, not yet confirmed", owed=pending)
        if clock.now() + wait > end:
            is_proof = costing and not unread and driver.capabilities.listing_lag_s <= 0
            return outcome(trouble, owed=costing if is_proof else pending)
        clock.sleep(wait)
        wait = min(wait * 1.5, POLL_S)


def _ask(driver: Provider[Any], pending: set[str], asked: dict[str, float], now: float) -> str:
    """Ask for all that was not asked for lately; what stood in the way, or an empty string."""
    trouble = ""
    for instance_id in sorted(pending):
        if now - asked.get(instance_id, -ASK_AGAIN_S) < ASK_AGAIN_S:
            continue
        try:
            driver.terminate_instance(instance_id)
        except NotFound:
            pass
        except ProviderError as failure:
            trouble = failure.message
            continue
        asked[instance_id] = now
    return trouble


def _look(driver: Provider[Any], prefix: str, names: frozenset[str] | None) -> tuple[set[str], set[str], str]:
    """The ids of machines, and of all that may cost money, under the prefix and of these names; which scopes could not be read."""
    try:
        listing = driver.list_instances(prefix)
    except ProviderError as failure:
        return set(), set(), failure.message
    alive = [one for one in listing.instances if not one.state.is_final]
    machines = {one.id for one in alive if names is None or one.name in names}
    costing = machines | {one.id for one in listing.leftovers if names is None or one.name in names}
    unread = ", ".join(f"{unread.scope} ({unread.reason})" for unread in listing.incomplete)
    return machines, costing, f"could not read {unread}" if unread else ""


def _absence(driver: Provider[Any], ids: set[str], ordered_at: datetime | None, empty_for_s: float) -> str | None:
    """How absence was observed, given complete empty listings over `empty_for_s`; None while it was not."""
    lag = driver.capabilities.listing_lag_s
    if lag <= 0:
        return "absent from the provider's own list"
    if empty_for_s >= lag:
        return f"absent from the provider's lists for {lag:.0f} s"
    old_enough = ordered_at is not None and (utc_now() - ordered_at).total_seconds() >= lag
    if ids and all(_is_final_by_id(driver, one, not_found_counts=old_enough) for one in ids):
        return "terminated, by the provider's own word"
    return None


def _is_one_and_gone(
    driver: Provider[Any], prefix: str, known_ids: tuple[str, ...], ordered_at: datetime | None
) -> bool:
    """Whether the one order under a whole name is final by its id: what else could not be read holds nothing of it."""
    if Lease.parse(prefix) is None or len(known_ids) != 1:
        return False
    lag = driver.capabilities.listing_lag_s
    old_enough = ordered_at is not None and (utc_now() - ordered_at).total_seconds() >= lag
    return _is_final_by_id(driver, known_ids[0], not_found_counts=old_enough)


def _is_final_by_id(driver: Provider[Any], instance_id: str, *, not_found_counts: bool) -> bool:
    try:
        return driver.get_instance(instance_id).state.is_final
    except NotFound:
        return not_found_counts and driver.capabilities.not_found_proves_absence
    except ProviderError:
        return False


def _pause(seconds: float, should_stop: Callable[[], str | None], clock: Clock) -> None:
    end = clock.now() + seconds
    while should_stop() is None and (left := end - clock.now()) > 0:
        clock.sleep(min(left, 0.2))
