"""Seeds beside each other on one stack: a server, two workers, the clouds, and everything that befalls them."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.schemas.objects import FlowRun

from prefect_gpu.flows.reaping.stuck import FREQUENCY
from prefect_gpu.flows.run import resuming
from prefect_gpu.providers.core.lease import run_prefix
from tests.chaos import clouds
from tests.chaos.schedule import PROVIDERS, Event, Fault, Schedule
from tests.fakes.reference import ReferenceCloud
from tests.stack import ROOT, Stack, wait_until

FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
REAP_EVERY_S = 15.0  # 5 min in what we ship
HEARTBEAT_S = 30  # the least that Prefect takes, as in what we ship
SETTLED_S = 90.0  # a run that stays crashed so long is not resumed any more: automations take 10 s, `reap` 30 s and its own start
PATIENCE_S = 420.0  # for a whole batch
WORKERS = ("worker-0", "worker-1")
LAUNCHER = f"{sys.executable} -I -S {ROOT / 'tests/chaos/launch.py'}"  # what a worker starts in place of a flow process


class Ground(Stack):
    """A stack whose providers are the fake clouds, and whose flow processes come from the zygote."""

    def __init__(self, folder: Path, database: str = "", host: str = "127.0.0.1") -> None:
        super().__init__(folder, database, host)
        self._cloud_process: subprocess.Popen[str] | None = None
        self.clouds: dict[str, ReferenceCloud] = {}
        self.deployments: dict[str, UUID] = {}
        self.realm_name = ""

    def start(self) -> None:
        self.prepare()
        for name in WORKERS:
            self.begin_worker(name)

    def prepare(self) -> None:
        """Everything but the workers."""
        self.clouds = {provider: clouds.opened(self.folder, provider) for provider in PROVIDERS}
        self.env |= {
            "CHAOS_FOLDER": str(self.folder),
            "CHAOS_HOST": self.host,
            FREQUENCY: str(HEARTBEAT_S),
            "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",  # as in prefect.yaml
            "PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_SIZE": "20",  # as docs/team.md says
            "PREFECT_SERVER_DATABASE_SQLALCHEMY_MAX_OVERFLOW": "40",
            "PREFECT_LOCAL_STORAGE_PATH": str(self.folder / "results"),
        }
        self._cloud_process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.cloud_server", str(self.folder)],
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._cloud_process.stdout is not None
        self.env["CHAOS_PORT"] = self._cloud_process.stdout.readline().strip()
        self.begin_zygote("zygote")
        self.start_server()
        self.make_pool()
        self.realm_name = self.python(
            "from prefect_gpu.blocks.realm import GpuRealm; print(GpuRealm.current().realm)"
        ).strip()
        self.make_deployments()
        wait_until((self.folder / "zygote").exists, 60, "the process that flow processes come from")

    def make_deployments(self) -> None:
        for flow in ("provision", "reap"):
            self.deployments[f"{flow}/default"] = self.deploy(f"prefect_gpu.flows.{flow}.{flow}", "default")
        self._make_automations()

    def begin_zygote(self, name: str, inside: tuple[str, ...] = ()) -> None:
        self.spawn(name, "-m", "tests.chaos.zygote", str(self.folder / name), inside=inside)

    def begin_worker(self, name: str, inside: tuple[str, ...] = (), zygote: str = "zygote") -> None:
        self.env["CHAOS_ZYGOTE"] = str(self.folder / zygote)
        self.start_worker(name, "-m", "tests.chaos.worker", inside=inside)

    def deploy(self, entrypoint: str, name: str, pool: str = "gpu-tests", **env: str) -> UUID:
        deployment = super().deploy(entrypoint, name, pool, **env)
        shipped = {FREQUENCY: str(HEARTBEAT_S)}  # in prefect.yaml
        variables = {"working_dir": str(self.folder), "env": shipped, "command": LAUNCHER}
        self.client.patch(f"/deployments/{deployment}", json={"job_variables": variables}).raise_for_status()
        return deployment

    def _make_automations(self) -> None:
        program = f"""
from datetime import timedelta
from uuid import UUID
from prefect.client.orchestration import get_client
from prefect_gpu.flows.terminal.automations import make_automations
with get_client(sync_client=True) as client:
    make_automations(client, {{key: UUID(str(one)) for key, one in { ({key: str(one) for key, one in self.deployments.items()})!r}.items()}}, timedelta(seconds=60))
"""
        self.python(program)

    def stop(self) -> None:
        super().stop()
        for cloud in self.clouds.values():
            cloud.close()
        if self._cloud_process is not None:
            self._cloud_process.kill()
            self._cloud_process.wait(10)
            if self._cloud_process.stdout is not None:
                self._cloud_process.stdout.close()

    def states(self, run_ids: list[UUID]) -> dict[UUID, dict[str, Any]]:
        question = {"flow_runs": {"id": {"any_": [str(one) for one in run_ids]}}, "limit": 200}
        rows = self.client.post("/flow_runs/filter", json=question).raise_for_status().json()
        return {UUID(row["id"]): row for row in rows}

    def records(self, run_ids: list[UUID]) -> dict[UUID, list[dict[str, Any]]]:
        """The runs' orders, as their flows wrote them and as others settled them."""
        program = f"""
import json
from uuid import UUID
from prefect_gpu.flows.run.record import Record
for run_id in {[str(one) for one in run_ids]!r}:
    print(json.dumps([json.loads(one.model_dump_json()) for one in Record.read(UUID(run_id)).attempts]))
"""
        return dict(zip(run_ids, map(json.loads, self.python(program).splitlines()), strict=True))


class Batch:
    """One batch: its runs are started, befallen by what their seeds say, and waited for."""

    def __init__(
        self, ground: Ground, seeds: list[Schedule], befalling: Sequence[Event], say: Callable[[str], None]
    ) -> None:
        self.ground = ground
        self.seeds = seeds
        self.befalling = befalling
        self.say = say
        self.runs: dict[int, UUID] = {}
        self.fired: list[dict[str, Any]] = []
        self.last: dict[UUID, dict[str, Any]] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._ticket = itertools.count()
        self._began = time.monotonic()
        self._is_down = False
        self._leaving: list[subprocess.Popen[bytes]] = []
        self._since: dict[UUID, tuple[str, float]] = {}

    def run(self) -> None:
        """Everything, until all runs have ended."""
        for seed in self.seeds:
            self._at(seed.starts_at_s, lambda seed=seed: self._start(seed))  # type: ignore[misc]
        for event in self.befalling:
            self._at(event.at_s, lambda event=event: self._befall(event))  # type: ignore[misc]
        self._at(REAP_EVERY_S, self._reap)
        try:
            with _acts(self.ground.folder / "acts") as link:
                while self._elapsed() < PATIENCE_S:
                    self._hear(link)
                    while self._due and self._due[0][0] <= self._elapsed():
                        heapq.heappop(self._due)[2]()
                    if self._all_ended():
                        break
            self._finish()
        finally:
            for process in self._leaving:
                process.kill()
                process.wait(10)

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _at(self, at_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (at_s, next(self._ticket), what))

    def _in(self, seconds: float, what: Callable[[], None]) -> None:
        self._at(self._elapsed() + seconds, what)

    def _start(self, seed: Schedule) -> None:
        if self._is_down:
            self._in(1.0, lambda: self._start(seed))
            return
        parameters: dict[str, Any] = {
            "command": command(seed),
            "providers": list(seed.providers),
            "order": "given",
            "resume": seed.resume,
            "max_wait": "4m",
            "job": {"timeout_s": 900},
        }
        if seed.spot:
            parameters["requirements"] = {"spot": "spot"}
        answer = self.ground.client.post(
            f"/deployments/{self.ground.deployments['provision/default']}/create_flow_run",
            json={
                "parameters": parameters,
                "job_variables": {"env": {"CHAOS_SEED": str(seed.seed)}},
                "name": f"seed-{seed.seed}",
                # It is due in a moment: until then its clouds know what is to happen to it.
                "state": {"type": "SCHEDULED", "state_details": {"scheduled_time": _soon(2.0)}},
            },
        )
        run_id = UUID(answer.raise_for_status().json()["id"])
        self.runs[seed.seed] = run_id
        for fault in seed.faults:
            self._fault(fault, run_prefix(self.ground.realm_name, run_id))
        if seed.cancel_at_s is not None:
            self._in(2.0 + seed.cancel_at_s, lambda: self._cancel(seed, run_id))

    def _cancel(self, seed: Schedule, run_id: UUID) -> None:
        """As soon as it runs, and then so long after."""
        if self._is_down or self._type(run_id) != "RUNNING":
            if self._type(run_id) not in FINAL:
                self._in(1.0 + (seed.cancel_at_s or 0.0), lambda: self._cancel(seed, run_id))
            return
        self.ground.client.post(f"/flow_runs/{run_id}/set_state", json={"state": {"type": "CANCELLING"}})

    def _type(self, run_id: UUID) -> str:
        return self.last[run_id]["state"]["type"] if run_id in self.last else ""

    def _fault(self, fault: Fault, name: str = "") -> None:
        self.ground.clouds[fault.provider].fault(
            fault.on,  # type: ignore[arg-type]
            fault.what,  # type: ignore[arg-type]
            times=fault.times,
            name=name,
            seconds=fault.seconds,
        )

    def _befall(self, event: Event) -> None:
        if event.fault is not None:
            self._fault(event.fault)
        elif event.what == "server":
            self.say(f"  {self._elapsed():.0f} s: the server dies, for {event.seconds:.0f} s")
            self._is_down = True
            self.ground.kill("server")
            self._in(event.seconds, self._server_again)
        else:
            name = WORKERS[event.which]
            self.say(f"  {self._elapsed():.0f} s: {name}: {event.what}")
            process = self.ground.processes.pop(name, None)
            if process is None:  # it is gone already, and comes again
                return
            process.send_signal(signal.SIGKILL if event.what == "worker dies" else signal.SIGTERM)
            self._leaving.append(process)
            self._in(event.seconds, lambda: self.ground.begin_worker(name))

    def _server_again(self) -> None:
        self.ground.spawn_server()
        self._in(0.5, self._await_server)

    def _await_server(self) -> None:
        if self.ground.is_healthy():
            self._is_down = False
        else:
            self._in(0.5, self._await_server)

    def _reap(self) -> None:
        if not self._is_down:
            self.ground.run(self.ground.deployments["reap/default"])
        self._in(REAP_EVERY_S, self._reap)

    def _hear(self, link: socket.socket) -> None:
        """What happens to processes by themselves, told by them in the moment before."""
        link.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            told = json.loads(link.recv(4096))
            self.fired.append(told)
            if told["do"].startswith("stop"):
                if "give away" in told["do"]:
                    self._in(0.5, lambda: self._give_away(UUID(told["run"])))
                self._in(told["seconds"], lambda: _wake(told["pid"]))

    def _give_away(self, run_id: UUID) -> None:
        """As a person does who sees nothing of a run: another process goes on with it."""
        if self._is_down:
            self._in(1.0, lambda: self._give_away(run_id))
            return
        row = self.ground.states([run_id])[run_id]
        if row["state"]["type"] == "RUNNING":
            state = {"type": "SCHEDULED", "name": "Scheduled"}
            self.ground.client.post(f"/flow_runs/{run_id}/set_state", json={"state": state, "force": True})

    def _all_ended(self) -> bool:
        if self._is_down or len(self.runs) < len(self.seeds):
            return False
        now = self._elapsed()
        if now - getattr(self, "_looked_at", -9.0) < 1.5:
            return False
        self._looked_at = now
        with contextlib.suppress(httpx.HTTPError):
            self.last = self.ground.states(list(self.runs.values()))
        for run_id, row in self.last.items():
            state = row["state"]["id"]
            if self._since.get(run_id, ("", 0.0))[0] != state:
                self._since[run_id] = (state, now)
        return len(self.last) == len(self.runs) and all(
            row["state"]["type"] in FINAL
            and (not resuming.will_follow(FlowRun.model_validate(row)) or now - self._since[run_id][1] > SETTLED_S)
            for run_id, row in self.last.items()
        )

    def _finish(self) -> None:
        """Nothing is wrong any more; two reaps later nothing may be left."""
        while self._is_down:
            while self._due and self._due[0][0] <= self._elapsed():
                heapq.heappop(self._due)[2]()
            time.sleep(0.2)
        for act in self.fired:
            if act["do"].startswith("stop"):
                _wake(act["pid"])
        for name in WORKERS:
            if name not in self.ground.processes:
                self.ground.begin_worker(name)
        for process in self._leaving:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
        for cloud in self.ground.clouds.values():
            cloud.mend()
        for _ in range(2):
            reap = self.ground.run(self.ground.deployments["reap/default"])
            with contextlib.suppress(AssertionError):
                self.ground.wait_for_state(reap, "Completed", "Failed", "Skipped", within_s=150)
            time.sleep(4)
        self.last = self.ground.states(list(self.runs.values()))


def command(seed: Schedule) -> str:
    """A job whose every line says which try of it wrote it, and the how manieth it is."""
    pause = f"sleep {seed.pause_s}; " if seed.pause_s and seed.lines <= 60 else ""
    return (
        "t=$(cut -c1-8 /proc/sys/kernel/random/uuid); i=0; "
        f"while [ $i -lt {seed.lines} ]; do i=$((i+1)); echo line $t $i; {pause}done; echo end $t"
    )


def _soon(seconds: float) -> str:
    from datetime import UTC, datetime

    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def _wake(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def _acts(path: Path) -> Iterator[socket.socket]:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        link.bind(str(path))
        yield link
    path.unlink(missing_ok=True)
