"""The fake is Azure to Microsoft's own SDK, and what the driver sends is what its models are made of."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_gpu.blocks.azure import AzureImage
from prefect_gpu.providers.core.models import InstanceState
from tests.fakes.azure import facts
from tests.fakes.azure.cloud import FakeAzure
from tests.fakes.azure.sdk import clients, strange_to
from tests.providers.azure.ordering import SPOT, azure, order, run


def test_azure_s_own_sdk_takes_the_fake_for_azure(cloud: FakeAzure) -> None:
    compute, network = clients(cloud)
    azure(cloud).arm.put(
        f"/subscriptions/{facts.SUBSCRIPTION}/resourceGroups/mine", {"location": "eastus"}, what="make it"
    )
    where: dict[str, Any] = {"location": "eastus"}
    net = network.virtual_networks.begin_create_or_update(
        "mine",
        "net",
        {**where, "properties": {"addressSpace": {"addressPrefixes": ["10.0.0.0/16"]}, "subnets": [{"name": "one"}]}},
    ).result()
    group = network.network_security_groups.begin_create_or_update("mine", "group", where).result()
    address = network.public_ip_addresses.begin_create_or_update(
        "mine", "address", {**where, "sku": {"name": "Standard"}}
    ).result()
    ip = {
        "name": "ip",
        "properties": {"subnet": {"id": f"{net.id}/subnets/one"}, "publicIPAddress": {"id": address.id}},
    }
    nic = network.network_interfaces.begin_create_or_update(
        "mine", "nic", {**where, "properties": {"networkSecurityGroup": {"id": group.id}, "ipConfigurations": [ip]}}
    ).result()
    machine = {
        **where,
        "properties": {
            "hardwareProfile": {"vmSize": "Standard_NC40ads_H100_v5"},
            "storageProfile": {
                "imageReference": {
                    "publisher": "microsoft-dsvm",
                    "offer": "ubuntu-hpc",
                    "sku": "2204",
                    "version": "latest",
                },
                "osDisk": {"createOption": "FromImage", "deleteOption": "Delete"},
            },
            "osProfile": {"computerName": "by-sdk", "adminUsername": "me"},
            "networkProfile": {"networkInterfaces": [{"id": nic.id, "properties": {"deleteOption": "Delete"}}]},
        },
    }
    made = compute.virtual_machines.begin_create_or_update("mine", "by-sdk", machine).result()
    assert (made.name, made.location, made.properties.provisioning_state) == ("by-sdk", "eastus", "Creating")
    cloud.advance(10)
    seen = compute.virtual_machines.get("mine", "by-sdk", expand="instanceView")
    assert [one.code for one in seen.properties.instance_view.statuses] == [
        "ProvisioningState/succeeded",
        "PowerState/running",
    ]
    assert [one.name for one in compute.virtual_machines.list("mine")] == ["by-sdk"]
    with pytest.raises(Exception, match="only valid with"):
        list(compute.virtual_machines.list("mine", expand="instanceView"))
    assert len(list(compute.disks.list_by_resource_group("mine"))) == 1
    assert "standardDSv3Family" in {one.name.value for one in compute.usage.list("eastus")}
    (sold,) = [
        one for one in compute.resource_skus.list(filter="location eq 'eastus'") if one.name == "Standard_D2s_v3"
    ]
    assert (sold.family, [one.location for one in sold.location_info]) == ("standardDSv3Family", ["eastus"])
    with pytest.raises(Exception, match="PreconditionFailed"):
        compute.virtual_machines.begin_create_or_update("mine", "by-sdk", machine, headers={"If-None-Match": "*"})
    compute.virtual_machines.begin_delete("mine", "by-sdk", force_deletion=True).result()
    cloud.advance(10)
    assert list(compute.virtual_machines.list("mine")) == []
    assert list(compute.disks.list_by_resource_group("mine")) == []
    network.network_interfaces.begin_delete("mine", "nic").result()
    network.public_ip_addresses.begin_delete("mine", "address").result()
    with pytest.raises(Exception, match="ResourceNotFound"):
        compute.virtual_machines.get("mine", "by-sdk")


def test_pages_are_followed_by_azure_s_own_sdk_as_by_the_driver(cloud: FakeAzure) -> None:
    compute, _ = clients(cloud)
    driver = azure(cloud)
    cloud.page_size = 2
    names = {order(driver).name for _ in range(5)}
    assert {one.name for one in compute.virtual_machines.list(facts.GROUP)} == names
    assert {one.name for one in driver.list_instances("pg-").instances} == names


@pytest.mark.parametrize("spot", [False, True], ids=["on demand", "spot"])
def test_all_that_the_driver_sends_is_known_to_azure_s_models(cloud: FakeAzure, spot: bool) -> None:
    compute = pytest.importorskip("azure.mgmt.compute.models")
    network = pytest.importorskip("azure.mgmt.network.models")
    identity = f"/subscriptions/{facts.SUBSCRIPTION}/resourceGroups/x/providers/Microsoft.ManagedIdentity/userAssignedIdentities/me"
    image = AzureImage(reference="Canonical:ubuntu-24_04-lts:server:latest", has_plan=True)
    driver = azure(cloud, identity=identity, cpu_image=image)
    made = order(driver, SPOT if spot else None, tags={"prefect-gpu-realm": "conf"})
    kinds = {
        "virtualmachines": compute.VirtualMachine,
        "virtualnetworks": network.VirtualNetwork,
        "networksecuritygroups": network.NetworkSecurityGroup,
    }
    judged = [(path.split("/")[-2], body) for path, body in cloud.bodies if path.split("/")[-2] in kinds]
    assert {kind for kind, _ in judged} == kinds.keys()
    assert [one for kind, body in judged for one in strange_to(kinds[kind], body)] == []
    assert strange_to(compute.VirtualMachine, {"properties": {"osProfile": {"computer": "x"}}}), (
        "else this proves nothing"
    )
    assert strange_to(compute.VirtualMachine, {"properties": {"priority": "Cheap"}})
    assert run(cloud, driver, made).state is InstanceState.RUNNING
