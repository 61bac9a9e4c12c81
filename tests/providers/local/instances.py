"""Instances of `local` for its tests: ordered, logged in to, and what lives of them."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.machine.ssh import connect
from prefect_gpu.providers.core.models import Instance, utc_now
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.local import keeper
from prefect_gpu.providers.local.driver import Local
from tests.conformance import MASTER_SECRET, launch_spec, lease_name

REPOSITORY = Path(__file__).parents[3]


def end_all(provider: Local) -> None:
    listing = provider.list_instances("")
    provider.terminate_instances([found.id for found in (*listing.instances, *listing.leftovers)])


def create(provider: Local, name: str | None = None, *, for_s: float = 120) -> Instance:
    (offer,) = provider.fetch_offers(Requirements())
    spec = launch_spec(provider, name or lease_name(), deadline=utc_now() + timedelta(seconds=for_s))
    return provider.create_instance(offer, spec)


def log_in(instance: Instance):
    assert instance.ssh is not None
    keys = (derive(MASTER_SECRET, instance.name, purpose) for purpose in ("client", "host"))
    client, host = keys
    return contextlib.closing(connect(instance.ssh, client, host.public, timeout_s=20))


def run(connection, command: str, data: bytes = b"") -> tuple[bytes, int]:
    channel = connection.open(command)

    def send() -> None:
        for at in range(0, len(data), 1 << 18):
            channel.sendall(data[at : at + (1 << 18)])
        channel.shutdown_write()

    sender = threading.Thread(target=send)
    sender.start()
    output = bytearray()
    while piece := channel.recv(1 << 20):
        output += piece
    sender.join(20)
    return bytes(output), channel.exit_status(20)


def wait_for(done: Callable[[], object], within_s: float = 10) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if done():
            return True
        time.sleep(0.01)
    return False


def record_of(directory: Path) -> dict | None:
    path = directory / "keeper"
    return json.loads(path.read_text()) if path.exists() else None


def lives(pid: int) -> bool:
    return keeper.started(pid) is not None


def pids_in(output: bytes) -> list[int]:
    return [int(line) for line in output.split()]


# Four ways to get away: the background, a session of its own, a double fork, and no environment to be known by.
ESCAPES = """
sleep 1000 & echo $!
setsid sleep 1001 & echo $!
setsid sh -c 'sleep 1002 >/dev/null 2>&1 & echo $!'
setsid env -i sh -c 'cd /; sleep 1003 >/dev/null 2>&1 & echo $!'
"""


def escape(connection) -> list[int]:
    output, status = run(connection, f"({ESCAPES}) 2>/dev/null </dev/null >pids; sync; cat pids")
    assert status == 0
    pids = pids_in(output)
    assert len(pids) == 4
    assert all(lives(pid) for pid in pids)
    return pids
