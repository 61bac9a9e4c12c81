"""`up` and `deploy`: a server and a worker that stay, and what a server must hold for them."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient

from prefect_gpu.flows.report import last_reap
from prefect_gpu.flows.terminal import homes
from prefect_gpu.flows.terminal.deploy import deploy, has_online_worker
from prefect_gpu.flows.terminal.follow import Display
from prefect_gpu.flows.terminal.messages import Trouble, waiting
from prefect_gpu.flows.terminal.place import POOL, Place
from prefect_gpu.providers.core.typed import typed


def up(place: Place) -> int:
    """Server and worker, kept until `make down`."""
    place.start_worker()
    with place.asked() as client:
        deploy(client)
        with waiting("the worker starts"):
            _wait_for_worker(client, place)
        reaped = last_reap.standing()
    place.keep()
    display = Display()
    display.line(f"Prefect UI   {place.ui_url}")
    display.line(f"Reap         every five minutes; {reaped}")
    if place.is_own:
        # Where nobody looks it may go to a file that others read.
        said = place.password if display.console.is_terminal else f"see {homes.password_file(place.home)}"
        display.line(f"Password     {said}")
    display.line(f"{'Server and worker run' if place.is_own else 'The worker runs'} until `{typed('down')}`.")
    display.line()
    display.line(f"Next: {typed('run', gpu='H100:8', files='.', command='python train.py')}")
    display.line(f"      export PREFECT_API_URL={place.api_url}")
    if place.is_own:
        file = shlex.quote(str(homes.password_file(place.home)))
        display.line(f'      export PREFECT_API_AUTH_STRING="$(cat {file})"')
    prefect = Path(sys.executable).with_name("prefect")
    display.line(f"      {prefect} deployment run provision/default -p command='python train.py' -p gpu=H100:8 --watch")
    return 0


def _wait_for_worker(client: SyncPrefectClient, place: Place) -> None:
    deadline = time.monotonic() + 120
    while not has_online_worker(client):
        place.must_run()
        if time.monotonic() > deadline:
            raise Trouble(f"The worker does not report to the server: see {place.worker.log}.")
        time.sleep(0.2)


def deploy_only(place: Place) -> int:
    """The configured server gets work pool, blocks, deployments and automations."""
    with place.asked() as client:
        made = deploy(client)
    Display().line(f"Deployed to {place.api_url}: {', '.join(sorted(made))}. A worker of the pool {POOL} runs them.")
    return 0
