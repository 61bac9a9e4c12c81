"""What Vast.ai's words mean: its errors, those inside a 200 too, and the four words of a container's state."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, cast

from prefect_gpu.providers.core import errors
from prefect_gpu.providers.core.models import InstanceState, SshEndpoint
from prefect_gpu.providers.core.toolkit import answers, container_boot, scopes, states

MADE: Final = "contract "  # a code of ours, with its number: what was made though the answer is an error


def problem(body: answers.Json) -> answers.Problem | None:
    """`{"success": false, "error": <code>, "msg": <words>}`, for too many requests also `{"detail": <words>}`."""
    if not isinstance(body, dict):
        return None
    code, words = body.get("error"), body.get("msg") or body.get("message") or body.get("detail")
    if code is None and words is None:
        return None
    # A bid that is too low is refused, and a stopped contract may stand there all the same: it costs its disk.
    made = body.get("new_contract") or body.get("contract_id")
    is_made = isinstance(made, int) and not isinstance(made, bool)
    said = f"{words or code}"
    if isinstance(code, str) and code not in said:
        said = f"{code}: {said}"
    return answers.Problem(f"{MADE}{made}" if is_made else None if code is None else str(code), said)


def problem_in_success(body: answers.Json) -> answers.Problem | None:
    """The error in a body that came with 200."""
    is_error = isinstance(body, dict) and body.get("success") is False
    return (
        (problem(body) or answers.Problem(None, "it was not successful, and no reason is told")) if is_error else None
    )


MEANINGS: Final = answers.Meanings(
    codes={
        "no_such_ask": errors.NoCapacity,
        "invalid_price": errors.NoCapacity,  # others bid more by now
        "insufficient_credit": errors.InsufficientFunds,
        "auth_error": errors.AuthFailed,  # with 404 too
        **dict.fromkeys(("not_found", "no_such_instance", "invalid_id"), errors.NotFound),
        **dict.fromkeys(("rate_limit_exceeded", "search_quota_exceeded"), errors.RateLimited),
    },
    # `invalid_args` stands for many things, and a contract that was made has a code of ours.
    words={
        errors.NoCapacity: (
            "no_such_ask",
            "invalid_price",
            "bid is too low",
            "is not available",
            "no longer available",
        ),
        errors.InsufficientFunds: ("insufficient_credit", "insufficient credit", "lacks credit", "add credit"),
        errors.AuthFailed: ("invalid user key",),
        errors.RateLimited: ("requests too frequent",),
    },
    statuses={404: errors.Transient},  # without a code of its own it is not Vast.ai that says so, and nothing is gone
    problem=problem,
    problem_in_success=problem_in_success,
)
STATES: Final = {  # by `actual_status`; https://docs.vast.ai/api-reference/instances/show-instance
    **dict.fromkeys(("none", "created", "loading", "scheduling", "creating"), InstanceState.PROVISIONING),
    "running": InstanceState.RUNNING,
    "stopped": InstanceState.INTERRUPTED,
    **dict.fromkeys(("exited", "offline", "unknown"), InstanceState.FAILED),  # none of them ever runs again
}
REASONS: Final = {
    "exited": "its container ended, and its disk goes on costing money",
    "offline": "its host is offline, or does not answer Vast.ai",
    "unknown": "Vast.ai does not know what became of it",
}
OUTBID: Final = "it was stopped for a higher bid, and would start again by itself"
STOPPED: Final = "its host or Vast.ai stopped it (the balance may be used up), and its disk goes on costing money"
_BROKEN: Final = ("oci runtime create failed", "pull access denied", "manifest unknown", "manifest for ")


def number_of(instance_id: str) -> str:
    """The number of a contract. NotFound for an id that is none."""
    _, number = scopes.split(instance_id, ("instances",))
    if not number.isdecimal():
        raise errors.NotFound(f"{instance_id!r} is not a contract's id")
    return number


def way_in(row: dict[str, Any]) -> SshEndpoint | None:
    """Where our sshd is reached; None where that is not told yet."""
    address = str(row.get("public_ipaddr") or "").strip()
    port = str(answers.at(row, f"ports.{container_boot.PORT}/tcp.0.HostPort") or "")
    is_port = port.isascii() and port.isdecimal() and 0 < int(port) < 65536
    return SshEndpoint(host=address, port=int(port)) if address and is_port else None


def price_of(row: dict[str, Any]) -> float | None:
    """USD an hour, where it is told."""
    price = row.get("dph_total")
    return float(price) if isinstance(price, int | float) and not isinstance(price, bool) and price >= 0 else None


def state_of(row: dict[str, Any], ssh: SshEndpoint | None) -> tuple[InstanceState, str]:
    """The state of a container, and why it is that."""
    actual, now, wanted = (str(row.get(key)).lower() for key in ("actual_status", "cur_state", "intended_status"))
    said = answers.cleaned(str(row.get("status_msg") or ""), ())
    if "stopped" in (actual, now) or (wanted == "stopped" and actual != "running"):
        return InstanceState.INTERRUPTED, OUTBID if row.get("is_bid") else STOPPED
    if actual != "running" and any(piece in said.lower() for piece in _BROKEN):
        return InstanceState.FAILED, said
    return states.state_of(actual, STATES, ssh), REASONS.get(actual, "" if actual == "running" else said)


def environment_of(row: dict[str, Any]) -> dict[str, str]:
    """The variables that its order set, which come back as pairs."""
    found = row.get("extra_env")
    if isinstance(found, dict):
        return {str(key): str(value) for key, value in cast("dict[object, object]", found).items()}
    told: dict[str, str] = {}
    for one in cast("list[object]", found) if isinstance(found, list) else []:
        pair = cast("list[object]", one) if isinstance(one, list) else str(one).split("=", 1)  # its two calls differ
        if len(pair) == 2:
            told[str(pair[0])] = str(pair[1])
    return told


def moment(seconds: object) -> datetime | None:
    """A time in seconds since 1970; None for anything else."""
    try:
        return datetime.fromtimestamp(float(str(seconds)), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def traffic_of(row: dict[str, Any]) -> float:
    """USD for bytes in both directions, among the charges of a contract: `bwu` and `bwd`."""
    kinds, amounts = (answers.each(row, "items", field) for field in ("type", "amount"))
    return sum(float(amount) for kind, amount in zip(kinds, amounts, strict=True) if kind in ("bwu", "bwd"))
