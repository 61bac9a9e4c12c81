"""TensorDock: virtual machines with GPUs on the hosts of a marketplace, paid from the order until they are deleted.

A machine that is switched off goes on costing money, so only a delete ends the bill: `reap` is the last net. Each offer is a share of
one host, priced by its GPUs, cores, memory and disk, from TensorDock's own API, which has no key for an order, says some errors
inside a 200 and takes 100 requests a minute. API: https://dashboard.tensordock.com/api/docs

Reading order: driver, offers, words.
"""

from prefect_gpu.blocks.tensordock import TensordockCredentials
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.tensordock.driver import Tensordock

tasks = TaskLibrary(Tensordock, TensordockCredentials)
