"""Each refusal of Compute Engine is told as what it is, and rules out what it speaks of."""

from __future__ import annotations

from typing import Any

import pytest

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
    RegionClosed,
    Transient,
    Unconfirmed,
)
from prefect_gpu.providers.gcp import errors
from tests.conformance import launch_spec, lease_name
from tests.fakes.gcp import FakeGcp
from tests.fakes.gcp.project import PROJECT, error
from tests.providers.gcp.conftest import gcp, offer_of

HERE = f"projects/{PROJECT}"


def refused(cloud: FakeGcp) -> ProviderError:
    driver = gcp(cloud)
    with pytest.raises(ProviderError) as raised:
        driver.create_instance(offer_of("e2-standard-4"), launch_spec(driver, lease_name()))
    return raised.value


@pytest.mark.parametrize(
    ("answer", "kind", "reach"),
    [
        (error(403, "quotaExceeded", "Quota 'NVIDIA_L4_GPUS' exceeded.  Limit: 1.0 in region us-central1."), QuotaExceeded, "family"),
        (error(400, "invalid", "Quota 'GPUS_ALL_REGIONS' exceeded.  Limit: 0.0 globally."), QuotaExceeded, "family"),
        (error(403, "rateLimitExceeded", "Rate Limit Exceeded"), RateLimited, "nothing"),
        (error(429, "rateLimitExceeded", "Quota exceeded for quota metric 'Queries'"), RateLimited, "nothing"),
        (error(503, "backendError", "Backend error."), Unconfirmed, "offer"),
        (error(400, "resourceNotReady", "The resource is not ready"), Unconfirmed, "offer"),
        (error(403, "forbidden", "This API method requires billing to be enabled."), InsufficientFunds, "provider"),
        (error(403, "forbidden", f"Required 'compute.instances.create' permission for '{HERE}/zones/us-central1-a/instances/x'"), AuthFailed, None),
        (error(403, "forbidden", f"Required 'compute.subnetworks.use' permission for '{HERE}/regions/us-central1/subnetworks/x'"), AuthFailed, "region"),
        (error(403, "forbidden", "Required 'compute.images.useReadOnly' permission"), AuthFailed, "provider"),
        (error(403, "accessNotConfigured", "Compute Engine API has not been used in project 8181 before or it is disabled."), AuthFailed, "provider"),
        (error(412, "conditionNotMet", f"Constraint constraints/gcp.resourceLocations violated for {HERE}"), AuthFailed, "region"),
        (error(412, "conditionNotMet", f"Constraint constraints/compute.vmExternalIpAccess violated for {HERE}"), AuthFailed, "provider"),
        (error(412, "conditionNotMet", f"Constraint constraints/compute.restrictMachineTypes violated for {HERE}"), AuthFailed, None),
        (error(401, "authError", "Invalid Credentials"), AuthFailed, "provider"),
        (error(404, "notFound", f"The resource '{HERE}/zones/us-central1-a/machineTypes/a9' was not found"), NoCapacity, "offer"),
        (error(404, "notFound", f"The resource '{HERE}/zones/us-central1-a/acceleratorTypes/a9' was not found"), NoCapacity, "offer"),
        (error(404, "notFound", f"The resource '{HERE}/regions/us-central1/subnetworks/x' was not found"), RegionClosed, "region"),
        (error(404, "notFound", f"The resource '{HERE}' was not found"), RegionClosed, "provider"),
        (error(400, "invalid", "Specified reservations [r] do not have available resources for the request."), NoCapacity, "offer"),
        (error(400, "invalid", "Invalid value for field 'resource.flavour': 'vanilla'."), InvalidRequest, "provider"),
    ],
)  # fmt: skip
def test_an_order_that_is_refused_at_once(
    cloud: FakeGcp, answer: tuple[int, Any], kind: type[ProviderError], reach: str | None
) -> None:
    driver = gcp(cloud)
    driver.create_instance(offer_of("e2-standard-4"), launch_spec(driver, lease_name()))
    if answer[0] == 401:
        cloud.refused = answer
    cloud.next["insert"] = answer
    told = refused(cloud)
    assert type(told) is kind
    assert (told.told_reach if reach is None else told.reach) == reach
    words = " ".join(answer[1]["error"]["message"].split())
    assert words in told.message


@pytest.mark.parametrize(
    ("code", "kind", "reach"),
    [
        ("ZONE_RESOURCE_POOL_EXHAUSTED", NoCapacity, "offer"),
        ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", NoCapacity, "offer"),
        ("STOCKOUT", NoCapacity, "offer"),
        ("QUOTA_EXCEEDED", QuotaExceeded, "family"),
        ("RESOURCE_OPERATION_RATE_EXCEEDED", RateLimited, "nothing"),
        ("PERMISSIONS_ERROR", AuthFailed, None),
        ("CONDITION_NOT_MET", AuthFailed, None),
        ("IP_SPACE_EXHAUSTED", RegionClosed, "region"),
        ("INTERNAL_ERROR", InstanceFailed, "offer"),
        ("SOMETHING_NEW", InstanceFailed, "offer"),  # the fake's operations end with a 503
        ("RESOURCE_NOT_FOUND", RegionClosed, "provider"),
    ],
)
def test_an_order_that_is_accepted_and_then_refused(
    cloud: FakeGcp, code: str, kind: type[ProviderError], reach: str | None
) -> None:
    cloud.refuses_inserts = [{"code": code, "message": "it says\x07 why"}]
    told = refused(cloud)
    assert type(told) is kind
    assert (told.told_reach if reach is None else told.reach) == reach
    assert told.code == code
    assert told.message == f"Google Cloud could not order e2-standard-4 in us-central1-a: {code}: it says why"
    assert cloud.alive() == []


def test_what_people_can_read_goes_before_the_internal_words(cloud: FakeGcp) -> None:
    cloud.refuses_inserts = [
        {
            "code": "ZONE_RESOURCE_POOL_EXHAUSTED",
            "message": "'NULL:0/NULL:0/NULL:0 (state:STOCKOUT, sub-state",
            "errorDetails": [{"localizedMessage": {"locale": "en-US", "message": "Consider us-central1-f."}}],
        }
    ]
    assert refused(cloud).message.endswith("ZONE_RESOURCE_POOL_EXHAUSTED: Consider us-central1-f.")


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ({"status": "RUNNING", "error": {"errors": [{"code": "QUOTA_EXCEEDED"}]}}, None),
        ({"status": "DONE"}, None),
        ({}, None),
        ({"status": "DONE", "error": {"errors": []}}, InvalidRequest),
        ({"status": "DONE", "error": {}, "httpErrorStatusCode": 503}, InstanceFailed),
        ({"status": "DONE", "error": {"errors": ["odd"]}}, InvalidRequest),
        ({"status": "DONE", "error": {"errors": [{"code": 7, "errorDetails": "odd"}]}}, InvalidRequest),
        ({"status": "DONE", "error": "odd"}, None),
    ],
)
def test_an_odd_operation_raises_nothing_and_is_no_success_if_it_holds_an_error(
    operation: dict[str, Any], kind: type[ProviderError] | None
) -> None:
    told = errors.in_operation(operation, "order")
    assert (None if told is None else type(told)) is kind


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"error": {"code": 403, "message": "no", "status": "PERMISSION_DENIED", "details": [{"reason": "SERVICE_DISABLED"}]}}, "SERVICE_DISABLED"),
        ({"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}, "INVALID_ARGUMENT"),
        ({"error": "invalid_grant"}, None),
        ({"error": {"errors": "odd", "message": "no"}}, None),
    ],
)  # fmt: skip
def test_a_reason_is_found_in_each_of_google_s_envelopes(body: Any, code: str | None) -> None:
    found = errors.problem_in(body)
    assert found is not None
    assert found.code == code


def test_a_read_that_is_denied_is_not_an_order_s_refusal(cloud: FakeGcp) -> None:
    driver = gcp(cloud)
    cloud.next["get"] = error(403, "forbidden", "Required 'compute.instances.get' permission")
    with pytest.raises(AuthFailed):
        driver.get_instance(f"us-central1-a/{lease_name()}")
    cloud.next["delete"] = error(400, "resourceInUseByAnotherResource", "in use")
    with pytest.raises(Transient, match="in use"):
        driver.terminate_instance(f"us-central1-a/{lease_name()}")
    with pytest.raises(NotFound):
        driver.get_instance("us-central1-a/disk/x")
