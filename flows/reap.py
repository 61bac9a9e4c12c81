"""The nets behind the flow: the hook that another process runs, and the scheduled flow that finds what nobody ended.

`reap` lists the providers first and reads the runs afterwards, so a name that it finds was on its run's record before. It never
touches a name that does not parse, nor one of another realm unless the operator names that realm.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Annotated, Any, Final
from uuid import UUID

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import SyncClientContext
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.logging import get_run_logger
from prefect.logging.loggers import flow_run_logger
from prefect.states import Completed
from pydantic import Field

import providers as registry
from blocks.realm import GpuRealm
from flows import story
from flows.record import CURRENT, ORDERED, Record
from flows.run import end_attempt, settle
from providers.core.errors import ProviderError
from providers.core.lease import Lease
from providers.core.models import Instance, Leftover, Listing, Model, utc_now
from providers.core.orders import Absence

CANCELLING_S: Final = 60.0  # a worker that cancels is done by then; nobody else will
CONFIRM_S: Final = 60.0  # what is not seen gone by then is owed, and the next reap's
_HOOK_S: Final = 15.0
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
    name: str
    price: float | None = None
    end_because: str | None = None  # None: it lives, rightly
    came_of_it: str = ""


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
    own = GpuRealm.current().realm
    accounts: list[tuple[str, str]] = [
        (provider.value, account)
        for provider, names in registry.saved_accounts().items()
        for account in names or ([registry.DEFAULT_ACCOUNT] if provider is registry.ProviderName.LOCAL else [])
    ]
    with ThreadPoolExecutor(max_workers=16) as pool:
        listings = dict(zip(accounts, pool.map(_list, *zip(*accounts, strict=True)), strict=True))
        unread = _unread(listings)
        for trouble in unread:
            log.warning("could not read %s", trouble)
        found = _judged(listings, own, realm)
        missing = _missing_credentials({f"{provider}/{account}" for provider, account in accounts})
        for trouble in missing:
            log.error("%s", trouble)
        doomed = sorted((one for one in found if one.end_because), key=lambda one: -(one.price or 0.0))
        for one in doomed:
            log.info(
                "%s %s on %s: %s",
                "would terminate" if dry_run else "terminating",
                one.name,
                one.provider,
                one.end_because,
            )
        if not dry_run:
            ended = list(pool.map(_end, _by_account(doomed)))
            doomed = [one for group in ended for one in group]
    _settle_records(doomed if not dry_run else [])
    live = len(found) - len(doomed)
    message = _message(doomed, live, unread, missing, dry_run)
    create_markdown_artifact(
        _markdown(message, found, doomed, unread + missing), key="reap", description="What the last reap found."
    )
    log.info(message)
    return Completed(message=message)


def _list(provider: str, account: str) -> Listing | str:
    try:
        return registry.library(provider).driver(account).list_instances("pg-")
    except ProviderError as trouble:
        return trouble.message


def _unread(listings: dict[tuple[str, str], Listing | str]) -> list[str]:
    troubles: list[str] = []
    for (provider, account), listing in listings.items():
        if isinstance(listing, str):
            troubles.append(f"{provider} ({account}): {listing}")
        else:
            troubles += [f"{provider} ({account}) {one.scope}: {one.reason}" for one in listing.incomplete]
    return troubles


def _judged(listings: dict[tuple[str, str], Listing | str], own: str, other: str | None) -> list[Found]:
    """Everything under names that parse, each with the reason to end it or none."""
    found: list[Found] = []
    with SyncClientContext.get_or_create() as prefect:
        runs: dict[UUID, tuple[FlowRun | None, Record]] = {}
        for (provider, account), listing in listings.items():
            if isinstance(listing, str):
                continue
            for name, things in _by_name(listing).items():
                lease = Lease.parse(name)
                if lease is None:
                    continue
                price = next((one.price for one in things if isinstance(one, Instance)), None)
                if lease.realm == own:
                    if lease.run_id not in runs:
                        runs[lease.run_id] = (_read_run(prefect.client, lease.run_id), Record.read(lease.run_id))
                    why = _why_end(lease, name, *runs[lease.run_id])
                elif lease.realm == other:
                    why = "its lease is over, and the operator named its realm" if lease.is_over else None
                else:
                    why = None
                    if lease.is_over:
                        get_run_logger().warning(
                            "%s on %s (%s) is overdue but of realm %s: reap it with realm=%s",
                            name,
                            provider,
                            account,
                            lease.realm,
                            lease.realm,
                        )
                found.append(
                    Found(
                        provider=provider,
                        account=account,
                        ids=tuple(one.id for one in things),
                        name=name,
                        price=price,
                        end_because=why,
                    )
                )
    return found


def _by_name(listing: Listing) -> dict[str, list[Instance | Leftover]]:
    things: dict[str, list[Instance | Leftover]] = {}
    for one in [*(one for one in listing.instances if not one.state.is_final), *listing.leftovers]:
        things.setdefault(one.name, []).append(one)
    return things


def _why_end(lease: Lease, name: str, run: FlowRun | None, record: Record) -> str | None:
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
    if state.type is StateType.SCHEDULED and run.deployment_id is None and run.run_count > 0:
        return "its run has lost its deployment: nobody will take it up"
    line = next((one for one in record.attempts if one.name == name), None)
    if line is None:
        # The record is written before the order; only a stale process or a lost database leaves none.
        return "its run's record does not know it" if record.attempts else None
    if line.outcome in (ORDERED, CURRENT):
        return None
    return f"its run has done with it ({line.outcome})"


def _missing_credentials(known: set[str]) -> list[str]:
    """Accounts on which instances live by the records, but whose credentials are not saved any more."""
    question = {"artifacts": {"key": {"like_": "attempts-%"}}, "sort": "UPDATED_DESC", "limit": 200}
    with SyncClientContext.get_or_create() as prefect:
        rows = prefect.client.request("POST", "/artifacts/latest/filter", json=question).json()
    troubles: set[str] = set()
    for row in rows:
        for attempt in Record.parse(row["data"]):
            lease = Lease.parse(attempt.name)
            account = f"{attempt.provider}/{attempt.account}"
            if attempt.may_cost and attempt.instance_id and lease and not lease.is_over and account not in known:
                troubles.add(f"{attempt.name} may live on {account}, whose credentials are not saved: save them again")
    return sorted(troubles)


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
    absence = library.give_back("pg-", ids, group[0].account, names=names, within_s=CONFIRM_S)
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
        if lease is None:
            continue
        record = Record.read(lease.run_id)
        line = next((attempt for attempt in record.attempts if attempt.name == one.name), None)
        absence = Absence(is_gone=one.came_of_it.startswith("gone"), evidence=one.came_of_it, owed=one.ids)
        if line is not None:
            settle(record, line, absence)
            record.write()


def _message(doomed: list[Found], live: int, unread: list[str], missing: list[str], dry_run: bool) -> str:
    owed = sum(one.came_of_it.startswith("owed") for one in doomed)
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
