"""RunPod: containers with GPUs ("pods") in data centers and, in its community cloud, on the hosts of strangers, paid by the second.

A pod runs the job's own image. It makes its host key itself and tells it in its log, which is read over the API: no pod is reached by way of
RunPod's SSH proxy, and the account's SSH keys are neither used nor touched. A pod ends by a terminate only. Offers are live, each GPU type in
each data center that has it, from API version 2; the older ones are retired. API: https://docs.runpod.io/api-reference-v2/overview

Reading order: driver, offers, order, pods, words.
"""

from prefect_gpu.blocks.runpod import RunpodCredentials
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.runpod.driver import Runpod

tasks = TaskLibrary(Runpod, RunpodCredentials)
