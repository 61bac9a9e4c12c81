"""Runs beside each other on a real server as set-up leaves it, with a worker on a host that dies, one that is ended for a redeploy, and one that stays."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect_gpu.flows.terminal import deploy
from prefect_gpu.flows.terminal.automations import make_automations
from prefect_gpu.flows.terminal.place import POOL
from prefect_gpu.providers.core.lease import run_prefix
from tests.chaos.batch import LAUNCHER, Ground
from tests.fakes.reference import Order
from tests.stack import wait_until

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

SILENT_S = 30  # what `reap` takes at least; 90 in what set-up ships
HEARTBEAT_S = 5  # 30 in what set-up ships
DOOMED, BLUE = "doomed", "blue"  # the workers that end, and the queues that their runs begin in
BLOCK = 20  # lines between two gates
KEEPING = (
    "if [ -e keep/step ]; then echo again from $(cat keep/step); "
    "else mkdir -p keep; echo 7 > keep/step; echo first; exit 3; fi"
)


@dataclass
class Acted:
    """A run, and what was done to it."""

    run_id: UUID
    gates: tuple[Path, ...] = ()
    process: int = 0  # what worked for it before the act
    at: float = field(default_factory=time.time)  # of the act

    @property
    def lines(self) -> list[str]:
        """All that its job says."""
        return [f"line {number}" for number in range(1, BLOCK * (len(self.gates) + 1) + 1)]


class Stage(Ground):
    """Pool, deployments and automations as set-up makes them. What differs from them stands in `make_deployments`."""

    def prepare(self) -> None:
        self.env["CHAOS_HEARTBEAT_S"] = str(HEARTBEAT_S)
        super().prepare()

    @contextmanager
    def asked(self) -> Iterator[SyncPrefectClient]:
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: self.api}), get_client(sync_client=True) as client:
            yield client

    def make_deployments(self) -> None:
        with self.asked() as client:
            deploy.make_work_pool(client)
            self.deployments = deploy.make_deployments(client)
            make_automations(client, self.deployments, timedelta(seconds=SILENT_S))
        for name in ("plan/default", "refresh-catalog/default", "report/default"):  # nobody runs them here
            self.client.delete(f"/deployments/{self.deployments[name]}").raise_for_status()
        # Flow processes come from the zygote, and no reap comes by itself: who reaps was called.
        for name, more in (("provision/default", {}), ("reap/default", {"parameters": {"silent_s": SILENT_S}})):
            address = f"/deployments/{self.deployments[name]}"
            found = self.client.get(address).json()
            changes = {"job_variables": {**found["job_variables"], "command": LAUNCHER}, **more}
            self.client.patch(address, json=changes).raise_for_status()
            for one in found["schedules"]:
                self.client.delete(f"{address}/schedules/{one['id']}").raise_for_status()
        for name in (DOOMED, BLUE):
            self.client.post(f"/work_pools/{POOL}/queues", json={"name": name}).raise_for_status()

    def begin_worker_of(self, *queues: str, name: str) -> None:
        """One that takes runs of these queues alone, or of all."""
        self.env["CHAOS_ZYGOTE"] = str(self.folder / "zygote")
        of_these = [word for queue in queues for word in ("--work-queue", queue)]
        self.start_worker(name, "-m", "tests.chaos.worker", *of_these, pool=POOL)

    # --- runs ---------------------------------------------------------------------------------------------------------

    def begin(self, command: str, cloud: str = "verda", queue: str = "default", **parameters: Any) -> UUID:
        """A run that is due in a moment: until then its cloud can be told what is to happen to it."""
        due = datetime.now(UTC) + timedelta(seconds=parameters.pop("in_s", 0.0))
        answer = self.client.post(
            f"/deployments/{self.deployments['provision/default']}/create_flow_run",
            json={
                "parameters": {"command": command, "providers": [cloud], **parameters},
                "work_queue_name": queue,
                "state": {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}},
            },
        )
        return UUID(answer.raise_for_status().json()["id"])

    def counting(self, name: str, gates: int = 1, **more: Any) -> Acted:
        """A run whose job says `BLOCK` lines, and as many again after each gate that is opened."""
        paths = tuple(self.folder / f"gate-{name}-{number}" for number in range(gates))
        command = "".join(
            f"for i in $(seq {BLOCK * at + 1} {BLOCK * (at + 1)}); do echo line $i; sleep 0.05; done; "
            + (f"while [ ! -e {paths[at]} ]; do sleep 0.2; done; " if at < gates else "")
            for at in range(gates + 1)
        )
        return Acted(self.begin(command, **more), paths)

    def long(self, **more: Any) -> Acted:
        return Acted(self.begin("echo line 1; sleep 600", **more))

    def speaks(self, run_id: UUID) -> bool:
        return "line 1" in self.job_output(run_id)

    def until(self, condition: Any, within_s: float, what: str, run_id: UUID | None = None) -> None:
        def evidence() -> str:
            return "" if run_id is None else f"{self.story(run_id)}\n" + "\n".join(self.logs(run_id)[-20:])

        wait_until(condition, within_s, what, evidence, every_s=0.4)

    def until_state(self, run_id: UUID, *names: str, within_s: float = 120) -> None:
        self.until(lambda: self.state(run_id) in names, within_s, " or ".join(names), run_id)

    def until_told(self, run_id: UUID, text: str, within_s: float = 120) -> float:
        """When the run's log first said so, in seconds since the epoch."""
        self.until(lambda: self.told_at(run_id, text) is not None, within_s, repr(text), run_id)
        return self.told_at(run_id, text) or 0.0

    def told_at(self, run_id: UUID, text: str) -> float | None:
        question = {"logs": {"flow_run_id": {"any_": [str(run_id)]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        rows = self.client.post("/logs/filter", json=question).json()
        return next((_seconds(row["timestamp"]) for row in rows if text in row["message"]), None)

    def story(self, run_id: UUID) -> list[str]:
        """The names of its states in their order, without the one that a worker sets on the way to its process.

        Automation and `reap` may both schedule a crashed run, each before it sees the other: that is one step.
        """
        names = [row["name"] for row in self._states(run_id) if row["name"] != "Submitting"]
        return [name for before, name in pairwise(["", *names]) if name != before]

    def entered(self, run_id: UUID, name: str) -> float:
        """When it was last in this state, in seconds since the epoch."""
        return max(_seconds(row["timestamp"]) for row in self._states(run_id) if row["name"] == name)

    def _states(self, run_id: UUID) -> list[dict[str, Any]]:
        rows = self.client.get("/flow_run_states/", params={"flow_run_id": str(run_id)}).raise_for_status().json()
        return sorted(rows, key=lambda row: row["timestamp"])

    def beats(self, run_id: UUID) -> int:
        """How often it gave a sign of life, as far as the server knows."""
        wanted = {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{run_id}"]},
        }
        return self.client.post("/events/filter", json={"filter": wanted}).raise_for_status().json()["total"]

    # --- machines -----------------------------------------------------------------------------------------------------

    def ordered(self, run_id: UUID, cloud: str = "verda") -> list[Order]:
        """All that was ever ordered for it."""
        return self.clouds[cloud].orders(run_prefix(self.realm_name, run_id))

    def alive_of(self, run_id: UUID, cloud: str = "verda") -> list[str]:
        return [order.id for order in self.ordered(run_id, cloud) if order.is_alive]

    def gone_after(self, acted: Acted, within_s: float) -> float:
        """Seconds from the act until the cloud ended the last of its machines, of which there was one at least."""
        self.until(lambda: not self.alive_of(acted.run_id), within_s + 60, "the end of its machine", acted.run_id)
        cloud = self.clouds["verda"]
        ahead = cloud.now() - time.time()
        return max(order.ended_at or 0.0 for order in self.ordered(acted.run_id)) - ahead - acted.at

    def reaps(self, name: str = "") -> list[str]:
        """Who called the reaps so far, or those alone that say that they end what bears this name."""
        question = {"deployments": {"id": {"any_": [str(self.deployments["reap/default"])]}}}
        rows = self.client.post("/flow_runs/filter", json=question).raise_for_status().json()
        return [
            (row["created_by"] or {}).get("display_value") or ""
            for row in rows
            if not name or self.told_at(UUID(row["id"]), f"terminating {name}") is not None
        ]

    # --- acts ---------------------------------------------------------------------------------------------------------

    def set_by_hand(self, acted: Acted, kind: str, *, force: bool = True) -> None:
        """As *Change state* in the UI does."""
        self._note(acted)
        state = {"type": kind.upper(), "name": kind.title()}
        answer = self.client.post(f"/flow_runs/{acted.run_id}/set_state", json={"state": state, "force": force})
        assert answer.raise_for_status().json()["status"] == "ACCEPT", answer.text

    def cancelled(self, acted: Acted) -> None:
        """Perhaps with no process any more that could hear it."""
        acted.at = time.time()
        self.cancel(acted.run_id)

    def host_dies(self, worker: str, *runs: Acted) -> None:
        """The worker goes first: nobody is left to tell the server of the others."""
        for acted in runs:
            self._note(acted)
        doomed = [pid for acted in runs for pid in self.all_of(acted.run_id)]
        self.kill(worker)
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # its flow process dies with it
        self.until(lambda: not any(map(self.is_at_work, runs)), 30, "the end of all processes")

    def told_to_end(self, acted: Acted, worker: str | None = None) -> None:
        """SIGTERM: to its worker alone, as a service manager sends it, or to the flow process itself, as to a container of its own."""
        self._note(acted)
        if worker is None:
            os.kill(acted.process, signal.SIGTERM)
        else:
            self.processes[worker].send_signal(signal.SIGTERM)

    def is_at_work(self, acted: Acted) -> bool:
        """Whether the process is there that worked for it before the act."""
        return acted.process in self.all_of(acted.run_id)

    def _note(self, acted: Acted) -> None:
        acted.process, acted.at = self.flow_process(acted.run_id), time.time()


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
