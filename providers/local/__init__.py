"""This machine. Reading order: driver, offers, order, listing, give_back, directory, keeper, ssh_server."""

from __future__ import annotations

from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.local.driver import Local

tasks = TaskLibrary(Local)
