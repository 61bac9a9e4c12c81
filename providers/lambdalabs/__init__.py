"""Lambda: cloud GPUs, paid by the minute from the moment that a machine has passed its health checks until it is terminated.

A machine that is switched off goes on costing money, so only a terminate ends the bill: `reap` is the last net. Prices and places come
from the catalog, today's price and what is free from the API, which has no key for an order and takes one request a second and one
launch in twelve seconds from an account. API: https://docs-api.lambda.ai/api/cloud

Reading order: driver, words.
"""

from prefect_gpu.blocks.lambdalabs import LambdalabsCredentials
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.lambdalabs.driver import Lambdalabs

tasks = TaskLibrary(Lambdalabs, LambdalabsCredentials)
