"""From "SSH answers" to "job started": on an asyncssh server like `local`'s, and against `ssh host true` on OpenSSH's.

The OpenSSH server's user has an empty home: a slow ~/.bashrc would be the same addend on both sides and hide what is measured.
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
import uuid

from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.models import JobSpec
from tests.bench import Metric
from tests.fakes.sshd import Server, asyncssh_server, has_openssh, openssh_server, ssh_options

_ROUNDS = 15


def measure() -> dict[str, Metric]:
    figures: dict[str, Metric] = {}
    with tempfile.TemporaryDirectory() as root:
        with asyncssh_server() as server:
            _ready(server, root)  # the first login of a server is slower
            figures["run.readiness_s"] = Metric(
                statistics.median(_ready(server, root) for _ in range(_ROUNDS)), "s", 0.1, "lower"
            )
        if has_openssh():
            with openssh_server(options=(f"SetEnv HOME={root}",)) as server, ssh_options(server) as options:
                ratios = [_ready(server, root) / _ssh_true(server, options) for _ in range(_ROUNDS)]
                figures["run.readiness_vs_ssh"] = Metric(statistics.median(ratios), "x", 0.5, "lower")
    return figures


def _ready(server: Server, root: str) -> float:
    began = time.perf_counter()
    machine = Machine(server.connect, root=root)
    assert machine.start(JobSpec(id=f"job-{uuid.uuid4().hex}", command="true"))
    took = time.perf_counter() - began
    machine.close()
    return took


def _ssh_true(server: Server, options: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(["ssh", *options, server.endpoint.host, "true"], check=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - began
