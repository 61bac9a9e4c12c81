"""What one reap remembers for the next: on the artifact `reap`, which the last one wrote."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Final
from uuid import UUID

from pydantic import AwareDatetime, ConfigDict, Field

from prefect_gpu.flows.report.artifacts import newest, noted, publish
from prefect_gpu.flows.report.last_reap import COMPLETED, KEY
from prefect_gpu.providers.core.models import Model, utc_now

_MEMORY: Final = "memory"
_APART: Final = timedelta(minutes=2)  # so far clocks may be apart that nobody has set right


class Memory(Model):
    """Times are those of the Prefect server's clock."""

    model_config = ConfigDict(extra="ignore")  # a worker of a newer version may have written more

    looked_at: AwareDatetime | None = None  # when the last reap that completed began to list
    completed_at: AwareDatetime | None = None
    late: dict[str, AwareDatetime] = Field(default_factory=dict)  # accounts that did not answer in time, and since when
    owed: tuple[str, ...] = ()  # names whose end was asked for and not seen
    unknown: dict[str, AwareDatetime] = Field(
        default_factory=dict
    )  # names whose run nobody knows, and when one was first seen
    open_runs: tuple[UUID, ...] = ()  # runs with lines that may cost money


def recall() -> tuple[Memory, UUID | None]:
    """What the last reap left, and the id of the artifact that it is on; nothing where there is none or nobody can read it."""
    row = newest(KEY)
    if row is None:
        return Memory(), None
    with suppress(ValueError, TypeError, KeyError):
        return _believed(Memory.model_validate_json(noted(row)[_MEMORY])), UUID(row["id"])
    return Memory(), UUID(row["id"])


def _believed(memory: Memory) -> Memory:
    """Without what is yet to come: a clock was ahead when it was written, and no later reap would look until that date."""
    soon = utc_now() + _APART
    looked_at = memory.looked_at if memory.looked_at is not None and memory.looked_at <= soon else None
    late = {account: since for account, since in memory.late.items() if since <= soon}
    return memory.model_copy(update={"looked_at": looked_at, "late": late})


def keep(memory: Memory, page: str, over: UUID | None) -> None:
    """Write the page that a person reads, and the memory with it."""
    metadata = {_MEMORY: memory.model_dump_json()}
    if memory.completed_at is not None:
        metadata[COMPLETED] = memory.completed_at.isoformat()
    publish(KEY, "markdown", page, None, "What the last reap found.", over=over, metadata=metadata)
