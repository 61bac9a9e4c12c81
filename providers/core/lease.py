"""The name is the ledger: realm, flow run, deadline, run count and attempt, readable from the name of any instance.

`pg-` realm (4) flow run id (25) deadline (5, minutes since the epoch) run count (1) attempt (2): exactly 40 characters of
`[a-z0-9-]`, numbers in base 36, valid in every name field of every provider.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from pydantic import Field, field_validator

from prefect_gpu.providers.core.models import Model, utc_now

MAX_RUN_COUNT: Final = 35
MAX_ATTEMPT: Final = 36**2 - 1
NAME_LENGTH: Final = 40

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_NAME = re.compile(r"pg-([a-z0-9]{4})([a-z0-9]{25})([a-z0-9]{5})([a-z0-9])([a-z0-9]{2})", re.ASCII)


class Lease(Model):
    """Who may hold an instance and until when. `lease.name` and `Lease.parse` are inverse to each other."""

    realm: str = Field(pattern=r"^[a-z0-9]{4}$")
    run_id: UUID
    deadline: datetime  # whole minutes
    run_count: int = Field(ge=0, le=MAX_RUN_COUNT)
    attempt: int = Field(ge=0, le=MAX_ATTEMPT)
    ordered_at: datetime | None = None  # no part of the name: from the run's record, where there is one

    @field_validator("deadline")
    @classmethod
    def _whole_minutes(cls, deadline: datetime) -> datetime:
        if deadline.tzinfo is None:
            raise ValueError("a deadline needs a time zone")
        minutes = int(-(-deadline.timestamp() // 60))  # up: a lease never ends before what was promised
        if not 0 <= minutes < 36**5:
            raise ValueError("a lease ends between 1970 and 2084: give the job a shorter timeout")
        return datetime.fromtimestamp(minutes * 60, UTC)

    @property
    def name(self) -> str:
        """The instance's name."""
        return (
            run_prefix(self.realm, self.run_id)
            + _base36(int(self.deadline.timestamp()) // 60, 5)
            + _base36(self.run_count, 1)
            + _base36(self.attempt, 2)
        )

    @property
    def is_over(self) -> bool:
        return utc_now() >= self.deadline

    @classmethod
    def parse(cls, name: str) -> Lease | None:
        """The lease that a name tells, or None: such a name is not ours and is never touched."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        realm, run, deadline, run_count, attempt = match.groups()
        run_number = int(run, 36)
        if run_number >= 1 << 128:
            return None
        return cls(
            realm=realm,
            run_id=UUID(int=run_number),
            deadline=datetime.fromtimestamp(int(deadline, 36) * 60, UTC),
            run_count=int(run_count, 36),
            attempt=int(attempt, 36),
        )


def realm_prefix(realm: str) -> str:
    """What the names of all instances of a realm begin with."""
    return f"pg-{realm}"


def run_prefix(realm: str, run_id: UUID) -> str:
    """What the names of all instances of a flow run begin with."""
    return realm_prefix(realm) + _base36(run_id.int, 25)


def _base36(number: int, width: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    if len(digits) > width:
        raise ValueError(f"the number does not fit {width} digits")
    return digits.rjust(width, "0")
