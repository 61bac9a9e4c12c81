"""What RunPod's words mean: its errors, the states of pods, and what it had once."""

from __future__ import annotations

import re
from typing import Any, Final

from pydantic import model_validator

from prefect_gpu.blocks.runpod import RunpodOptions
from prefect_gpu.providers.core import errors
from prefect_gpu.providers.core.models import InstanceState
from prefect_gpu.providers.core.toolkit import answers

# https://github.com/runpod/runpodctl/issues/267 (spot), https://github.com/runpod/docs/pull/820 (ends), 2026
NO_SPOT: Final = (
    "RunPod took spot machines out of its API in 2026: ask for on-demand or either, or choose another provider"
)
NO_END: Final = (
    "RunPod took terminateAfter and stopAfter, which never ended a pod, out of its API: the lease ends the machine"
)
_HAD_ONCE: Final = {
    **dict.fromkeys(("terminateAfter", "terminate_after", "stopAfter", "stop_after"), NO_END),
    **dict.fromkeys(("interruptible", "bidPerGpu", "bid_per_gpu", "spot"), NO_SPOT),
}


def problem(body: answers.Json) -> answers.Problem | None:
    """RFC 9457: `{"title", "status", "detail", "errors": [...]}`. `type`, where it comes, names a page and no code of RunPod's."""
    if not isinstance(body, dict):
        return None
    said = [body.get("detail") or body.get("title"), *answers.each(body, "errors", "")]
    words = "; ".join(str(one) for one in said if one)
    return answers.Problem(None, words) if words else None


# One 400 is a rule that was broken or no room, without a code; the sentences are those that its older APIs are known to say.
MEANINGS: Final = answers.Meanings(
    words={
        errors.NoCapacity: (
            "no longer any instances", "instances available", "no available", "no capacity", "out of capacity",
            "capacity error", "insufficient capacity", "could not be placed", "out of stock", "resources to deploy",
        ),
        errors.QuotaExceeded: ("spend limit", "spending limit", "quota", "maximum number of"),
        errors.InsufficientFunds: ("insufficient balance", "insufficient funds", "balance is too low", "add funds"),
    },
    problem=problem,
)  # fmt: skip
STATES: Final = {
    **dict.fromkeys(("PROVISIONING", "STARTING"), InstanceState.PROVISIONING),
    "RUNNING": InstanceState.RUNNING,
    **dict.fromkeys(("EXITED", "ERROR"), InstanceState.FAILED),
    "TERMINATED": InstanceState.TERMINATED,
}
REASONS: Final = {"EXITED": "its container ended", "ERROR": "RunPod says that its container cannot run"}
NO_WAY: Final = "it runs, and RunPod leads no public address to it"


# Docker's own words, in what the host tells of a pod, for what no waiting mends.
_NEVER: Final = re.compile(
    r"[^\n]*(?:manifest unknown|manifest for \S+ not found|no matching manifest|pull access denied|repository does not exist|"
    r"authentication required|executable file not found|exec format error|unsatisfied condition)[^\n]*",
    re.IGNORECASE,
)


def image_trouble_in(log: str) -> str | None:
    """Why an image never runs there, in the words of the host's log; None where it says nothing of the kind."""
    found = _NEVER.search(log)
    return f"its image does not run: {answers.cleaned(found[0], ())}" if found else None


class Asked(RunpodOptions):
    """The options of an order. Unsupported, with the reason, for what RunPod had once."""

    @model_validator(mode="before")
    @classmethod
    def _had_once(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in _HAD_ONCE.keys() & given.keys():
            raise errors.Unsupported(_HAD_ONCE[name])
        return given
