"""Where machines stand on Azure, and who reaches them."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_gpu.blocks.network import Network
from prefect_gpu.providers.core.errors import RegionClosed
from prefect_gpu.providers.core.requests import Requirements
from tests.conformance import launch_spec, lease_name
from tests.fakes.azure import facts
from tests.fakes.azure.cloud import FakeAzure
from tests.providers.azure.ordering import H100, azure, order
from tests.providers.azure.test_listing import own_subnet


def group_of(cloud: FakeAzure) -> dict[str, Any]:
    (found,) = cloud.things["networkSecurityGroups"].values()
    return found


def test_a_security_group_admits_ssh_from_where_the_block_says_and_nothing_else(cloud: FakeAzure) -> None:
    order(azure(cloud, network=Network(ssh_from=["203.0.113.0/24", "198.51.100.7", "2001:db8::/32"])), H100)
    rules = {one["name"]: one["properties"] for one in group_of(cloud)["body"]["properties"]["securityRules"]}
    assert rules["ssh"]["sourceAddressPrefixes"] == ["198.51.100.7/32", "203.0.113.0/24"]
    assert (rules["ssh"]["access"], rules["ssh"]["protocol"], rules["ssh"]["destinationPortRange"]) == (
        "Allow",
        "Tcp",
        "22",
    )
    closes = rules["nothing-else"]
    assert (closes["access"], closes["direction"], closes["sourceAddressPrefix"]) == ("Deny", "Inbound", "*")
    assert (closes["protocol"], closes["destinationPortRange"]) == ("*", "*")
    assert rules["ssh"]["priority"] < closes["priority"] <= 4096


def test_a_group_that_azure_writes_otherwise_is_still_ours(cloud: FakeAzure) -> None:
    driver = azure(cloud, network=Network(ssh_from=["198.51.100.7", "0.0.0.0/0"]))
    order(driver, H100)
    rule = group_of(cloud)["body"]["properties"]["securityRules"][0]["properties"]
    rule["sourceAddressPrefixes"] = ["*", "198.51.100.7"]
    order(driver, H100)
    assert len(cloud.things["networkSecurityGroups"]) == 1


def test_a_single_range_is_named_alone(cloud: FakeAzure) -> None:
    order(azure(cloud), H100)
    rule = group_of(cloud)["body"]["properties"]["securityRules"][0]["properties"]
    assert (rule["sourceAddressPrefix"], "sourceAddressPrefixes" in rule) == ("0.0.0.0/0", False)


def test_network_and_group_are_made_once_and_stay(cloud: FakeAzure) -> None:
    driver = azure(cloud)
    first = order(driver, H100)
    made = len(cloud.bodies)
    order(driver, H100)
    assert len(cloud.bodies) == made + 1, "the second order is one machine and nothing else"
    driver.terminate_instance(first.id)
    cloud.advance(10)
    assert len(cloud.things["virtualNetworks"]) == len(cloud.things["networkSecurityGroups"]) == 1


def test_a_block_that_is_narrowed_and_another_realm_get_groups_of_their_own(cloud: FakeAzure) -> None:
    order(azure(cloud), H100)
    order(azure(cloud, network=Network(ssh_from=["203.0.113.0/24"])), H100)
    order(azure(cloud), H100, lease_name(realm="cone"))
    assert len(cloud.things["networkSecurityGroups"]) == 3


@pytest.mark.parametrize(
    "rule",
    [
        {"sourceAddressPrefix": "*", "destinationPortRange": "22"},
        {"sourceAddressPrefix": "0.0.0.0/0", "destinationPortRange": "22"},
        {"sourceAddressPrefixes": ["203.0.113.0/24", "198.51.100.0/24"], "destinationPortRange": "22"},
        {"sourceAddressPrefixes": ["203.0.113.0/24"], "destinationPortRange": "8080"},
        {"sourceAddressPrefixes": ["203.0.113.0/24"], "destinationPortRanges": ["22", "80"]},
        {"sourceAddressPrefixes": ["203.0.113.0/24"], "destinationPortRange": "22", "protocol": "*"},
    ],
)
def test_a_group_that_somebody_opened_is_not_used(cloud: FakeAzure, rule: dict[str, Any]) -> None:
    driver = azure(cloud, network=Network(ssh_from=["203.0.113.0/24"]))
    order(driver, H100)
    opened = {"direction": "Inbound", "access": "Allow", "protocol": "Tcp", **rule}
    group_of(cloud)["body"]["properties"]["securityRules"].append({"name": "debug", "properties": opened})
    before = cloud.creates
    with pytest.raises(RegionClosed, match=r"prefect-gpu-conf-eastus-\w{8} admits debug"):
        order(driver, H100)
    assert cloud.creates == before


def test_subnet_and_group_of_one_s_own_are_taken_and_nothing_is_made(cloud: FakeAzure) -> None:
    subnets = [own_subnet(cloud, "westeurope"), own_subnet(cloud, "eastus")]
    driver = azure(cloud, subnets=subnets)
    group = f"/subscriptions/{facts.SUBSCRIPTION}/resourceGroups/network/providers/Microsoft.Network/networkSecurityGroups/ours"
    driver.arm.put(group, {"location": "eastus"}, what="make it")
    driver = azure(cloud, subnets=subnets, security_group=group)
    before = len(cloud.bodies)
    made = order(driver, H100)
    assert len(cloud.bodies) == before + 2, "the resource group and the machine"
    (interface,) = cloud.body(made.name)["properties"]["networkProfile"]["networkInterfaceConfigurations"]
    assert interface["properties"]["networkSecurityGroup"] == {"id": group}
    assert interface["properties"]["ipConfigurations"][0]["properties"]["subnet"] == {"id": subnets[1]}


def test_a_region_without_a_subnet_of_the_block_s_is_closed_and_says_so(cloud: FakeAzure) -> None:
    driver = azure(cloud, subnets=[own_subnet(cloud, "westeurope")])
    said = {offer.region: offer.unavailable_because for offer in driver.fetch_offers(H100)}
    assert said == {"westeurope": None, "eastus": "none of the block's subnets is in eastus: name one there"}
    offer = next(one for one in driver.fetch_offers(H100) if one.region == "eastus")
    with pytest.raises(RegionClosed, match="name one there") as refused:
        driver.create_instance(offer, launch_spec(driver, lease_name()))
    assert (refused.value.reach, refused.value.category) == ("region", "network")


def test_the_resource_group_is_made_in_the_first_order_s_region(cloud: FakeAzure) -> None:
    order(azure(cloud, resource_group="team-gpu"), Requirements(regions=("westeurope",)))
    assert cloud.groups["team-gpu"]["location"] == "westeurope"
