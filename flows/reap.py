"""The nets behind the flow: the hook that another process runs, and the scheduled flow that finds what nobody ended.

`reap` lists the providers first and reads the runs afterwards, so a name that it finds was on its run's record before. It never
touches a name that does not parse, nor one of another realm unless the operator names that realm. Longer than 300 lines: one
sweep, from the listings to the records it settles, is read as one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import SyncClientContext
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.logging import get_run_logger
from prefect.logging.loggers import flow_run_logger
from prefect.states import Completed, Failed
from pydantic import Field

import providers as registry
from blocks.realm import GpuRealm
from flows import story
from flows.record import CURRENT, ORDERED, OWED, Attempt, Record
from flows.run import end_attempt, settle
from providers.core.aside import Aside
from providers.core.errors import ProviderError
from providers.core.lease import Lease
from providers.core.models import Instance, Leftover, Listing, Model, utc_now
from providers.core.orders import Absence

CANCELLING_S: Final = 60.0  # a worker that cancels is done by then; nobody else will
CONFIRM_S: Final = 60.0  # what is not seen gone by then is owed, and the next reap's
LISTING_S: Final = 90.0  # so long a provider may take to list all regions
_HOOK_S: Final = 15.0
T = TypeVar("T")

_FINAL = {StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED}


def end_run(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """The `on_cancellation` and `on_crashed` hook: give back what the run still has, unless another process runs it now.

    A worker calls it after its flow process was killed, by keyword; everything comes from `flow_run`.
    """
    del state
    log: Any = flow_run_logger(flow_run, flow).getChild("steps")
    with SyncClientContext.get_or_create() as prefect:
        now = _read_run(prefect.client, flow_run.id)
        if now is not None and not _is_over(now):  # `flow_run` may be old: another process may run it by now
            return
        record = Record.read(flow_run.id)
    for attempt in [one for one in record.attempts if one.may_cost]:
        absence = end_attempt(attempt, within_s=_HOOK_S)
        settle(record, attempt, absence)
        with suppress(Exception):  # whatever Prefect's API says, the next instance's turn comes
            record.write()
        log.info(story.step(6, "give back", story.absence(absence)))


def _is_over(run: FlowRun) -> bool:
    state = run.state
    return state is not None and (
        state.type in _FINAL or state.type is StateType.CANCELLING or state.name == "Suspended"
    )


class Found(Model):
    """Something under a name of ours, and what to do with it."""

    provider: str
    account: str
    ids: tuple[str, ...]
    machines: tuple[str, ...] = ()  # those of the ids that are machines
    name: str
    price: float | None = None
    end_because: str | None = None  # None: it lives, rightly
    came_of_it: str = ""  # "gone: ..." or "owed: ..."

    @property
    def is_gone(self) -> bool:
        return self.came_of_it.startswith("gone")


@flow(name="reap")
def reap(
    dry_run: Annotated[
        bool, Field(title="Dry run", description="Say what would be terminated, terminate nothing.")
    ] = False,
    realm: Annotated[
        str | None,
        Field(title="Another realm", description="Reap this realm too: of a Prefect server that is gone, for example."),
    ] = None,
) -> State[Any]:
    """Terminate every instance whose lease is over or whose run has ended, and finish what is owed.

    Args:
        dry_run: Say what would be terminated, terminate nothing.
        realm: Reap this realm too, for example of a Prefect server that is gone. Only its overdue instances are touched.
    """
    logger: Any = get_run_logger()  # typed as logging's adapter, which lacks getChild
    log = logger.getChild("steps")
    if realm is not None and not re.fullmatch("[a-z0-9]{4}", realm):
        return Failed(message=f"{realm!r} is no realm: write the four letters or digits that follow pg- in the names")
    own = GpuRealm.current().realm
    accounts = [
        (provider.value, account)
        for provider, names in registry.saved_accounts().items()
        for account in names or ([registry.DEFAULT_ACCOUNT] if provider is registry.ProviderName.LOCAL else [])
    ]
    listed_at = utc_now()
    listings = _listings(accounts)
    unread = _unread(listings)
    for trouble in unread:
        log.warning("could not read %s", trouble)
    found = _judged(listings, own, realm)
    doomed = sorted((one for one in found if one.end_because), key=lambda one: -(one.price or 0.0))
    live = len(found) - len(doomed)
    for one in doomed:
        said = "would terminate" if dry_run else "terminating"
        log.info("%s %s on %s: %s", said, one.name, one.provider, one.end_because)
    if not dry_run:
        doomed = _ended(doomed)
        _settle_records(doomed)
    records = _newest_records()
    missing = _missing_credentials(records, {f"{provider}/{account}" for provider, account in accounts})
    for trouble in missing:
        log.error("%s", trouble)
    if not dry_run:
        _settle_what_vanished(records, listings, own, listed_at)
    message = _message(doomed, live, unread, missing, dry_run)
    create_markdown_artifact(
        _markdown(message, found, doomed, unread + missing), key="reap", description="What the last reap found."
    )
    log.info(message)
    return Completed(message=message)


def _listings(accounts: list[tuple[str, str]]) -> dict[tuple[str, str], Listing | str]:
    """What each account lists, or why it could not be read; one that hangs holds up nobody."""
    late = f"no answer within {LISTING_S:.0f} s"
    answers = _at_once([partial(_list, *account) for account in accounts], LISTING_S)
    return {account: late if answer is None else answer for account, answer in zip(accounts, answers, strict=True)}


def _list(provider: str, account: str) -> Listing | str:
    try:
        return registry.library(provider).driver(account).list_instances("pg-")
    except ProviderError as trouble:
        return trouble.message
    except Exception as bug:  # noqa: BLE001 - one broken driver must not keep the others' orphans alive
        return f"its driver broke: {type(bug).__name__}"


def _at_once(calls: list[Callable[[], T]], within_s: float) -> list[T | None]:
    """What the calls return, None for those that take longer; their threads end with the process at the latest."""
    deadline = time.monotonic() + within_s
    running = [Aside(call) for call in calls]
    return [one.result() if one.wait(max(0.0, deadline - time.monotonic())) else None for one in running]


def _unread(listings: dict[tuple[str, str], Listing | str]) -> list[str]:
    troubles: list[str] = []
    for (provider, account), listing in listings.items():
        if isinstance(listing, str):
            troubles.append(f"{provider} ({account}): {listing}")
        else:
            troubles += [f"{provider} ({account}) {one.scope}: {one.reason}" for one in listing.incomplete]
    return troubles


def _judged(listings: dict[tuple[str, str], Listing | str], own: str, other: str | None) -> list[Found]:
    """All of our realm, and of another what ends, each once, with the reason to end it or none."""
    found: dict[tuple[str, str], Found] = {}
    runs: dict[UUID, tuple[FlowRun | None, Record | None]] = {}
    with SyncClientContext.get_or_create() as prefect:
        for (provider, account), listing in listings.items():
            if isinstance(listing, str):
                continue
            for name, things in _by_name(listing).items():
                lease = Lease.parse(name)
                if lease is None:
                    continue
                if lease.realm == own:
                    if lease.run_id not in runs:
                        runs[lease.run_id] = (_read_run(prefect.client, lease.run_id), _read_record(lease.run_id))
                    why = _why_end(lease, name, *runs[lease.run_id])
                elif (why := _why_end_foreign(lease, name, f"{provider} ({account})", other)) is None:
                    continue
                if (provider, name) in found and account != _account_of(runs.get(lease.run_id), name):
                    continue  # two blocks hold credentials of one account: each instance counts once
                found[provider, name] = Found(
                    provider=provider,
                    account=account,
                    ids=tuple(one.id for one in things),
                    machines=tuple(one.id for one in things if isinstance(one, Instance)),
                    name=name,
                    price=next((one.price for one in things if isinstance(one, Instance)), None),
                    end_because=why,
                )
    return list(found.values())


def _account_of(run: tuple[FlowRun | None, Record | None] | None, name: str) -> str | None:
    record = run[1] if run else None
    return next((one.account for one in record.attempts if one.name == name), None) if record else None


def _why_end_foreign(lease: Lease, name: str, where: str, other: str | None) -> str | None:
    if not lease.is_over:
        return None
    if lease.realm == other:
        return "its lease is over, and the operator named its realm"
    get_run_logger().warning(
        "%s on %s is overdue but of realm %s: reap it with realm=%s", name, where, lease.realm, lease.realm
    )
    return None


def _read_record(run_id: UUID) -> Record | None:
    """A run's record, None where nobody can read it: then the run's state and its leases decide alone."""
    try:
        return Record.read(run_id)
    except (ValueError, TypeError):
        get_run_logger().warning("the record of run %s cannot be read", run_id)
        return None


def _by_name(listing: Listing) -> dict[str, list[Instance | Leftover]]:
    things: dict[str, list[Instance | Leftover]] = {}
    for one in [*(one for one in listing.instances if not one.state.is_final), *listing.leftovers]:
        things.setdefault(one.name, []).append(one)
    return things


def _why_end(lease: Lease, name: str, run: FlowRun | None, record: Record | None) -> str | None:
    """Why an instance of our realm must end, in words; None while its run has a right to it."""
    if lease.is_over:
        return "its lease is over"
    if run is None:
        return "its run was deleted"
    state = run.state
    if state is None:
        return None
    if state.type in _FINAL or state.name == "Suspended":
        return f"its run is {(state.name or state.type.value).lower()}"
    if state.type is StateType.CANCELLING:
        since = (utc_now() - state.timestamp).total_seconds()
        return "its run is in Cancelling and nobody ends it" if since > CANCELLING_S else None
    is_retry = state.name == "AwaitingRetry"  # its process sleeps and goes on by itself
    if state.type is StateType.SCHEDULED and run.deployment_id is None and run.run_count > 0 and not is_retry:
        return "its run has lost its deployment: nobody will take it up"
    if record is None or not record.attempts:  # a flow of a user's own keeps none
        return None
    line = next((one for one in record.attempts if one.name == name), None)
    if line is None:
        # It is written before the order, but a stale process may have written its own copy over the owner's: what bears the
        # count of the execution that runs now is the owner's, and is on its next copy again.
        return None if lease.run_count == run.run_count else "its run's record does not know it"
    if line.outcome in (ORDERED, CURRENT):
        return None
    return f"its run has done with it ({line.outcome})"


def _newest_records() -> list[tuple[Record, datetime]]:
    """The records that were written last, and when; those that nobody can read are passed over."""
    question = {"artifacts": {"key": {"like_": "attempts-%"}}, "sort": "UPDATED_DESC", "limit": 200}
    with SyncClientContext.get_or_create() as prefect:
        rows = prefect.client.request("POST", "/artifacts/latest/filter", json=question).json()
    records: list[tuple[Record, datetime]] = []
    for row in rows:
        with suppress(ValueError, TypeError):
            run_id = UUID(row["key"].removeprefix("attempts-"))
            records.append((Record(run_id, Record.parse(row["data"])), datetime.fromisoformat(row["updated"])))
    return records


def _missing_credentials(records: list[tuple[Record, datetime]], known: set[str]) -> list[str]:
    """Accounts on which instances live by the records, but whose credentials are not saved any more."""
    troubles: set[str] = set()
    for record, _ in records:
        for attempt in record.attempts:
            lease = Lease.parse(attempt.name)
            account = f"{attempt.provider}/{attempt.account}"
            if not attempt.may_cost or not attempt.instance_id or lease is None or lease.is_over or account in known:
                continue
            if _needs_credentials(attempt.provider):
                troubles.add(f"{attempt.name} may live on {account}, whose credentials are not saved: save them again")
    return sorted(troubles)


def _needs_credentials(provider: str) -> bool:
    try:
        return registry.library(provider).credentials_class is not None
    except ProviderError:
        return True


def _settle_what_vanished(
    records: list[tuple[Record, datetime]],
    listings: dict[tuple[str, str], Listing | str],
    own: str,
    listed_at: datetime,
) -> None:
    """Write off what ended runs owed and no complete list shows any more.

    An order that was never answered stays owed until its lease is over: it may still appear.
    """
    for record, written_at in records:
        vanished = [
            attempt
            for attempt in record.attempts
            if attempt.may_cost and _is_absent(attempt, listings, own, (listed_at - written_at).total_seconds())
        ]
        with suppress(Exception):  # the next reap comes
            if not vanished or not _has_no_owner(record.run_id):
                continue
            for attempt in vanished:
                absence = Absence(is_gone=True, evidence="absent from the provider's own list")
                settle(record, attempt, absence, costs_until=_end_at_most(attempt, written_at, listed_at))
            record.write()


def _end_at_most(attempt: Attempt, written_at: datetime, listed_at: datetime) -> datetime:
    """Until when it may have cost: until it was given back; and where nobody did that, until it was not seen or its lease ended."""
    lease = Lease.parse(attempt.name)
    if attempt.outcome == OWED or lease is None:
        return written_at
    return min(listed_at, lease.deadline)


def _is_absent(
    attempt: Attempt, listings: dict[tuple[str, str], Listing | str], own: str, listed_after_s: float
) -> bool:
    lease = Lease.parse(attempt.name)
    if lease is None or lease.realm != own or not (attempt.instance_id or lease.is_over):
        return False
    account = attempt.account if _needs_credentials(attempt.provider) else registry.DEFAULT_ACCOUNT
    listing = listings.get((attempt.provider, account))
    if listing is None or isinstance(listing, str) or not listing.is_complete:
        return False
    if attempt.name in _by_name(listing):
        return False
    library = registry.library(attempt.provider)
    return (
        listed_after_s > library.capabilities.listing_lag_s
        and library.driver(account).account_id()
        == attempt.account_id  # these credentials may see another account by now
    )


def _has_no_owner(run_id: UUID) -> bool:
    with SyncClientContext.get_or_create() as prefect:
        run = _read_run(prefect.client, run_id)
    return run is None or _is_over(run)


def _ended(doomed: list[Found]) -> list[Found]:
    """What came of ending them; an account that hangs or whose driver breaks leaves its own owed, and nobody else's."""
    groups = _by_account(doomed)
    answers = _at_once([partial(_end, group) for group in groups], CONFIRM_S + LISTING_S)
    return [
        one
        for group, answer in zip(groups, answers, strict=True)
        for one in answer or _owed(group, "it takes longer than this reap waits")
    ]


def _owed(group: list[Found], evidence: str) -> list[Found]:
    return [one.model_copy(update={"came_of_it": f"owed: {evidence}"}) for one in group]


def _by_account(doomed: list[Found]) -> list[list[Found]]:
    groups: dict[tuple[str, str], list[Found]] = {}
    for one in doomed:
        groups.setdefault((one.provider, one.account), []).append(one)
    return list(groups.values())


def _end(group: list[Found]) -> list[Found]:
    """Give back all of one account together: one listing confirms many."""
    library = registry.library(group[0].provider)
    ids = tuple(instance_id for one in group for instance_id in one.ids)
    names = frozenset(one.name for one in group)
    try:
        absence = library.give_back("pg-", ids, group[0].account, names=names, within_s=CONFIRM_S)
    except ProviderError as trouble:
        return _owed(group, trouble.message)
    except Exception as bug:  # noqa: BLE001 - one broken driver must not keep the others' orphans alive
        return _owed(group, f"its driver broke: {type(bug).__name__}")
    owed = set(absence.owed)
    return [
        one.model_copy(
            update={"came_of_it": f"owed: {absence.evidence}" if owed & set(one.ids) else f"gone: {absence.evidence}"}
        )
        for one in group
    ]


def _settle_records(ended: list[Found]) -> None:
    for one in ended:
        lease = Lease.parse(one.name)
        with suppress(Exception):  # what is not written now is seen by the next reap
            record = Record.read(lease.run_id) if lease else None
            line = next((attempt for attempt in record.attempts if attempt.name == one.name), None) if record else None
            if record is not None and line is not None:
                absence = Absence(
                    is_gone=one.is_gone,
                    evidence=one.came_of_it.partition(": ")[2],
                    owed=one.ids,
                    machines=one.machines,
                )
                settle(record, line, absence)
                record.write()


def _message(doomed: list[Found], live: int, unread: list[str], missing: list[str], dry_run: bool) -> str:
    owed = sum(not one.is_gone for one in doomed)
    if dry_run:
        text = f"would terminate {len(doomed)}, {live} live rightly"
    else:
        text = f"{len(doomed) - owed} terminated and seen gone, {owed} owed, {live} live rightly"
    if unread:
        text += f"; could not read {story.counted(len(unread), 'scope')}"
    if missing:
        text += f"; {story.counted(len(missing), 'instance')} without saved credentials"
    return text


def _markdown(message: str, found: list[Found], doomed: list[Found], troubles: list[str]) -> str:
    outcome = {one.name: one.came_of_it for one in doomed}
    lines = [
        f"# {message}",
        "",
        "| name | provider | account | $/h | why it ends | what came of it |",
        "|---|---|---|--:|---|---|",
    ]
    for one in found:
        price = "" if one.price is None else f"{one.price:.2f}"
        why = one.end_because or "it lives, rightly"
        lines.append(
            f"| `{one.name}` | {one.provider} | {one.account} | {price} | {why} | {outcome.get(one.name, '')} |"
        )
    return "\n".join([*lines, "", *(f"* {trouble}" for trouble in troubles)])


def _read_run(client: Any, run_id: UUID) -> FlowRun | None:
    try:
        return client.read_flow_run(run_id)
    except ObjectNotFound:
        return None
