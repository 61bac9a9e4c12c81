"""What may be spent on an account, in the one shape that the credentials block of every provider has.

A block holds it as `budget`:

    budget: AccountBudget = budget_field()
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class AccountBudget(BaseModel):
    """Limits in USD over all runs of this Prefect server on the account, looked at before each order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_day: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        title="USD a day",
        description="By the calendar day in UTC. An order that would pass it is refused. Empty: none.",
    )
    per_month: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        title="USD a month",
        description="By the calendar month in UTC. An order that would pass it is refused. Empty: none.",
    )

    @property
    def is_set(self) -> bool:
        return self.per_day is not None or self.per_month is not None


def budget_field() -> Any:
    """The field of a credentials block that holds it."""
    return Field(
        default_factory=AccountBudget,
        title="Budget",
        description="What all runs of this Prefect server together may spend on the account.",
    )
