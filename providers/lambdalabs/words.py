"""What Lambda's words mean: its errors and the states of machines."""

from __future__ import annotations

from typing import Final

from prefect_gpu.providers.core import errors
from prefect_gpu.providers.core.models import InstanceState
from prefect_gpu.providers.core.toolkit import answers


def problem(body: answers.Json) -> answers.Problem | None:
    """Lambda's code and words, with what it suggests. `provider/...` is said by who stands behind Lambda, of anything."""
    found, hint = answers.problem_in(body), answers.at(body, "error.suggestion")
    if found is None or found.code is None:
        return found
    words = f"{found.message} {hint}" if hint else found.message
    is_theirs = found.code.startswith("provider/")
    return answers.Problem("provider/*" if is_theirs else found.code, f"{words} ({found.code})" if is_theirs else words)


MEANINGS: Final = answers.Meanings(
    codes={
        "instance-operations/launch/insufficient-capacity": errors.NoCapacity,
        "instance-operations/launch/file-system-in-wrong-region": errors.RegionClosed,
        "global/quota-exceeded": errors.QuotaExceeded,
        "global/account-inactive": errors.InsufficientFunds,  # no valid payment method, or a bill that is not paid
        "global/invalid-address": errors.InsufficientFunds,  # the one for the bills
        "global/invalid-api-key": errors.AuthFailed,
        "global/object-does-not-exist": errors.NotFound,
        **dict.fromkeys(("global/internal-error", "global/unknown", "provider/*"), errors.Transient),
    },
    problem=problem,
)
STATES: Final = {
    "booting": InstanceState.PROVISIONING,
    "active": InstanceState.RUNNING,
    "terminating": InstanceState.TERMINATING,
    "terminated": InstanceState.TERMINATED,
    "preempted": InstanceState.INTERRUPTED,
}
REASONS: Final = {
    "unhealthy": "Lambda says that it is unhealthy, and it goes on costing money",
    "preempted": "Lambda preempted it",
}
