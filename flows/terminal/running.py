"""`run`: one job from offers to given back, followed to its end; what becomes of it when `run` is ended early."""

from __future__ import annotations

import getpass
import socket
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelling

from prefect_gpu.flows.run.record import Record
from prefect_gpu.flows.terminal import at_work, fetching
from prefect_gpu.flows.terminal.along import Along
from prefect_gpu.flows.terminal.deploy import deploy, has_online_worker, provision_deployment, refuse_paused
from prefect_gpu.flows.terminal.follow import Display, NotStarted, follow
from prefect_gpu.flows.terminal.messages import NobodyReads, Trouble, tell
from prefect_gpu.flows.terminal.place import Place
from prefect_gpu.flows.terminal.records import Records
from prefect_gpu.providers.core.typed import typed

CANCEL_S: Final = 5.0  # so long a server may be away when a run is to be cancelled
WHO: Final = "prefect-gpu.user"  # a label of the run: an open source server knows nobody
NOTHING: Final = Along([])
GIVE_BACK_S: Final = 90.0  # so long a cancelled run may take to end its job and give its machine back


def run(place: Place, parameters: dict[str, Any], along: Along = NOTHING) -> int:
    """One job from offers to given back; the exit code. What goes along by itself does where the worker works in this folder."""
    display = Display()
    if along.files and place.is_own:
        job = {**parameters.get("job", {}), "files": along.files}
        parameters = {**parameters, "job": job}
        tell(f"{along.said}.")
    if place.is_own:
        place.start_worker()  # it takes seconds to start: beside the server, and while the rest is made
    with place.asked() as client:
        if place.is_own:
            deployment = deploy(client)["provision/default"]
        else:
            deployment = provision_deployment(client) or deploy(client)["provision/default"]
            if not has_online_worker(client):
                place.start_worker()
        refuse_paused(client, deployment)
        make = partial(
            client.create_flow_run_from_deployment,
            deployment,
            parameters=parameters,
            idempotency_key=uuid4().hex,
            # The files are those where it was typed, also for a worker that was started elsewhere.
            job_variables={"working_dir": str(Path.cwd())} if place.is_own else None,
            labels={WHO: who()},
        )
        try:
            flow_run = make()
        except (KeyboardInterrupt, httpx.TransportError):
            with suppress(httpx.TransportError):  # the run may have been made: the same key names the same run
                _cancel(client, make().id)
            raise
        place.run_id = flow_run.id
        every_s = 0.1 if place.is_own else 1.0
        records = Records(client, flow_run.id)
        try:
            final = follow(records, display, every_s=every_s, check=place.must_run)
        except BaseException as why:  # noqa: BLE001 - whatever it is, the run does not outlive its worker
            final = _ended_early(client, flow_run, records, display, place, why)
        at_work.give_back_crashed(client, [final])
        is_over = final.state is not None and final.state.is_final()
        if is_over:
            place.run_id = None
        record = Record.read(flow_run.id)
        display.closing(final, record)
        if is_over and parameters.get("job", {}).get("outputs"):
            _bring(final, display)
    if not is_over:
        raise Trouble(
            f"The run {flow_run.name} was cancelled and does not end: `{typed('reap')}` gives back what it leaves."
        )
    if final.state is not None and final.state.is_cancelled():
        return 130
    if final.state is None or not final.state.is_completed():
        return 1
    _say_next(display, place, final)
    return 0


def who() -> str:
    """Who types here, as others on the same server would know them."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def _ended_early(
    client: SyncPrefectClient, run: FlowRun, records: Records, display: Display, place: Place, why: BaseException
) -> FlowRun:
    """What becomes of the run when `run` has to leave it: cancelled, unless another's worker is at work on it.

    After Ctrl-C and where nobody reads any more it is followed until its machine is given back; anything else is raised, with
    what became of the run.
    """
    display.must_be_read = False  # from here on the machine matters, not who reads
    is_left = isinstance(why, KeyboardInterrupt | NobodyReads)
    said = str(why) if isinstance(why, Trouble) else ""
    if isinstance(why, httpx.TransportError):
        said = f"The Prefect server at {place.api_url} stopped answering ({type(why).__name__})."
    if not is_left and not place.started and not isinstance(why, NotStarted):
        place.run_id = None
        if not said:
            raise why
        raise Trouble(f"{said} The run goes on: {_address(place, run)}") from why
    failure = _cancel(client, run.id)  # before a word is said: saying it may fail
    if is_left and failure is None:
        display.line()
        display.line("Cancelling: the job is ended and its machine given back ...")
        return follow(records, display, every_s=0.2, check=place.must_run, within_s=GIVE_BACK_S)
    if not is_left and not said:
        raise why
    said = said or "Interrupted."
    if failure is None:
        if isinstance(why, NotStarted) and not place.started:
            place.run_id = None
        raise Trouble(f"{said} The run was cancelled.") from why
    where = f"in the Prefect UI, which `{typed('up')}` starts" if place.is_own else f"at {_address(place, run)}"
    raise Trouble(f"{said} The run {run.name} could not be cancelled ({failure}): cancel it {where}.") from why


def _cancel(client: SyncPrefectClient, run_id: UUID) -> str | None:
    """Cancel the run; why that was not possible, or None."""
    deadline = time.monotonic() + CANCEL_S
    while True:
        try:
            client.set_flow_run_state(run_id, Cancelling(message="by the command that started it, which was ended"))
        except ObjectNotFound:
            return None  # it was deleted, and its process gives back what it has
        except (httpx.TransportError, PrefectHTTPStatusError) as error:
            if time.monotonic() > deadline:
                return type(error).__name__
        else:
            return None
        time.sleep(0.5)


def _address(place: Place, run: FlowRun) -> str:
    return f"{place.ui_url}/runs/flow-run/{run.id}"


def _bring(run: FlowRun, display: Display) -> None:
    """The files that were asked for come to who asked; where this computer cannot reach them, how is said."""
    try:
        files = fetching.bring(run, fetching.folder_of(run))
    except Exception as trouble:  # noqa: BLE001 - any storage's; the run itself is told already
        files = []
        display.line(f"Its files were not brought ({type(trouble).__name__}).", "yellow")
    if files:
        display.line(
            f"{len(files)} {'file' if len(files) == 1 else 'files'} in {fetching.near(fetching.folder_of(run))}"
        )
    else:
        display.line(
            f"`{typed('fetch', run=run.name)}` brings its log and its files, where this computer reaches their storage."
        )


WIDEST: Final = 48  # columns of what is typed; an address may be longer


def _say_next(display: Display, place: Place, final: FlowRun) -> None:
    display.line()
    lines = [
        (
            typed("run", gpu="H100", command="nvidia-smi"),
            f"another job; `{typed('plan', gpu='H100')}` says first what it would cost",
        ),
        (typed("connect", provider="aws"), f"rent from a provider; `{typed('providers')}` shows them all"),
    ]
    if place.is_own and place.server is not None:
        lines.insert(0, (typed("up"), "keep server and worker: this run and the next in the Prefect UI"))
    else:
        lines.insert(0, (_address(place, final), "this run in the Prefect UI"))
    width = max(len(what) for what, _ in lines if len(what) <= WIDEST)
    for number, (what, why) in enumerate(lines):
        display.line(f"{'Next:' if number == 0 else '':<6}{what:<{width}}  {why}")
