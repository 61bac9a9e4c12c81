"""`fetch`: the log and the files of a run, into fetched/<name of the run>/ or a folder that is named."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Final

from prefect.client.schemas.objects import FlowRun
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from prefect_gpu.flows.run import outputs
from prefect_gpu.flows.terminal import runs
from prefect_gpu.flows.terminal.follow import Display
from prefect_gpu.flows.terminal.messages import PATIENCE_S, Trouble, waiting
from prefect_gpu.flows.terminal.place import Place
from prefect_gpu.providers.core.machine import listing

_NAME_BYTES: Final = 255


def fetch(place: Place, wanted: str, to: Path | None, *, as_json: bool) -> int:
    """Bring them, and say what came."""
    with place.asked() as client:
        flow_run = runs.find(client, wanted)
        destination = to.absolute() if to is not None else folder_of(flow_run)
        files = bring(flow_run, destination)
    if not files:
        raise Trouble(
            f"The run {flow_run.name} left nothing: it never started a job, or another result storage has it."
        )
    display = Display()
    if as_json:
        told = [{"path": str(path), "bytes": path.lstat().st_size} for path in files]
        display.document({"id": str(flow_run.id), "name": flow_run.name, "folder": str(destination), "files": told})
        return 0
    for path in files:
        display.line(f"{path.lstat().st_size:>14,} bytes  {near(path)}")
    return 0


def bring(flow_run: FlowRun, destination: Path) -> list[Path]:
    """The files, all of them; a terminal sees how far it is."""
    try:
        with _seen(destination, outputs.size(flow_run.id)):
            return outputs.fetch(flow_run.id, destination)
    except OSError as error:
        raise Trouble(f"{error.filename or destination} cannot be written: {error.strerror or error}.") from error


@contextlib.contextmanager
def _seen(destination: Path, total: int | None) -> Generator[None]:
    """A bar with rate and time left on a terminal, by what stands in the folder; elsewhere a word where it takes long."""
    if not sys.stderr.isatty():
        with waiting("files are brought"):
            yield
        return
    over = threading.Event()
    before = _size(destination)
    columns = (TextColumn("files down"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())

    def look() -> None:
        if over.wait(PATIENCE_S):
            return
        with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task("", total=total)
            took = 0.0
            while not over.wait(max(0.5, 10 * took)):  # a folder of many files is not looked at all the time
                began = time.monotonic()
                shown.update(task, completed=max(0, _size(destination) - before))
                took = time.monotonic() - began

    looker = threading.Thread(target=look, daemon=True)
    looker.start()
    try:
        yield
    finally:
        over.set()
        looker.join()


def _size(folder: Path) -> int:
    """Bytes of the files in a folder that may change meanwhile."""
    size = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            size += path.lstat().st_size if not path.is_dir() else 0
    return size


def near(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def folder_of(flow_run: FlowRun) -> Path:
    """fetched/<name of the run>: on a server that a team shares somebody else chose the name, and may have written a path."""
    name = listing.printable(flow_run.name).replace("/", "_")
    is_folder = name not in {"", ".", ".."} and len(os.fsencode(name)) <= _NAME_BYTES
    return Path.cwd() / "fetched" / (name if is_folder else str(flow_run.id))
