"""What an order on Azure is: its body, its key, and what is made before it."""

from __future__ import annotations

import base64
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from prefect_gpu.blocks.azure import AzureImage
from prefect_gpu.blocks.network import Network
from prefect_gpu.providers.azure.order import FOR_THE_AGENT
from prefect_gpu.providers.core.errors import (
    InvalidRequest,
    NoCapacity,
    Transient,
    Unconfirmed,
    Unsupported,
)
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.models import InstanceState
from prefect_gpu.providers.core.renting.order import Clock, place_order
from prefect_gpu.providers.core.requests import Requirements
from tests.conformance import MASTER_SECRET, launch_spec, lease_name
from tests.fakes.azure import facts
from tests.fakes.azure.cloud import FakeAzure
from tests.providers.azure.ordering import H100, SPOT, azure, order, run

BASE = f"/subscriptions/{facts.SUBSCRIPTION}/resourceGroups"


def user_data(cloud: FakeAzure, name: str) -> str:
    return base64.b64decode(cloud.body(name)["properties"]["osProfile"]["customData"]).decode()


def test_the_body_of_an_order(cloud: FakeAzure) -> None:
    driver = azure(cloud)
    made = order(driver, H100, disk_gb=250.5, tags={"prefect-gpu-realm": "conf", "a/b<c>": "x" * 300})
    body = cloud.body(made.name)
    tags = {
        "prefect-gpu-realm": "conf",
        "abc": "x" * 256,
        "managed-by": "prefect-gpu",
        "prefect-gpu-login": "public:22",
    }
    assert (body["location"], body["tags"]) == ("eastus", tags)
    assert not body.keys() & {"zones", "identity", "plan"}
    asked = body["properties"]
    assert not asked.keys() & {"priority", "evictionPolicy", "billingProfile", "userData", "capacityReservation"}
    assert asked["hardwareProfile"] == {"vmSize": "Standard_NC40ads_H100_v5"}
    image = {"publisher": "microsoft-dsvm", "offer": "ubuntu-hpc", "sku": "2204", "version": "latest"}
    disk = {
        "name": made.name, "createOption": "FromImage", "deleteOption": "Delete", "diskSizeGB": 251,
        "managedDisk": {"storageAccountType": "StandardSSD_LRS"},
    }  # fmt: skip
    assert asked["storageProfile"] == {"imageReference": image, "osDisk": disk}
    system = asked["osProfile"]
    key = {"path": "/home/ubuntu/.ssh/authorized_keys", "keyData": derive(MASTER_SECRET, made.name, "client").public}
    assert (system["computerName"], system["adminUsername"]) == (made.name, "ubuntu")
    assert system["linuxConfiguration"] == {"disablePasswordAuthentication": True, "ssh": {"publicKeys": [key]}}
    (interface,) = asked["networkProfile"]["networkInterfaceConfigurations"]
    assert interface.keys() == {"name", "properties"}, "version 2024-07-01 has no tags here"
    assert interface["name"] == made.name
    assert interface["properties"]["deleteOption"] == "Delete"
    assert interface["properties"]["enableAcceleratedNetworking"] is True
    ((address,),) = ([one["properties"] for one in interface["properties"]["ipConfigurations"]],)
    assert address["subnet"] == {
        "id": f"{BASE}/prefect-gpu/providers/Microsoft.Network/virtualNetworks/prefect-gpu-eastus/subnets/machines"
    }
    public = address["publicIPAddressConfiguration"]
    assert (public["name"], public["sku"]["name"], public.keys()) == (
        made.name,
        "Standard",
        {"name", "sku", "properties"},
    )
    assert public["properties"] == {"deleteOption": "Delete", "publicIPAllocationMethod": "Static"}


def test_a_spot_order_is_deleted_when_it_is_taken_back_and_costs_no_more_than_asked(cloud: FakeAzure) -> None:
    driver = azure(cloud)
    told = cloud.body(order(driver, SPOT).name)["properties"]
    assert (told["priority"], told["evictionPolicy"], told["billingProfile"]) == ("Spot", "Delete", {"maxPrice": -1})
    told = cloud.body(order(driver, SPOT, max_price=2.5, options={"max_spot_price": 2.25}).name)["properties"]
    assert told["billingProfile"] == {"maxPrice": 2.25}


def test_the_same_order_is_byte_for_byte_the_same(cloud: FakeAzure) -> None:
    driver, name = azure(cloud), lease_name()
    first = order(driver, H100, name)
    body = cloud.body(name)
    assert order(driver, H100, name).id == first.id
    assert cloud.body(name) == body


@pytest.mark.parametrize("is_old", [False, True], ids=["a condition that is kept", "a condition that is ignored"])
def test_what_stands_under_a_name_is_never_changed_by_an_order(cloud: FakeAzure, is_old: bool) -> None:
    driver, name = azure(cloud), lease_name()
    first = order(driver, H100, name)
    cloud.forgets_writes = is_old
    run(cloud, driver, first)
    again = order(driver, H100, name)
    assert (again.id, again.state) == (first.id, InstanceState.RUNNING)
    assert len(cloud.things["virtualMachines"]) == 1


class CloudClock(Clock):
    def __init__(self, cloud: FakeAzure) -> None:
        self.cloud = cloud

    def now(self) -> float:
        return self.cloud.now

    def sleep(self, seconds: float) -> None:
        self.cloud.advance(seconds)


def test_an_order_whose_answer_is_lost_is_sent_again_and_buys_one_machine(cloud: FakeAzure) -> None:
    driver, name = azure(cloud), lease_name()
    offer = driver.fetch_offers(H100)[0]
    cloud.next["create"] = "lost"
    made = place_order(driver, offer, launch_spec(driver, name), clock=CloudClock(cloud))
    assert (made.name, cloud.creates, len(cloud.things["virtualMachines"])) == (name, 2, 1)


def test_an_order_that_names_what_is_still_being_made_is_sent_again_and_is_not_owed(cloud: FakeAzure) -> None:
    driver, name = azure(cloud), lease_name()
    offer = driver.fetch_offers(H100)[0]
    words = "Cannot proceed with operation because resource prefect-gpu-eastus is not in Succeeded state."
    cloud.next["create"] = facts.error(409, "ReferencedResourceNotProvisioned", words)
    with pytest.raises(Transient, match="not in Succeeded state") as told:
        driver.create_instance(offer, launch_spec(driver, name))
    assert not isinstance(told.value, Unconfirmed)
    cloud.next["create"] = facts.error(409, "ReferencedResourceNotProvisioned", words)
    assert place_order(driver, offer, launch_spec(driver, name), clock=CloudClock(cloud)).name == name


@pytest.mark.parametrize(
    ("gpu", "image"),
    [
        ("H100NVL", "microsoft-dsvm:ubuntu-hpc:2204:latest"),
        ("V100", "microsoft-dsvm:ubuntu-hpc:2204-v100:latest"),
        ("", "Canonical:ubuntu-24_04-lts:server-arm64:latest"),
    ],
)
def test_the_image_fits_the_gpu_s_generation_and_the_processor(cloud: FakeAzure, gpu: str, image: str) -> None:
    made = order(azure(cloud), Requirements(gpu=parse_gpu(gpu)) if gpu else None)
    named = cloud.body(made.name)["properties"]["storageProfile"]["imageReference"]
    assert ":".join(named[part] for part in ("publisher", "offer", "sku", "version")) == image


def test_amd_s_gpus_get_amd_s_driver_and_those_without_an_image_say_so_before_anything_is_made(
    cloud: FakeAzure,
) -> None:
    driver = azure(cloud)
    offer = driver.fetch_offers(H100)[0]
    amd = offer.model_copy(update={"gpu_name": "MI300X", "gpu_vendor": "amd"})
    made = driver.create_instance(amd, launch_spec(driver, lease_name()))
    assert cloud.body(made.name)["properties"]["storageProfile"]["imageReference"]["sku"] == "2204-rocm"
    before = len(cloud.bodies)
    with pytest.raises(Unsupported, match="NVIDIA's GRID driver") as refused:
        order(driver, Requirements(gpu=parse_gpu("A10")))
    assert (refused.value.reach, refused.value.category, len(cloud.bodies)) == ("type", "image", before)


def test_an_image_of_one_s_own_is_taken_as_it_is_named(cloud: FakeAzure) -> None:
    gallery = f"{BASE}/x/providers/Microsoft.Compute/galleries/g/images/i/versions/1.0.0"
    driver = azure(cloud, gpu_image=AzureImage(reference=gallery, port=2222))
    made = order(driver, Requirements(gpu=parse_gpu("A10")))
    body = cloud.body(made.name)
    assert body["properties"]["storageProfile"]["imageReference"] == {"id": gallery}
    assert body["tags"]["prefect-gpu-login"] == "public:2222"
    assert run(cloud, driver, made).ssh.port == 2222  # type: ignore[union-attr]
    paid = AzureImage(reference="Canonical:ubuntu-24_04-lts:server:latest", has_plan=True)
    body = cloud.body(order(azure(cloud, gpu_image=paid), H100).name)
    assert body["plan"] == {"publisher": "Canonical", "product": "ubuntu-24_04-lts", "name": "server"}
    made = order(driver, H100, options={"image": "Canonical:ubuntu-24_04-lts:server:latest"})
    assert cloud.body(made.name)["properties"]["storageProfile"]["imageReference"]["publisher"] == "Canonical"


def test_options_are_checked_and_go_before_the_block(cloud: FakeAzure) -> None:
    identity = f"{BASE}/x/providers/Microsoft.ManagedIdentity/userAssignedIdentities/me"
    driver = azure(cloud, identity=f"{identity}-of-the-block")
    with pytest.raises(
        InvalidRequest, match="azure has no option 'img': it takes capacity_reservation_group, disk_type"
    ):
        order(driver, H100, options={"img": "x"})
    body = cloud.body(order(driver, H100, options={"identity": identity, "disk_type": "Premium_LRS"}).name)
    assert body["identity"] == {"type": "UserAssigned", "userAssignedIdentities": {identity: {}}}
    assert body["properties"]["storageProfile"]["osDisk"]["managedDisk"] == {"storageAccountType": "Premium_LRS"}


@pytest.mark.parametrize(
    ("more", "block", "words"),
    [
        ({"disk_gb": 5000}, {}, "at most 4095"),
        ({"network": "private"}, {}, "name its subnets in the block"),
        ({}, {"network": Network(ssh_from=["2001:db8::/32"])}, "name an IPv4 range"),
    ],
    ids=["disk", "private", "ipv6"],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    cloud: FakeAzure, more: dict[str, Any], block: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        order(azure(cloud, **block), H100, **more)
    assert cloud.bodies == []


def test_user_data_is_what_cloud_init_takes_and_places_the_host_key(cloud: FakeAzure, tmp_path: Any) -> None:
    driver = azure(cloud)
    for requirements in (H100, SPOT):
        made = order(driver, requirements)
        text = user_data(cloud, made.name)
        file = tmp_path / "user-data"
        file.write_text(text)
        if shutil.which("cloud-init") is not None:
            subprocess.run(["cloud-init", "schema", "--config-file", str(file)], check=True, capture_output=True)
        config = yaml.safe_load(text)
        host = derive(MASTER_SECRET, made.name, "host")
        assert config["ssh_keys"] == {"ed25519_private": host.private.get_secret_value(), "ed25519_public": host.public}
        assert config["ssh_deletekeys"] is True
        assert config["runcmd"][0] == FOR_THE_AGENT
        assert len(text.encode()) < 65_535
        assert ("scheduledevents" in text) == (requirements is SPOT)
        assert "poweroff" not in text, "a machine that is switched off goes on costing money"


def test_the_agent_gets_its_key_at_the_end_of_the_boot(cloud: FakeAzure) -> None:
    config = yaml.safe_load(user_data(cloud, order(azure(cloud), H100).name))
    assert config["runcmd"] == ["cp /etc/ssh/ssh_host_ed25519_key.pub /etc/ssh/ssh_host_rsa_key.pub"]
    assert config["ssh_keys"].keys() == {"ed25519_private", "ed25519_public"}, "one key, and no other is accepted"


def test_the_agent_finds_the_rsa_key_that_it_waits_for_and_sshd_does_not_load_it(tmp_path: Any) -> None:
    key = derive(MASTER_SECRET, "pg-any", "host")
    (tmp_path / "ssh_host_ed25519_key.pub").write_text(key.public + "\n")
    subprocess.run(["sh", "-c", FOR_THE_AGENT.replace("/etc/ssh/", f"{tmp_path}/")], check=True)
    told = subprocess.run(["ssh-keygen", "-lf", tmp_path / "ssh_host_rsa_key.pub"], check=True, capture_output=True)
    assert b"SHA256:" in told.stdout, "this is how the agent reads it"
    assert not (tmp_path / "ssh_host_rsa_key").exists()


def test_what_is_refused_after_it_was_accepted_is_told_in_azure_s_words(cloud: FakeAzure) -> None:
    driver = azure(cloud)
    words = "Allocation failed. We do not have sufficient capacity for the requested VM size in this region."
    cloud.allocation["Standard_NC40ads_H100_v5"] = ("AllocationFailed", words)
    made = order(driver, H100)
    cloud.advance(5)
    seen = driver.get_instance(made.id)
    assert (seen.state, seen.reason) == (InstanceState.FAILED, f"AllocationFailed: {words}")
    driver.terminate_instance(made.id)
    cloud.advance(10)
    assert cloud.left() == []


def test_a_refused_order_leaves_nothing_that_costs_money(cloud: FakeAzure) -> None:
    driver = azure(cloud)
    cloud.next["create"] = facts.error(409, "ZonalAllocationFailed", "Allocation failed in zone 1.")
    with pytest.raises(NoCapacity):
        order(driver, H100)
    assert cloud.left() == []
