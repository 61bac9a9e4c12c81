"""What Azure's Resource Manager says when something goes wrong, told as our errors; and what azure-identity says at a login."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

from prefect_gpu.providers.core import errors
from prefect_gpu.providers.core.errors import ProviderError, Reach
from prefect_gpu.providers.core.toolkit import answers

# By code: https://learn.microsoft.com/troubleshoot/azure/virtual-machines/windows/error-messages, for spot
# https://learn.microsoft.com/azure/virtual-machines/error-codes-spot, for all of Azure
# https://learn.microsoft.com/azure/azure-resource-manager/troubleshooting/common-deployment-errors
# fmt: off
NO_CAPACITY: Final = {
    "AllocationFailed", "AllocationTimeout", "AzureSpotIsNotSupportedForThisVMSize", "CapacityReservationAllocationFailed",
    "InsufficientCapacity", "InvalidAvailabilityZone", "NotAvailableForSubscription", "OverconstrainedAllocationRequest",
    "OverconstrainedZonalAllocationRequest", "SkuNotAvailable", "SpotPriceGreaterThanProvidedMaxPrice", "SubnetIsFull",
    "VMSizeDoesntSupportPremiumStorage", "ZonalAllocationFailed",
}
# `OperationNotAllowed` is said of quotas and of much else: its words tell.
QUOTA: Final = {
    "NetworkInterfaceCountLimitReached", "NetworkSecurityGroupCountLimitReached", "PublicIPCountLimitReached", "QuotaExceeded",
    "ResourceCountExceedsLimitDueToTemplate", "ResourceQuotaExceeded", "VirtualNetworkCountLimitReached",
}
# No word about what became of the request: an order is unconfirmed, everything else may be asked again.
UNDECIDED: Final = {
    "AnotherOperationInProgress", "Conflict", "GatewayTimeout", "InternalExecutionError", "InternalServerError",
    "InUseNetworkInterfaceCannotBeDeleted", "NetworkInterfaceInUse", "NicInUse", "NicReservedForAnotherVm", "OperationPreempted",
    "PublicIPAddressCannotBeDeleted", "PublicIPAddressInUse", "ReferencedResourceNotProvisioned", "RetryableError",
    "ServerTimeout", "ServiceUnavailable", "VMAgentStatusCommunicationError",
}
# The credentials themselves, whatever was asked with them.
CREDENTIALS: Final = {
    "AuthenticationFailed", "AuthenticationFailedInvalidHeader", "ExpiredAuthenticationToken", "InvalidAuthenticationToken",
    "InvalidAuthenticationTokenAudience", "InvalidAuthenticationTokenTenant", "InvalidSubscriptionId", "SubscriptionNotFound",
}
# A role, policy or lock, of this subscription or above it: says nothing of another region, type or market.
DENIED: Final = {
    "AuthorizationFailed", "LinkedAuthorizationFailed", "RequestDisallowedByAzure", "RequestDisallowedByPolicy", "ScopeLocked",
}
NO_MONEY: Final = {"BillingDisabled", "DisabledSubscription", "ReadOnlyDisabledSubscription", "SubscriptionDisabled"}
# What one region lacks, or does not open to this subscription.
CLOSED: Final = {
    "InvalidResourceReference", "LocationNotAvailableForResourceGroup", "LocationNotAvailableForResourceType",
    "ParentResourceNotFound", "ResourceGroupNotFound", "SubscriptionNotRegisteredForFeature",
}
IMAGE: Final = {
    "GalleryImageNotFound", "ImageNotFound", "MarketplacePurchaseEligibilityFailed", "PlatformImageNotFound",
    "ResourcePurchaseValidationFailed", "VMMarketplaceInvalidInput",
}
# fmt: on
CODES: Final[Mapping[str, type[ProviderError]]] = {
    **dict.fromkeys(NO_CAPACITY, errors.NoCapacity),
    **dict.fromkeys(QUOTA, errors.QuotaExceeded),
    **dict.fromkeys(UNDECIDED, errors.Transient),
    **dict.fromkeys(CREDENTIALS | DENIED, errors.AuthFailed),
    **dict.fromkeys(NO_MONEY, errors.InsufficientFunds),
    **dict.fromkeys(CLOSED | IMAGE, errors.RegionClosed),
    "AzureSpotFeatureNotEnabledForSubscription": errors.Unsupported,
    "ResourceNotFound": errors.NotFound,
}
# Where a code rules out more or less than its class does. An image is chosen by the type.
REACHES: Final[Mapping[str, Reach]] = {
    **dict.fromkeys(CREDENTIALS, "provider"),
    **dict.fromkeys(IMAGE, "type"),
    "AzureSpotFeatureNotEnabledForSubscription": "market",
    "PublicIPCountLimitReached": "region",
    "NetworkInterfaceCountLimitReached": "region",
}
ORDERED_BEFORE: Final = {"PreconditionFailed", "ConditionNotMet", "PropertyChangeNotAllowed", "412"}
NOT_THERE_YET: Final = {"ReferencedResourceNotProvisioned"}  # nothing was bought; it will be there in a moment
_DEEPEST: Final = 5  # details within details


def problem_in(body: answers.Json) -> answers.Problem | None:
    """What went wrong: of an error and the details in it the first whose code is known, else what the usual envelope says."""
    outermost = answers.problem_in(body)
    if outermost is None or outermost.code in CODES:
        return outermost
    error: Any = cast("dict[str, Any]", body).get("error")
    for code, words in _details(error, _DEEPEST):
        if code in CODES:
            return answers.Problem(code, words or outermost.message)
    return outermost


def _details(error: Any, deep: int) -> Iterator[tuple[str, str]]:
    details: Any = cast("dict[str, Any]", error).get("details") if isinstance(error, dict) else None
    for detail in cast("list[Any]", details)[:20] if isinstance(details, list) and deep else []:
        if isinstance(detail, dict):
            fields = cast("dict[str, Any]", detail)
            yield str(fields.get("code")), str(fields.get("message") or "")
            yield from _details(fields, deep - 1)


MEANINGS: Final = answers.Meanings(
    codes=CODES,
    words={
        errors.QuotaExceeded: ("quota",),
        errors.Transient: ("is attached to", "being deleted", "in progress"),
    },
    problem=problem_in,
)


def with_reach(error: ProviderError) -> ProviderError:
    """The same error, ruling out what its code speaks of."""
    if error.told_reach is None and error.code in REACHES:
        error.told_reach = REACHES[error.code]
    if error.code in IMAGE:
        error.told_category = "image"
    if isinstance(error, errors.QuotaExceeded) and "total regional" in error.message.lower():
        error.told_reach = "region"
    return error


def of_login(failure: Exception, secrets: tuple[str, ...]) -> ProviderError | None:
    """What azure-identity raised, as ours; None for what is not of its making."""
    from azure.core import exceptions as theirs

    words = answers.cleaned(str(failure), secrets)
    if isinstance(failure, theirs.ClientAuthenticationError):  # also where no credentials were found
        return errors.AuthFailed(f"Azure refused to log in: {words}", reach="provider")
    if isinstance(failure, theirs.AzureError):
        return errors.Transient(f"Azure's login cannot be reached: {words}")
    if isinstance(failure, OSError | ValueError):
        reason = (failure.strerror if isinstance(failure, OSError) else None) or words
        return errors.InvalidRequest(f"the credentials of the account's block cannot be used on this worker: {reason}")
    return None
