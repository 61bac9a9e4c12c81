"""The records of what no list shows any more, and of what nobody can list."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from prefect.context import SyncClientContext

from prefect_gpu import providers as registry
from prefect_gpu.flows.reaping.found import by_name
from prefect_gpu.flows.reaping.memory import Memory
from prefect_gpu.flows.report.rows import rows
from prefect_gpu.flows.run import ledger
from prefect_gpu.flows.run.attempt import Attempt
from prefect_gpu.flows.run.giving_back import is_over, read_run, settled
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import Listing
from prefect_gpu.providers.core.renting.give_back import Absence

OVERLAP: Final = timedelta(minutes=10)  # a record is written while a reap looks


def open_records(memory: Memory) -> list[Record]:
    """The records with lines that may still cost money: of those written since the last reap, and those that it left open."""
    since = memory.looked_at - OVERLAP if memory.looked_at else None
    run_ids = [*memory.open_runs, *_written_since(since)]
    found = ledger.records(run_ids).values()  # without those that nobody can read
    return [record for record in found if any(one.may_cost for one in record.attempts)]


def _written_since(since: datetime | None) -> list[UUID]:
    """The runs whose records were written since then, all of them the first time."""
    found: list[UUID] = []
    question = {"artifacts": {"key": {"like_": "attempts-%"}}, "sort": "UPDATED_DESC"}
    with SyncClientContext.get_or_create() as prefect:
        for row in rows(prefect.client, "/artifacts/latest/filter", question):
            if since is not None and datetime.fromisoformat(row["updated"]) < since:
                break
            with suppress(ValueError):
                found.append(UUID(row["key"].removeprefix("attempts-")))
    return found


def missing_credentials(records: list[Record], known: set[str]) -> list[str]:
    """Accounts on which instances live by the records, but whose credentials are not saved any more."""
    troubles: set[str] = set()
    for record in records:
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


def settle_what_vanished(
    records: list[Record],
    listings: dict[tuple[str, str], Listing | str],
    own: str,
    listed_at: datetime,
) -> None:
    """Write off what ended runs owed and no complete list shows any more.

    An order that was never answered stays owed until its lease is over: it may still appear.
    """
    for record in records:
        written_at = record.written_at or listed_at
        with suppress(Exception):  # the next reap comes: an account that cannot be asked for its id stops no other's
            vanished = [
                attempt
                for attempt in record.attempts
                if attempt.may_cost and _is_absent(attempt, listings, own, (listed_at - written_at).total_seconds())
            ]
            if not vanished or not _has_no_owner(record.run_id):
                continue
            absence = Absence(is_gone=True, evidence="absent from the provider's own list")
            record.settle(
                *(settled(record.run_id, one, absence, costs_until=_cost_until(one, listed_at)) for one in vanished)
            )


def _cost_until(attempt: Attempt, listed_at: datetime) -> datetime:
    """Until its absence was seen; where the machine ends itself with its lease, at most until then."""
    lease = Lease.parse(attempt.name)
    ends_itself = registry.library(attempt.provider).capabilities.self_ends != "none"
    return min(listed_at, lease.deadline) if lease is not None and ends_itself else listed_at


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
    if attempt.name in by_name(listing):
        return False
    library = registry.library(attempt.provider)
    return (
        listed_after_s > library.capabilities.listing_lag_s
        and library.driver(account).account_id()
        == attempt.account_id  # these credentials may see another account by now
    )


def _has_no_owner(run_id: UUID) -> bool:
    with SyncClientContext.get_or_create() as prefect:
        run = read_run(prefect.client, run_id)
    return run is None or is_over(run)
