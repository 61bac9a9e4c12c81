"""The commands that look at runs, bring what they left, and end them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from prefect_gpu.flows.terminal import asked
from prefect_gpu.flows.terminal.app import LOOK, Json, Run, at_server, command
from prefect_gpu.flows.terminal.messages import waiting
from prefect_gpu.flows.terminal.options import JOB
from prefect_gpu.flows.terminal.place import Place


@command(LOOK)
def ps(
    *,
    everything: Annotated[
        bool, Parameter(name=["--all", "-a"], help="Ended runs too, the newest first.", negative="")
    ] = False,
    as_json: Annotated[Json, Parameter(name="--json")] = False,
) -> int:
    """Who runs what, where, since when, for how much so far; also ended runs whose machine may still cost money.

    ```
    prefect-gpu ps
    prefect-gpu ps --all --json
    ```
    """

    def show_them(place: Place) -> int:
        with waiting("Prefect starts"):
            from prefect_gpu.flows.terminal import ps as listing
        return listing.show(place, everything=everything, as_json=as_json)

    return at_server(show_them)


@command(LOOK)
def logs(
    run: Run = "",
    *,
    follow: Annotated[
        bool,
        Parameter(name=["--follow", "-f"], help="Go on until the run ends. Ctrl-C ends only the showing.", negative=""),
    ] = False,
    tail: Annotated[int | None, Parameter(help="Begin with the last so many lines.")] = None,
) -> int:
    """The steps of a run and its job's output.

    ```
    prefect-gpu logs cobalt-otter -f
    prefect-gpu logs cobalt-otter --tail 20
    ```
    """
    asked.refuse_no_run("logs", run)

    def show_them(place: Place) -> int:
        with waiting("Prefect starts"):
            from prefect_gpu.flows.terminal import logs as log
        return log.show(place, run, follow_it=follow, tail=tail)

    return at_server(show_them)


@command(LOOK)
def stop(run: Run = "", *, as_json: Annotated[Json, Parameter(name="--json")] = False) -> int:
    """Cancel a run, wait until its machine is gone, and say so.

    ```
    prefect-gpu stop cobalt-otter
    ```
    """
    asked.refuse_no_run("stop", run)

    def end_it(place: Place) -> int:
        with waiting("Prefect starts"):
            from prefect_gpu.flows.terminal import stop as stopping
        return stopping.stop(place, run, as_json=as_json)

    return at_server(end_it)


@command(LOOK)
def fetch(
    run: Run = "",
    *,
    to: Annotated[
        Path | None, Parameter(help="The folder to write; else fetched/ and the run's name.", group=JOB)
    ] = None,
    as_json: Annotated[Json, Parameter(name="--json")] = False,
) -> int:
    """Bring the whole log and the files of a run.

    ```
    prefect-gpu fetch cobalt-otter
    prefect-gpu fetch cobalt-otter --to results
    ```
    """
    asked.refuse_no_run("fetch", run)

    def bring_it(place: Place) -> int:
        with waiting("Prefect starts"):
            from prefect_gpu.flows.terminal import fetching
        return fetching.fetch(place, run, to, as_json=as_json)

    return at_server(bring_it)


@command(LOOK)
def reap(
    *,
    dry_run: Annotated[bool, Parameter(help="Only say what would be given back.", negative="")] = False,
    as_json: Annotated[Json, Parameter(name="--json")] = False,
) -> int:
    """Give back what nobody owns any more, now, by the providers' own listings."""

    def reap_now(place: Place) -> int:
        with waiting("Prefect starts"):
            from prefect_gpu.flows.terminal import here
        return here.reap_now(place, dry_run=dry_run, as_json=as_json)

    return at_server(reap_now)
