"""`reap` and `refresh`: flows that run in this process, shown as they go."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import State
from prefect.events.worker import EventsWorker
from prefect.logging.configuration import setup_logging
from prefect.logging.handlers import APILogWorker, PrefectConsoleHandler
from pydantic import BaseModel

from prefect_gpu.flows.run.failure import RunFailed
from prefect_gpu.flows.terminal.follow import Display, first_line
from prefect_gpu.flows.terminal.place import Place

FLOWS = Path(__file__).resolve().parents[1]


@contextmanager
def _shown_here(*, as_json: bool) -> Generator[None]:
    """Show what our own flows log while they run in this process, and nothing of what Prefect says about them."""
    display = Display(to_stderr=as_json)

    class Here(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if Path(record.pathname).is_relative_to(FLOWS):
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


def finished(state: State[Any], *, as_json: bool) -> int:
    """The exit code of a flow that ran here, after the sentence of its final state if it went wrong."""
    if as_json:
        found: Any = state.result(raise_on_failure=False)
        data = found.found if isinstance(found, RunFailed) else found
        said = data.model_dump(mode="json") if isinstance(data, BaseModel) else {}
        Display().document({**said, "message": first_line(state.message or ""), "failed": not state.is_completed()})
    if state.is_completed():
        return 0
    Display(to_stderr=as_json).line(first_line(state.message or state.name or ""), "bold red")
    return 1


def reap_now(place: Place, *, dry_run: bool, as_json: bool = False) -> int:
    """What nobody owns any more is given back, by this process."""
    from prefect_gpu.flows.reap import reap

    with place.asked(), _shown_here(as_json=as_json):
        return finished(reap(dry_run=dry_run, return_state=True), as_json=as_json)


def refresh(place: Place, *, as_json: bool = False) -> int:
    """The prices collected anew, by this process."""
    from prefect_gpu.flows.refresh_catalog import refresh_catalog

    with place.asked(), _shown_here(as_json=as_json):
        return finished(refresh_catalog(return_state=True), as_json=as_json)
