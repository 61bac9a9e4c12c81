"""When the last reap completed: said by whoever starts, for nobody else tells a team that its net is not there."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final

from prefect_gpu.flows.report import text
from prefect_gpu.flows.report.artifacts import newest
from prefect_gpu.providers.core.models import utc_now

KEY: Final = "reap"  # the artifact that each reap writes anew
COMPLETED: Final = "completed_at"
OVERDUE: Final = timedelta(minutes=15)  # three times as long as reaps lie apart


def completed_at() -> datetime | None:
    """By the Prefect server's clock; None where no reap has completed yet."""
    row = newest(KEY)
    with suppress(ValueError, TypeError, KeyError):
        return datetime.fromisoformat(row["metadata_"][COMPLETED]) if row else None
    return None


def standing() -> str:
    """`the last reap completed 3 min ago`, for whoever starts."""
    last = completed_at()
    if last is None:
        return "no reap has completed on this server yet"
    if last - utc_now() > OVERDUE:
        return "the last reap completed by a clock that was ahead"
    return f"the last reap completed {text.ago(last)}"


def overdue() -> str:
    """What is to be said where nobody reaps; an empty string while all is well."""
    last = completed_at()
    if last is not None and abs(utc_now() - last) <= OVERDUE:
        return ""
    return (
        f"{standing()}: rented machines may stay unless a worker of the work pool gpu-flows runs it every five minutes"
    )
