"""A team's own machines. Reading order: driver, claims, reach, silence, offers, order, listing, ending, rights, errors."""

from __future__ import annotations

from prefect_gpu.blocks.ssh import SshMachines
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.ssh.driver import Ssh

tasks = TaskLibrary(Ssh, SshMachines)
