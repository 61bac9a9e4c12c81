"""Vendors' words read with care: states that are never believed further than they go, times that may be nonsense."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from prefect_gpu.providers.core.models import InstanceState, SshEndpoint


def state_of(word: str, states: Mapping[str, InstanceState], ssh: SshEndpoint | None) -> InstanceState:
    """What a vendor's word means: unknown if it was never seen before; running needs an endpoint, not just the vendor's word."""
    state = states.get(word, InstanceState.UNKNOWN)
    return InstanceState.PROVISIONING if state is InstanceState.RUNNING and ssh is None else state


def moment(text: object) -> datetime | None:
    """An ISO 8601 time as aware UTC; None for anything else: a bought machine must not be lost to an odd date."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
