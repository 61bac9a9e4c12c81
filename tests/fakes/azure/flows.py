"""`provision` as it is, where the fake's listings are known to lag by a second: a run of seconds is not held up for a minute."""

from __future__ import annotations

import os

from prefect_gpu.flows import provision as provision_module
from prefect_gpu.providers.azure import tasks
from prefect_gpu.providers.azure.driver import Azure

if "PREFECT__FLOW_RUN_ID" in os.environ:  # not in the process of the tests, which imports this to deploy it
    Azure.capabilities = tasks.capabilities = Azure.capabilities.model_copy(update={"listing_lag_s": 1})
provision = provision_module.provision
