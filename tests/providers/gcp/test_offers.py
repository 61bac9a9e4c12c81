"""What can be bought, and why the rest cannot."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_gpu.blocks.gcp import GcpImage, GcpOptions
from prefect_gpu.blocks.network import Network
from prefect_gpu.providers.core.errors import RegionClosed
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import Availability, Offer
from prefect_gpu.providers.core.requests import Requirements, Spot
from prefect_gpu.providers.gcp import machines
from prefect_gpu.providers.gcp.driver import Gcp
from tests.conformance import launch_spec, lease_name
from tests.fakes.gcp import FakeGcp
from tests.fakes.gcp.fake import HOST_PROJECT
from tests.fakes.gcp.project import PROJECT, TYPES, error
from tests.providers.gcp.conftest import gcp, offer_of, ordered


def reasons(
    cloud: FakeGcp, gpu: str | None = None, *, spot: Spot = Spot.ON_DEMAND, block: Any = None, **more: Any
) -> dict[str, str | None]:
    """By zone: why not, or None."""
    asked = Requirements(gpu=parse_gpu(gpu) if gpu else (), spot=spot, **more)
    found = gcp(cloud, **(block or {})).fetch_offers(asked)
    wanted = [one for one in found if gpu or one.instance_type == "e2-standard-4"]
    return {str(one.zone): one.unavailable_because for one in wanted}


def test_what_nothing_speaks_against_may_be_in_stock_or_not(cloud: FakeGcp) -> None:
    found = gcp(cloud).fetch_offers(Requirements(gpu=parse_gpu("L4")))
    assert {(one.zone, one.availability, one.disk_gb) for one in found} == {
        ("us-central1-a", Availability.UNKNOWN, 100.0),
        ("us-central1-b", Availability.UNKNOWN, 100.0),
        ("europe-west4-b", Availability.UNKNOWN, 100.0),
    }


@pytest.mark.parametrize(
    ("metric", "limit", "usage", "gpu", "spot", "says"),
    [
        ("NVIDIA_L4_GPUS", 8, 8, "L4", Spot.ON_DEMAND, "quota NVIDIA_L4_GPUS is 8 in us-central1, 8 in use, this takes 1: ask Google for more"),
        ("NVIDIA_L4_GPUS", 0, 0, "L4", Spot.SPOT, None),
        ("PREEMPTIBLE_NVIDIA_L4_GPUS", 8, 8, "L4", Spot.SPOT, "quota PREEMPTIBLE_NVIDIA_L4_GPUS is 8 in us-central1, 8 in use, this takes 1: ask Google for more"),
        ("NVIDIA_T4_GPUS", 0, 0, "T4", Spot.SPOT, "quota NVIDIA_T4_GPUS is 0 in us-central1, this takes 1: ask Google for more"),
        ("NVIDIA_V100_GPUS", 1, 0, "V100:2", Spot.ON_DEMAND, "quota NVIDIA_V100_GPUS is 1 in us-central1, this takes 2: ask Google for more"),
        ("A2_CPUS", 11, 0, "A100", Spot.ON_DEMAND, "quota A2_CPUS is 11 in us-central1, this takes 12: ask Google for more"),
        ("SSD_TOTAL_GB", 500, 450, "L4", Spot.ON_DEMAND, "quota SSD_TOTAL_GB is 500 in us-central1, 450 in use, this takes 100: ask Google for more"),
        ("HDB_TOTAL_GB", 50, 0, "RTXPRO6000", Spot.ON_DEMAND, "quota HDB_TOTAL_GB is 50 in us-central1, this takes 100: ask Google for more"),
        ("IN_USE_ADDRESSES", 8, 8, "L4", Spot.ON_DEMAND, "quota IN_USE_ADDRESSES is 8 in us-central1, 8 in use, this takes 1: ask Google for more"),
        ("N2_CPUS", 0, 0, "L4", Spot.ON_DEMAND, None),
    ],
)  # fmt: skip
def test_a_quota_is_shown_before_an_order(
    cloud: FakeGcp, metric: str, limit: float, usage: float, gpu: str, spot: Spot, says: str | None
) -> None:
    cloud.limits["us-central1"][metric] = limit
    cloud.quotas["us-central1"][metric] = usage
    cloud.limits["europe-west4"] = dict.fromkeys(cloud.limits["europe-west4"], 1000000.0)
    found = reasons(cloud, gpu, spot=spot)
    assert found == {"us-central1-a": says, "us-central1-b": says, "europe-west4-b": None}


def test_the_gpus_of_all_regions_together_have_a_quota_too(cloud: FakeGcp) -> None:
    cloud.gpus_everywhere = (2.0, 2.0)
    assert set(reasons(cloud, "L4").values()) == {
        "quota GPUS_ALL_REGIONS is 2 in all regions together, 2 in use, this takes 1: ask Google for more"
    }
    assert set(reasons(cloud, "L4", spot=Spot.SPOT).values()) == {None}
    assert set(reasons(cloud).values()) == {None}


def test_a_private_machine_takes_no_address_of_the_quota(cloud: FakeGcp) -> None:
    cloud.limits["us-central1"]["IN_USE_ADDRESSES"] = 0
    assert set(reasons(cloud, network="private").values()) == {None}
    assert set(reasons(cloud, block={"network": Network(private=True)}).values()) == {None}


@pytest.mark.parametrize(
    "quotas", [None, "odd", [7], [{"metric": "CPUS"}], [{"metric": "CPUS", "limit": "9", "usage": 0}]]
)
def test_quotas_that_are_not_told_close_nothing(cloud: FakeGcp, quotas: Any) -> None:
    cloud.next["project"] = (200, {"name": PROJECT, "quotas": quotas})
    assert set(reasons(cloud).values()) == {None}
    cloud.next["regions"] = error(403, "forbidden", "Required 'compute.regions.list' permission")
    assert set(reasons(cloud).values()) == {None}


def test_a_region_without_a_subnet_says_what_to_do(cloud: FakeGcp) -> None:
    del cloud.subnets[f"projects/{PROJECT}/regions/europe-west4/subnetworks/default"]
    says = "no subnet of the network default in europe-west4: name one in the block"
    assert reasons(cloud) == {"us-central1-a": None, "us-central1-b": None, "europe-west4-b": says}
    driver = gcp(cloud)
    with pytest.raises(RegionClosed, match=says):
        driver.create_instance(offer_of("e2-standard-4", "europe-west4-b"), launch_spec(driver, lease_name()))
    assert cloud.creates == 0


def test_subnets_and_regions_of_the_block_are_kept_to(cloud: FakeGcp) -> None:
    block = {"subnets": ["us-central1/default"]}
    says = "no subnet in europe-west4: the block names us-central1/default"
    assert reasons(cloud, block=block) == {"us-central1-a": None, "us-central1-b": None, "europe-west4-b": says}
    assert reasons(cloud, block={"regions": ["europe-west4"]}) == {"europe-west4-b": None}
    assert reasons(cloud, block={"regions": ["europe-west4"]}, regions=("us-central1",)) == {}
    cloud.subnets.clear()
    driver = gcp(cloud, **block)
    with pytest.raises(RegionClosed, match="no subnet in us-central1: the block names us-central1/default"):
        driver.create_instance(offer_of("e2-standard-4"), launch_spec(driver, lease_name()))


def test_regions_of_the_block_that_google_does_not_have_are_named(cloud: FakeGcp) -> None:
    with pytest.raises(
        RegionClosed, match=r"the block names us-centrall1, which .* \(it has europe-west4, us-central1\)"
    ):
        reasons(cloud, block={"regions": ["us-centrall1"]})
    assert reasons(cloud, "H200", block={"regions": ["us-central1", "us-centrall1"]}) == {}


def test_a_shared_network_is_used_with_network_tags_and_its_rules_are_left_to_its_owners(cloud: FakeGcp) -> None:
    shared = f"projects/{HOST_PROJECT}/regions/us-central1/subnetworks/gpu"
    says = reasons(cloud, block={"subnets": [shared]})["us-central1-a"] or ""
    assert says.startswith(
        f"the network is shared by {HOST_PROJECT}, whose firewall rules are made there: name network tags"
    )
    driver = gcp(cloud, subnets=[shared])
    with pytest.raises(RegionClosed, match="name network tags in the block"):
        driver.create_instance(offer_of("e2-standard-4"), launch_spec(driver, lease_name()))
    block = {"subnets": [shared], "network_tags": ["ssh-from-office"]}
    assert reasons(cloud, block=block)["us-central1-a"] is None
    (interface,) = ordered(cloud, block=block)["networkInterfaces"]
    assert (interface["subnetwork"], interface["network"]) == (shared, f"projects/{HOST_PROJECT}/global/networks/lab")
    assert cloud.firewalls == {}


def test_what_is_sold_to_reservations_only_says_so(cloud: FakeGcp) -> None:
    says = "Google sells a4-highgpu-8g on demand to reservations only: name one in the block, or take spot"
    assert set(reasons(cloud, "B200:8").values()) == {says}
    assert set(reasons(cloud, "B200:8", spot=Spot.SPOT).values()) == {None}
    assert set(reasons(cloud, "H100:8").values()) == {None}


def reservation(kind: str, count: int, used: int, *attached: tuple[str, int], status: str = "READY") -> dict[str, Any]:
    gpus = [
        {"acceleratorType": f"projects/p/zones/z/acceleratorTypes/{name}", "acceleratorCount": n}
        for name, n in attached
    ]
    properties: dict[str, Any] = {"machineType": kind, **({"guestAccelerators": gpus} if gpus else {})}
    specific = {"count": str(count), "inUseCount": str(used), "instanceProperties": properties}
    return {"kind": "compute#reservation", "name": "mine", "status": status, "specificReservation": specific}


def test_an_order_that_fits_the_reservation_is_placed_in_it(cloud: FakeGcp) -> None:
    cloud.reservations["us-central1-a/mine"] = reservation("a4-highgpu-8g", 2, 1)
    block = {"options": GcpOptions(reservation="us-central1-a/mine")}
    found = gcp(cloud, **block).fetch_offers(Requirements(gpu=parse_gpu("B200:8")))
    assert {one.zone: one.availability for one in found} == {
        "us-central1-a": Availability.AVAILABLE,
        "us-central1-b": Availability.UNAVAILABLE,
        "europe-west4-b": Availability.UNAVAILABLE,
    }
    body = ordered(cloud, "a4-highgpu-8g", block=block)
    assert body["reservationAffinity"] == {
        "consumeReservationType": "SPECIFIC_RESERVATION", "key": "compute.googleapis.com/reservation-name", "values": ["mine"],
    }  # fmt: skip
    assert body["scheduling"]["provisioningModel"] == "RESERVATION_BOUND"
    assert "reservationAffinity" not in ordered(cloud, "a4-highgpu-8g", block=block, spot=True)
    assert "reservationAffinity" not in ordered(cloud, "e2-standard-4", block=block)


def test_attached_gpus_count_when_a_reservation_is_compared(cloud: FakeGcp) -> None:
    cloud.reservations["us-central1-a/mine"] = reservation("n1-standard-8", 1, 0, ("nvidia-tesla-t4", 1))
    shared = f"projects/{PROJECT}/zones/us-central1-a/reservations/mine"
    block = {"options": GcpOptions(reservation=shared)}
    body = ordered(cloud, "n1-standard-8", block=block, gpu="T4")
    assert body["reservationAffinity"]["values"] == [f"projects/{PROJECT}/reservations/mine"]
    assert body["scheduling"]["provisioningModel"] == "STANDARD"
    assert "reservationAffinity" not in ordered(cloud, "n1-standard-8", block=block, gpu="V100")


def test_a_reservation_that_is_full_or_over_or_not_there(cloud: FakeGcp) -> None:
    block = {"options": GcpOptions(reservation="us-central1-a/mine")}
    driver, offer = gcp(cloud, **block), offer_of("e2-standard-4")
    with pytest.raises(RegionClosed, match="there is no reservation mine in us-central1-a"):
        driver.create_instance(offer, launch_spec(driver, lease_name()))
    assert reasons(cloud, block=block)["us-central1-a"] is None
    cloud.reservations["us-central1-a/mine"] = reservation("e2-standard-4", 1, 1)
    with pytest.raises(Exception, match="do not have available resources"):
        driver.create_instance(offer, launch_spec(driver, lease_name()))
    cloud.reservations["us-central1-a/mine"] = reservation("e2-standard-4", 1, 0, status="DELETING")
    assert "reservationAffinity" not in ordered(cloud, block=block)


def test_tpus_and_what_has_no_driver_stay_with_the_reason(cloud: FakeGcp) -> None:
    def priced(*_: Any) -> list[Offer]:
        base = offer_of("e2-standard-4")
        return [
            base.model_copy(update=more)
            for more in (
                {"gpu_vendor": "google", "gpu_name": "v5p", "gpu_count": 4},
                {"gpu_vendor": "amd", "gpu_name": "MI300X", "gpu_count": 1},
                {"gpu_vendor": "nvidia", "gpu_name": "L40S", "gpu_count": 1, "instance_type": "n1-standard-8"},
                {"zone": None},
            )
        ]

    driver = gcp(cloud)
    driver = Gcp(driver.credentials, transport=cloud.transport, priced_offers=priced)
    assert [one.unavailable_because for one in driver.fetch_offers(Requirements())] == [
        "TPUs are rented by another API, which this provider does not speak",
        "Google has no image with amd drivers: name one in the block",
        "it is not known how a L40S is attached to n1-standard-8",
        "the price list names no zone of us-central1",
    ]
    named = gcp(cloud, gpu_image=GcpImage(project=PROJECT, family="big"))
    driver = Gcp(named.credentials, transport=cloud.transport, priced_offers=priced)
    assert driver.fetch_offers(Requirements())[1].unavailable_because is None
    size = driver.fetch_offers(Requirements(disk_gb=70_000))[1].unavailable_because
    assert size == "a disk of 70000 GB is asked for, Google Cloud's have at most 65536"


def test_large_machines_get_longer_to_boot(cloud: FakeGcp) -> None:
    found = gcp(cloud).fetch_offers(Requirements(spot=Spot.EITHER))
    assert {one.instance_type: one.boot_deadline_s for one in found if one.boot_deadline_s} == {"a4-highgpu-8g": 960}


def test_a_region_that_cannot_be_asked_rules_out_itself_alone(cloud: FakeGcp) -> None:
    cloud.unreachable = {"us-central1"}
    found = reasons(cloud)
    assert found["europe-west4-b"] is None
    assert "us-central1 could not be asked: Google Cloud says UNREACHABLE" in (found["us-central1-a"] or "")


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_every_type_has_a_disk_an_image_and_a_processor(kind: str) -> None:
    offer = next(one for one in [offer_of(kind, spot=kind.startswith("a4"))])
    assert machines.disk_type(kind) == ("hyperdisk-balanced" if kind[:2] in {"a4", "g4"} else "pd-balanced")
    assert machines.image(offer)
    assert machines.arch(offer.model_copy(update={"arch": None})) == offer.arch
    assert machines.is_of("a3-ultragpu-8g", "a3-ultragpu")
    assert not machines.is_of("a4x-highgpu-4g", "a4")


def test_a_quota_is_counted_by_the_gpu_and_its_memory_and_not_for_machines_that_are_counted_apart() -> None:
    h100 = offer_of("a3-highgpu-8g")
    assert machines.gpu_quota(h100) == "NVIDIA_H100_GPUS"
    assert machines.gpu_quota(h100.model_copy(update={"instance_type": "a3-megagpu-8g"})) is None
    a100 = offer_of("a2-highgpu-1g")
    assert machines.gpu_quota(a100) == "NVIDIA_A100_GPUS"
    assert machines.gpu_quota(a100.model_copy(update={"gpu_memory_gb": 80.0})) == "NVIDIA_A100_80GB_GPUS"
    assert machines.gpu_quota(offer_of("g4-standard-48")) is None
    assert machines.gpu_quota(offer_of("e2-standard-4")) is None
