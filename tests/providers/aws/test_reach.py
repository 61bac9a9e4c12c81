"""What a refusal of AWS speaks of, and nothing more, is ruled out; what it says is bounded."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_gpu.providers.aws.driver import Aws
from prefect_gpu.providers.aws.errors import translated
from prefect_gpu.providers.core.errors import AuthFailed, ProviderError, Transient
from prefect_gpu.providers.core.models import Offer
from tests.conformance import launch_spec, lease_name
from tests.fakes.aws import AwsCloud
from tests.providers.aws.ordering import AWS_ATTEMPTS, gpu_offer, offer_of

DENY = "You are not authorized to perform this operation. User: arn:aws:iam::1:user/x is not authorized to perform: "
BY_SCP = f"{DENY}ec2:RunInstances on resource: arn:aws:ec2:us-east-1:1:instance/* with an explicit deny in a service control policy"
NO_ROLE = f"{DENY}iam:CreateServiceLinkedRole on resource: arn:aws:iam::1:role/aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot"
NO_PASS = f"{DENY}iam:PassRole on resource: arn:aws:iam::1:role/jobs"
NO_SUBNET = f"{DENY}ec2:RunInstances on resource: arn:aws:ec2:us-east-1:1:subnet/subnet-1"

HERE = offer_of(spot=True)
OTHERS: dict[str, Offer] = {
    "the same type in another zone": offer_of(zone="us-east-1b", spot=True),
    "the same type on demand": offer_of(),
    "another type": offer_of("c5.large", spot=True),
    "another type in another zone": offer_of("c5.large", zone="us-east-1b", spot=True),
    "spot in another region": offer_of(zone="us-west-2a", spot=True),
    "on demand in another region": offer_of(zone="us-west-2a"),
}


@pytest.mark.parametrize(
    ("code", "words", "ruled_out"),
    [
        ("UnauthorizedOperation", BY_SCP, {"the same type in another zone"}),
        (
            "UnauthorizedOperation",
            "You are not authorized to perform this operation.",
            {"the same type in another zone"},
        ),
        ("UnauthorizedOperation", NO_SUBNET, set[str]()),
        (
            "UnauthorizedOperation",
            NO_ROLE,
            {name for name, offer in OTHERS.items() if offer.spot},
        ),
        (
            "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
            "The provided credentials do not have permission to create the service-linked role for EC2 Spot Instances.",
            {name for name, offer in OTHERS.items() if offer.spot},
        ),
        ("UnauthorizedOperation", NO_PASS, set(OTHERS)),
        ("AuthFailure", "AWS was not able to validate the provided access credentials", set(OTHERS)),
        ("ExpiredToken", "The security token included in the request is expired", set(OTHERS)),
        ("Blocked", "This account is currently blocked", set(OTHERS)),
        (
            "OptInRequired",
            "You must accept the terms",
            {name for name, offer in OTHERS.items() if offer.region == "us-east-1"},
        ),
        (
            "InvalidParameterValue",
            "The architecture 'arm64' of the specified instance type does not match the architecture 'x86_64' of the AMI",
            {"the same type in another zone"},
        ),
        ("InvalidParameterValue", "Value (x) for parameter y is invalid", set(OTHERS)),
    ],
)
def test_an_order_that_is_refused_rules_out_what_the_refusal_speaks_of(
    cloud: AwsCloud, driver: Aws, code: str, words: str, ruled_out: set[str]
) -> None:
    cloud.fail("RunInstances", code, status=403, message=words)
    with pytest.raises(ProviderError) as raised:
        driver.create_instance(HERE, launch_spec(driver, lease_name()))
    assert {name for name, offer in OTHERS.items() if raised.value.rules_out(HERE, offer)} == ruled_out
    assert cloud.alive() == []


@pytest.mark.parametrize(
    "action", ["DescribeSubnets", "DescribeImages", "CreateSecurityGroup", "DescribeSecurityGroups"]
)
def test_a_policy_that_denies_what_comes_before_an_order_rules_out_that_region(
    cloud: AwsCloud, driver: Aws, action: str
) -> None:
    cloud.fail(action, "UnauthorizedOperation", status=403, region="us-east-1", times=None)
    with pytest.raises(AuthFailed) as raised:
        driver.create_instance(HERE, launch_spec(driver, lease_name()))
    ruled_out = {name for name, offer in OTHERS.items() if raised.value.rules_out(HERE, offer)}
    assert ruled_out == {name for name, offer in OTHERS.items() if offer.region == "us-east-1"}


def test_a_region_that_does_not_answer_rules_out_that_region(cloud: AwsCloud, driver: Aws) -> None:
    cloud.fail("DescribeSubnets", "Unavailable", status=503, times=AWS_ATTEMPTS)
    with pytest.raises(Transient) as raised:
        driver.create_instance(HERE, launch_spec(driver, lease_name()))
    assert raised.value.rules_out(HERE, OTHERS["another type"])
    assert not raised.value.rules_out(HERE, OTHERS["spot in another region"])


def test_an_image_that_is_missing_for_one_gpu_rules_out_no_other(cloud: AwsCloud) -> None:
    driver = cloud.driver(gpu_image=None)
    volta = gpu_offer(gpu_name="V100").model_copy(update={"instance_type": "p3.2xlarge"})
    with pytest.raises(ProviderError, match="Proprietary") as raised:
        driver.create_instance(volta, launch_spec(driver, lease_name()))
    assert not raised.value.rules_out(volta, gpu_offer())


@pytest.mark.parametrize("code", ["RequestExpired", "ExpiredToken", "ExpiredTokenException"])
def test_credentials_whose_time_is_over_are_said_with_what_to_do_and_read_again(
    cloud: AwsCloud, driver: Aws, code: str
) -> None:
    created = driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    before = driver.api._session
    cloud.fail("*", code, status=400, message="Request has expired.", times=None)
    with pytest.raises(AuthFailed, match=r"Request has expired\. \(their time is over, .*: sign in again") as raised:
        driver.terminate_instance(created.id)
    assert raised.value.code == code
    cloud.mend()
    driver.terminate_instance(created.id)
    assert driver.api._session is not before, "who signed in again meanwhile is heard"


def test_what_aws_says_is_one_line_of_bounded_length(cloud: AwsCloud, driver: Aws) -> None:
    cloud.fail("RunInstances", "X" * 5000, message="a\x1b[2J\n" + "b" * 100_000)
    with pytest.raises(ProviderError) as raised:
        driver.create_instance(HERE, launch_spec(driver, lease_name()))
    assert len(raised.value.message) < 1000
    assert raised.value.message.isprintable()


@pytest.mark.parametrize("broken", [KeyError("x"), TypeError("x"), ValueError("x"), OverflowError("x")])
def test_an_answer_that_cannot_be_read_is_an_error_of_its_region(broken: Exception) -> None:
    with pytest.raises(Transient, match="cannot be read") as raised, translated("look", region="us-east-1"):
        raise broken
    assert raised.value.reach == "region"


@pytest.mark.parametrize("fault", [RuntimeError("x"), MemoryError()])
def test_a_fault_of_our_own_stays_one(fault: Any) -> None:
    with pytest.raises(type(fault)), translated("look"):
        raise fault
