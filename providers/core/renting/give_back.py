"""A give-back carried to observed absence: plain functions, no Prefect.

| call | what happened | what follows |
|---|---|---|
| terminate | returns | done only when absence was observed: by a final state, or two complete listings `listing_lag_s` apart |
| terminate | Transient, RateLimited | again until the time given is over; then it is owed |
| terminate | an id that a record names | only once it was seen under the lease's name; what bears another name is not touched |
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from prefect_gpu.providers.core.contract import Provider
from prefect_gpu.providers.core.errors import InvalidRequest, NotFound, ProviderError
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import Model, utc_now
from prefect_gpu.providers.core.renting.order import POLL_S, Clock
from prefect_gpu.providers.core.renting.progress import OnProgress, Waiting, silent

ASK_AGAIN_S = 30.0  # a terminate that shows no effect is sent again
_IN_FLIGHT_S = 2.0  # an order that a signal cut off may still reach a provider whose listings do not lag
_FIRST_WAIT_S = 0.05


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
    are_seen: bool = False,
    on_progress: OnProgress = silent,
    clock: Clock | None = None,
) -> Absence:
    """Terminate everything under a lease's name, or below a prefix what bears one of `names`, and observe that it is gone.

    Ids that the caller knows are asked for first, so that a listing that lags cannot hide them: at once where the caller saw
    them under these names itself (`are_seen`), else when the provider says that they bear one. `ordered_at` is when the
    youngest of them was ordered. With `confirm=False` the requests are sent and nothing is waited for: then the answer is
    never `is_gone`. It raises nothing that a provider says: what could not be done is owed.
    """
    clock = clock or Clock()
    names = frozenset({prefix}) if names is None else names
    if not all(Lease.parse(name) for name in names):
        raise InvalidRequest("only what bears the whole name of a lease is given back: 40 characters from pg- on")
    end = clock.now() + within_s
    waiting = Waiting(on_progress, clock)
    pending, asked = set(known_ids), dict[str, float]()
    proven = set(known_ids) if are_seen else set[str]()
    foreign = ""
    is_in_flight = not known_ids  # perhaps: no machine of this order was ever seen
    empty_since: float | None = None
    seen = set[str]()

    def outcome(evidence: str, *, is_gone: bool = False, owed: set[str] | None = None) -> Absence:
        evidence += foreign
        return Absence(is_gone=is_gone, evidence=evidence, owed=tuple(sorted(owed or ())), machines=tuple(sorted(seen)))

    wait = _FIRST_WAIT_S
    while True:
        unproven = _prove(driver, pending - proven, names)
        proven |= unproven.ours
        pending -= unproven.foreign.keys()
        asked.update(
            dict.fromkeys(unproven.absent, clock.now())
        )  # nothing to end now; a listing shows it if it appears
        foreign += "".join(
            f"; {one} bears the name {bears!r} and was not touched" for one, bears in unproven.foreign.items()
        )
        trouble = _ask(driver, pending & proven, asked, clock.now()) or unproven.trouble
        looked_at = clock.now()
        machines, costing, unread = _look(driver, prefix, names)
        seen |= machines
        is_in_flight = is_in_flight and not machines
        if costing - pending:
            pending |= costing
            wait = _FIRST_WAIT_S
        asked = {one: when for one, when in asked.items() if one not in costing - proven}  # now they are seen
        proven |= costing
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
        waiting.on(f"not yet confirmed gone: {trouble}")
        clock.sleep(wait)
        wait = min(wait * 1.5, POLL_S)


class _Proof(NamedTuple):
    """What a provider says of ids that a record names."""

    ours: set[str]
    foreign: dict[str, str]  # id -> the name that it bears
    absent: set[str]  # not known there, or not yet
    trouble: str


def _prove(driver: Provider[Any], ids: set[str], names: frozenset[str]) -> _Proof:
    proof = _Proof(set(), {}, set(), "")
    for instance_id in sorted(ids):
        try:
            bears = driver.get_instance(instance_id).name
        except NotFound:
            proof.absent.add(instance_id)
        except ProviderError as failure:
            proof = proof._replace(trouble=failure.message)
        else:
            if bears in names:
                proof.ours.add(instance_id)
            else:
                proof.foreign[instance_id] = bears
    return proof


def _ask(driver: Provider[Any], pending: set[str], asked: dict[str, float], now: float) -> str:
    """Ask for all that was not asked for lately; what stood in the way, or an empty string."""
    trouble = ""
    due = [one for one in sorted(pending) if now - asked.get(one, -ASK_AGAIN_S) >= ASK_AGAIN_S]
    if len(due) > 1:
        try:
            driver.terminate_instances(due)
            asked.update(dict.fromkeys(due, now))
        except ProviderError:
            pass  # one of them: asked one by one it holds up no other
        else:
            return trouble
    for instance_id in due:
        try:
            driver.terminate_instance(instance_id)
        except NotFound:
            pass
        except ProviderError as failure:
            trouble = failure.message
            continue
        asked[instance_id] = now
    return trouble


def _look(driver: Provider[Any], prefix: str, names: frozenset[str]) -> tuple[set[str], set[str], str]:
    """The ids of machines, and of all that may cost money, under the prefix and of these names; which scopes could not be read."""
    try:
        listing = driver.list_instances(prefix)
    except ProviderError as failure:
        return set(), set(), failure.message
    alive = [one for one in listing.instances if not one.state.is_final]
    machines = {one.id for one in alive if one.name in names}
    costing = machines | {one.id for one in listing.leftovers if one.name in names}
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
