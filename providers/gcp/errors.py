"""What Compute Engine says when something goes wrong, told as our errors: in answers, and in operations that were accepted first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InstanceFailed,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Reach,
    RegionClosed,
    Transient,
)
from prefect_gpu.providers.core.toolkit import answers
from prefect_gpu.providers.core.toolkit.answers import Json, Problem, cleaned

EXISTS: Final = ("alreadyExists", "RESOURCE_ALREADY_EXISTS")  # a machine of this name is in this zone


def problem_in(body: Json) -> Problem | None:
    """The reason in an answer's `error.errors`, which says more than its status, and the message beside it."""
    error = answers.at(body, "error")
    if not isinstance(error, dict):
        return answers.problem_in(body)
    fields = cast("dict[str, Any]", error)
    reason = answers.at(fields, "errors.0.reason") or answers.at(fields, "details.0.reason") or fields.get("status")
    message = fields.get("message") or answers.at(fields, "errors.0.message") or reason
    return Problem(str(reason) if reason else None, str(message)) if message else None


# Reasons: https://cloud.google.com/compute/docs/troubleshooting/troubleshooting-vm-creation, https://cloud.google.com/apis/design/errors.
# `forbidden` and `notFound` mean what their status does; `forbidden` is said of an unpaid project too, which only the words tell.
MEANINGS: Final = answers.Meanings(
    codes={
        **dict.fromkeys(("quotaExceeded", "QUOTA_EXCEEDED", "limitExceeded"), QuotaExceeded),
        **dict.fromkeys(("rateLimitExceeded", "userRateLimitExceeded", "RATE_LIMIT_EXCEEDED"), RateLimited),
        **dict.fromkeys(
            ("resourceNotReady", "resourceInUseByAnotherResource", "backendError", "internalError"), Transient
        ),
        **dict.fromkeys(("conditionNotMet", "accessNotConfigured", "SERVICE_DISABLED"), AuthFailed),
        **dict.fromkeys(
            ("ZONE_RESOURCE_POOL_EXHAUSTED", "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "STOCKOUT"), NoCapacity
        ),
        "BILLING_DISABLED": InsufficientFunds,
        "billingNotEnabled": InsufficientFunds,
    },
    words={
        InsufficientFunds: ("billing to be enabled", "billing account", "billing is disabled", "delinquent"),
        NoCapacity: ("not have enough resources", "not have available resources"),
        QuotaExceeded: ("quota '",),
    },
    problem=problem_in,
)
# Codes inside an operation that was accepted: https://cloud.google.com/compute/docs/troubleshooting/troubleshooting-resource-availability
IN_OPERATIONS: Final[Mapping[str, type[ProviderError]]] = {
    "ZONE_RESOURCE_POOL_EXHAUSTED": NoCapacity,
    "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS": NoCapacity,
    "RESOURCE_POOL_EXHAUSTED": NoCapacity,
    "STOCKOUT": NoCapacity,
    "VM_MIN_COUNT_NOT_REACHED": NoCapacity,
    "QUOTA_EXCEEDED": QuotaExceeded,
    "LIMIT_EXCEEDED": QuotaExceeded,
    "RESOURCE_OPERATION_RATE_EXCEEDED": RateLimited,
    "RATE_LIMIT_EXCEEDED": RateLimited,
    "PERMISSIONS_ERROR": AuthFailed,
    "FORBIDDEN": AuthFailed,
    "CONDITION_NOT_MET": AuthFailed,
    "IP_SPACE_EXHAUSTED": RegionClosed,
    "IP_SPACE_EXHAUSTED_WITH_DETAILS": RegionClosed,
    "RESOURCE_NOT_FOUND": NotFound,
    "INTERNAL_ERROR": InstanceFailed,
    "BACKEND_ERROR": InstanceFailed,
}
# Of the project, whatever is ordered in it.
_OF_THE_PROJECT: Final = ("accessNotConfigured", "SERVICE_DISABLED", "insufficientPermissions")
_TYPES: Final = ("/machineTypes/", "/acceleratorTypes/", "/diskTypes/")
# What reading an answer of another shape than Google's raises.
UNREADABLE: Final = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)


def in_operation(operation: Mapping[str, Any], doing: str) -> ProviderError | None:
    """What went wrong in an operation that is done; None where nothing did."""
    if operation.get("status") != "DONE" or not isinstance(operation.get("error"), dict):
        return None
    first = answers.at(cast("Any", operation), "error.errors.0")
    fields = cast("dict[str, Any]", first) if isinstance(first, dict) else {}
    code = str(fields.get("code") or operation.get("httpErrorMessage") or "no code")[:100]
    words = str(fields.get("message") or "it gives no reason")
    for detail in cast("list[Any]", fields.get("errorDetails") or []):
        words = str(answers.at(detail, "localizedMessage.message") or words)
    status = operation.get("httpErrorStatusCode")
    unknown = InstanceFailed if isinstance(status, int) and status >= 500 else InvalidRequest
    kind = IN_OPERATIONS.get(code, MEANINGS.codes.get(code, unknown))
    return kind(f"Google Cloud could not {doing}: {code}: {cleaned(words, ())}", code=code)


def as_of_an_order(error: ProviderError) -> ProviderError:
    """The same refusal as an order's: what it speaks of, and no more."""
    if isinstance(error, NotFound):
        # Not the machine: what the order names does not exist in this zone or region.
        if any(kind in error.message for kind in _TYPES):
            return NoCapacity(error.message, code=error.code)
        reach: Reach = "region" if "/subnetworks/" in error.message else "provider"
        return RegionClosed(error.message, code=error.code, reach=reach)
    if isinstance(error, AuthFailed) and error.told_reach is None:
        error.told_reach = _denied(error)
    return error


def _denied(error: AuthFailed) -> Reach | None:
    """What a denial is of, where that is not the type in this region and market."""
    if error.code in _OF_THE_PROJECT:
        return "provider"
    words = error.message
    if "gcp.resourceLocations" in words or "/subnetworks/" in words or "compute.subnetworks." in words:
        return "region"
    # An image, a service account, an address: they go with every order.
    of_all = ("vmExternalIpAccess", "trustedImageProjects", "requireOsLogin", "serviceAccounts", "compute.images.")
    return "provider" if any(one in words for one in of_all) else None
