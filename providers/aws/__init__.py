"""AWS. Reading order: driver, offers, quotas, images, network, reservations, order, instances, listing, give_back, rights, api, errors."""

from __future__ import annotations

from prefect_gpu.blocks.aws import AwsCredentials
from prefect_gpu.providers.aws.driver import Aws
from prefect_gpu.providers.core.renting.library import TaskLibrary

tasks = TaskLibrary(Aws, AwsCredentials)
