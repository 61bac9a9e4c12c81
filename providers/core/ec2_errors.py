"""What EC2 and boto3 say when something goes wrong, told as our errors."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final, cast

import botocore.exceptions as boto_errors  # pyright: ignore[reportMissingTypeStubs] - boto3 has none
from botocore.parsers import ResponseParserError  # pyright: ignore[reportMissingTypeStubs] - boto3 has none

from providers.core.errors import (
    AuthFailed,
    InstanceFailed,
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    QuotaExceeded,
    RateLimited,
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
AUTH: Final = {
    "AccessDenied", "AccessDeniedException", "AuthFailure", "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
    "Blocked", "ExpiredToken", "ExpiredTokenException", "IncompleteSignature", "InvalidAccessKeyId",
    "InvalidClientTokenId", "InvalidSecurityToken", "MissingAuthenticationToken", "NotAuthorized", "OptInRequired",
    "RequestExpired", "SignatureDoesNotMatch", "UnauthorizedOperation", "UnrecognizedClientException",
}
# fmt: on
# What one region lacks, or does not open yet: ids are of one region.
CLOSED: Final = {
    "InvalidAMIID.NotFound": "the image is gone: look at the block's images",
    "InvalidAMIID.Unavailable": "the image is not available: look at the block's images",
    "InvalidCapacityReservationId.NotFound": "there is no such reservation: look at the block's capacity reservation",
    "InvalidGroup.NotFound": "there is no such security group: look at the block's security group",
    "InvalidSubnetID.NotFound": "there is no such subnet: look at the block's subnets",
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
    "InvalidAllocationID.NotFound",
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
    **dict.fromkeys(AUTH, AuthFailed),
    **dict.fromkeys(CLOSED, RegionClosed),
    **dict.fromkeys(WRONG, InvalidRequest),
    "IdempotentInstanceTerminated": InstanceFailed,
    "IdempotentParameterMismatch": InvalidRequest,
    **dict.fromkeys(GONE, NotFound),
}
_HINTS: Final = {**CLOSED, **ORDERED_BEFORE, **WRONG}


@contextmanager
def translated(doing: str, *, is_order: bool = False) -> Generator[None]:
    """Turns what boto3 raises into ours. Of an order only a definite answer is one."""
    try:
        yield
    except boto_errors.ClientError as error:
        raise _refusal(error, doing, is_order=is_order) from None
    except (
        boto_errors.NoCredentialsError,
        boto_errors.PartialCredentialsError,
        boto_errors.CredentialRetrievalError,
        boto_errors.ProfileNotFound,
        boto_errors.SSOError,
        boto_errors.TokenRetrievalError,
    ) as error:
        raise AuthFailed(f"AWS could not {doing}: {error}") from None
    except boto_errors.ParamValidationError as error:
        raise InvalidRequest(f"AWS could not {doing}: {_one_line(str(error))}") from None
    except (
        boto_errors.EndpointConnectionError,
        boto_errors.ConnectTimeoutError,
        boto_errors.ProxyConnectionError,
    ) as error:
        # Nothing was sent.
        raise Transient(f"AWS could not {doing}: {_without_query(str(error))}") from None
    except (boto_errors.BotoCoreError, ResponseParserError) as error:
        kind = Unconfirmed if is_order else Transient
        raise kind(f"AWS did not answer to {doing}: {_without_query(str(error))}") from None


def _refusal(error: boto_errors.ClientError, doing: str, *, is_order: bool) -> ProviderError:
    reply = cast("dict[str, Any]", error.response)
    code = str(reply.get("Error", {}).get("Code", "")).removeprefix("Client.").removeprefix("Server.")
    words = _one_line(str(reply.get("Error", {}).get("Message", "")))
    # What may be decoded by who has the right to; for everybody else it is a page of letters.
    words = words.split(" Encoded authorization failure message:", 1)[0]
    status = int(reply.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    kind = CLASSES.get(code, Transient if status >= 500 else InvalidRequest)
    if status == 429 and code not in CLASSES:
        kind = RateLimited
    hint = f" ({known})" if (known := _HINTS.get(code)) else ""
    if is_order and kind is Transient and code not in BUSY:
        kind = Unconfirmed
    return kind(f"AWS could not {doing}: {code}: {words}{hint}", code=code)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _without_query(text: str) -> str:
    return re.sub(r"\?\S*", "", _one_line(text))
