"""A real Prefect server and worker for tests, in processes of their own, with everything they write in one folder."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx

ROOT = Path(__file__).parents[1]
POOL = "gpu-tests"  # names that begin with "prefect" are reserved by the server


class Patient(httpx.HTTPTransport):
    """On SQLite a busy server answers 503, "database is locked", which Prefect's own client repeats too."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for _ in range(60):
            answer = super().handle_request(request)
            if answer.status_code != 503:
                return answer
            answer.close()
            time.sleep(0.5)
        return super().handle_request(request)


class Stack:
    """The server, its API, and the worker that picks up runs of the deployments made here."""

    def __init__(self, folder: Path, database: str = "", host: str = "127.0.0.1") -> None:
        """In a folder of its own; `database`: the address of a PostgreSQL database, instead of SQLite there."""
        self.folder = folder
        self.host = host
        with socket.socket() as probe:
            probe.bind((host, 0))
            self.port = probe.getsockname()[1]
        self.api = f"http://{host}:{self.port}/api"
        self.env = {
            **os.environ,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.2",
            "PREFECT_LOGGING_LEVEL": "INFO",
            "PREFECT_WORKER_QUERY_SECONDS": "1",  # as the worker of `make run` does
            "PYTHONPATH": str(ROOT),
        }
        if database:
            self.env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database
        self.client = httpx.Client(base_url=self.api, timeout=60, transport=Patient())
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self.start_server()
        self.make_pool()
        self.start_worker()

    def make_pool(self, name: str = POOL) -> None:
        if self.client.get(f"/work_pools/{name}").status_code == 404:
            self.client.post("/work_pools/", json={"name": name, "type": "process"}).raise_for_status()

    def start_server(self) -> None:
        self.spawn_server()
        wait_until(self.is_healthy, 120, "the server's health")

    def spawn_server(self) -> None:
        """Start it, and wait for nothing."""
        self.spawn("server", "-m", "prefect", "server", "start", "--host", self.host, "--port", str(self.port))

    def start_worker(self, name: str = "worker", *start: str, pool: str = POOL, inside: tuple[str, ...] = ()) -> None:
        """`start` is what to run in place of `-m prefect worker start`, `inside` what the command begins with."""
        command = (*(start or ("-m", "prefect", "worker", "start")), "--pool", pool, "--type", "process")
        self.spawn(name, *command, inside=inside)

    def kill(self, name: str, number: int = signal.SIGKILL, within_s: float = 60) -> None:
        """`kill -9` of the server or the worker alone; what the worker started goes on."""
        process = self.processes.pop(name)
        os.kill(process.pid, number)
        process.wait(within_s)

    def stop(self) -> None:
        for process in reversed(self.processes.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        self.client.close()

    def python(self, program: str) -> str:
        """What a Python program prints that runs in a process of its own beside this server."""
        command = [sys.executable, "-c", program]
        return subprocess.run(
            command, cwd=ROOT, env=self.env, check=True, stdout=subprocess.PIPE, text=True, timeout=120
        ).stdout

    @contextlib.contextmanager
    def account(self, block: Any, name: str = "default") -> Iterator[None]:
        """An account of a provider: its credentials block is saved, and deleted at the end."""
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: self.api}):
            block.save(name, overwrite=True, _sync=True)
        yield
        with temporary_settings({PREFECT_API_URL: self.api}):
            type(block).delete(name, _sync=True)

    def deploy(self, entrypoint: str, name: str, pool: str = POOL, **env: str) -> UUID:
        """A deployment of the flow at a module path, its flow process with these variables; its id."""
        module, _, function = entrypoint.rpartition(".")
        flow_name = getattr(importlib.import_module(module), function).name
        flow = self.client.post("/flows/", json={"name": flow_name}).json()
        answer = self.client.post(
            "/deployments/",
            json={
                "name": name,
                "flow_id": flow["id"],
                "entrypoint": entrypoint,
                "work_pool_name": pool,
                # Without a working directory Prefect copies the whole project for each run.
                "job_variables": {
                    "working_dir": str(ROOT),
                    "env": {"PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.2", **env},
                },
            },
        )
        answer.raise_for_status()
        return UUID(answer.json()["id"])

    def run(self, deployment: UUID, **parameters: Any) -> UUID:
        """Start a run; its id."""
        answer = self.client.post(f"/deployments/{deployment}/create_flow_run", json={"parameters": parameters})
        answer.raise_for_status()
        return UUID(answer.json()["id"])

    def cancel(self, run_id: UUID) -> None:
        """As `prefect flow-run cancel` does, without the seconds that it takes to start."""
        answer = self.client.post(f"/flow_runs/{run_id}/set_state", json={"state": {"type": "CANCELLING"}})
        assert answer.raise_for_status().json()["status"] == "ACCEPT", answer.text

    def realm(self) -> str | None:
        """The realm that the first run made for this server."""
        answer = self.client.get("/block_types/slug/gpu-realm/block_documents/name/default")
        return None if answer.status_code == 404 else answer.raise_for_status().json()["data"]["realm"]

    def flow_run(self, run_id: UUID) -> dict[str, Any] | None:
        answer = self.client.get(f"/flow_runs/{run_id}")
        return answer.json() if answer.status_code == 200 else None

    def state(self, run_id: UUID) -> str:
        run = self.flow_run(run_id)
        return "Deleted" if run is None else run["state"]["name"]

    def message(self, run_id: UUID) -> str:
        run = self.flow_run(run_id)
        return "" if run is None else run["state"]["message"] or ""

    def logs(self, run_id: UUID) -> list[str]:
        question = {"logs": {"flow_run_id": {"any_": [str(run_id)]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return [row["message"] for row in self.client.post("/logs/filter", json=question).json()]

    def job_output(self, run_id: UUID) -> list[str]:
        """The lines of the run's jobs, as its log has them: a line that took long to come may stand in two records."""
        rows: list[dict[str, Any]] = []
        question = {"logs": {"flow_run_id": {"any_": [str(run_id)]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        while len(rows) % 200 == 0:
            page = self.client.post("/logs/filter", json={**question, "offset": len(rows)}).raise_for_status().json()
            rows += page
            if not page:
                break
        return lines_of((row["name"], row["message"]) for row in rows)

    def record(self, run_id: UUID) -> list[dict[str, Any]]:
        """The record of a run's orders, as its artifact has it."""
        question = {"artifacts": {"key": {"any_": [f"attempts-{run_id}"]}}, "limit": 1}
        rows = self.client.post("/artifacts/latest/filter", json=question).json()
        return json.loads(rows[0]["data"]) if rows else []

    def wait_for_state(self, run_id: UUID, *names: str, within_s: float = 240) -> str:
        wait_until(lambda: self.state(run_id) in names, within_s, f"{' or '.join(names)} of {run_id}", self._tail)
        return self.state(run_id)

    def wait_for_log(self, run_id: UUID, text: str, within_s: float = 240) -> None:
        wait_until(
            lambda: any(text in line for line in self.logs(run_id)), within_s, f"{text!r} in the log", self._tail
        )

    def wait_for_line(self, run_id: UUID, line: str, within_s: float = 240) -> None:
        """A line that the job wrote: its command, which the log tells too, may have the same words."""
        wait_until(
            lambda: any(line in message.splitlines() for message in self.logs(run_id)),
            within_s,
            f"the line {line!r} in the log",
            self._tail,
        )

    def flow_process(self, run_id: UUID) -> int:
        """The pid of the process that runs the flow: the one with the run's id in its environment."""
        found: list[int] = []

        def look() -> bool:
            found[:] = [pid for pid in _pids() if f"FLOW_RUN_ID={run_id}" in _environ(pid)]
            return bool(found)

        wait_until(look, 60, f"the process of {run_id}", lambda: f"{self.state(run_id)}: {self.logs(run_id)[-20:]}")
        return found[-1]

    def all_of(self, run_id: UUID) -> list[int]:
        """Every process that works for a run beside its worker: what prepares it, and the one that runs the flow."""
        return [pid for pid in _pids() if f"FLOW_RUN_ID={run_id}" in _environ(pid)]

    def is_healthy(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return self.client.get("/health").status_code == 200
        return False

    def spawn(self, name: str, *arguments: str, inside: tuple[str, ...] = ()) -> None:
        """Start a Python process beside them, which is ended with them."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*inside, sys.executable, *arguments],
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes[name] = process

    def _tail(self) -> str:
        return (self.folder / "worker.log").read_text(errors="replace")[-3000:]


@contextlib.contextmanager
def running(folder: Path, database: str = "") -> Iterator[Stack]:
    """A stack that is stopped at the end, whatever happened."""
    stack = Stack(folder, database)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


def lines_of(records: Iterable[tuple[str, str]]) -> list[str]:
    """The lines in records of a job's output, which is ASCII: the logger says how far it comes, so whether the last line is whole."""
    text, ends = "", dict[str, int]()
    for name, message in records:
        if named := re.fullmatch(r"job@(\d+)(.*)", name):
            end, job = int(named[1]), named[2]
            is_open = end - ends.get(job, 0) == len(message)
            text += message + ("" if is_open else "\n")
            ends[job] = end
    return text.splitlines()


def wait_until(
    condition: Callable[[], bool],
    within_s: float,
    what: str,
    evidence: Callable[[], str] = lambda: "",
    every_s: float = 0.1,
) -> float:
    """Seconds until the condition held; a failure that names it after `within_s`."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > within_s:
            raise AssertionError(f"{what} did not come within {within_s:.0f} s\n{evidence()}")
        time.sleep(every_s)
    return time.monotonic() - began


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _environ(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""
