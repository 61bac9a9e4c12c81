"""Giving a claim back, with all that its owner left on the machine."""

from __future__ import annotations

from prefect_gpu.blocks.ssh import SshHost
from prefect_gpu.providers.core.errors import Transient
from prefect_gpu.providers.core.machine.channels import said
from prefect_gpu.providers.ssh.claims import give_back_program
from prefect_gpu.providers.ssh.reach import Hosts


def give_back(hosts: Hosts, host: SshHost, name: str) -> bool:
    """Whether it is gone already; it ends by itself where that takes longer. Transient where the machine did not take the order."""
    done = hosts.execute(host, give_back_program(name))
    answer = done.stdout.split()[-1:]
    if done.exit_code != 0 or answer not in ([b"gone"], [b"ending"]):
        raise Transient(f"{host.name} did not give back {name}: {said(done.stderr) or f'exit {done.exit_code}'}")
    return answer == [b"gone"]
