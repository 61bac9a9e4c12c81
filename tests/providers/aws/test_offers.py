"""What can be bought, and why the rest cannot."""

from __future__ import annotations

import pytest

from prefect_gpu.blocks.aws import AwsImage
from prefect_gpu.providers.aws import quotas
from prefect_gpu.providers.aws.driver import Aws
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    RegionClosed,
)
from prefect_gpu.providers.core.models import (
    Availability,
    Offer,
)
from prefect_gpu.providers.core.requests import Requirements, Spot
from tests.conformance import launch_spec, lease_name
from tests.fakes.aws import REGIONS, AwsCloud
from tests.providers.aws.ordering import (
    gpu_offer,
    offer_of,
    order_sent,
)


def test_an_offer_stands_in_each_zone_that_has_the_type(driver: Aws) -> None:
    offers = [offer for offer in driver.fetch_offers(Requirements()) if offer.instance_type == "p4d.24xlarge"]
    assert [offer.zone for offer in offers] == ["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1d"]
    assert {offer.price for offer in offers} == {21.96}
    assert {offer.disk_gb for offer in offers} == {100.0}


def test_bare_metal_has_55_minutes_to_boot_and_virtual_machines_ten(cloud: AwsCloud) -> None:
    kinds = ("m5.large", "m5.metal", "c6i.metal", "m7i.metal-24xl")
    prices = [offer_of(kind).model_copy(update={"zone": None}) for kind in kinds]
    driver = Aws(cloud.block(), priced_offers=lambda _name, _asked: prices)
    allowed = {
        offer.instance_type: offer.boot_deadline_s or driver.capabilities.boot_deadline_s
        for offer in driver.fetch_offers(Requirements())
    }
    assert allowed == {"m5.large": 600, **dict.fromkeys(kinds[1:], 3300)}


def test_zones_and_disk_that_were_asked_for_are_obeyed(driver: Aws) -> None:
    asked = Requirements(regions=("us-east-1",), zones=("us-east-1b", "us-east-1c"), disk_gb=300)
    offers = driver.fetch_offers(asked)
    assert {offer.zone for offer in offers} == {"us-east-1b", "us-east-1c"}
    assert {offer.disk_gb for offer in offers} == {300.0}
    without = driver.fetch_offers(Requirements(regions=("us-east-1",), exclude_zones=("us-east-1b",)))
    assert "us-east-1b" not in {offer.zone for offer in without}


def test_the_blocks_regions_bound_what_is_offered(cloud: AwsCloud) -> None:
    driver = cloud.driver(regions=["us-west-2", "eu-west-1"])
    assert {offer.region for offer in driver.fetch_offers(Requirements())} == {"us-west-2", "eu-west-1"}
    assert {offer.region for offer in driver.fetch_offers(Requirements(regions=("eu-west-1",)))} == {"eu-west-1"}
    assert driver.fetch_offers(Requirements(regions=("us-east-1",))) == []
    assert {call["region"] for call in cloud.calls("DescribeSubnets")} == {"us-west-2", "eu-west-1"}


def why_closed(offers: list[Offer], instance_type: str, region: str = "us-east-1") -> str | None:
    (offer,) = [
        offer
        for offer in offers
        if (offer.instance_type, offer.region, offer.zone) == (instance_type, region, None)
        and offer.availability is Availability.UNAVAILABLE
    ]
    return offer.unavailable_because


def test_an_offer_above_the_accounts_quota_says_so(cloud: AwsCloud, driver: Aws) -> None:
    cloud.set(quotas={"L-417A185B": 95.0, "us-west-2/L-DB2E81BA": 0.0, "L-1216C47A": None})
    offers = driver.fetch_offers(Requirements())
    assert why_closed(offers, "p4d.24xlarge") == (
        "quota L-417A185B is 95 vCPU in us-east-1, this takes 96: ask AWS for more"
    )
    assert (why_closed(offers, "g4dn.xlarge", "us-west-2") or "").startswith("quota L-DB2E81BA is 0 vCPU in us-west-2")
    buyable = {(offer.instance_type, offer.region) for offer in offers if offer.zone}
    assert buyable == {
        ("g4dn.xlarge", "us-east-1"),
        ("g4dn.xlarge", "eu-west-1"),
        *(("m5.large", region) for region in ("us-east-1", "us-west-2", "eu-west-1")),  # a quota not told is not zero
    }
    assert len(cloud.calls("GetServiceQuota")) == 7, "one question for each quota and region"


def test_spot_counts_against_its_own_quotas(cloud: AwsCloud, driver: Aws) -> None:
    cloud.set(quotas={"L-3819A6DF": 0.0, "L-DB2E81BA": 0.0})
    offers = driver.fetch_offers(Requirements(spot=Spot.SPOT))
    assert "L-3819A6DF" in (why_closed(offers, "g4dn.xlarge") or "")
    assert [offer.instance_type for offer in offers if offer.zone] == ["m5.large"] * 5


@pytest.mark.parametrize(
    ("instance_type", "on_demand", "spot"),
    [
        ("p6-b200.48xlarge", "L-417A185B", None),
        ("p5e.48xlarge", "L-417A185B", "L-C4BD4855"),
        ("p4de.24xlarge", "L-417A185B", "L-7212CCBC"),
        ("g6e.xlarge", "L-DB2E81BA", "L-3819A6DF"),
        ("gr6.4xlarge", "L-DB2E81BA", "L-3819A6DF"),
        ("m7i.large", "L-1216C47A", "L-34B43A08"),
        ("t2.small", "L-1216C47A", "L-34B43A08"),
        ("inf2.xlarge", "L-1945791B", "L-B5D1601B"),
        ("trn1.32xlarge", "L-2C3B7624", "L-6B0D517C"),
        ("u-6tb1.metal", None, None),
        ("mac2.metal", None, None),
    ],
)
def test_each_family_counts_against_its_quota(instance_type: str, on_demand: str | None, spot: str | None) -> None:
    assert quotas.code_of(offer_of(instance_type)) == on_demand
    assert quotas.code_of(offer_of(instance_type, spot=True)) == spot


def test_quotas_that_may_not_be_read_close_nothing(cloud: AwsCloud, driver: Aws) -> None:
    cloud.fail("GetServiceQuota", "AccessDeniedException", times=None)
    assert all(offer.zone for offer in driver.fetch_offers(Requirements()))


def test_what_cannot_be_bought_says_why(cloud: AwsCloud) -> None:
    cloud.set(regions=["us-east-1", "us-west-2"])
    cloud.fail("DescribeSubnets", "UnauthorizedOperation", status=403, region="us-west-2", times=None)
    prices = [
        offer_of("m5.large", region="us-east-1"),
        offer_of("p9.huge", region="us-east-1"),
        offer_of("m5.large", zone="us-west-2a"),
        offer_of("m5.large", zone="eu-west-1a"),
        gpu_offer(gpu_vendor="amd", gpu_name="V520"),
    ]
    prices = [offer.model_copy(update={"zone": None}) for offer in prices]
    driver = Aws(cloud.block(gpu_image=None), priced_offers=lambda _name, _asked: prices)
    offers = driver.fetch_offers(Requirements())
    assert why_closed(offers, "p9.huge") == "EC2 has no p9.huge in us-east-1"
    assert why_closed(offers, "m5.large", "eu-west-1") == "eu-west-1 is not enabled in this account"
    assert (why_closed(offers, "m5.large", "us-west-2") or "").startswith("us-west-2 could not be asked: ")
    assert why_closed(offers, "g4dn.xlarge") == "AWS has no image with amd drivers: name one in the block"
    assert {offer.zone for offer in offers if offer.zone} == {f"us-east-1{letter}" for letter in "abcdf"}


def test_a_zone_without_a_subnet_for_us_is_not_offered(cloud: AwsCloud) -> None:
    driver = cloud.driver(subnets=["subnet-gone"], regions=["us-east-1"])
    offers = driver.fetch_offers(Requirements())
    assert all(offer.availability is Availability.UNAVAILABLE for offer in offers)
    assert "no subnet in us-east-1a, us-east-1b" in (why_closed(offers, "m5.large") or "")


@pytest.mark.parametrize("by", ["GroupName", "GroupId"])
def test_a_region_without_the_blocks_security_group_is_not_offered_and_the_others_are(cloud: AwsCloud, by: str) -> None:
    vpc = cloud.ec2("us-west-2").describe_vpcs()["Vpcs"][0]["VpcId"]
    made = cloud.ec2("us-west-2").create_security_group(GroupName="team-ssh", Description="theirs", VpcId=vpc)
    chosen = {"GroupName": "team-ssh", "GroupId": made["GroupId"]}[by]
    driver = cloud.driver(security_group=chosen)
    offers = driver.fetch_offers(Requirements())
    assert {offer.region for offer in offers if offer.zone} == {"us-west-2"}
    assert why_closed(offers, "m5.large", "eu-west-1") == (
        f"no security group {chosen} in the VPC of eu-west-1a, eu-west-1b, eu-west-1c"
    )
    assert len(cloud.calls("DescribeSecurityGroups")) == 3, "one question for each region"
    here = next(offer for offer in offers if offer.zone)
    driver.create_instance(here, launch_spec(driver, lease_name()))
    assert order_sent(cloud)["NetworkInterface.1.SecurityGroupId.1"] == made["GroupId"]


def test_a_zone_whose_subnet_stands_in_another_vpc_than_the_blocks_group_is_not_offered(cloud: AwsCloud) -> None:
    ec2 = cloud.ec2()
    home = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName="team-ssh", Description="theirs", VpcId=home)["GroupId"]
    here = ec2.describe_subnets(Filters=[{"Name": "availability-zone", "Values": ["us-east-1a"]}])["Subnets"][0]
    away = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    there = ec2.create_subnet(VpcId=away, CidrBlock="10.9.1.0/24", AvailabilityZone="us-east-1b")["Subnet"]
    driver = cloud.driver(subnets=[here["SubnetId"], there["SubnetId"]], security_group=group, regions=["us-east-1"])
    assert {offer.zone for offer in driver.fetch_offers(Requirements()) if offer.zone} == {"us-east-1a"}
    with pytest.raises(RegionClosed, match=f"no security group {group} in {away}"):
        driver.create_instance(offer_of(zone="us-east-1b"), launch_spec(driver, lease_name()))


def test_a_region_without_the_blocks_image_is_not_offered_and_the_others_are(cloud: AwsCloud) -> None:
    ours = AwsImage(owner="self", name="team-*", user="root", port=cloud.ssh_port)
    cloud.ec2("us-west-2").copy_image(Name="team-1", SourceImageId="ami-00000008", SourceRegion="us-west-2")
    driver = cloud.driver(cpu_image=ours)
    offers = driver.fetch_offers(Requirements())
    assert {offer.region for offer in offers if offer.zone and offer.instance_type == "m5.large"} == {"us-west-2"}
    assert why_closed(offers, "m5.large", "eu-west-1") == (
        "no x86_64 image 'team-*' of owner self in eu-west-1: name another in the block"
    )
    assert {offer.region for offer in offers if offer.zone and offer.gpu_count} == set(REGIONS), "another image"
    asked = [call["region"] for call in cloud.calls("DescribeImages")]
    assert {region: asked.count(region) for region in asked} == dict.fromkeys(REGIONS, 2), "once for each image"


def test_when_no_region_answers_the_error_is_told_and_not_an_empty_list(cloud: AwsCloud, driver: Aws) -> None:
    cloud.fail("DescribeSubnets", "UnauthorizedOperation", status=403, times=None)
    with pytest.raises(AuthFailed):
        driver.fetch_offers(Requirements())
