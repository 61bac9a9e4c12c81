"""Many regions, zones or lists read side by side: what was found, and what could not be read and why. Unread is not empty."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final, Generic, NamedTuple, TypeVar

from prefect_gpu.providers.core.aside import Aside
from prefect_gpu.providers.core.errors import AuthFailed, InvalidRequest, NotFound, ProviderError
from prefect_gpu.providers.core.models import Instance, Listing, Unproved, Unread

T = TypeVar("T")

AT_ONCE: Final = 16
BORROWED: Final = "borrowed name"  # in `Instance.raw`
WITHIN_S: Final = 120.0  # for all scopes together


class Read(NamedTuple, Generic[T]):
    """What was read, scope by scope."""

    found: dict[str, T]
    unread: tuple[Unread, ...]


def read_each(
    scopes: Iterable[str], read: Callable[[str], T], *, at_once: int = AT_ONCE, within_s: float = WITHIN_S
) -> Read[T]:
    """What `read` returns for each scope; a scope that fails, hangs or answers nonsense is unread and holds up no other.

    Raises AuthFailed where every scope refuses the credentials: then they are no good.
    """
    waiting = list(dict.fromkeys(scopes))
    running: dict[str, Aside[T]] = {}
    found: dict[str, T] = {}
    failed: dict[str, BaseException] = {}
    end = time.monotonic() + within_s
    while waiting or running:
        while waiting and len(running) < at_once:
            scope = waiting.pop(0)
            running[scope] = Aside(lambda scope=scope: read(scope))
        oldest = next(iter(running.values()))
        oldest.wait(max(0.0, min(0.05, end - time.monotonic())))
        for scope in [scope for scope, call in running.items() if call.wait(0)]:
            try:
                found[scope] = running.pop(scope).result()
            except Exception as failure:  # noqa: BLE001 - whatever one scope answers, the others are read
                failed[scope] = failure
        if time.monotonic() >= end and (waiting or running):
            late = TimeoutError(f"no answer in {within_s:g} s")
            failed |= dict.fromkeys([*running, *waiting], late)
            break
    refusals = [failure for failure in failed.values() if isinstance(failure, AuthFailed)]
    if refusals and not found and len(refusals) == len(failed):
        raise refusals[0]
    return Read(found, tuple(Unread(scope=scope, reason=_reason(failure)) for scope, failure in failed.items()))


def listing(read: Read[list[Instance]], prefix: str) -> Listing:
    """Of all instances that were read those whose proved name begins with the prefix, and what only bears such a name."""
    every = [instance for instances in read.found.values() for instance in instances]
    return Listing(
        instances=tuple(one for one in every if one.name.startswith(prefix) and one.name),
        unproved=tuple(
            Unproved(id=one.id, kind="instance", name=borrowed, region=one.region, reason=one.reason)
            for one in every
            if (borrowed := str(one.raw.get(BORROWED, ""))) and borrowed.startswith(prefix)
        ),
        incomplete=read.unread,
    )


def ours_or_not(name: object, proof: object, how: str) -> tuple[str, str, dict[str, str]]:
    """Name, reason and raw of something called `name` that is ours if `proof`, which only an order can set, is the same.

    Where a vendor does not tell the proof (None) its name is believed.
    """
    if proof in (None, name):
        return str(name or ""), "", {}
    return "", f"its {how} is {proof!r}, not its name", {BORROWED: str(name or "")}


def must_be_ours(instance: Instance) -> None:
    """InvalidRequest for something that only bears a name of ours: it is left alone."""
    if BORROWED in instance.raw:
        raise InvalidRequest(
            f"{instance.id} is not ours, though it is called {instance.raw[BORROWED]}: {instance.reason}"
        )


def scoped(scope: str, number: str | int) -> str:
    """The id of something that its vendor numbers within a scope: `us-east-1/i-0a1b`."""
    return f"{scope}/{number}"


def split(instance_id: str, scopes: Iterable[str] | None = None) -> tuple[str, str]:
    """Scope and number of such an id. NotFound, for anything else that is no id of this form (or of one of these scopes)."""
    scope, slash, number = instance_id.partition("/")
    is_plain = all(part.replace("-", "").replace("_", "").isalnum() and part.isascii() for part in (scope, number))
    if not slash or not is_plain or (scopes is not None and scope not in scopes):
        raise NotFound(f"{instance_id!r} is not an instance's id")
    return scope, number


def _reason(failure: BaseException) -> str:
    if isinstance(failure, ProviderError):
        return failure.message
    if isinstance(failure, TimeoutError):
        return str(failure)
    return f"its answer cannot be read ({type(failure).__name__})"
