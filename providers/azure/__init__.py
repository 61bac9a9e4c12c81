"""Azure. Reading order: driver, offers, quotas, images, network, reservations, order, instances, listing, give_back, rights, api, errors."""

from __future__ import annotations

from prefect_gpu.blocks.azure import AzureCredentials
from prefect_gpu.providers.azure.driver import Azure
from prefect_gpu.providers.core.renting.library import TaskLibrary

tasks = TaskLibrary(Azure, AzureCredentials)
