"""Two workers on hosts of their own, of which one is cut off in the middle of a job: the other goes on with it, and the first touches nothing when it is back."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import pytest

from prefect_gpu.providers.core.lease import run_prefix
from tests.chaos.batch import Ground
from tests.stack import wait_until

pytestmark = [
    pytest.mark.server,
    pytest.mark.root,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and network namespaces"),
]
LINES = 40


class Host:
    """A network namespace whose only way out is a cable to this machine."""

    def __init__(self, name: str, number: int) -> None:
        self.name = f"pgc{os.getpid()}{name}"
        self.cable = f"pgc{os.getpid() % 100000}{name}"
        here, there = f"10.213.{number}.1", f"10.213.{number}.2"
        self._ip("netns", "add", self.name)
        self._ip("link", "add", self.cable, "type", "veth", "peer", "name", "out", "netns", self.name)
        self._ip("addr", "add", f"{here}/30", "dev", self.cable)
        self._ip("link", "set", self.cable, "up")
        self._ip("-n", self.name, "addr", "add", f"{there}/30", "dev", "out")
        for link in ("lo", "out"):
            self._ip("-n", self.name, "link", "set", link, "up")
        self._ip("-n", self.name, "route", "add", "default", "via", here)

    @property
    def inside(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)

    def plug(self, how: str) -> None:
        self._ip("link", "set", self.cable, how)

    def close(self) -> None:
        for command in (("link", "del", self.cable), ("netns", "del", self.name)):
            subprocess.run(["ip", *command], check=False, capture_output=True)

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, Host, Host]]:
    """An address that both reach, and they."""
    number = os.getpid() % 80 * 3
    dummy, address = f"pgd{os.getpid() % 100000}", f"10.213.{number}.1"
    with ExitStack() as stack:
        subprocess.run(["ip", "link", "add", dummy, "type", "bridge"], check=True)
        stack.callback(lambda: subprocess.run(["ip", "link", "del", dummy], check=False))
        subprocess.run(["ip", "addr", "add", f"{address}/32", "dev", dummy], check=True)
        subprocess.run(["ip", "link", "set", dummy, "up"], check=True)
        two: list[Host] = []
        for name, which in (("a", number + 1), ("b", number + 2)):
            two.append(Host(name, which))
            stack.callback(two[-1].close)
        yield address, two[0], two[1]


def test_who_is_cut_off_loses_its_run_to_another_host_which_goes_on_with_machine_and_job(
    hosts: tuple[str, Host, Host], tmp_path: Path
) -> None:
    address, first, second = hosts
    ground = Ground(tmp_path, host=address)
    try:
        ground.prepare()
        for name, host in (("one", first), ("two", second)):
            ground.begin_zygote(f"zygote-{name}", host.inside)
            wait_until((tmp_path / f"zygote-{name}").exists, 60, "its flow processes")
        ground.begin_worker("one", first.inside, "zygote-one")
        command = f"for i in $(seq {LINES}); do echo line $i; sleep 0.5; done"
        run_id = ground.run(ground.deployments["provision/default"], command=command, providers=["verda"])
        ground.wait_for_line(run_id, "line 3")
        mine = [order.id for order in alive(ground, run_id)]
        first.plug("down")
        ground.begin_worker("two", second.inside, "zygote-two")
        # As `reap` does when heartbeats are missed, and it has listened for more (test_clean_up lets it).
        state = {"type": "CRASHED", "message": "No sign of life: its worker or host died, or is cut off."}
        ground.client.post(f"/flow_runs/{run_id}/set_state", json={"state": state}).raise_for_status()
        ground.wait_for_log(run_id, "going on with what an earlier execution of this run has")
        assert [order.id for order in alive(ground, run_id)] == mine
        first.plug("up")  # while the other one runs it
        assert ground.wait_for_state(run_id, "Completed", "Failed", "Cancelled") == "Completed", ground.message(run_id)
        ended = ground.flow_run(run_id)
        time.sleep(8)  # the first one has asked by now whose run it is
        assert ground.flow_run(run_id)["state"]["id"] == ended["state"]["id"]  # type: ignore[index]
        assert ended["run_count"] == 2  # type: ignore[index]
        assert ground.job_output(run_id) == [f"line {number}" for number in range(1, LINES + 1)]
        orders = ground.clouds["verda"].orders(run_prefix(ground.realm_name, run_id))
        assert [order.id for order in orders] == mine
        assert not alive(ground, run_id)
    finally:
        ground.stop()


def alive(ground: Ground, run_id: UUID) -> list:  # type: ignore[type-arg]
    return ground.clouds["verda"].alive(run_prefix(ground.realm_name, run_id))
