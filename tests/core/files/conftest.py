"""Machines that files go to and come from."""

from __future__ import annotations

import shutil
import subprocess
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
    machine = Machine(server.connect, root=str(tmp_path / "root"))
    yield machine
    machine.close()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose only programs are busybox's; its `head` comes late, when all that is sent at once waits for it."""
    program = shutil.which("busybox")
    if program is None:
        pytest.skip("busybox is not installed")
    tools = tmp_path_factory.mktemp("busybox")
    subprocess.run([program, "--install", "-s", str(tools)], check=True)
    (tools / "head").unlink()
    (tools / "head").write_text(f'#!/bin/sh\nsleep 0.1\nexec {program} head "$@"\n')
    (tools / "head").chmod(0o755)
    with asyncssh_server("busybox", env={"PATH": str(tools)}) as running:
        yield running
