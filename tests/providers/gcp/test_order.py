"""What an order is: machine, GPUs, disk, image, network, lease; and what is refused before anything is made."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from prefect_gpu.blocks.gcp import GcpImage, GcpOptions
from prefect_gpu.blocks.network import JumpHost, Network
from prefect_gpu.providers.core.errors import (
    InstanceFailed,
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    RegionClosed,
    Unconfirmed,
)
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import InstanceState, Offer, utc_now
from prefect_gpu.providers.core.renting.order import Clock, place_order
from prefect_gpu.providers.gcp import order
from tests.conformance import launch_spec, lease_name
from tests.fakes.gcp import FakeGcp
from tests.fakes.gcp.orders import pool_exhausted
from tests.fakes.gcp.project import EMAIL, PROJECT, error
from tests.providers.gcp.conftest import gcp, offer_of, ordered

DLVM = "projects/deeplearning-platform-release/global/images/"


class CloudClock(Clock):
    def __init__(self, cloud: FakeGcp) -> None:
        self.cloud = cloud

    def now(self) -> float:
        return self.cloud.now

    def sleep(self, seconds: float) -> None:
        self.cloud.advance(seconds)


def image_of(body: dict[str, Any]) -> str:
    return body["disks"][0]["initializeParams"]["sourceImage"]


def metadata_of(body: dict[str, Any]) -> dict[str, str]:
    return {one["key"]: one["value"] for one in body["metadata"]["items"]}


def test_the_body_of_an_order_for_a_machine_without_gpus(cloud: FakeGcp) -> None:
    body = dict(ordered(cloud, spec={"tags": {"Prefect-Flow/Name": "Train It!", "1st": "", "---": "x"}}))
    lease = Lease.parse(body["name"])
    assert lease is not None
    (tag,) = body["tags"]["items"]
    assert tag in cloud.firewalls
    assert metadata_of(body).keys() == {"user-data", "prefect-gpu-login", "block-project-ssh-keys", "enable-oslogin"}
    del body["metadata"], body["tags"], body["name"], body["description"]
    named = {"prefect-gpu-name": lease.name, "prefect-flow_name": "train_it_", "st": ""}
    here = "zones/us-central1-a"
    assert body == {
        "machineType": f"{here}/machineTypes/e2-standard-4",
        "labels": named,
        "disks": [
            {
                "boot": True,
                "autoDelete": True,
                "initializeParams": {
                    "sourceImage": "projects/ubuntu-os-cloud/global/images/ubuntu-2404-noble-amd64-v20261112",
                    "diskSizeGb": "100",
                    "diskType": f"{here}/diskTypes/pd-balanced",
                    "labels": named,
                },
            }
        ],
        "networkInterfaces": [
            {
                "subnetwork": f"projects/{PROJECT}/regions/us-central1/subnetworks/default",
                "network": f"projects/{PROJECT}/global/networks/default",
                "accessConfigs": [{"type": "ONE_TO_ONE_NAT", "name": "External NAT"}],
            }
        ],
        "scheduling": {
            "terminationTime": lease.deadline.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "instanceTerminationAction": "DELETE",
            "automaticRestart": False,
            "provisioningModel": "STANDARD",
        },
    }


@pytest.mark.parametrize(
    ("kind", "gpu", "attached", "disk", "image", "driver"),
    [
        ("n1-standard-8", "T4", [("nvidia-tesla-t4", 1)], "pd-balanced", f"{DLVM}common-cu129-ubuntu-2204-nvidia-580-v20261109", True),
        ("n1-standard-8", "V100", [("nvidia-tesla-v100", 2)], "pd-balanced", f"{DLVM}common-cu124-ubuntu-2204-v20250325", True),
        ("g2-standard-8", None, [], "pd-balanced", f"{DLVM}common-cu129-ubuntu-2204-nvidia-580-v20261109", True),
        ("a2-highgpu-1g", None, [], "pd-balanced", f"{DLVM}common-cu129-ubuntu-2204-nvidia-580-v20261109", True),
        ("g4-standard-48", None, [], "hyperdisk-balanced", f"{DLVM}common-cu129-ubuntu-2204-nvidia-580-v20261109", True),
        ("a3-highgpu-8g", None, [], "pd-balanced", "projects/ubuntu-os-accelerator-images/global/images/ubuntu-accelerator-2404-amd64-with-nvidia-580-v20261101", False),
        ("t2a-standard-4", None, [], "pd-balanced", "projects/ubuntu-os-cloud/global/images/ubuntu-2404-noble-arm64-v20261112", False),
    ],
)  # fmt: skip
def test_gpus_disk_and_image_are_those_of_the_machine_type(
    cloud: FakeGcp, kind: str, gpu: str | None, attached: list[Any], disk: str, image: str, driver: bool
) -> None:
    body = ordered(cloud, kind, gpu=gpu)
    here = "zones/us-central1-a"
    found = [(one["acceleratorType"], one["acceleratorCount"]) for one in body.get("guestAccelerators", [])]
    assert found == [(f"{here}/acceleratorTypes/{name}", count) for name, count in attached]
    assert body["disks"][0]["initializeParams"]["diskType"] == f"{here}/diskTypes/{disk}"
    assert image_of(body) == image
    assert ("install-nvidia-driver" in metadata_of(body)) is driver
    assert body["scheduling"].get("onHostMaintenance") == (None if kind.startswith("t2a") else "TERMINATE")


def test_a_spot_machine_is_deleted_when_it_is_taken_back_and_looks_out_for_that(cloud: FakeGcp) -> None:
    body = ordered(cloud, "a4-highgpu-8g", spot=True)
    assert body["scheduling"].items() >= {
        "provisioningModel": "SPOT", "instanceTerminationAction": "DELETE", "onHostMaintenance": "TERMINATE", "automaticRestart": False,
    }.items()  # fmt: skip
    assert "computeMetadata/v1/instance/preempted" in metadata_of(body)["user-data"]
    assert "instance/preempted" not in metadata_of(ordered(cloud))["user-data"]


def test_the_disk_is_as_large_as_asked_for_and_as_its_image(cloud: FakeGcp) -> None:
    def size(**how: Any) -> str:
        return ordered(cloud, **how)["disks"][0]["initializeParams"]["diskSizeGb"]

    assert size(spec={"disk_gb": 300.5}) == "301"
    assert size(spec={"options": {"image": f"{PROJECT}/big"}}) == "250"
    assert size(spec={"disk_gb": 20}) == "20"
    with pytest.raises(InvalidRequest, match="a disk of 70000 GB is asked for, Google Cloud's have at most 65536"):
        size(spec={"disk_gb": 70_000})
    assert cloud.creates == 3


def test_what_the_block_and_the_run_ask_for_is_ordered(cloud: FakeGcp) -> None:
    block = {
        "cpu_image": GcpImage(project=PROJECT, name="big-1", user="debian", port=2222),
        "options": GcpOptions(service_account=EMAIL, disk_type="pd-ssd"),
        "network_tags": ["lab", "gpu"],
    }
    body = ordered(cloud, block=block)
    assert image_of(body) == f"projects/{PROJECT}/global/images/big-1"
    assert metadata_of(body)["prefect-gpu-login"] == "debian:2222"
    assert body["serviceAccounts"] == [{"email": EMAIL, "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}]
    assert body["disks"][0]["initializeParams"]["diskType"].endswith("/pd-ssd")
    assert body["tags"] == {"items": ["lab", "gpu"]}
    assert cloud.firewalls == {}
    chosen = {"options": {"disk_type": "pd-standard", "image": "ubuntu-os-cloud/ubuntu-2404-lts-amd64"}}
    body = ordered(cloud, block=block, spec=chosen)
    assert (image_of(body).rpartition("/")[2], body["disks"][0]["initializeParams"]["diskType"].rpartition("/")[2]) == (
        "ubuntu-2404-noble-amd64-v20261112",
        "pd-standard",
    )


@pytest.mark.parametrize("way", ["block", "run"])
def test_a_private_machine_has_no_address_outside_and_is_reached_by_the_jump_host(cloud: FakeGcp, way: str) -> None:
    jump = JumpHost(address="bastion.example", user="me", private_key="key")  # type: ignore[arg-type]
    driver = gcp(cloud, network=Network(private=way == "block", jump=jump))
    spec = launch_spec(driver, lease_name(), network="private" if way == "run" else "public")
    made = driver.create_instance(offer_of("e2-standard-4"), spec)
    assert "accessConfigs" not in cloud.vm(made.id).body["networkInterfaces"][0]
    cloud.advance(5)
    ssh = driver.get_instance(made.id).ssh
    assert ssh is not None
    assert ssh.jump is not None
    assert (ssh.host, ssh.jump.host, ssh.user) == (cloud.vm(made.id).address, "bastion.example", "ubuntu")


def test_a_jump_host_that_nothing_logs_in_to_is_said_before_anything_is_made(cloud: FakeGcp) -> None:
    driver = gcp(cloud, network=Network(private=True, jump=JumpHost(address="bastion.example")))
    with pytest.raises(InvalidRequest, match="no private key logs in to the jump host"):
        driver.create_instance(offer_of("e2-standard-4"), launch_spec(driver, lease_name()))
    assert cloud.requests == []


@pytest.mark.parametrize(
    ("offer", "spec", "kind", "words"),
    [
        ({"zone": None}, {}, InvalidRequest, "needs a zone"),
        ({}, {"options": {"img": "x"}}, InvalidRequest, "gcp has no option 'img'"),
        ({}, {"options": {"image": "x"}}, InvalidRequest, "option 'image'"),
        ({}, {"options": {"image": "ubuntu-os-cloud/none"}}, RegionClosed, "no image ubuntu-os-cloud/none"),
        ({}, {"options": {"image": "ubuntu-os-cloud/ubuntu-2404-lts-arm64"}}, RegionClosed, "is for arm64, not x86_64"),
        ({"gpu_name": "MI300X", "gpu_vendor": "amd", "gpu_count": 1}, {}, RegionClosed, "no image with amd drivers"),
        ({}, {"deadline": utc_now() + timedelta(days=130)}, InvalidRequest, "ends machines within 120"),
    ],
    ids=["no zone", "unknown option", "no family", "no image", "other processor", "no driver", "too long"],
)
def test_what_cannot_be_ordered_is_said_before_anything_is_made(
    cloud: FakeGcp, offer: dict[str, Any], spec: dict[str, Any], kind: type[ProviderError], words: str
) -> None:
    driver = gcp(cloud)
    wanted = offer_of("e2-standard-4").model_copy(update=offer)
    with pytest.raises(kind, match=words) as refused:
        driver.create_instance(wanted, launch_spec(driver, lease_name(), **spec))
    assert (cloud.creates, cloud.firewalls) == (0, {})
    if kind is RegionClosed:
        assert (refused.value.reach, refused.value.category) == ("type", "image")


def test_user_data_that_google_would_not_take_is_refused_before_anything_is_made(cloud: FakeGcp) -> None:
    driver = gcp(cloud)
    spec = launch_spec(driver, lease_name()).model_copy(update={"client_public_key": "ssh-ed25519 " + "A" * 300_000})
    with pytest.raises(InvalidRequest, match="Google Cloud takes 262144"):
        driver.create_instance(offer_of("e2-standard-4"), spec)
    assert cloud.requests == []


# --- one name, one order ------------------------------------------------------------------------------------------------


def test_a_repeated_order_has_the_same_request_id_and_is_the_same_machine(cloud: FakeGcp) -> None:
    driver, offer = gcp(cloud), offer_of("e2-standard-4")
    spec = launch_spec(driver, lease_name())
    cloud.next["insert"] = "lost"
    made = place_order(driver, offer, spec, clock=CloudClock(cloud))
    ids = [asked["requestId"] for asked in cloud.queries if "requestId" in asked and len(cloud.vms) == 1]
    inserts = [asked for (verb, path, _), asked in zip(cloud.requests, cloud.queries, strict=True) if path.endswith("/instances") and verb == "POST"]  # fmt: skip
    assert len(ids) >= 2
    assert len({one["requestId"] for one in inserts}) == 1
    assert (cloud.creates, [vm.name for vm in cloud.alive()]) == (2, [made.name])
    assert order.request_id(spec.name, "us-central1-a") != order.request_id(spec.name, "us-central1-b")


def test_a_name_that_is_taken_is_the_machine_that_was_ordered_under_it(cloud: FakeGcp) -> None:
    driver, offer = gcp(cloud), offer_of("e2-standard-4")
    spec = launch_spec(driver, lease_name())
    first = driver.create_instance(offer, spec)
    cloud.operations.clear()  # Google forgets request ids, names it does not
    cloud.advance(5)
    again = driver.create_instance(offer, spec)
    assert (again.id, again.state) == (first.id, InstanceState.RUNNING)
    other = offer_of("g2-standard-8")
    with pytest.raises(InvalidRequest, match="already exists"):
        driver.create_instance(other, spec)


def test_a_name_whose_machine_has_ended_buys_nothing(cloud: FakeGcp) -> None:
    driver, offer = gcp(cloud), offer_of("e2-standard-4", spot=True)
    spec = launch_spec(driver, lease_name())
    made = driver.create_instance(offer, spec)
    cloud.take_back(made.id)
    cloud.advance(5)
    cloud.next["insert"] = error(409, "alreadyExists", "The resource already exists")
    with pytest.raises(InstanceFailed, match="has ended: Google took this spot machine back"):
        driver.create_instance(offer, spec)


def test_a_name_that_is_taken_and_not_shown_yet_is_not_decided(cloud: FakeGcp) -> None:
    driver = gcp(cloud)
    cloud.next["insert"] = error(409, "alreadyExists", "The resource already exists")
    with pytest.raises(Unconfirmed, match="does not show it yet"):
        driver.create_instance(offer_of("e2-standard-4"), launch_spec(driver, lease_name()))


# --- operations ---------------------------------------------------------------------------------------------------------


def test_an_order_that_is_not_decided_in_time_is_no_success_and_its_refusal_is_told_later(cloud: FakeGcp) -> None:
    driver, offer = gcp(cloud), offer_of("a3-highgpu-8g")
    cloud.insert_s = 45
    cloud.refuses_inserts = [pool_exhausted("us-central1-a", "a3-highgpu-8g")]
    made = driver.create_instance(offer, launch_spec(driver, lease_name()))
    assert (made.state, made.ssh) == (InstanceState.PROVISIONING, None)
    cloud.advance(20)
    assert driver.get_instance(made.id).state is InstanceState.PROVISIONING
    cloud.advance(30)
    seen = driver.get_instance(made.id)
    assert seen.state is InstanceState.TERMINATED
    assert (
        "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS: A a3-highgpu-8g VM instance is currently unavailable" in seen.reason
    )
    assert driver.interruption_reason(seen) is None
    assert driver.list_instances(made.name).instances == ()


@pytest.mark.parametrize("answer", [error(503, "backendError", "Try again"), b'{"status": "DO', "lost", b"[]"])
def test_a_wait_without_an_answer_leaves_an_accepted_order_accepted(cloud: FakeGcp, answer: Any) -> None:
    driver = gcp(cloud)
    driver.create_instance(offer_of("e2-standard-4"), launch_spec(driver, lease_name()))  # the firewall rules stand
    cloud.next["wait"] = answer
    made = driver.create_instance(offer_of("e2-standard-4"), launch_spec(driver, lease_name()))
    assert made.state is InstanceState.PROVISIONING
    cloud.advance(5)
    assert driver.get_instance(made.id).state is InstanceState.RUNNING


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("compute.instances.preempted", "Google took this spot machine back (compute.instances.preempted): Instance was preempted."),
        ("compute.instances.hostError", "the machine's host failed (compute.instances.hostError)"),
    ],
)  # fmt: skip
def test_what_google_took_back_says_why_while_it_ends_and_after_it_is_gone(
    cloud: FakeGcp, kind: str, words: str
) -> None:
    driver = gcp(cloud)
    made = driver.create_instance(offer_of("g2-standard-8", spot=True), launch_spec(driver, lease_name()))
    cloud.advance(5)
    assert driver.interruption_reason(driver.get_instance(made.id)) is None
    cloud.take_back(made.id, kind)
    seen = driver.get_instance(made.id)
    assert seen.state in {InstanceState.TERMINATING, InstanceState.FAILED}
    assert driver.interruption_reason(seen) == words
    driver.terminate_instance(made.id)
    cloud.advance(5)
    gone = driver.get_instance(made.id)
    assert (gone.state, driver.interruption_reason(gone)) == (InstanceState.TERMINATED, words)
    assert gone.reason == words
    assert cloud.disks() == []


def test_what_was_given_back_is_gone_by_google_s_own_word_and_nobody_took_it_back(cloud: FakeGcp) -> None:
    driver = gcp(cloud)
    made = driver.create_instance(offer_of("e2-standard-4"), launch_spec(driver, lease_name()))
    driver.terminate_instance(made.id)
    assert driver.get_instance(made.id).state is InstanceState.TERMINATING
    cloud.advance(3)
    gone = driver.get_instance(made.id)
    assert (gone.state, gone.reason, driver.interruption_reason(gone)) == (InstanceState.TERMINATED, "", None)


def test_a_delete_that_failed_or_is_not_done_proves_nothing(cloud: FakeGcp) -> None:
    driver = gcp(cloud)
    made = driver.create_instance(offer_of("e2-standard-4"), launch_spec(driver, lease_name()))
    driver.terminate_instance(made.id)
    cloud.vms.clear()  # not shown, whatever the reason
    with pytest.raises(NotFound):
        driver.get_instance(made.id)
    cloud.advance(3)
    cloud.operations[-1].errors = [{"code": "INTERNAL_ERROR", "message": "it did not work"}]
    with pytest.raises(NotFound):
        driver.get_instance(made.id)


def test_operations_that_may_not_be_read_leave_it_not_found(cloud: FakeGcp) -> None:
    driver = gcp(cloud)
    made = driver.create_instance(offer_of("e2-standard-4"), launch_spec(driver, lease_name()))
    driver.terminate_instance(made.id)
    cloud.advance(3)
    cloud.next["other"] = error(403, "forbidden", "Required 'compute.zoneOperations.list' permission")
    with pytest.raises(NotFound):
        driver.get_instance(made.id)


def test_a_zone_without_the_machine_type_is_the_next_offer_s_turn(cloud: FakeGcp) -> None:
    driver = gcp(cloud)
    offer: Offer = offer_of("e2-standard-4").model_copy(update={"instance_type": "n9-standard-4"})
    with pytest.raises(NoCapacity, match="machineTypes/n9-standard-4' was not found"):
        driver.create_instance(offer, launch_spec(driver, lease_name()))
