"""What tests do on the machines of sshd_hosts: claim them, run jobs there, look at what is left."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

import pytest

from prefect_gpu.providers.core.machine import ssh
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.models import Instance, JobSpec, Offer
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.ssh.driver import Ssh
from tests.conformance import MASTER_SECRET, launch_spec, lease_name
from tests.fakes import sshd_hosts as fakes
from tests.fakes.sshd_hosts import ADMIN, SshdHost

WHY_NOT = fakes.missing()
needs_machines = [
    pytest.mark.root,
    pytest.mark.openssh,
    pytest.mark.skipif(WHY_NOT is not None, reason=f"machines of one's own: {WHY_NOT}"),
]

# Kills the sshd of the session that called it: the link breaks in the middle of a script.
BREAK_THE_LINK = """
p=$$
while [ "$p" -gt 1 ]; do
    read -r line </proc/$p/stat; set -- ${line##*) }; p=$2
    case $(cat /proc/$p/comm) in sshd) kill -9 $p; break ;; esac
done
sleep 0.3
"""

TWO_GPUS = """
case $* in
*--query-gpu*)
    echo "0, GPU-aaaa1111, NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15, 00000000:3B:00.0, 0"
    echo "1, GPU-bbbb2222, NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15, 00000000:5E:00.0, 0" ;;
-L) echo "GPU 0: NVIDIA H100"; echo "GPU 1: NVIDIA H100" ;;
*) echo "| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15    CUDA Version: 12.4 |" ;;
esac
"""


def restore(host: SshdHost) -> None:
    """Back to a machine that nobody has used."""
    host.bring_back()
    for tool in host.bin.iterdir():
        tool.unlink()
    host.power_off()
    for left in (host.folder / "var-tmp").iterdir():
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    for home in (host.home, host.folder / "worker"):
        shutil.rmtree(home / ".prefect-gpu", ignore_errors=True)
        (home / ".ssh" / "authorized_keys").write_text(ADMIN.public + " the team\n")
    host.power_on()


def offer_of(driver: Ssh, name: str = "") -> Offer:
    offers = driver.fetch_offers(Requirements())
    return next(offer for offer in offers if not name or offer.instance_type == name)


def claim(driver: Ssh, name: str | None = None, machine: str = "") -> Instance:
    return driver.create_instance(offer_of(driver, machine), launch_spec(driver, name or lease_name()))


def machine_of(instance: Instance) -> Machine:
    key = derive(MASTER_SECRET, instance.name, "client")
    assert instance.ssh is not None
    endpoint = instance.ssh
    return Machine(lambda: ssh.connect(endpoint, key, None, timeout_s=5.0))


def start(instance: Instance, command: str) -> JobSpec:
    job = JobSpec(id=f"{instance.name}.1", command=command, env=instance.env)
    machine = machine_of(instance)
    assert machine.start(job)
    machine.close()
    return job


def seen_of(host: SshdHost, text: str) -> list[str]:
    """The command lines of living processes that have this in their command line or environment."""
    found: list[str] = []
    for process in host.processes(text):
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()[-300:])
    return found


def wait_until(what: str, condition: object, within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.05)


def age(host: SshdHost, by_s: int = 10**6) -> None:
    """Let the deadline of every claim on a machine pass, without its timer noticing for some seconds."""
    for path in host.claims.glob("slot.*"):
        name, deadline, created, user, gpus, boot, uptime = path.read_text().split()
        fields = [name, int(deadline) - by_s, created, user, gpus, boot, max(0, int(uptime) - by_s)]
        path.write_text(" ".join(map(str, fields)) + "\n")


def kill_timers(host: SshdHost) -> None:
    host.run(
        "for f in $(grep -lsF PREFECT_GPU_LEASE= /proc/[0-9]*/environ); do f=${f#/proc/}; kill -9 ${f%/environ}; done || :"
    )
