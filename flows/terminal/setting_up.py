"""The commands that set up: accounts, prices, a server and a worker that stay."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from prefect_gpu.flows.terminal import asked
from prefect_gpu.flows.terminal.app import SET_UP, Json, at_server, command
from prefect_gpu.flows.terminal.messages import waiting
from prefect_gpu.flows.terminal.place import Place


@command(SET_UP)
def connect(
    provider: Annotated[str, Parameter(help="A provider: `prefect-gpu providers` lists them.")] = "",
    *,
    account: Annotated[str, Parameter(help="The name to save the credentials under.")] = "default",
) -> int:
    """Ask for the credentials of a provider's account, check them with the provider, and save them as a Prefect block.

    ```
    prefect-gpu connect aws
    prefect-gpu connect ssh --account lab
    ```
    """
    asked.connectable(provider)  # before a server is waited for

    def ask(place: Place) -> int:
        with waiting("Prefect starts"):
            from prefect_gpu.flows.terminal import connect as connecting
            from prefect_gpu.flows.terminal.follow import Display
        with place.asked() as client:
            return connecting.connect(client, provider, account, Display())

    return at_server(ask)


@command(SET_UP)
def refresh(*, as_json: Annotated[Json, Parameter(name="--json")] = False) -> int:
    """Collect the prices of all providers anew, now."""

    def collect(place: Place) -> int:
        with waiting("Prefect starts"):
            from prefect_gpu.flows.terminal import here
        return here.refresh(place, as_json=as_json)

    return at_server(collect)


@command(SET_UP)
def up() -> int:
    """Start server and worker and keep them: the Prefect UI, schedules, earlier runs."""

    def keep(place: Place) -> int:
        with waiting("Prefect starts"):
            from prefect_gpu.flows.terminal import keeping
        return keeping.up(place)

    return at_server(keep, kept=True)


@command(SET_UP)
def down(
    *,
    force: Annotated[
        bool, Parameter(help="Also while jobs run: they are ended and their machines given back.", negative="")
    ] = False,
) -> int:
    """Stop what `up` started."""
    from prefect_gpu.flows.terminal import stopping

    return stopping.down(is_forced=force)


@command(SET_UP)
def deploy() -> int:
    """Make or update work pool, blocks, deployments and automations on the configured server; starts nothing."""

    def make(place: Place) -> int:
        with waiting("Prefect starts"):
            from prefect_gpu.flows.terminal import keeping
        return keeping.deploy_only(place)

    return at_server(make, configured_only=True)
