"""What TensorDock's words mean: its errors, those inside a 200 too, and the states of machines."""

from __future__ import annotations

from typing import Final

from prefect_gpu.providers.core import errors
from prefect_gpu.providers.core.models import InstanceState
from prefect_gpu.providers.core.toolkit import answers

_WORDS: Final = ("detail", "message", "error", "errors", "title")


def problem(body: answers.Json) -> answers.Problem | None:
    """`{"errors": [{"status": "400", "title": ..., "detail": ...}]}`, `{"error": ..., "status": 400}`; the status is its code."""
    if not isinstance(body, dict):
        return None
    said = next((one for one in ("errors.0", "error", "") if isinstance(answers.at(body, one), dict)), "")
    words = next((found for key in _WORDS if (found := answers.at(body, f"{said}.{key}" if said else key))), None)
    status = answers.at(body, f"{said}.status" if said else "status") or body.get("status")
    if words is None and status is None:
        return None
    return answers.Problem(str(status) if status else None, str(words or "it says no reason"))


def problem_in_success(body: answers.Json) -> answers.Problem | None:
    """The error in a body that came with 200: it names one, or a status from 400 on. https://dashboard.tensordock.com/api/docs"""
    if not isinstance(body, dict):
        return None
    status = str(body.get("status") or "")
    is_error = body.get("error") or body.get("errors") or body.get("success") is False
    return problem(body) if is_error or (status.isdecimal() and int(status) >= 400) else None


MEANINGS: Final = answers.Meanings(
    codes={
        **dict.fromkeys(("401", "403"), errors.AuthFailed),
        "402": errors.InsufficientFunds,
        "404": errors.NotFound,
        "429": errors.RateLimited,
        **dict.fromkeys(("500", "502", "503", "504"), errors.Transient),
    },
    # TensorDock has no codes for the rest, and its sentences are not documented.
    words={
        errors.NoCapacity: (
            "not available", "no available", "out of stock", "not enough", "insufficient resources", "insufficient capacity",
            "already in use", "already taken",
        ),
        errors.QuotaExceeded: ("quota", "maximum number of", "limit reached", "limit has been reached"),
        errors.InsufficientFunds: ("need at least", "insufficient", "account balance"),
        errors.NotFound: ("instance not found", "does not exist"),
        errors.AuthFailed: ("unauthorized", "invalid token", "invalid api"),
        errors.RateLimited: ("too many requests", "rate limit"),
    },
    problem=problem,
    problem_in_success=problem_in_success,
)  # fmt: skip
STATES: Final = {  # as `word` writes them
    **dict.fromkeys(("starting", "pending", "provisioning", "creating"), InstanceState.PROVISIONING),
    "running": InstanceState.RUNNING,
    "stoppeddisassociated": InstanceState.INTERRUPTED,
    "deleting": InstanceState.TERMINATING,
    "deleted": InstanceState.TERMINATED,
    "error": InstanceState.FAILED,
}
REASONS: Final = {
    "stopping": "it is being stopped, and goes on costing money",
    "stopped": "it is stopped, and its disk goes on costing money",
    "stoppeddisassociated": "its host took the GPU back",
    "error": "TensorDock says that it failed",
}


def word(status: object) -> str:
    """A status as they are compared: TensorDock writes `running`, `Stopped` and `StoppedDisassociated`."""
    return "".join(mark for mark in str(status).lower() if mark.isalnum())
