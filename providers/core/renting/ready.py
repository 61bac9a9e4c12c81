"""From an accepted order to a machine that answers: the one place where the world is waited for."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from prefect_gpu.providers.core.aside import Stopped, attended, never
from prefect_gpu.providers.core.contract import Connection, Provider
from prefect_gpu.providers.core.errors import Category, HostKeyMismatch, InstanceFailed, NotFound, Transient
from prefect_gpu.providers.core.models import Instance, InstanceState
from prefect_gpu.providers.core.renting.order import Clock
from prefect_gpu.providers.core.renting.progress import OnProgress, Waiting, silent

EAGER_S = 30.0  # so long a connect is tried every 100 ms, then ever more seldom
_GONE = (InstanceState.TERMINATING, InstanceState.TERMINATED, InstanceState.INTERRUPTED)


def wait_until_ready(
    driver: Provider[Any],
    instance: Instance,
    connect: Callable[[Instance], Connection],
    *,
    boot_deadline_s: float,
    should_stop: Callable[[], str | None] = never,
    on_progress: OnProgress = silent,
    on_running: Callable[[], object] = never,
    clock: Clock | None = None,
) -> tuple[Instance, Connection]:
    """The instance as it is when a verified connection to it stands, and that connection.

    `on_progress` gets what is waited for and for how many seconds already, at most every 15 s; `on_running` is called once, when
    the provider first says that it runs. Raises InstanceFailed when it will never run or the boot deadline is over; Stopped when
    `should_stop` said so.
    """
    clock = clock or Clock()
    started = clock.now()
    next_look, look_wait = started, 1.0
    waiting = Waiting(on_progress, clock, first_s=5.0)
    connect_wait, last = 0.1, "not running yet"
    category: Category | None = None
    is_told = False
    # A driver whose create already answers with a running machine (local, ssh) is connected to at once.
    if instance.state is InstanceState.RUNNING:
        next_look = started + look_wait
    while True:
        if (reason := should_stop()) is not None:
            raise Stopped(reason)
        now = clock.now()
        if now - started >= boot_deadline_s:
            raise InstanceFailed(f"not ready after {boot_deadline_s / 60:.0f} min: {last}", category=category)
        if now >= next_look:
            instance, last = _look(driver, instance, last, now - started)
            next_look, look_wait = clock.now() + look_wait, min(look_wait * 1.3, 10.0)
        if instance.state is InstanceState.RUNNING:
            if not is_told:
                is_told = True
                on_running()
            try:
                here = instance
                return here, attended(lambda: connect(here), should_stop, discard=lambda late: late.close())  # noqa: B023 - called now
            except Transient as not_yet:  # NotReady, or an API that hiccups: the machine is there and is paid for
                last = not_yet.message
                category = "host_key" if isinstance(not_yet, HostKeyMismatch) else None
        waiting.on(last)
        if now - started > EAGER_S:
            connect_wait = min(connect_wait * 1.5, 0.5) * random.uniform(0.9, 1.1)  # noqa: S311 - jitter, no secret
        clock.sleep(connect_wait)


def _look(driver: Provider[Any], instance: Instance, last: str, waited_s: float) -> tuple[Instance, str]:
    try:
        seen = driver.get_instance(instance.id)
    except NotFound as gone:
        if waited_s > driver.capabilities.listing_lag_s:
            raise InstanceFailed(f"vanished while it booted: {gone.message}") from gone
        return instance, "not listed yet"
    except Transient as trouble:
        return instance, trouble.message
    if seen.state is InstanceState.FAILED:
        raise InstanceFailed(seen.reason or "the provider says that it failed")
    if seen.state in _GONE:
        why = f": {seen.reason}" if seen.reason else ""
        interrupted = "interrupted" if seen.state is InstanceState.INTERRUPTED else None
        raise InstanceFailed(f"{seen.state.value} while it booted{why}", category=interrupted)
    return seen, seen.reason or (last if seen.state is InstanceState.RUNNING else f"{seen.state.value}")
