"""What EC2 says when something goes wrong, told apart."""

from __future__ import annotations

import os
from pathlib import Path

import botocore.exceptions as boto_errors
import pytest
from botocore.parsers import ResponseParserError

from prefect_gpu.blocks.aws import AwsCredentials
from prefect_gpu.providers.aws import errors
from prefect_gpu.providers.aws.driver import Aws
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InvalidRequest,
    NoCapacity,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    RegionClosed,
    Transient,
    Unconfirmed,
)
from tests.conformance import launch_spec, lease_name
from tests.contract.subject import same_error
from tests.fakes.aws import ACCOUNT, AwsCloud, priced_offers
from tests.providers.aws.ordering import (
    AWS_ATTEMPTS,
    SECRET,
    offer_of,
)

# What an order that is refused so becomes. Written out here, not read from the driver, so that a code that moves is seen;
# it shows that the table is kept, not that EC2 gives these codes.
REFUSALS: dict[type[ProviderError], str] = {
    NoCapacity: """InsufficientInstanceCapacity InsufficientHostCapacity InsufficientReservedInstanceCapacity
        InsufficientCapacityOnHost UnfulfillableCapacity Unsupported SpotMaxPriceTooLow InsufficientFreeAddressesInSubnet
        InsufficientCapacity InsufficientAddressCapacity InsufficientVolumeCapacity ReservationCapacityExceeded
        Server.InsufficientInstanceCapacity VolumeTypeNotAvailableInZone InvalidAvailabilityZone UnsupportedOperation""",
    QuotaExceeded: """VcpuLimitExceeded InstanceLimitExceeded MaxSpotInstanceCountExceeded AddressLimitExceeded
        VolumeLimitExceeded MaxIOPSLimitExceeded NetworkInterfaceLimitExceeded ResourceLimitExceeded
        SecurityGroupLimitExceeded SecurityGroupsPerInstanceLimitExceeded""",
    RateLimited: """RequestLimitExceeded Throttling ThrottlingException TooManyRequestsException RequestThrottled
        RequestThrottledException SlowDown BandwidthLimitExceeded EC2ThrottledException""",
    Unconfirmed: """InternalError InternalFailure ServiceUnavailable Unavailable InternalServiceError RequestTimeout
        RequestTimeoutException ServiceException ServiceUnavailableException PriorRequestNotComplete""",
    AuthFailed: """AuthFailure UnauthorizedOperation Blocked ExpiredToken
        ExpiredTokenException RequestExpired SignatureDoesNotMatch InvalidClientTokenId UnrecognizedClientException
        MissingAuthenticationToken IncompleteSignature AccessDenied AccessDeniedException InvalidAccessKeyId
        InvalidSecurityToken NotAuthorized AuthFailure.ServiceLinkedRoleCreationNotPermitted Client.UnauthorizedOperation""",
    RegionClosed: """InvalidAMIID.NotFound InvalidAMIID.Unavailable InvalidSubnetID.NotFound VPCIdNotSpecified
        InvalidCapacityReservationId.NotFound PendingVerification OptInRequired""",
    InvalidRequest: "InvalidParameterValue InvalidParameterCombination NeverSeenBefore",
    Transient: "DependencyViolation IncorrectState ResourceInUse VolumeInUse InvalidNetworkInterface.InUse",
}


@pytest.mark.parametrize(("kind", "code"), [(kind, code) for kind, codes in REFUSALS.items() for code in codes.split()])
def test_each_code_is_told_apart(cloud: AwsCloud, kind: type[ProviderError], code: str) -> None:
    driver = steady_driver(cloud)
    cloud.fail("RunInstances", code, status=500 if "Insufficient" in code else 400, message="EC2's own words")
    with pytest.raises(ProviderError) as raised:
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    assert type(raised.value) is kind
    assert raised.value.code == code.removeprefix("Server.").removeprefix("Client.")
    assert "EC2's own words" in raised.value.message
    assert len(cloud.calls("RunInstances")) == 1
    assert cloud.alive() == []


_STEADY: dict[str, Aws] = {}


def steady_driver(cloud: AwsCloud) -> Aws:
    """One driver for the table of codes: clients are dear."""
    return _STEADY.setdefault(cloud.endpoint_url, cloud.driver())


def test_every_code_of_the_drivers_table_stands_in_the_tests_table() -> None:
    tested = {code for codes in REFUSALS.values() for code in codes.split()}
    elsewhere = {"InvalidGroup.NotFound", *errors.ORDERED_BEFORE} | errors.GONE
    assert set(errors.CLASSES) <= tested | elsewhere


def test_a_503_without_a_code_is_unconfirmed_for_an_order_and_transient_for_a_look(
    cloud: AwsCloud, driver: Aws
) -> None:
    created = driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    cloud.fail("RunInstances", "", status=503)
    with pytest.raises(Unconfirmed):
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    cloud.fail("DescribeInstances", "", status=503, times=AWS_ATTEMPTS)
    with pytest.raises(Transient):
        driver.get_instance(created.id)


@pytest.mark.parametrize(
    ("error", "for_a_look", "for_an_order"),
    [
        (boto_errors.EndpointConnectionError(endpoint_url="http://x/?a=b"), Transient, Transient),
        (boto_errors.ConnectTimeoutError(endpoint_url="http://x"), Transient, Transient),
        (boto_errors.ProxyConnectionError(proxy_url="http://x"), Transient, Transient),
        (boto_errors.ReadTimeoutError(endpoint_url="http://x"), Transient, Unconfirmed),
        (boto_errors.ConnectionClosedError(endpoint_url="http://x"), Transient, Unconfirmed),
        (boto_errors.HTTPClientError(error="reset"), Transient, Unconfirmed),
        (boto_errors.SSLError(endpoint_url="http://x", error="eof"), Transient, Unconfirmed),
        (boto_errors.IncompleteReadError(actual_bytes=1, expected_bytes=2), Transient, Unconfirmed),
        (ResponseParserError("no xml"), Transient, Unconfirmed),
        (boto_errors.NoCredentialsError(), AuthFailed, AuthFailed),
        (boto_errors.PartialCredentialsError(provider="env", cred_var="key"), AuthFailed, AuthFailed),
        (boto_errors.ProfileNotFound(profile="x"), AuthFailed, AuthFailed),
        (boto_errors.UnauthorizedSSOTokenError(), AuthFailed, AuthFailed),
        (boto_errors.ParamValidationError(report="a\nb"), InvalidRequest, InvalidRequest),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_breaks_on_the_way_is_told_apart(
    error: Exception, for_a_look: type[ProviderError], for_an_order: type[ProviderError]
) -> None:
    for is_order, kind in ((False, for_a_look), (True, for_an_order)):
        with pytest.raises(ProviderError) as raised, errors.translated("do it", is_order=is_order):
            raise error
        assert type(raised.value) is kind
        assert "\n" not in raised.value.message
        assert "a=b" not in raised.value.message
        assert same_error(raised.value, raised.value)


def test_what_only_aws_can_decode_is_left_out_of_the_message(cloud: AwsCloud, driver: Aws) -> None:
    words = "You are not authorized to perform this operation. Encoded authorization failure message: 4Gx9fQpageoflet"
    cloud.fail("RunInstances", "UnauthorizedOperation", status=403, message=words)
    with pytest.raises(AuthFailed, match="not authorized to perform this operation") as raised:
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    assert "4Gx9" not in raised.value.message


def test_without_any_credentials_the_account_is_auth_failed(
    cloud: AwsCloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(AuthFailed, match="Unable to locate credentials"):
        Aws(AwsCredentials(), endpoint_url=cloud.endpoint_url).account_id()


def test_the_default_chain_serves_where_the_block_holds_no_credentials(
    cloud: AwsCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert Aws(AwsCredentials(), endpoint_url=cloud.endpoint_url).account_id() == ACCOUNT


def test_an_assumed_role_is_assumed_again_before_it_ends(cloud: AwsCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", cloud.endpoint_url)  # prefect-aws asks STS without the block's settings
    block = cloud.block()
    assert block.aws is not None
    block.aws.assume_role_arn = f"arn:aws:iam::{ACCOUNT}:role/gpu"
    driver = Aws(block, priced_offers=priced_offers)
    for _ in range(2):
        driver.list_instances("pg-")
    assert len(cloud.calls("AssumeRole")) == 1
    driver.api._session_ends = 0.0
    driver.list_instances("pg-")
    assert len(cloud.calls("AssumeRole")) == 2
