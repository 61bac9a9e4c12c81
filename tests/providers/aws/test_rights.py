"""What the credentials may not do."""

from __future__ import annotations

import pytest

from prefect_gpu.providers.aws.driver import Aws
from tests.fakes.aws import AwsCloud
from tests.providers.aws.ordering import (
    made_groups,
)


@pytest.mark.parametrize(
    ("action", "right"),
    [
        ("DescribeInstances", "ec2:DescribeInstances"),
        ("DescribeRegions", "ec2:DescribeRegions"),
        ("TerminateInstances", "ec2:TerminateInstances"),
        ("DeleteVolume", "ec2:DeleteVolume"),
        ("RunInstances", "ec2:RunInstances and ec2:CreateTags"),
        ("CreateSecurityGroup", "ec2:CreateSecurityGroup"),
        ("AuthorizeSecurityGroupIngress", "ec2:AuthorizeSecurityGroupIngress"),
    ],
)
def test_a_missing_right_is_named_in_awss_terms(cloud: AwsCloud, driver: Aws, action: str, right: str) -> None:
    cloud.fail(action, "UnauthorizedOperation", status=403, times=None)
    (missing,) = driver.missing_rights()
    assert missing.partition(" (or allowed where a tag stands")[0] == right
    assert cloud.alive() == []
    assert made_groups(cloud) == []


def test_a_blocks_reservation_needs_a_right_of_its_own(cloud: AwsCloud) -> None:
    cloud.fail("DescribeCapacityReservations", "UnauthorizedOperation", status=403, times=None)
    assert cloud.driver().missing_rights() == []
    assert cloud.driver(capacity_reservation="cr-1").missing_rights() == ["ec2:DescribeCapacityReservations"]


def test_quotas_that_may_not_be_read_are_a_missing_right(cloud: AwsCloud, driver: Aws) -> None:
    cloud.fail("GetServiceQuota", "AccessDeniedException", times=None)
    assert [right.split()[0] for right in driver.missing_rights()] == ["servicequotas:GetServiceQuota"]
