"""Subnets, security groups, private machines."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from prefect_gpu.blocks.aws import AwsImage
from prefect_gpu.providers.aws import instances, network
from prefect_gpu.providers.aws.driver import Aws
from prefect_gpu.providers.core.errors import (
    RegionClosed,
)
from prefect_gpu.providers.core.models import (
    Availability,
    InstanceState,
    Listing,
)
from prefect_gpu.providers.core.renting import order as orders
from prefect_gpu.providers.core.requests import Requirements
from tests.conformance import launch_spec, lease_name
from tests.fakes.aws import AwsCloud
from tests.providers.aws.ordering import (
    Quickly,
    made_groups,
    offer_of,
    order_sent,
    wait_for,
)


def test_the_security_group_is_made_once_per_realm_and_admits_nothing_but_ssh(cloud: AwsCloud, driver: Aws) -> None:
    for attempt in range(2):
        driver.create_instance(offer_of(), launch_spec(driver, lease_name(attempt=attempt)))
    driver.create_instance(offer_of(), launch_spec(driver, lease_name(realm="cone")))
    groups = {group["GroupName"].rpartition("-")[0]: group for group in made_groups(cloud)}
    assert len(made_groups(cloud)) == 2
    assert set(groups) == {"prefect-gpu-conf", "prefect-gpu-cone"}
    (rule,) = groups["prefect-gpu-conf"]["IpPermissions"]
    assert (rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) == ("tcp", cloud.ssh_port, cloud.ssh_port)
    assert [row["CidrIp"] for row in rule["IpRanges"]] == ["0.0.0.0/0"]
    assert [row["CidrIpv6"] for row in rule["Ipv6Ranges"]] == ["::/0"]
    assert order_sent(cloud)["NetworkInterface.1.SecurityGroupId.1"] == groups["prefect-gpu-cone"]["GroupId"]


def test_the_group_stays_when_the_last_machine_goes_and_is_no_leftover(cloud: AwsCloud, driver: Aws) -> None:
    created = driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    driver.terminate_instance(created.id)
    wait_for(InstanceState.TERMINATED, driver, created)
    assert driver.list_instances("pg-") == Listing()
    assert len(made_groups(cloud)) == 1


def test_a_group_that_another_worker_makes_at_the_same_moment_is_used(
    cloud: AwsCloud, driver: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = network.groups
    answers: list[list[dict[str, Any]]] = [[]]  # the first look comes a moment before the other worker

    def late(*given: Any) -> list[dict[str, Any]]:
        return answers.pop() if answers else real(*given)

    driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    monkeypatch.setattr(network, "groups", late)
    driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    assert len(made_groups(cloud)) == 1


def test_a_group_that_lost_its_rule_admits_ssh_again_from_where_the_block_says(cloud: AwsCloud) -> None:
    driver = cloud.driver(network={"ssh_from": ["203.0.113.0/24"]})
    for _ in range(3):
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
        if len(cloud.calls("AuthorizeSecurityGroupIngress")) == 1:
            (group,) = made_groups(cloud)
            cloud.ec2().revoke_security_group_ingress(GroupId=group["GroupId"], IpPermissions=group["IpPermissions"])
    (rule,) = made_groups(cloud)[0]["IpPermissions"]
    assert [row["CidrIp"] for row in rule["IpRanges"]] == ["203.0.113.0/24"]
    assert len(cloud.calls("AuthorizeSecurityGroupIngress")) == 2


def admitted_by_order(cloud: AwsCloud) -> set[str]:
    """Where the last order's machine admits SSH from."""
    used = [order_sent(cloud)["NetworkInterface.1.SecurityGroupId.1"]]
    (group,) = cloud.ec2().describe_security_groups(GroupIds=used)["SecurityGroups"]
    v4 = {row["CidrIp"] for rule in group["IpPermissions"] for row in rule["IpRanges"]}
    return v4 | {row["CidrIpv6"] for rule in group["IpPermissions"] for row in rule["Ipv6Ranges"]}


def test_narrowing_where_ssh_is_admitted_from_narrows_the_next_machines_group(cloud: AwsCloud) -> None:
    for ranges in (["0.0.0.0/0", "::/0"], ["203.0.113.0/24"], ["203.0.113.7", "2001:DB8::/32"]):
        driver = cloud.driver(network={"ssh_from": ranges})
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
        wanted = {"203.0.113.7": "203.0.113.7/32", "2001:DB8::/32": "2001:db8::/32"}
        assert admitted_by_order(cloud) == {wanted.get(one, one) for one in ranges}
    assert len(made_groups(cloud)) == 3


def test_an_image_whose_sshd_listens_elsewhere_has_a_group_of_its_own(cloud: AwsCloud) -> None:
    other = AwsImage(owner="self", name="test-machine-*", user="root", port=2222)
    for driver in (cloud.driver(), cloud.driver(cpu_image=other)):
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    ports = [[rule["FromPort"] for rule in group["IpPermissions"]] for group in made_groups(cloud)]
    assert sorted(ports) == sorted([[2222], [cloud.ssh_port]])


def test_the_same_addresses_written_in_another_way_are_the_same_group(cloud: AwsCloud) -> None:
    for ranges in (["203.0.113.0/24", "198.51.100.1"], ["198.51.100.1/32", "203.0.113.0/24", "198.51.100.1"]):
        driver = cloud.driver(network={"ssh_from": ranges})
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    assert len(made_groups(cloud)) == 1
    assert admitted_by_order(cloud) == {"203.0.113.0/24", "198.51.100.1/32"}


def test_a_new_group_that_is_not_everywhere_yet_is_asked_for_again(cloud: AwsCloud, driver: Aws) -> None:
    cloud.fail("RunInstances", "InvalidGroup.NotFound")
    created = orders.place_order(driver, offer_of(), launch_spec(driver, lease_name()), clock=Quickly())
    assert [alive["id"] for alive in cloud.alive()] == [created.id]


@pytest.mark.parametrize("by", ["GroupName", "GroupId"])
def test_a_group_of_the_team_is_used_as_it_is(cloud: AwsCloud, by: str) -> None:
    vpc = cloud.ec2().describe_vpcs()["Vpcs"][0]["VpcId"]
    made = cloud.ec2().create_security_group(GroupName="team-ssh", Description="theirs", VpcId=vpc)
    driver = cloud.driver(security_group={"GroupName": "team-ssh", "GroupId": made["GroupId"]}[by])
    driver.create_instance(offer_of(), launch_spec(driver, lease_name()))
    assert order_sent(cloud)["NetworkInterface.1.SecurityGroupId.1"] == made["GroupId"]
    assert made_groups(cloud) == []
    assert cloud.calls("AuthorizeSecurityGroupIngress") == []
    missing = cloud.driver(security_group="no-such")
    with pytest.raises(RegionClosed, match=r"no security group no-such in vpc-\w+ of us-east-1"):
        missing.create_instance(offer_of(), launch_spec(missing, lease_name()))


def test_the_blocks_subnets_are_used_in_their_zones_and_no_others(cloud: AwsCloud) -> None:
    ec2 = cloud.ec2()
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.1.0/24", AvailabilityZone="us-east-1b")["Subnet"]["SubnetId"]
    driver = cloud.driver(subnets=[subnet, "subnet-of-another-region"], regions=["us-east-1"])
    offers = driver.fetch_offers(Requirements())
    assert {offer.zone for offer in offers if offer.availability is not Availability.UNAVAILABLE} == {"us-east-1b"}
    driver.create_instance(offer_of(zone="us-east-1b"), launch_spec(driver, lease_name()))
    assert order_sent(cloud)["NetworkInterface.1.SubnetId"] == subnet
    with pytest.raises(RegionClosed, match="no subnet in us-east-1a"):
        driver.create_instance(offer_of(), launch_spec(driver, lease_name()))


@pytest.mark.parametrize("whose", ["block", "order"])
def test_a_private_machine_has_no_public_address_and_is_reached_by_the_jump_host(cloud: AwsCloud, whose: str) -> None:
    driver = cloud.driver(
        network={
            "private": whose == "block",
            "jump": {
                "address": "bastion.example.com",
                "user": "ops",
                "private_key": "the-jump-key",
                "host_key": "ssh-ed25519 AAAA",
            },
        },
    )
    asked = "private" if whose == "order" else "public"
    created = driver.create_instance(offer_of(), launch_spec(driver, lease_name(), network=asked))
    assert order_sent(cloud)["NetworkInterface.1.AssociatePublicIpAddress"] == "false"
    ssh = wait_for(InstanceState.RUNNING, driver, created).ssh
    assert ssh is not None
    assert ssh.host.startswith("127.")
    assert ssh.jump is not None
    assert (ssh.jump.host, ssh.jump.user, ssh.jump.port) == ("bastion.example.com", "ops", 22)
    assert ssh.jump.private_key == SecretStr("the-jump-key")
    assert ssh.jump.host_key == "ssh-ed25519 AAAA"
    assert "the-jump-key" not in repr(ssh)


def test_a_public_machine_without_its_address_is_not_running_yet(driver: Aws) -> None:
    machine = {
        "InstanceId": "i-1",
        "State": {"Name": "running"},
        "PrivateIpAddress": "10.0.0.1",
        "Tags": [{"Key": "prefect-gpu-login", "Value": "ubuntu@public:22"}],
    }
    assert instances.described("us-east-1", machine, driver.credentials).instance.state is InstanceState.PROVISIONING
    running = instances.described("us-east-1", {**machine, "PublicIpAddress": "192.0.2.1"}, driver.credentials).instance
    assert running.state is InstanceState.RUNNING
    assert running.ssh is not None
    assert running.ssh.host == "192.0.2.1"
