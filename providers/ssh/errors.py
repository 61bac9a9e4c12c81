"""What own machines add to the errors of all providers."""

from __future__ import annotations

import re

from prefect_gpu.providers.core.errors import HostKeyMismatch, NoCapacity, ProviderError, Transient

_ALARM = "ALARM: "


class HostDown(NoCapacity):
    """One machine does not answer, or not as it should; the others may."""

    short = "host down"


class HostKeyAlarm(HostDown):
    """Another machine answers at the address of one whose key is known, or somebody stands in between."""

    short = "wrong host key"
    is_loud = True


class LinkBroke(Transient):
    """The link to one machine broke while it answered."""


class RunsNothing(Transient):
    """One machine lets us log in and ran nothing of what it was told."""

    short = "runs nothing"


class InUse(NoCapacity):
    """Somebody else has it."""

    short = "in use"


def because(failure: ProviderError) -> str:
    """The message of an error as part of a sentence."""
    return re.sub(r"\[Errno -?\d+\] ", "", failure.message)


def out_of_reach(host: str, failure: ProviderError) -> str:
    """What a person should know about a machine that could not be used."""
    said = because(failure)
    if isinstance(failure, HostKeyMismatch):
        return (
            said
            if said.startswith(_ALARM)
            else (
                f"{_ALARM}{said}. Either {host} was set up again, and the block needs its new key, "
                "or another machine answers in its place"
            )
        )
    return said if said.startswith(f"{host} ") else f"{host} is out of reach: {said}"
