"""`down`: what `up` keeps is stopped, the workers first; not under running jobs, unless it is forced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_gpu.flows.terminal import api, at_work, homes
from prefect_gpu.flows.terminal.daemon import Background, Daemon
from prefect_gpu.flows.terminal.messages import Trouble, tell, waiting
from prefect_gpu.flows.terminal.place import GIVE_BACK_S, Place, is_free, left_behind, starting, worker_name
from prefect_gpu.providers.core.typed import typed

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


def down(*, is_forced: bool) -> int:
    """The exit code, after what was stopped."""
    home = homes.to_stop()
    kept: list[tuple[Place, Background]] = []
    for is_own in (True, False):
        place = Place("", home, is_own=is_own)
        found = next((found for daemon in reversed(place.daemons) if (found := daemon.find()) and found.kept), None)
        if found is not None:
            place.api_url = found.url
            place.password = homes.password(home) if is_own else None
            kept.append((place, found))
    if not kept:
        print("Nothing is up.")  # noqa: T201
        return 0
    at = [(place, _at_work(place, is_forced)) for place, _ in kept]
    if (running := [run for _, runs in at for run in runs]) and not is_forced:
        names = ", ".join(run.name for run in running[:5])
        raise Trouble(
            f"{len(running)} {'job is' if len(running) == 1 else 'jobs are'} at work ({names}): wait, "
            f"or end them and give their machines back with `{typed('down', force=True)}`."
        )
    with waiting("the jobs end and their machines are given back"):
        for place, runs in at:
            if runs:
                with api.asked(place.api_url, place.password) as client:
                    left = at_work.end(client, worker=_whose(place), within_s=GIVE_BACK_S)
                if left:
                    tell(left_behind(left))
    for place, _ in kept:
        with starting(place.folder), waiting("server and worker end"):
            for daemon in place.daemons:
                daemon.stop()
            if place.is_own and is_free(home):
                homes.forget_password(home)
        if place.is_own:
            print(f"Server and worker are stopped. Earlier runs are kept; `{typed('up')}` shows them again.")  # noqa: T201
        else:
            print(f"The worker for {place.api_url} is stopped.")  # noqa: T201
    return 0


def _whose(place: Place) -> str | None:
    return None if place.is_own else worker_name(place.home, is_own=False)


def _at_work(place: Place, is_forced: bool) -> list[FlowRun]:
    """The runs under which nothing may be stopped. A server of our own that has died is asked nothing."""
    if place.is_own and Daemon("server", place.home).find() is None:
        return []
    try:
        with api.asked(place.api_url, place.password) as client:
            return at_work.runs(client, _whose(place))
    except Trouble as trouble:
        if not is_forced:
            raise Trouble(
                f"{trouble} Whether a job is at work is not known, and nothing was stopped: "
                f"`{typed('down', force=True)}` stops the worker all the same."
            ) from None
        tell(f"{trouble} Whether a job was at work is not known: `{typed('reap')}` gives back what it may have left.")
        return []
