"""What `make run`, `make plan`, `make providers` and the others do and show on a terminal."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.worker import EventsWorker
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.logging.configuration import setup_logging
from prefect.logging.handlers import APILogWorker, PrefectConsoleHandler
from prefect.states import Cancelling

from flows import overview, results
from flows.connect import connect, provider_named
from flows.deploy import deploy, has_online_worker, provision_deployment
from flows.environment import POOL, PROJECT, Place
from flows.follow import Display, NotStarted, first_line, follow
from flows.plan import plan
from flows.reap import reap
from flows.record import Record
from flows.refresh_catalog import refresh_catalog
from flows.terminal import NobodyReads, Trouble, waiting
from providers import DEFAULT_ACCOUNT, ProviderName

SMALL_JOB: Final = 'python3 -c "print(6*7)"'
CANCEL_S: Final = 5.0  # so long a server may be away when a run is to be cancelled
GIVE_BACK_S: Final = 90.0  # so long a cancelled run may take to end its job and give its machine back


@contextmanager
def client_of(place: Place) -> Generator[SyncPrefectClient]:
    """A client of the server, once it answers; what the server says against it becomes a sentence."""
    place.wait_for_server()
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.TransportError as error:
        place.must_run()
        raise Trouble(f"The Prefect server at {place.api_url} stopped answering ({type(error).__name__}).") from error
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise Trouble(
                f"{place.api_url} refuses ({status}): are PREFECT_API_KEY and PREFECT_API_AUTH_STRING right?"
            ) from None
        if status in (409, 422):  # parameters that this server's deployment does not take: it may be an older one
            raise Trouble(f"{place.api_url} refuses: {_detail(error)}") from None
        raise


def _detail(error: PrefectHTTPStatusError) -> str:
    """What the server says against a request, in its own words."""
    try:
        detail = error.response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = error.response.text
    return " ".join(str(detail).split()) or f"status {error.response.status_code}"


# --- make run ----------------------------------------------------------------------------------------------------------


def run(place: Place) -> int:
    """`make run`: one job from offers to given back."""
    parameters = job_parameters(os.environ)
    display = Display()
    if place.is_own:
        place.start_worker()  # it takes seconds to start: beside the server, and while the rest is made
    with client_of(place) as client:
        if place.is_own:
            deployment = deploy(client)["provision/default"]
        else:
            deployment = provision_deployment(client) or deploy(client)["provision/default"]
            if not has_online_worker(client):
                place.start_worker()
        make = partial(
            client.create_flow_run_from_deployment, deployment, parameters=parameters, idempotency_key=uuid4().hex
        )
        try:
            flow_run = make()
        except (KeyboardInterrupt, httpx.TransportError):
            with suppress(httpx.TransportError):  # the run may have been made: the same key names the same run
                _cancel(client, make().id)
            raise
        place.run_id = str(flow_run.id)
        every_s = 0.1 if place.is_own else 1.0
        try:
            final = follow(client, flow_run.id, display, every_s=every_s, check=place.must_run)
        except BaseException as why:  # noqa: BLE001 - whatever it is, the run does not outlive its worker
            final = _ended_early(client, flow_run, display, place, why)
        is_over = final.state is not None and final.state.is_final()
        if is_over:
            place.run_id = None
        record = Record.read(flow_run.id)
        display.closing(final, record)
    if not is_over:
        raise Trouble(f"The run {flow_run.name} was cancelled and does not end: `make reap` gives back what it leaves.")
    if final.state is not None and final.state.is_cancelled():
        return 130
    if final.state is None or not final.state.is_completed():
        return 1
    _say_next(display, place, final)
    return 0


def _ended_early(
    client: SyncPrefectClient, run: FlowRun, display: Display, place: Place, why: BaseException
) -> FlowRun:
    """What becomes of the run when `make run` has to leave it: cancelled, unless another's worker is at work on it.

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
        return follow(client, run.id, display, every_s=0.2, check=place.must_run, within_s=GIVE_BACK_S)
    if not is_left and not said:
        raise why
    said = said or "Interrupted."
    if failure is None:
        if isinstance(why, NotStarted) and not place.started:
            place.run_id = None
        raise Trouble(f"{said} The run was cancelled.") from why
    where = "in the Prefect UI, which `make up` starts" if place.is_own else f"at {_address(place, run)}"
    raise Trouble(f"{said} The run {run.name} could not be cancelled ({failure}): cancel it {where}.") from why


def _cancel(client: SyncPrefectClient, run_id: UUID) -> str | None:
    """Cancel the run; why that was not possible, or None."""
    deadline = time.monotonic() + CANCEL_S
    while True:
        try:
            client.set_flow_run_state(run_id, Cancelling(message="by `make run`, which was ended"))
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


def job_parameters(variables: Mapping[str, str]) -> dict[str, Any]:
    """The parameters of `provision` from what was written after `make run`."""
    parameters: dict[str, Any] = {"command": variables.get("JOB") or SMALL_JOB}
    if gpu := variables.get("GPU"):
        parameters["gpu"] = gpu
    if price := variables.get("MAX_PRICE"):
        parameters["max_price"] = _price(price)
    if providers := _providers(variables.get("PROVIDERS")):
        parameters["providers"] = providers
    elif not variables.get("JOB") and not variables.get("GPU"):
        parameters["providers"] = ["local"]  # the first run costs nothing, whatever is connected
    if account := variables.get("ACCOUNT"):
        parameters["account"] = account
    job = {name: _words(variables.get(name.upper())) for name in ("files", "outputs")}
    if any(job.values()):
        parameters["job"] = {name: paths for name, paths in job.items() if paths}
    return parameters


def _providers(text: str | None) -> list[str]:
    """The providers' own names: the server's form of the flow knows no aliases."""
    names: list[str] = []
    for word in _words(text):
        try:
            names.append(ProviderName(word).value)
        except ValueError:
            known = ", ".join(one.value for one in ProviderName)
            raise Trouble(f"PROVIDERS: there is no provider {word!r}; write one or some of {known}.") from None
    return names


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not (math.isfinite(price) and price >= 0):  # "nan" and "inf" are numbers to Python, and no limit to anybody
        raise Trouble(f"MAX_PRICE={text} is no price: write USD per hour, for example MAX_PRICE=20.")
    return price


def _words(text: str | None) -> list[str]:
    return (text or "").replace(",", " ").split()


def _say_next(display: Display, place: Place, final: FlowRun) -> None:
    display.line()
    lines = [
        ("make run JOB='nvidia-smi' GPU=H100", "another job; `make plan GPU=H100` says first what it would cost"),
        ("make connect PROVIDER=aws", "rent from a provider; `make providers` shows them all"),
    ]
    if place.is_own and place.server is not None:
        lines.insert(0, ("make up", "keep server and worker: this run and the next in the Prefect UI"))
    else:
        lines.insert(0, (_address(place, final), "this run in the Prefect UI"))
    for number, (what, why) in enumerate(lines):
        display.line(f"{'Next:' if number == 0 else '':<6}{what:<36}  {why}")


# --- make up, make deploy ----------------------------------------------------------------------------------------------


def up(place: Place) -> int:
    """`make up`: server and worker, kept until `make down`."""
    place.start_worker()
    with client_of(place) as client:
        deploy(client)
        with waiting("the worker starts"):
            _wait_for_worker(client, place)
    display = Display()
    display.line(f"Prefect UI   {place.ui_url}")
    display.line("Server and worker run until `make down`." if place.is_own else "The worker runs until `make down`.")
    display.line()
    display.line("Next: make run JOB='python train.py' GPU=H100:8")
    display.line(f"      export PREFECT_API_URL={place.api_url}")
    display.line(
        "      .venv/bin/prefect deployment run provision/default -p command='python train.py' -p gpu=H100:8 --watch"
    )
    return 0


def _wait_for_worker(client: SyncPrefectClient, place: Place) -> None:
    deadline = time.monotonic() + 120
    while not has_online_worker(client):
        place.must_run()
        if time.monotonic() > deadline:
            raise Trouble(f"The worker does not report to the server: see {place.worker.log}.")
        time.sleep(0.2)


def deploy_only(place: Place) -> int:
    """`make deploy`: the configured server gets work pool, blocks, deployments and automations."""
    with client_of(place) as client:
        made = deploy(client)
    Display().line(f"Deployed to {place.api_url}: {', '.join(sorted(made))}. A worker of the pool {POOL} runs them.")
    return 0


# --- make fetch --------------------------------------------------------------------------------------------------------


def fetch(place: Place) -> int:
    """`make fetch RUN=...`: the log and the files of a run, into fetched/<name of the run>/."""
    wanted = os.environ.get("RUN", "")
    if not wanted:
        raise Trouble("Say whose: `make fetch RUN=` and the name or the id of a run, as the Prefect UI shows it.")
    with client_of(place) as client:
        flow_run = _find_run(client, wanted)
        destination = PROJECT / "fetched" / flow_run.name
        files = results.fetch(flow_run.id, destination)
    if not files:
        raise Trouble(
            f"The run {flow_run.name} left nothing: it never started a job, or another result storage has it."
        )
    display = Display()
    for path in files:
        display.line(f"{path.stat().st_size:>14,} bytes  {path.relative_to(PROJECT)}")
    return 0


def _find_run(client: SyncPrefectClient, wanted: str) -> FlowRun:
    try:
        return client.read_flow_run(UUID(wanted))
    except (ValueError, ObjectNotFound):
        named = FlowRunFilter(name=FlowRunFilterName(any_=[wanted]))
        found = client.read_flow_runs(flow_run_filter=named, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)
    if not found:
        raise Trouble(f"There is no run {wanted!r} on this server: the Prefect UI lists them, `make up` starts it.")
    return found[0]


# --- flows that run here and now ------------------------------------------------------------------------------------


@contextmanager
def _shown_here() -> Generator[None]:
    """Show what our own flows log while they run in this process, and nothing of what Prefect says about them."""
    display = Display()

    class Here(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if Path(record.pathname).is_relative_to(PROJECT / "flows"):
                display.line(record.getMessage(), "yellow" if record.levelno >= logging.WARNING else "")

    setup_logging()  # Prefect's, now, so that it does not come later and show everything
    for logger in (
        logging.getLogger(),
        logging.getLogger("prefect"),
        *map(logging.getLogger, logging.root.manager.loggerDict),
    ):
        for handler in logger.handlers:
            if isinstance(handler, PrefectConsoleHandler):
                handler.setLevel(logging.CRITICAL + 1)
    here = Here()
    logging.getLogger("prefect.flow_runs").addHandler(here)
    try:
        yield
    finally:
        logging.getLogger("prefect.flow_runs").removeHandler(here)
        APILogWorker.drain_all()  # while the server is there to take them
        EventsWorker.drain_all()


def _finished(state: State[Any]) -> int:
    """The exit code of a flow that ran here, after the sentence of its final state if it went wrong."""
    if state.is_completed():
        return 0
    Display().line(first_line(state.message or state.name or ""), "bold red")
    return 1


def reap_now(place: Place) -> int:
    """`make reap`: what nobody owns any more is given back, by this process."""
    with client_of(place), _shown_here():
        return _finished(reap(dry_run=_is_set("DRY_RUN"), return_state=True))


def refresh(place: Place) -> int:
    """`make refresh`: the prices collected anew, by this process."""
    with client_of(place), _shown_here():
        return _finished(refresh_catalog(return_state=True))


def plan_now(place: Place) -> int:
    """`make plan`: what a job would get, and for how much."""
    parameters = job_parameters(os.environ)
    parameters = {name: parameters[name] for name in ("gpu", "max_price", "account") if name in parameters}
    if providers := _providers(os.environ.get("PROVIDERS")):
        parameters["providers"] = providers
    with client_of(place), _shown_here():
        return _finished(plan(**parameters, return_state=True))


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")


def show_providers(place: Place) -> int:
    """`make providers`: each one's credentials, how soon it answers, its cheapest H100 and A100."""
    with client_of(place):
        overview.show(overview.of_all(), Display())
    return 0


def connect_account(place: Place) -> int:
    """`make connect PROVIDER=...`: credentials asked for, checked and saved."""
    name, account = os.environ.get("PROVIDER", ""), os.environ.get("ACCOUNT") or DEFAULT_ACCOUNT
    provider_named(name)  # before a server is waited for
    with client_of(place) as client:
        return connect(client, name, account, Display())


SUBCOMMANDS: Final[dict[str, Callable[[Place], int]]] = {
    "run": run,
    "up": up,
    "deploy": deploy_only,
    "fetch": fetch,
    "reap": reap_now,
    "refresh": refresh,
    "plan": plan_now,
    "providers": show_providers,
    "connect": connect_account,
}
