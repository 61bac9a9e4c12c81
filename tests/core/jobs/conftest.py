"""Machines that jobs run on: over asyncssh everywhere, and over OpenSSH where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_gpu.providers.core.machine.jobs import Machine
from tests.fakes.sshd import Server, asyncssh_server, has_openssh, openssh_server


@pytest.fixture(scope="module", params=["asyncssh", pytest.param("openssh", marks=pytest.mark.openssh)])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "openssh" and not has_openssh():
        pytest.skip("OpenSSH is not installed: apt-get install openssh-server")
    with asyncssh_server() if request.param == "asyncssh" else openssh_server() as running:
        yield running


@pytest.fixture
def machine(server: Server, tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(server.connect, root=str(tmp_path / "root"), grace_s=1)
    yield machine
    machine.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"
