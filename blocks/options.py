"""The field that holds what every order of an account asks for: `options` of a run say otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, Field


def options_field(model: Callable[[], BaseModel]) -> Any:
    """The field of a credentials block for the options that its provider declares."""
    return Field(
        default_factory=model,
        title="Options",
        description="What every order asks for, unless a run says otherwise.",
    )
