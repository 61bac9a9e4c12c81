"""What EC2 and boto3 say when something goes wrong, told as our errors."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final, cast

from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InstanceFailed,
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Reach,
    RegionClosed,
    Transient,
    Unconfirmed,
)

# By code: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
# fmt: off
NO_CAPACITY: Final = {
    "InsufficientAddressCapacity", "InsufficientCapacity", "InsufficientCapacityOnHost",
    "InsufficientFreeAddressesInSubnet", "InsufficientHostCapacity", "InsufficientInstanceCapacity",
    "InsufficientReservedInstanceCapacity", "InsufficientVolumeCapacity", "ReservationCapacityExceeded",
    "SpotMaxPriceTooLow", "UnfulfillableCapacity",
    # This type, disk or image is not for this zone or each other; the next offer is.
    "InvalidAvailabilityZone", "Unsupported", "UnsupportedOperation", "VolumeTypeNotAvailableInZone",
}
QUOTA: Final = {
    "AddressLimitExceeded", "InstanceLimitExceeded", "MaxIOPSLimitExceeded", "MaxSpotInstanceCountExceeded",
    "NetworkInterfaceLimitExceeded", "ResourceLimitExceeded", "SecurityGroupLimitExceeded",
    "SecurityGroupsPerInstanceLimitExceeded", "VcpuLimitExceeded", "VolumeLimitExceeded",
}
RATE_LIMITED: Final = {
    "BandwidthLimitExceeded", "EC2ThrottledException", "RequestLimitExceeded", "RequestThrottled",
    "RequestThrottledException", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequestsException",
}
# No word about what became of the request: an order is unconfirmed, everything else may be asked again.
UNDECIDED: Final = {
    "InternalError", "InternalFailure", "InternalServiceError", "PriorRequestNotComplete", "RequestTimeout",
    "RequestTimeoutException", "ServiceException", "ServiceUnavailable", "ServiceUnavailableException", "Unavailable",
}
# The credentials themselves, whatever was asked with them.
CREDENTIALS: Final = {
    "AuthFailure", "Blocked", "ExpiredToken", "ExpiredTokenException", "IncompleteSignature", "InvalidAccessKeyId",
    "InvalidClientTokenId", "InvalidSecurityToken", "MissingAuthenticationToken", "RequestExpired",
    "SignatureDoesNotMatch", "UnrecognizedClientException",
}
# A policy, of this account or above it: says nothing of another region, type or market.
DENIED: Final = {
    "AccessDenied", "AccessDeniedException", "AuthFailure.ServiceLinkedRoleCreationNotPermitted", "NotAuthorized",
    "UnauthorizedOperation",
}
# fmt: on
# New credentials may have come since these were read.
_TOO_OLD: Final = "their time is over, or this machine's clock is wrong: sign in again, or save new ones"
OUT_OF_DATE: Final = dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "RequestExpired"), _TOO_OLD)
# What one region lacks, or does not open yet: ids are of one region.
CLOSED: Final = {
    "InvalidAMIID.NotFound": "the image is gone: look at the block's images",
    "InvalidAMIID.Unavailable": "the image is not available: look at the block's images",
    "InvalidCapacityReservationId.NotFound": "there is no such reservation: look at the block's capacity reservation",
    "InvalidGroup.NotFound": "there is no such security group: look at the block's security group",
    "InvalidSubnetID.NotFound": "there is no such subnet: look at the block's subnets",
    "OptInRequired": "the account has not subscribed to the image, or not enabled the region",
    "PendingVerification": "AWS is still validating the account for this region: try it again later",
    "VPCIdNotSpecified": "the region has no default VPC: name a subnet in the block",
}
# The token is known: a machine was ordered under this name, and perhaps ended.
ORDERED_BEFORE: Final = {
    "IdempotentInstanceTerminated": "the machine that was ordered under this name has ended",
    "IdempotentParameterMismatch": "another order was sent under this name",
}
# What is not mapped is InvalidRequest as well; these are known, and say what to change.
WRONG: Final = {
    "InvalidParameterCombination": "two settings exclude each other",
    "InvalidParameterValue": "a value is wrong",
}
GONE: Final = {
    "InvalidInstanceID.Malformed",
    "InvalidInstanceID.NotFound",
    "InvalidNetworkInterfaceID.NotFound",
    "InvalidVolume.NotFound",
}
BUSY: Final = {"DependencyViolation", "IncorrectState", "InvalidNetworkInterface.InUse", "ResourceInUse", "VolumeInUse"}

CLASSES: Final[dict[str, type[ProviderError]]] = {
    **dict.fromkeys(NO_CAPACITY, NoCapacity),
    **dict.fromkeys(QUOTA, QuotaExceeded),
    **dict.fromkeys(RATE_LIMITED, RateLimited),
    **dict.fromkeys(UNDECIDED | BUSY, Transient),
    **dict.fromkeys(CREDENTIALS | DENIED, AuthFailed),
    **dict.fromkeys(CLOSED, RegionClosed),
    **dict.fromkeys(WRONG, InvalidRequest),
    "IdempotentInstanceTerminated": InstanceFailed,
    "IdempotentParameterMismatch": InvalidRequest,
    **dict.fromkeys(GONE, NotFound),
}
_HINTS: Final = {**CLOSED, **ORDERED_BEFORE, **OUT_OF_DATE, **WRONG}
# What reading an answer of another shape than EC2's raises.
UNREADABLE: Final = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError)
_SPOT_ROLE: Final = "AWSServiceRoleForEC2Spot"
_MOST_WORDS: Final = 600  # characters of what AWS said that reach a user


@contextmanager
def translated(doing: str, *, region: str | None = None, is_order: bool = False) -> Generator[None]:
    """Turns what boto3 raises, and answers that cannot be read, into ours: an error of this region alone where one is asked.

    Of an order only a definite answer is one.
    """
    try:
        yield
    except ProviderError:
        raise
    except Exception as error:
        if (ours := _ours(error, doing, region, is_order=is_order)) is None:
            raise
        raise ours from None


def _ours(error: Exception, doing: str, region: str | None, *, is_order: bool) -> ProviderError | None:
    import botocore.exceptions as boto  # pyright: ignore[reportMissingTypeStubs] - boto3 has none
    from botocore.parsers import ResponseParserError  # pyright: ignore[reportMissingTypeStubs] - boto3 has none

    said = _bounded(re.sub(r"\?\S*", "", str(error)))  # no query strings
    here: Reach | None = "region" if region else None
    if isinstance(error, boto.ClientError):
        reply = cast("dict[str, Any]", error.response)  # pyright: ignore[reportUnknownMemberType] - boto3 has no types
        return _refusal(reply, doing, region, is_order=is_order)
    if isinstance(
        error,
        boto.NoCredentialsError
        | boto.PartialCredentialsError
        | boto.CredentialRetrievalError
        | boto.ProfileNotFound
        | boto.SSOError
        | boto.TokenRetrievalError,
    ):
        return AuthFailed(f"AWS could not {doing}: {said}", reach="provider")
    if isinstance(error, boto.ParamValidationError):
        return InvalidRequest(f"AWS could not {doing}: {said}")
    if isinstance(error, boto.EndpointConnectionError | boto.ConnectTimeoutError | boto.ProxyConnectionError):
        return Transient(f"AWS could not {doing}: {said}", reach=here)  # nothing was sent
    if isinstance(error, boto.BotoCoreError | ResponseParserError):
        return _no_answer(f"AWS did not answer to {doing}: {said}", here, is_order=is_order)
    if isinstance(error, UNREADABLE):
        return _no_answer(f"AWS's answer cannot be read, when asked to {doing}", here, is_order=is_order)
    return None


def _no_answer(message: str, reach: Reach | None, *, is_order: bool) -> ProviderError:
    return Unconfirmed(message) if is_order else Transient(message, reach=reach)


def _refusal(reply: dict[str, Any], doing: str, region: str | None, *, is_order: bool) -> ProviderError:
    error = cast("dict[str, Any]", reply.get("Error") or {})
    code = _bounded(str(error.get("Code", "")), 100).removeprefix("Client.").removeprefix("Server.")
    # What may be decoded by who has the right to; for everybody else it is a page of letters.
    words = _bounded(str(error.get("Message", "")).split("Encoded authorization failure message:", 1)[0])
    status = int(reply.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    kind = CLASSES.get(code, Transient if status >= 500 else InvalidRequest)
    if status == 429 and code not in CLASSES:
        kind = RateLimited
    hint = f" ({known})" if (known := _HINTS.get(code)) else ""
    if is_order and kind is Transient and code not in BUSY:
        kind = Unconfirmed
    reach = _reach(kind, code, words, region, is_order=is_order)
    return kind(f"AWS could not {doing}: {code}: {words}{hint}", code=code, reach=reach)


def _reach(kind: type[ProviderError], code: str, words: str, region: str | None, *, is_order: bool) -> Reach | None:
    """What a refusal speaks of, where that is not what its class usually does."""
    if kind is AuthFailed:
        if code in CREDENTIALS or "iam:PassRole" in words:  # the block's instance profile goes with every order
            return "provider"
        if _SPOT_ROLE in words or "ServiceLinkedRole" in code:
            return "market"
        if is_order:
            return "offer" if ":subnet/" in words else "type"
        return "region" if region else "provider"
    if kind is Transient and region:
        return "region"
    if is_order and code in WRONG and "architecture" in words:
        return "type"
    return None


def _bounded(text: str, most: int = _MOST_WORDS) -> str:
    """One line of what another side said, of printable characters and not too long."""
    plain = " ".join("".join(one if one.isprintable() else " " for one in text[: 4 * most]).split())
    return plain if len(plain) <= most else f"{plain[:most]}..."
