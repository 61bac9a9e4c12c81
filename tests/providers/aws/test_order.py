"""What an order of EC2 is sent with, and what becomes of it."""

from __future__ import annotations

import pytest

from prefect_gpu.blocks.aws import AwsImage
from prefect_gpu.providers.aws.driver import Aws
from prefect_gpu.providers.aws.order import AwsOptions
from prefect_gpu.providers.core.errors import (
    InstanceFailed,
    InvalidRequest,
    NoCapacity,
    RegionClosed,
    Unconfirmed,
)
from prefect_gpu.providers.core.models import (
    InstanceState,
)
from prefect_gpu.providers.core.renting import order as orders
from tests.conformance import launch_spec, lease_name
from tests.fakes.aws import AwsCloud
from tests.providers.aws.ordering import (
    Quickly,
    gpu_offer,
    offer_of,
    order_sent,
    tags_sent,
    utc_soon,
    wait_for,
)


def test_an_order_carries_its_name_as_token_and_everything_it_brings_along_carries_name_and_tags(
    cloud: AwsCloud, driver: Aws
) -> None:
    name = lease_name()
    tags = {"prefect-gpu-realm": "conf", "prefect-gpu-flow-run": "a-run"}
    created = driver.create_instance(offer_of(), launch_spec(driver, name, tags=tags))
    sent = order_sent(cloud)
    assert sent["ClientToken"] == name
    assert (sent["MinCount"], sent["MaxCount"]) == ("1", "1")
    assert sent["Placement.AvailabilityZone"] == "us-east-1a"
    assert sent["NetworkInterface.1.AssociatePublicIpAddress"] == "true"
    for kind in ("instance", "volume", "network-interface"):
        assert tags_sent(sent)[kind].items() >= {"Name": name, **tags}.items()
    machine_id = created.id.split("/")[1]
    ec2 = cloud.ec2()
    (reservation,) = ec2.describe_instances(InstanceIds=[machine_id])["Reservations"]
    machine = reservation["Instances"][0]
    (volume,) = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [machine_id]}])["Volumes"]
    (nic,) = ec2.describe_network_interfaces(
        NetworkInterfaceIds=[machine["NetworkInterfaces"][0]["NetworkInterfaceId"]]
    )["NetworkInterfaces"]
    for rows in (machine["Tags"], volume["Tags"], nic["TagSet"]):
        assert {"Key": "Name", "Value": name} in rows


def test_an_order_ends_with_its_lease_and_hides_its_user_data_from_containers(cloud: AwsCloud, driver: Aws) -> None:
    driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    sent = order_sent(cloud)
    assert sent["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert sent["MetadataOptions.HttpTokens"] == "required"
    assert sent["MetadataOptions.HttpPutResponseHopLimit"] == "1"
    assert sent["BlockDeviceMapping.1.DeviceName"] == "/dev/sda1"
    assert sent["BlockDeviceMapping.1.Ebs.DeleteOnTermination"] == "true"
    assert sent["NetworkInterface.1.DeleteOnTermination"] == "true"
    assert "InstanceMarketOptions.MarketType" not in sent


def test_a_machine_ends_itself_when_its_lease_is_over(cloud: AwsCloud, driver: Aws) -> None:
    name = lease_name()
    deadline = utc_soon(3)
    created = driver.create_instance(offer_of(), launch_spec(driver, name, deadline=deadline))
    ended = wait_for(InstanceState.TERMINATED, driver, created)
    assert utc_soon(1) >= deadline  # in whole seconds
    assert "nstance initiated shutdown" in ended.reason
    assert cloud.alive() == []


def test_a_spot_order_is_one_time_and_terminates_and_its_request_is_tagged_too(cloud: AwsCloud, driver: Aws) -> None:
    name = lease_name()
    driver.create_instance(offer_of(spot=True), launch_spec(driver, name, options={"max_spot_price": 0.05}))
    sent = order_sent(cloud)
    assert sent["InstanceMarketOptions.MarketType"] == "spot"
    assert sent["InstanceMarketOptions.SpotOptions.SpotInstanceType"] == "one-time"
    assert sent["InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior"] == "terminate"
    assert sent["InstanceMarketOptions.SpotOptions.MaxPrice"] == "0.05000"
    assert tags_sent(sent)["spot-instances-request"]["Name"] == name


@pytest.mark.parametrize(("option", "limit"), [(None, "0.07000"), (0.05, "0.05000"), (0.09, "0.07000")])
def test_a_runs_limit_holds_for_a_spot_price_that_rises(
    cloud: AwsCloud, driver: Aws, option: float | None, limit: str
) -> None:
    """Without one of ours EC2 charges up to the on-demand price."""
    order = launch_spec(driver, lease_name(), options={"max_spot_price": option}, max_price=0.07)
    driver.create_instance(offer_of(spot=True), order)
    assert order_sent(cloud)["InstanceMarketOptions.SpotOptions.MaxPrice"] == limit


def test_a_name_is_a_key_within_its_zone_only_so_the_next_zone_needs_its_own(cloud: AwsCloud, driver: Aws) -> None:
    spec = launch_spec(driver, lease_name())
    first = driver.create_instance(offer_of(), spec)
    elsewhere = driver.create_instance(offer_of(zone="us-east-1b"), spec)
    assert first.id != elsewhere.id
    assert len(cloud.alive()) == 2


def test_an_order_without_a_zone_is_refused_before_it_is_sent(cloud: AwsCloud, driver: Aws) -> None:
    with pytest.raises(InvalidRequest, match="needs a zone"):
        driver.create_instance(offer_of().model_copy(update={"zone": None}), launch_spec(driver, lease_name()))
    assert cloud.calls("RunInstances") == []


def test_a_lost_answer_is_asked_for_again_and_buys_one_machine(cloud: AwsCloud, driver: Aws) -> None:
    cloud.fail("RunInstances", how="lost")
    cloud.set(hide_new=30)
    created = orders.place_order(driver, offer_of(), launch_spec(driver, lease_name()), clock=Quickly())
    assert [alive["id"] for alive in cloud.alive()] == [created.id]
    assert len(cloud.calls("RunInstances")) == 2


def test_an_answer_that_names_no_instance_is_unconfirmed(cloud: AwsCloud, driver: Aws) -> None:
    cloud.fail("RunInstances", how="empty")
    with pytest.raises(Unconfirmed, match="named no instance"):
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    assert len(cloud.alive()) == 1


def test_an_order_repeated_after_a_newer_image_came_out_is_the_machine_that_stands(cloud: AwsCloud) -> None:
    spec = launch_spec(cloud.driver(), lease_name())
    image = AwsImage(owner="099720109477", name="ubuntu/*-amd64-server-20260301", user="root", port=cloud.ssh_port)
    first = cloud.driver(cpu_image=image).create_instance(offer_of(), spec)
    again = cloud.driver().create_instance(offer_of(), spec)
    assert again.id == first.id
    assert len(cloud.alive()) == 1


def test_a_mismatch_whose_order_is_not_shown_yet_is_unconfirmed_never_free_to_forget(cloud: AwsCloud) -> None:
    spec = launch_spec(cloud.driver(), lease_name())
    cloud.set(hide_new=30)
    image = AwsImage(owner="099720109477", name="ubuntu/*-amd64-server-20260301", user="root", port=cloud.ssh_port)
    cloud.driver(cpu_image=image).create_instance(offer_of(), spec)
    with pytest.raises(Unconfirmed, match="does not show it yet"):
        cloud.driver().create_instance(offer_of(), spec)


def test_another_order_under_the_same_name_is_our_bug(cloud: AwsCloud, driver: Aws) -> None:
    spec = launch_spec(driver, lease_name())
    driver.create_instance(offer_of(), spec)
    with pytest.raises(InvalidRequest, match="another order was sent under this name") as raised:
        driver.create_instance(offer_of("c5.large"), spec)
    assert raised.value.code == "IdempotentParameterMismatch"
    assert len(cloud.alive()) == 1


def test_an_order_repeated_after_its_machine_ended_is_that_machine_and_buys_no_other(
    cloud: AwsCloud, driver: Aws
) -> None:
    spec = launch_spec(driver, lease_name())
    created = driver.create_instance(offer_of(), spec)
    driver.terminate_instance(created.id)
    wait_for(InstanceState.TERMINATED, driver, created)
    again = driver.create_instance(offer_of(), spec)
    assert (again.id, again.state) == (created.id, InstanceState.TERMINATED)
    assert cloud.alive() == []


def test_an_order_repeated_after_its_machine_ended_and_was_forgotten_failed_and_the_next_offer_is_tried(
    cloud: AwsCloud, driver: Aws
) -> None:
    cloud.fail("RunInstances", "IdempotentInstanceTerminated")
    with pytest.raises(InstanceFailed, match="ordered under this name has ended") as raised:
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    assert not raised.value.rules_out(offer_of(), offer_of(zone="us-east-1b"))


@pytest.mark.parametrize("page_size", [1000, 1])
def test_the_image_is_the_newest_of_its_owner_by_name(cloud: AwsCloud, page_size: int) -> None:
    cloud.set(page_size=page_size)
    driver = cloud.driver(gpu_image=None, cpu_image=None)
    created = driver.create_instance(gpu_offer(), launch_spec(driver, lease_name()))
    assert order_sent(cloud)["ImageId"] == "ami-00000002"
    assert created.ssh is None or created.ssh.user == "ubuntu"
    driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    assert order_sent(cloud)["ImageId"] == "ami-00000005"
    driver.create_instance(offer_of("m6g.large", arch="arm64"), launch_spec(driver, lease_name()))
    assert order_sent(cloud)["ImageId"] == "ami-00000006"


def test_an_image_of_the_order_goes_before_the_blocks_and_a_missing_one_is_explained(
    cloud: AwsCloud, driver: Aws
) -> None:
    options = {"image_id": "ami-00000007", "volume_type": "gp2", "instance_profile": None}
    driver.create_instance(offer_of(), launch_spec(driver, lease_name(), options=options))
    assert order_sent(cloud)["ImageId"] == "ami-00000007"
    assert order_sent(cloud)["BlockDeviceMapping.1.Ebs.VolumeType"] == "gp2"
    nothing = cloud.driver(cpu_image=AwsImage(owner="self", name="no-such-*"))
    with pytest.raises(RegionClosed, match=r"no x86_64 image 'no-such-\*' of owner self in us-east-1"):
        nothing.create_instance(offer_of(), launch_spec(nothing, lease_name()))


def test_options_that_aws_does_not_have_are_refused_with_those_it_has(cloud: AwsCloud, driver: Aws) -> None:
    with pytest.raises(InvalidRequest, match=r"aws has no option 'image': it takes capacity_reservation, image_id, "):
        driver.create_instance(offer_of(), launch_spec(driver, lease_name(), options={"image": "ami-1"}))
    assert cloud.calls("RunInstances") == []
    assert AwsOptions() == AwsOptions.model_validate({})


def test_the_blocks_profile_and_disk_type_stand_in_the_order(cloud: AwsCloud) -> None:
    driver = cloud.driver(instance_profile="jobs", volume_type="gp2")
    cloud.fail("RunInstances", "InsufficientInstanceCapacity")
    with pytest.raises(NoCapacity):
        driver.create_instance(offer_of(), launch_spec(driver, lease_name(), disk_gb=250.5))
    sent = order_sent(cloud)
    assert sent["IamInstanceProfile.Name"] == "jobs"
    assert sent["BlockDeviceMapping.1.Ebs.VolumeSize"] == "251"
    assert sent["BlockDeviceMapping.1.Ebs.VolumeType"] == "gp2"


@pytest.mark.parametrize("whose", ["block", "order"])
def test_an_io2_disk_is_ordered_with_the_iops_that_it_needs_and_that_a_small_one_may_have(
    cloud: AwsCloud, whose: str
) -> None:
    driver = cloud.driver(volume_type="io2") if whose == "block" else cloud.driver()
    options = {"volume_type": "io2"} if whose == "order" else {}
    created = driver.create_instance(offer_of(), launch_spec(driver, lease_name(), disk_gb=8, options=options))
    attached = [{"Name": "attachment.instance-id", "Values": [created.id.split("/")[1]]}]
    (volume,) = cloud.ec2().describe_volumes(Filters=attached)["Volumes"]
    assert (volume["VolumeType"], volume["Iops"]) == ("io2", 3000)
    assert "BlockDeviceMapping.1.Ebs.Iops" in order_sent(cloud)
    gp3 = cloud.driver()
    gp3.create_instance(offer_of(), launch_spec(gp3, lease_name()))
    assert "BlockDeviceMapping.1.Ebs.Iops" not in order_sent(cloud), "gp3 has its own"
