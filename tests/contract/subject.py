"""One driver under test, the faults its vendor can have, and orders as the library makes them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NoReturn

import pytest

from prefect_gpu.providers.core.contract import Provider
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.models import Instance, LaunchSpec, Listing, utc_now
from prefect_gpu.providers.core.requests import Requirements

REALM = "conf"
OTHER_REALM = "cone"
MASTER_SECRET = b"the master secret of conformance"


class Faults:
    """Faults that a driver's test can inject at its vendor. Each that is not overridden skips the tests that need it.

    Unless said otherwise a fault hits the next call of its kind once. Where a method returns text, it is the vendor's own words
    (or code) that the error's message must carry; None where the vendor has none.
    """

    def sell_out(self) -> str | None:
        """The next create is refused: none left."""
        self._skip("sold out")

    def refuse_quota(self) -> str | None:
        """The next create is refused: over quota."""
        self._skip("over quota")

    def empty_the_balance(self) -> str | None:
        """The next create is refused: no money left."""
        self._skip("balance too low")

    def refuse_credentials(self) -> str | None:
        """All calls from now on are refused: the credentials are wrong."""
        self._skip("credentials refused")

    def refuse_the_request(self) -> str | None:
        """The next create is refused with a code that nobody mapped."""
        self._skip("an unmapped error")

    def limit_rate(self) -> float | None:
        """The next get gets a 429; returns the seconds to wait that the vendor names, if it does."""
        self._skip("rate limited")

    def limit_creates(self) -> None:
        """The next create gets a 429: the order itself, not what a driver reads before it."""
        self._skip("rate limited at create")

    def break_creates(self) -> str | None:
        """The next create is answered by a 5xx."""
        self._skip("a 5xx at create")

    def break_reads(self) -> str | None:
        """Gets are answered by a 5xx from now on, until `restore`."""
        self._skip("a 5xx at get")

    def break_terminates(self) -> str | None:
        """The next terminate is answered by a 5xx."""
        self._skip("a 5xx at terminate")

    def lose_the_answer(self) -> None:
        """The next create takes effect and its answer is lost."""
        self._skip("a lost answer")

    def garble_the_answer(self) -> None:
        """The next create takes effect and its 2xx answer is unreadable or names no id."""
        self._skip("an unreadable answer")

    def refuse_connections(self) -> None:
        """The next create cannot connect: nothing was sent."""
        self._skip("connection refused")

    def make_unreadable(self) -> str:
        """Listings of one scope fail from now on; returns the scope as `Unread.scope` names it."""
        self._skip("an unreadable scope")

    def restore(self) -> None:
        """Take back what `make_unreadable`, `break_reads` and `refuse_credentials` did."""
        self._skip("taking faults back")

    def show_status(self, instance: Instance, status: str) -> None:
        """The vendor reports this status string for this instance from now on."""
        self._skip("a new status")

    def shrink_pages(self) -> None:
        """Listings come in pages of one or two from now on."""
        self._skip("pages")

    def leave_something(self) -> None:
        """The next instance to be terminated leaves something behind that costs money (a disk, an address ...)."""
        self._skip("leftovers")

    def create_requests(self) -> int:
        """How many create requests of instances the vendor has received so far."""
        self._skip("counting requests")

    def someone_elses(self) -> str:
        """Make an instance that is not ours: its name has `pg-conf` in it, but not at its beginning. Returns the name."""
        self._skip("a stranger's instance")

    def borrow_the_name(self, instance: Instance) -> str:
        """Give something that nobody ordered for us this instance's name and tags, as far as anybody may set them; returns its id."""
        self._skip("a borrowed name")

    def pass_deadline(self, instance: Instance) -> None:
        """Let the lease of this instance end and nobody act on it."""
        self._skip("the end of a lease")

    @staticmethod
    def _skip(what: str) -> NoReturn:
        pytest.skip(f"this driver's test injects no fault: {what}")


@dataclass
class Subject:
    """One driver under test, and how to handle the vendor behind it."""

    provider: Provider[Any]
    secrets: tuple[str, ...]  # strings that stand in no message: keys, tokens, passwords; () only where there are none
    unknown_id: str  # of the right form, never given to any instance
    pass_time: Callable[[float], None] = time.sleep  # lets so many seconds pass at the vendor
    requirements: Requirements = field(default_factory=Requirements)  # that at least one offer meets
    faults: Faults = field(default_factory=Faults)
    at_once_s: float = 5.0  # what a call to this fake may take on a busy machine
    options: dict[str, Any] = field(default_factory=dict)  # LaunchSpec.options
    one_each: bool = False  # an offer is one machine: who wants two takes two offers


def lease_name(realm: str = REALM, run: uuid.UUID | None = None, attempt: int = 0, hours: float = 2) -> str:
    """A name as the library makes them."""
    deadline = utc_now() + timedelta(hours=hours)
    return Lease(realm=realm, run_id=run or uuid.uuid4(), deadline=deadline, run_count=1, attempt=attempt).name


def launch_spec(provider: Provider[Any], name: str, *, deadline: datetime | None = None, **more: Any) -> LaunchSpec:
    """An order as the library makes them: keys derived from the name, deadline of the name."""
    lease = Lease.parse(name)
    assert lease is not None, f"{name} is no lease's name"
    has_host_key = provider.capabilities.host_key == "placed"
    return LaunchSpec(
        name=name,
        deadline=deadline or lease.deadline,
        client_public_key=derive(MASTER_SECRET, name, "client").public,
        host_key=derive(MASTER_SECRET, name, "host") if has_host_key else None,
        **more,
    )


def refuse_secrets(text: str, subject: Subject) -> None:
    """No credential, no query string, no header."""
    for secret in subject.secrets:
        assert secret not in text, "a secret stands in a message"
    lowered = text.lower()
    for sign in ("authorization:", "bearer ", "x-api-key", "private key-----", "api_key=", "token=", "&signature="):
        assert sign not in lowered, f"{sign!r} stands in a message"


def same_error(one: BaseException, other: BaseException) -> bool:
    return type(one) is type(other) and str(one) == str(other) and one.__dict__ == other.__dict__


def is_empty(listing: Listing) -> bool:
    """Complete, without leftovers, and nothing in it but what is final."""
    return (
        listing.is_complete and not listing.leftovers and all(instance.state.is_final for instance in listing.instances)
    )
