"""Verda, formerly DataCrunch: virtual machines with GPUs, on demand or spot, paid from the order until they are deleted.

A machine that is switched off goes on costing money, so only a delete ends the bill: `reap` is the last net. Prices come from the
catalog, what is in stock from the API, which has no key for an order. The disk is billed apart. https://api.verda.com/v1/docs

Reading order: driver, words.
"""

from prefect_gpu.blocks.verda import VerdaCredentials
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.verda.driver import Verda

tasks = TaskLibrary(Verda, VerdaCredentials)
