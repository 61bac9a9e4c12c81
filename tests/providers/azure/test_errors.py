"""What Azure and its login say when something goes wrong, each told as what it is and ruling out what it speaks of."""

from __future__ import annotations

import time

import httpx
import pytest

from prefect_gpu.providers.core import errors
from prefect_gpu.providers.core.errors import ProviderError, Reach
from tests.conformance import launch_spec, lease_name
from tests.fakes.azure import facts
from tests.fakes.azure.cloud import FakeAzure
from tests.providers.azure.ordering import H100, azure, order

QUOTA = "Operation could not be completed as it results in exceeding approved {} quota. Additional details"


@pytest.mark.parametrize(
    ("status", "code", "words", "kind", "reach"),
    [
        (409, "SkuNotAvailable", "currently not available in location", errors.NoCapacity, "offer"),
        (409, "AllocationFailed", "Allocation failed.", errors.NoCapacity, "offer"),
        (409, "ZonalAllocationFailed", "Allocation failed in this zone.", errors.NoCapacity, "offer"),
        (409, "OverconstrainedAllocationRequest", "too many constraints", errors.NoCapacity, "offer"),
        (409, "OverconstrainedZonalAllocationRequest", "too many constraints", errors.NoCapacity, "offer"),
        (409, "SpotPriceGreaterThanProvidedMaxPrice", "the max price is lower than", errors.NoCapacity, "offer"),
        (409, "OperationNotAllowed", QUOTA.format("standardNDSH100v5Family Cores"), errors.QuotaExceeded, "family"),
        (409, "OperationNotAllowed", QUOTA.format("Total Regional Cores"), errors.QuotaExceeded, "region"),
        (409, "OperationNotAllowed", QUOTA.format("LowPriorityCores"), errors.QuotaExceeded, "family"),
        (409, "QuotaExceeded", "Submit a request for an increase.", errors.QuotaExceeded, "family"),
        (400, "PublicIPCountLimitReached", "Cannot create more than 20.", errors.QuotaExceeded, "region"),
        (
            409,
            "OperationNotAllowed",
            "The operation is not allowed on a generalized disk.",
            errors.InvalidRequest,
            "provider",
        ),
        (403, "AuthorizationFailed", "The client does not have authorization.", errors.AuthFailed, "provider"),
        (403, "LinkedAuthorizationFailed", "no permission to join the subnet", errors.AuthFailed, "provider"),
        (
            403,
            "RequestDisallowedByPolicy",
            "Resource was disallowed by policy 'Allowed locations'.",
            errors.AuthFailed,
            "provider",
        ),
        (404, "SubscriptionNotFound", "The subscription could not be found.", errors.AuthFailed, "provider"),
        (409, "ReadOnlyDisabledSubscription", "The subscription is disabled.", errors.InsufficientFunds, "provider"),
        (400, "LocationNotAvailableForResourceType", "not available for resource type", errors.RegionClosed, "region"),
        (400, "InvalidResourceReference", "Resource was not found.", errors.RegionClosed, "region"),
        (404, "PlatformImageNotFound", "The platform image is not available.", errors.RegionClosed, "type"),
        (400, "AzureSpotFeatureNotEnabledForSubscription", "not enabled", errors.Unsupported, "market"),
        (409, "AnotherOperationInProgress", "Another operation is in progress.", errors.Unconfirmed, "offer"),
        (500, "InternalExecutionError", "An internal execution error.", errors.Unconfirmed, "offer"),
        (503, "Brand new code", "Try again.", errors.Unconfirmed, "offer"),
        (429, "OperationNotAllowed", "The server rejected the request.", errors.RateLimited, "nothing"),
        (400, "InvalidParameter", "The value is not valid.", errors.InvalidRequest, "provider"),
        (
            409,
            "MissingSubscriptionRegistration",
            "not registered to use Microsoft.Compute",
            errors.InvalidRequest,
            "provider",
        ),
    ],
)
def test_an_order_s_refusal_is_told_apart_in_azure_s_words(
    cloud: FakeAzure, status: int, code: str, words: str, kind: type[ProviderError], reach: Reach
) -> None:
    cloud.next["create"] = facts.error(status, code, words)
    with pytest.raises(kind) as refused:
        order(azure(cloud), H100)
    assert (type(refused.value), refused.value.reach, refused.value.code) == (kind, reach, code)
    assert words in refused.value.message
    assert "order Standard_NC40ads_H100_v5 in eastus" in refused.value.message


def test_a_policy_s_denial_leaves_other_types_regions_and_markets(cloud: FakeAzure) -> None:
    driver = azure(cloud)
    words = 'Resource \'pg-x\' was disallowed by policy. Policy identifiers: \'[{"policyAssignment":{"name":"No big machines"}}]\''
    cloud.next["create"] = facts.error(403, "RequestDisallowedByPolicy", words)
    offers = driver.fetch_offers(H100)
    with pytest.raises(errors.AuthFailed, match="No big machines") as refused:
        driver.create_instance(offers[0], launch_spec(driver, lease_name()))
    told = refused.value.of_an_order()
    assert (told.reach, told.category) == ("type", "policy")
    assert [told.rules_out(offers[0], one) for one in offers] == [one.region == offers[0].region for one in offers]


def test_what_stands_in_the_details_of_an_error_is_found(cloud: FakeAzure) -> None:
    inner = {
        "code": "OperationNotAllowed",
        "message": "nothing known",
        "details": [{"code": "AllocationFailed", "message": "None left."}],
    }
    cloud.next["create"] = facts.error(
        409, "DeploymentFailed", "At least one operation failed.", [{"code": "Gone"}, inner]
    )
    with pytest.raises(errors.NoCapacity, match="None left") as refused:
        order(azure(cloud), H100)
    assert refused.value.code == "AllocationFailed"


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        "no",
        {"error": None},
        {"error": {"details": [7, None, {"details": 3}]}},
        {"error": {"code": 4, "details": "x"}},
    ],
)
def test_an_error_of_any_form_is_an_error(cloud: FakeAzure, body: object) -> None:
    cloud.next["create"] = httpx.Response(409, json=body)
    with pytest.raises(errors.InvalidRequest, match="order Standard_NC40ads_H100_v5"):
        order(azure(cloud), H100)


def test_a_login_that_fails_is_told_and_repeats_no_secret(cloud: FakeAzure) -> None:
    from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError

    credential = facts.FakeCredential()
    driver = azure(cloud, credential, tenant_id=facts.TENANT, client_id=facts.CLIENT, client_secret=facts.SECRET)
    credential.fails = ClientAuthenticationError(f"AADSTS7000215: Invalid client secret {facts.SECRET}\nTrace ID: 7")
    with pytest.raises(
        errors.AuthFailed, match=r"Azure refused to log in: AADSTS7000215: Invalid client secret \*\*\*"
    ) as refused:
        driver.account_id()
    assert refused.value.reach == "provider"
    credential.fails = ServiceRequestError("Name or service not known")
    with pytest.raises(errors.Transient, match="login cannot be reached"):
        driver.account_id()
    credential.fails = FileNotFoundError(2, "No such file or directory", "/certificate.pem")
    with pytest.raises(errors.InvalidRequest, match="cannot be used on this worker: No such file"):
        driver.account_id()


def test_a_token_is_kept_while_it_is_good_and_renewed_before_it_ends(cloud: FakeAzure) -> None:
    credential = facts.FakeCredential()
    driver = azure(cloud, credential)
    for _ in range(3):
        driver.account_id()
    assert credential.asked == 1
    credential = facts.FakeCredential(good_for_s=30)
    driver = azure(cloud, credential)
    driver.account_id()
    time.sleep(1.1)
    driver.account_id()
    assert credential.asked == 2


def test_the_wrong_tenant_s_token_is_refused_with_azure_s_words(cloud: FakeAzure) -> None:
    cloud.refused = facts.error(401, "InvalidAuthenticationTokenTenant", "The access token is from the wrong issuer.")
    with pytest.raises(errors.AuthFailed, match="wrong issuer"):
        azure(cloud).account_id()


def test_a_token_that_ends_as_the_order_is_sent_costs_no_order_and_buys_one(cloud: FakeAzure) -> None:
    credential = facts.FakeCredential()
    driver = azure(cloud, credential)
    offer = driver.fetch_offers(H100)[0]
    cloud.next["create"] = facts.error(401, "ExpiredAuthenticationToken", "The access token expiry is in the past.")
    made = driver.create_instance(offer, launch_spec(driver, lease_name()))
    assert (list(cloud.things["virtualMachines"]), cloud.creates) == ([made.name], 2)
