"""The image fits the GPU's generation and the processor."""

from __future__ import annotations

import pytest

from prefect_gpu.providers.aws import images, network
from prefect_gpu.providers.aws.driver import Aws
from prefect_gpu.providers.core.errors import InvalidRequest, ProviderError, RegionClosed
from prefect_gpu.providers.core.requests import Requirements
from tests.conformance import launch_spec, lease_name
from tests.fakes.aws import AwsCloud
from tests.providers.aws.ordering import gpu_offer, made_groups, offer_of


@pytest.mark.parametrize(
    ("gpu", "instance_type", "image"),
    [
        ("V100", "p3.2xlarge", "Base Proprietary Nvidia Driver GPU AMI (Ubuntu 20.04) *"),
        ("M60", "g3.4xlarge", "Base Proprietary Nvidia Driver GPU AMI (Ubuntu 20.04) *"),
        ("T4", "g4dn.xlarge", "Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *"),
        ("A100", "p4d.24xlarge", "Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *"),
        ("H100", "p5.48xlarge", "Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *"),
        ("B200", "p6-b200.48xlarge", "Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *"),
        ("T4g", "g5g.xlarge", "ARM64 Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *"),
        ("GB200", "p6e-gb200.36xlarge", "ARM64 Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *"),
        ("GB300", "p6e-gb300.36xlarge", "ARM64 Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) *"),
        ("K80", "p2.xlarge", None),
    ],
)
def test_the_image_knows_the_gpu(cloud: AwsCloud, gpu: str, instance_type: str, image: str | None) -> None:
    found = images.Images(cloud.driver(gpu_image=None).api)
    offer = gpu_offer(gpu_name=gpu, arch=None).model_copy(update={"instance_type": instance_type})
    wanted = found._wanted(offer)
    assert (wanted and wanted.name.partition("Deep ")[2].endswith(image or "")) == (True if image else None)
    if image is None:
        assert found.problem(offer) == "AWS has no image with K80 drivers: name one in the block"
        with pytest.raises(RegionClosed) as raised:
            found.of(offer)
        assert not raised.value.rules_out(offer, gpu_offer())


def test_an_image_in_the_block_goes_before(cloud: AwsCloud, driver: Aws) -> None:
    found = images.Images(driver.api)
    assert found.problem(gpu_offer(gpu_name="K80")) is None
    assert found.of(gpu_offer(gpu_name="V100")).id == "ami-00000008"


@pytest.mark.parametrize(
    ("instance_type", "arch"),
    [
        *(
            (kind, "arm64")
            for kind in ("m6g.large", "c7gn.large", "g5g.xlarge", "im4gn.large", "is4gen.large", "a1.large")
        ),
        *(
            (kind, "arm64")
            for kind in ("t4g.nano", "x2gd.large", "p6e-gb200.36xlarge", "r8gd.metal-24xl", "hpc7g.large")
        ),
        *(
            (kind, "x86_64")
            for kind in ("g4dn.xlarge", "g5.xlarge", "g6e.xlarge", "gr6.4xlarge", "p4d.24xlarge", "p5en.48xlarge")
        ),
        *(
            (kind, "x86_64")
            for kind in ("p6-b200.48xlarge", "u-6tb1.metal", "trn1.2xlarge", "m7i-flex.large", "i4i.large", "")
        ),
    ],
)
def test_the_processor_is_told_by_the_type_where_the_price_list_does_not(instance_type: str, arch: str) -> None:
    assert images.arch_of(offer_of(instance_type, arch=None)) == arch
    assert images.arch_of(offer_of("m5.large", arch="arm64")) == "arm64"


def test_a_disk_above_ec2s_limit_is_told_before_anything_is_made(cloud: AwsCloud, driver: Aws) -> None:
    offers = driver.fetch_offers(Requirements(disk_gb=20_000))
    assert {offer.unavailable_because for offer in offers} == {
        "a disk of 20000 GB is asked for, EC2's have at most 16384"
    }
    with pytest.raises(InvalidRequest, match="at most 16384"):
        driver.create_instance(offer_of(), launch_spec(driver, lease_name(), disk_gb=20_000))
    assert made_groups(cloud) == []
    assert cloud.calls("RunInstances") == []


def test_regions_that_the_account_does_not_have_are_said(cloud: AwsCloud) -> None:
    with pytest.raises(RegionClosed, match="the block names us-east-9, which this account does not have"):
        cloud.driver(regions=["us-east-9"]).fetch_offers(Requirements())


def test_a_subnet_that_is_not_there_is_named(cloud: AwsCloud) -> None:
    driver = cloud.driver(subnets=["subnet-gone"], regions=["us-east-1"])
    whys = {offer.unavailable_because or "" for offer in driver.fetch_offers(Requirements())}
    assert all("the block names subnet-gone, none of which is there" in why for why in whys)
    with pytest.raises(ProviderError, match="the block names subnet-gone"):
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))


@pytest.mark.parametrize("port", [22, 443])
def test_a_group_of_our_name_that_admits_more_is_not_used(cloud: AwsCloud, driver: Aws, port: int) -> None:
    """Whoever made it first, or opened ours, would let others in."""
    driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    (group,) = made_groups(cloud)
    narrow = cloud.driver(network={"ssh_from": ["203.0.113.0/24"]})
    narrow.create_instance(offer_of(), launch_spec(narrow, lease_name()))
    (ours,) = [one for one in made_groups(cloud) if one["GroupId"] != group["GroupId"]]
    rule = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "IpRanges": [{"CidrIp": "198.51.100.0/24"}]}
    cloud.ec2().authorize_security_group_ingress(GroupId=ours["GroupId"], IpPermissions=[rule])
    with pytest.raises(RegionClosed, match=r"admits 198\.51\.100\.0/24.* too: delete these rules"):
        narrow.create_instance(offer_of(), launch_spec(narrow, lease_name()))
    assert network.REALM_TAG in {tag["Key"] for tag in ours["Tags"]}
