"""Vast.ai: containers with GPUs on the hosts of a marketplace, on demand and by bid, paid by the second until they are destroyed.

A host is a stranger, who can read all that runs there. GPUs are paid while a container runs, its disk from the order on, and each byte
in both directions at the host's price. A bid that is outbid stops the container, which goes on costing its disk and starts again by itself.
API: https://docs.vast.ai/api-reference

Reading order: driver, offers, order, words.
"""

from prefect_gpu.blocks.vastai import VastaiCredentials
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.vastai.driver import Vastai

tasks = TaskLibrary(Vastai, VastaiCredentials)
