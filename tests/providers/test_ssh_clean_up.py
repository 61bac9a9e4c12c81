"""Whatever happens to a run on a team's own machines, with a real server, worker and OpenSSH, nothing of it stays there."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import pytest

from tests.clean_up import Asked, CleanUp, Left
from tests.fakes import sshd_hosts as machines
from tests.fakes.sshd_hosts import SshdHost, block, sshd_hosts
from tests.stack import Stack

WHY_NOT = machines.missing()
pytestmark = [
    pytest.mark.server,
    pytest.mark.root,
    pytest.mark.openssh,
    pytest.mark.timeout(400),
    pytest.mark.skipif(WHY_NOT is not None, reason=f"machines of one's own: {WHY_NOT}"),
]


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[SshdHost, ...]]:
    with sshd_hosts("one", "two") as both:
        yield both


@pytest.fixture(scope="module")
def provision(stack: Stack, hosts: tuple[SshdHost, ...]) -> Iterator[UUID]:
    with stack.account(block(*hosts)):
        yield stack.deploy("prefect_gpu.flows.provision.provision", "ssh")


@pytest.fixture
def asked() -> Asked:
    return {"providers": ["ssh"]}


@pytest.fixture
def left(hosts: tuple[SshdHost, ...]) -> Left:
    """Claims, key lines, directories and processes on the machines, as the machines have them."""

    def look() -> list[str]:
        found: list[str] = []
        for host in hosts:
            found += [f"{host.name}: {path.name}" for path in host.claims.glob("*") if path.name != "lock"]
            found += [f"{host.name}: {path.name}" for path in host.home.glob(".prefect-gpu/*")]
            keys = (host.home / ".ssh" / "authorized_keys").read_text().splitlines()
            found += [f"{host.name}: a key of {line.split()[-1]}" for line in keys if "pg-" in line]
            found += [f"{host.name}: process {pid}" for pid in host.processes("pg-")]
        return found

    return look


class TestSsh(CleanUp):
    def test_a_job_runs_there_and_nothing_is_left_before_the_run_is_completed(
        self, hosts: tuple[SshdHost, ...], stack: Stack, provision: UUID, left: Left
    ) -> None:
        run_id = stack.run(provision, command="echo hello from $(hostname)", providers=["ssh"])
        stack.wait_for_state(run_id, "Completed")
        assert left() == []
        assert stack.message(run_id).startswith("exit 0 in ")
        names = {f"hello from {host.name}" for host in hosts}
        assert any(line.strip() in names for line in stack.logs(run_id)), "\n".join(stack.logs(run_id))

    def test_what_the_job_detached_from_itself_is_gone_after_its_end(
        self, stack: Stack, provision: UUID, left: Left, hosts: tuple[SshdHost, ...]
    ) -> None:
        run_id = stack.run(provision, command="setsid sleep 4711 >/dev/null 2>&1 & true", providers=["ssh"])
        stack.wait_for_state(run_id, "Completed")
        assert left() == []
        assert [pid for host in hosts for pid in host.processes("4711")] == []
