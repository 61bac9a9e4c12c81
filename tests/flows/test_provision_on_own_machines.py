"""`provision` on a team's own machines: real OpenSSH, stand-in GPUs, real Docker."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client

from prefect_gpu import providers as registry
from prefect_gpu.blocks.ssh import SshMachines
from prefect_gpu.flows.provision import provision
from prefect_gpu.flows.report.artifacts import newest
from prefect_gpu.flows.run.cards import TRIED
from prefect_gpu.flows.run.look import look
from prefect_gpu.flows.run.offers import ask_again
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers import ProviderName
from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.core.requests import Job, Requirements
from prefect_gpu.providers.ssh.driver import Ssh
from tests.fakes import sshd_hosts as fakes
from tests.fakes.own_machines import TWO_GPUS, restore, wait_until
from tests.fakes.sshd_hosts import SshdHost, block, sshd_hosts

WHY_NOT = fakes.missing()
pytestmark = [
    pytest.mark.usefixtures("prefect_api"),
    pytest.mark.root,
    pytest.mark.openssh,
    pytest.mark.skipif(WHY_NOT is not None, reason=f"machines of one's own: {WHY_NOT}"),
]

ONE_GPU_FROM_NOW = """
case $* in *--query-gpu*) ;; *) exit 0 ;; esac
[ -e "$0.asked" ] || { : >"$0.asked"; echo "1, GPU-bbbb2222, NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15, 00000000:5E:00.0, 0"; }
echo "0, GPU-aaaa1111, NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15, 00000000:3B:00.0, 0"
"""


class Team:
    """Two machines, the first one cheaper, as the only provider."""

    def __init__(self, hosts: tuple[SshdHost, ...]) -> None:
        self.hosts = hosts
        self.state: Any = None

    def run(self, command: str, **parameters: Any) -> str:
        self.state = provision(command, return_state=True, **parameters)
        return self.state.message or ""

    @property
    def outcomes(self) -> list[str]:
        return [one.outcome for one in Record.read(self.state.state_details.flow_run_id).attempts]

    def warnings(self) -> list[str]:
        asked = {"logs": {"flow_run_id": {"any_": [str(self.state.state_details.flow_run_id)]}, "level": {"ge_": 30}}}
        with get_client(sync_client=True) as client:
            return [one["message"] for one in client.request("POST", "/logs/filter", json=asked).json()]

    def card(self) -> str:
        card = newest(TRIED.key, self.state.state_details.flow_run_id)
        assert card is not None
        return card["data"]

    def assert_nothing_is_left(self) -> None:
        for host in self.hosts:
            wait_until("nothing runs there", lambda host=host: not host.processes("pg-"))
            assert [path.name for path in host.claims.glob("*")] in ([], ["lock"])
            assert not list(host.home.glob(".prefect-gpu/*"))
            assert "pg-" not in (host.home / ".ssh" / "authorized_keys").read_text()


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[SshdHost, ...]]:
    with sshd_hosts("cheap", "dear") as both:
        yield both


@pytest.fixture
def team(hosts: tuple[SshdHost, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Team]:
    cheap, dear = hosts
    library: TaskLibrary[Any] = TaskLibrary(Ssh, SshMachines)
    library.connections.drivers["default"] = Ssh(
        block(cheap.described(price=1.0), dear.described(price=2.0, host_key=None))
    )
    monkeypatch.setattr(registry, "library", lambda _name: library)
    monkeypatch.setattr(registry, "enabled", lambda *_: ["ssh"])
    monkeypatch.chdir(tmp_path)
    for host in hosts:
        host.install("nvidia-smi", TWO_GPUS)
    one = Team(hosts)
    yield one
    try:
        one.assert_nothing_is_left()
    finally:
        for host in hosts:
            restore(host)


def test_a_job_runs_on_the_cheaper_machine_with_its_files_and_leaves_nothing(team: Team, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("42\n")
    message = team.run("hostname; cat given; cp given out", gpu="H100:2", job=Job(files=("given",), outputs=("out",)))
    assert message.startswith("exit 0 in "), message
    assert team.state.data.result.machine.gpus == ("NVIDIA H100 80GB HBM3, 81559 MiB",) * 2
    assert team.state.data.result.outputs == ("out",)
    assert team.outcomes == ["gone"]


def test_a_machine_with_fewer_gpus_than_it_offered_is_given_back_and_the_next_one_runs_the_job(team: Team) -> None:
    team.hosts[0].install("nvidia-smi", ONE_GPU_FROM_NOW)
    message = team.run("true", gpu="H100:2")
    assert message.startswith("exit 0 in "), message
    assert "boot failed" in message
    assert len(team.outcomes) == 2
    attempts = Record.read(team.state.state_details.flow_run_id).attempts
    assert "nvidia-smi shows only 1" in str(attempts[0].why)


def test_a_machine_that_is_down_is_passed_over_and_the_other_one_runs_the_job(team: Team) -> None:
    team.hosts[0].power_off()
    message = team.run("true", gpu="H100:2")
    assert message.startswith("exit 0 in "), message
    assert team.outcomes == ["gone"]
    team.hosts[0].power_on()


def test_another_host_key_is_an_alarm_whatever_is_asked_for_and_whatever_else_serves(team: Team) -> None:
    cheap, dear = team.hosts
    stranger = cheap.described(price=1.0, host_key=derive(b"another", "machine", "host").public)
    drivers = registry.library(ProviderName.SSH).connections.drivers
    drivers["default"] = Ssh(block(stranger, dear.described(price=2.0)))
    message = team.run("true", gpu="H100:2", requirements=Requirements(cpu=1))
    assert message.startswith("exit 0 in "), message
    alarm = "ssh: ALARM: "
    wait_until("the alarm is a warning", lambda: [one for one in team.warnings() if one.startswith(alarm)], 10)
    assert alarm.removeprefix("ssh: ") in team.card()
    drivers["default"] = Ssh(block(stranger))
    wishes = Requirements(cpu=4, memory_gb=8)
    message = team.run("true", gpu="H100:1", requirements=wishes)
    assert message.startswith(f"No H100:1. {alarm}10.213."), message
    assert "has no H100" not in message
    assert message.rstrip(".") in team.card()
    planned = look("H100:1", None, [], wishes, 1.0, "default", ask_again)
    assert planned.found.message.startswith(message)
    assert planned.unseen()[0].startswith(alarm)


def test_a_machine_that_is_cut_off_mid_job_is_attached_to_again(team: Team) -> None:
    started = team.hosts[0].home / "started"

    def cable() -> None:
        wait_until("the job runs", started.exists, 60)
        team.hosts[0].cut_off()
        time.sleep(18)
        team.hosts[0].bring_back()

    puller = threading.Thread(target=cable)
    puller.start()
    message = team.run(f"touch {started}; i=0; while [ $i -lt 8 ]; do echo $i; i=$((i+1)); sleep 1; done", gpu="H100:2")
    puller.join()
    started.unlink()
    assert message.startswith("exit 0 in "), message
    assert team.state.data.result.log_bytes == len("0\n1\n2\n3\n4\n5\n6\n7\n")


@pytest.mark.docker
@pytest.mark.skipif(
    shutil.which("docker") is None
    or subprocess.run(["docker", "image", "inspect", "sshd:local"], check=False, capture_output=True).returncode != 0,
    reason="needs a Docker Engine with the image sshd:local",
)
def test_a_job_in_an_image_brings_its_files_back_and_an_image_that_nobody_has_is_told(team: Team) -> None:
    for host in team.hosts:
        (host.bin / "nvidia-smi").unlink()
    message = team.run("echo made >out; exit 4", job=Job(image="sshd:local", outputs=("out",)))
    assert message.startswith("exit 4 in "), message
    assert team.state.data.result.result.outputs == ("out",)  # the exception of a failed run carries it
    team.run("true", job=Job(image="127.0.0.1:1/team/none:1"))
    assert team.state.is_failed()
    attempts = Record.read(team.state.state_details.flow_run_id).attempts
    assert all("cannot be pulled" in str(one.why) for one in attempts)
