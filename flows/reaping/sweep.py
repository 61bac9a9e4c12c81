"""One sweep: whom all accounts list, what of it must end, what came of ending it, and the page that says so."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect_gpu import providers as registry
from prefect_gpu.flows.reaping.clock import agreed, clocks
from prefect_gpu.flows.reaping.ending import ended, settle_records
from prefect_gpu.flows.reaping.found import Found, late_ones, listings_of, unproved_of, unread_of
from prefect_gpu.flows.reaping.memory import Memory
from prefect_gpu.flows.reaping.siblings import skip_waiting
from prefect_gpu.flows.reaping.vanished import missing_credentials, open_records, settle_what_vanished
from prefect_gpu.flows.reaping.verdict import UNKNOWN, Bench, judged
from prefect_gpu.flows.report import text
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers.core.models import Model, utc_now


class Reaped(Model):
    """What one sweep found and did: the data of the flow's final state, and what programs read."""

    message: str
    dry_run: bool
    found: tuple[Found, ...]  # all under names of ours, with what came of those that end
    unread: tuple[str, ...]
    missing: tuple[str, ...]  # machines whose account's credentials are not saved any more
    remarks: tuple[str, ...]


class Sweep:
    """One look at everything. `memory` is what the next reap shall know, once `run` is through."""

    def __init__(self, realm: str, also: str | None, *, dry_run: bool, log: Any) -> None:
        self.realm = realm
        self.also = also
        self.dry_run = dry_run
        self.log = log
        self.now = utc_now()
        self.memory = Memory()
        self.found: list[Found] = []
        self.doomed: list[Found] = []
        self.unread: list[str] = []
        self.missing: list[str] = []
        self.remarks: list[str] = []
        self.records: list[Record] = []  # those with something that may still cost

    def run(self, last: Memory, own_id: UUID) -> None:
        """List the providers first and read the runs afterwards, so a name that is found was on its run's record before."""
        accounts = _accounts()
        began, ahead = agreed(clocks([]))
        listings = listings_of(accounts, last.late, began)
        self.now, told = agreed(
            clocks([account for account, answer in listings.items() if not isinstance(answer, str)])
        )
        heard = time.monotonic()
        self.unread, self.remarks = unread_of(listings), [*dict.fromkeys([*ahead, *told]), *unproved_of(listings)]
        for trouble in self.unread:
            self.log.warning("could not read %s", trouble)
        for remark in self.remarks:
            self.log.warning("%s", remark)
        self.found = judged(listings, Bench(self.realm, self.now, self.also, last.unknown))
        unknown = {one.name: last.unknown.get(one.name, self.now) for one in self.found if one.remark == UNKNOWN}
        for name in unknown:
            self.log.warning("%s: %s", name, UNKNOWN)
        self.doomed = sorted((one for one in self.found if one.end_because), key=lambda one: -(one.price or 0.0))
        for one in self.doomed:
            said = "would terminate" if self.dry_run else "terminating"
            self.log.info("%s %s on %s: %s", said, one.name, one.provider, one.end_because)
        if not self.dry_run:
            skip_waiting(own_id, began)
            self.doomed = ended(self.doomed, last.owed)
            settle_records(self.doomed)
        self.records = records = open_records(last)
        self.missing = missing_credentials(records, {f"{provider}/{account}" for provider, account in accounts})
        for trouble in self.missing:
            self.log.error("%s", trouble)
        if not self.dry_run:
            settle_what_vanished(records, listings, self.realm, began)
        self.memory = Memory(
            looked_at=began,
            completed_at=self.now + timedelta(seconds=time.monotonic() - heard),
            late=late_ones(listings, last.late, began),
            owed=tuple(one.name for one in self.doomed if not one.is_gone),
            unknown=unknown,
            open_runs=tuple(one.run_id for one in records if any(line.may_cost for line in one.attempts)),
        )

    def message(self) -> str:
        """What came of it in one sentence."""
        owed = sum(not one.is_gone for one in self.doomed)
        live = len(self.found) - len(self.doomed)
        if self.dry_run:
            said = f"would terminate {len(self.doomed)}, {live} in use"
        else:
            said = f"{len(self.doomed) - owed} terminated and confirmed gone, {owed} still to confirm, {live} in use"
        if unknown := sum(one.remark == UNKNOWN for one in self.found):
            said = (
                said.replace(f"{live} in use", f"{live - unknown} in use")
                + f"; {unknown} of runs that are not known here"
            )
        if self.unread:
            said += f"; could not read {text.counted(len(self.unread), 'scope')}"
        if self.missing:
            said += f"; {text.counted(len(self.missing), 'instance')} without saved credentials"
        return said

    def reaped(self, message: str) -> Reaped:
        """All of it as data."""
        outcome = {(one.provider, one.account, one.name): one for one in self.doomed}
        return Reaped(
            message=message,
            dry_run=self.dry_run,
            found=tuple(outcome.get((one.provider, one.account, one.name), one) for one in self.found),
            unread=tuple(self.unread),
            missing=tuple(self.missing),
            remarks=tuple(self.remarks),
        )

    def page(self, message: str) -> str:
        """What a person reads: the artifact `reap`."""
        outcome = {one.name: one.came_of_it for one in self.doomed}
        lines = [
            f"# {message}",
            "",
            "| name | provider | account | $/h | why it ends | what came of it |",
            "|---|---|---|--:|---|---|",
        ]
        for one in self.found:
            price = "" if one.price is None else f"{one.price:.2f}"
            why = one.end_because or one.remark or "it is in use"
            lines.append(text.row(f"`{one.name}`", one.provider, one.account, price, why, outcome.get(one.name, "")))
        troubles = [*self.unread, *self.missing, *self.remarks]
        return "\n".join([*lines, "", *(f"* {text.cell(trouble)}" for trouble in troubles)])


def _accounts() -> list[tuple[str, str]]:
    """Every saved account of every provider, and this machine."""
    return [
        (provider.value, account)
        for provider, names in registry.saved_accounts().items()
        for account in names or ([registry.DEFAULT_ACCOUNT] if provider is registry.ProviderName.LOCAL else [])
    ]
