"""`provision` with something wrong in it, or in a hurry, as flows that a worker can run: for tests of what is cleaned up."""

from __future__ import annotations

import time
from typing import Any

from prefect_gpu import providers as registry
from prefect_gpu.flows import provision as provision_module
from prefect_gpu.flows.run import steps
from prefect_gpu.providers.core.models import Instance, LaunchSpec, Offer
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.local.driver import Local
from prefect_gpu.providers.vastai.driver import Vastai


class SlowToAnswer(Local):
    """The instance is there at once; the answer takes a minute."""

    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        made = super().create_instance(offer, spec)
        time.sleep(60)
        return made


def _wait_ready_breaks(*_: Any) -> Instance:
    raise RuntimeError("a bug of ours")


def _with(**changes: Any) -> Any:
    """The flow with other parts; each worker process imports this module for one run of one of these flows."""

    def changed(*arguments: Any, **parameters: Any) -> Any:
        library = changes.get("library")
        if library is not None:
            registry.library = lambda _name: library  # type: ignore[assignment]
        if "wait_ready" in changes:
            steps.wait_ready = changes["wait_ready"]
        if "lists_late_s" in changes:
            Vastai.capabilities = Vastai.capabilities.model_copy(update={"listing_lag_s": changes["lists_late_s"]})
        return provision_module.provision.fn(*arguments, **parameters)

    changed.__wrapped__ = provision_module.provision.fn  # type: ignore[attr-defined]  # its parameters are the form's
    return changed


def _as_flow(name: str, function: Any) -> Any:
    from prefect import flow

    original = provision_module.provision
    return flow(
        name=name,
        on_running=list(original.on_running_hooks),
        on_cancellation=list(original.on_cancellation_hooks),
        on_crashed=list(original.on_crashed_hooks),
        persist_result=True,
        result_serializer="json",
        validate_parameters=False,
    )(function)


provision_with_a_slow_create = _as_flow("slow-create", _with(library=TaskLibrary(SlowToAnswer)))
provision_that_breaks = _as_flow("breaks", _with(wait_ready=_wait_ready_breaks))
# Vast.ai shows nothing of what is gone: a run waits until its lists can be believed.
provision_that_waits_for_no_list = _as_flow("waits-for-no-list", _with(lists_late_s=2.0))
