"""What Verda's words mean: its errors, those inside a success too, and the states of machines and disks."""

from __future__ import annotations

from typing import Any, Final, cast

from prefect_gpu.providers.core import errors
from prefect_gpu.providers.core.models import InstanceState
from prefect_gpu.providers.core.toolkit import answers


def refusal_in_success(body: answers.Json) -> answers.Problem | None:
    """The first refusal in what an action answers with 202 or 207: a list with an entry for each machine."""
    for entry in body if isinstance(body, list) else ():
        if not isinstance(entry, dict) or "instanceId" not in entry:
            return None
        one = cast("dict[str, Any]", entry)
        if one.get("error") or str(one.get("statusCode") or 200) >= "300":
            return answers.Problem(str(one.get("statusCode")), str(one.get("error") or "it says no reason"))
    return None


# 503 and `service_unavailable` are said of what is sold out and of what is down: only the words tell which.
MEANINGS: Final = answers.Meanings(
    codes={
        "unauthorized_request": errors.AuthFailed,
        "insufficient_funds": errors.InsufficientFunds,
        "not_found": errors.NotFound,
        **dict.fromkeys(("429", "500", "502", "503", "504"), errors.Transient),  # `statusCode` of a machine's entry
    },
    words={
        errors.NoCapacity: ("not enough resources",),
        errors.NotFound: ("invalid instance id", "can't discontinue a discontinued"),
        errors.Transient: ("can't discontinue a",),  # provisioning instance: later it can
    },
    problem_in_success=refusal_in_success,
)
STATES: Final = {
    **dict.fromkeys(("new", "ordered", "provisioning", "validating", "pending"), InstanceState.PROVISIONING),
    "running": InstanceState.RUNNING,
    **dict.fromkeys(("no_capacity", "error"), InstanceState.FAILED),
    "deleting": InstanceState.TERMINATING,
    **dict.fromkeys(("discontinued", "notfound"), InstanceState.TERMINATED),
}
REASONS: Final = {
    "pending": "Verda waits for a free machine",
    "no_capacity": "sold out: Verda took the order and then had no machine for it",
    "error": "Verda says that it failed",
    "offline": "it is powered off, and goes on costing money",
}
GONE_DISKS: Final = ("deleted", "deleting", "canceled", "canceling")
