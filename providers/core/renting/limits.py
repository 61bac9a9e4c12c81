"""Rate limits that all workers of one Prefect server keep together, as global concurrency limits with slot decay; never in the way.

A vendor counts calls per account, and no worker alone knows how many there were. The limits are made on first use and belong to the
operator from then on: what is changed or switched off in the UI counts. When the server does not answer, calls go on without a limit
and one warning says so; giving back never asks at all.
"""

from __future__ import annotations

import contextvars
import functools
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.context import SyncClientContext

from prefect_gpu.providers.core.aside import Aside
from prefect_gpu.providers.core.contract import Provider, RateLimit
from prefect_gpu.providers.core.renting.plain_log import logger

LIMITED: Final = ("fetch_offers", "create_instance", "get_instance", "list_instances")  # terminating never waits
ALL: Final = "*"  # in Capabilities.rate_limits: all of these together
ANSWER_S: Final = 3.0  # so long Prefect's API may take
LONGEST_S: Final = 60.0  # so long a call waits for its turn
WITHOUT_S: Final = 60.0  # so long nobody is asked after the server did not answer


class Limits:
    """The limits of one account."""

    def __init__(self, provider: str, account: str, limits: Mapping[str, RateLimit]) -> None:
        self._limits = limits
        self._prefix = f"prefect-gpu {provider} {account}"
        self._without_until = 0.0
        self._lock = threading.Lock()

    def apply(self, driver: Provider[Any]) -> None:
        """Make the driver's methods take their turn, where they have a limit."""
        for method in LIMITED:
            if method in self._limits or ALL in self._limits:
                setattr(driver, method, self._in_turn(getattr(driver, method), method))

    def take(self, method: str) -> None:
        """Wait for this method's turn, at most a minute; returns at once while the server does not answer."""
        for key in (key for key in (method, ALL) if key in self._limits):
            self._take(key, time.monotonic() + LONGEST_S)

    def _take(self, key: str, end: float) -> None:
        name = f"{self._prefix} {'all calls' if key == ALL else key}"
        while time.monotonic() >= self._without_until:
            context = contextvars.copy_context()  # Prefect's settings and client live in it
            limit = self._limits[key]
            asked = Aside(lambda context=context, limit=limit: context.run(_take_slot, name, limit))
            try:
                if not asked.wait(ANSWER_S):
                    raise TimeoutError(f"no answer in {ANSWER_S:g} s")  # noqa: TRY301 - one way to go on without
                wait_s = asked.result()
            except Exception as trouble:  # noqa: BLE001 - whatever Prefect's client raises, the call goes on
                self._go_without(name, trouble)
                return
            if wait_s is None or time.monotonic() + wait_s > end:
                return
            time.sleep(wait_s)

    def _go_without(self, name: str, trouble: Exception) -> None:
        with self._lock:
            is_first = time.monotonic() >= self._without_until
            self._without_until = time.monotonic() + WITHOUT_S
        if is_first:
            logger().warning(
                "Prefect's API does not tell whether the rate limit %r has room: calls go on without it for %.0f s (%s: %s)",
                name, WITHOUT_S, type(trouble).__name__, trouble,
            )  # fmt: skip

    def _in_turn(self, call: Callable[..., Any], method: str) -> Callable[..., Any]:
        @functools.wraps(call)
        def in_turn(*given: Any, **named: Any) -> Any:
            self.take(method)
            return call(*given, **named)

        return in_turn


def _take_slot(name: str, limit: RateLimit) -> float | None:
    """Take one slot; else the seconds after which to ask again."""
    with SyncClientContext.get_or_create() as prefect:
        try:
            taken = prefect.client.increment_concurrency_slots([name], 1, "rate_limit")
        except httpx.HTTPStatusError as refused:
            if refused.response.status_code != 423:
                raise
            return min(float(refused.response.headers.get("retry-after", 1.0)), 10.0)
        if not taken.json():  # it is not there yet
            made = GlobalConcurrencyLimitCreate(
                name=name, limit=limit.calls, active_slots=1, slot_decay_per_second=limit.calls / limit.per_s
            )
            try:
                prefect.client.create_global_concurrency_limit(made)
            except httpx.HTTPStatusError as exists:  # another worker was first, or an operator switched it off
                if exists.response.status_code != 409:
                    raise
    return None
