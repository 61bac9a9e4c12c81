"""What Azure is said to sell, and why not."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_gpu.blocks.azure import AzureImage
from prefect_gpu.providers.azure import offers
from prefect_gpu.providers.core.catalog import facts as known
from prefect_gpu.providers.core.errors import AuthFailed, InvalidRequest
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import Availability
from prefect_gpu.providers.core.requests import Requirements, Spot
from tests.conformance import launch_spec, lease_name
from tests.fakes.azure import facts
from tests.fakes.azure.cloud import FakeAzure
from tests.providers.azure.ordering import H100, SPOT, azure, order

EAST = Requirements(gpu=parse_gpu("H100NVL"), regions=("eastus",))
TYPE = "Standard_NC40ads_H100_v5"
GROUP = f"/subscriptions/{facts.SUBSCRIPTION}/resourceGroups/paid/providers/Microsoft.Compute/capacityReservationGroups/h100"


def why(cloud: FakeAzure, requirements: Requirements = EAST, **block: Any) -> str | None:
    (offer,) = azure(cloud, **block).fetch_offers(requirements)
    assert (offer.availability is Availability.UNAVAILABLE) == (offer.unavailable_because is not None)
    return offer.unavailable_because


def restricted(kind: str, reason: str, **info: Any) -> list[dict[str, Any]]:
    return [
        {"type": kind, "reasonCode": reason, "values": ["eastus"], "restrictionInfo": {"locations": ["eastus"], **info}}
    ]


def test_what_a_region_does_not_sell_to_this_subscription_says_so(cloud: FakeAzure) -> None:
    assert why(cloud) is None
    cloud.restrictions[TYPE, "eastus"] = restricted("Location", "NotAvailableForSubscription")
    assert (
        why(cloud)
        == f"eastus does not sell {TYPE} to this subscription (NotAvailableForSubscription): ask Azure for access"
    )
    cloud.restrictions[TYPE, "eastus"] = restricted("Location", "QuotaId")
    assert "its quota excludes it" in (why(cloud) or "")
    cloud.restrictions[TYPE, "eastus"] = restricted("Zone", "NotAvailableForSubscription", zones=["1", "2"])
    assert why(cloud) is None, "zones are not named, so another one is taken"


def test_quotas_are_told_before_an_order(cloud: FakeAzure) -> None:
    cloud.limits["StandardNCadsH100v5Family"] = 60
    assert why(cloud) is None
    order(azure(cloud), EAST)
    said = "the quota of StandardNCadsH100v5Family leaves 20 of 60 vCPU in eastus, this takes 40: ask Azure for more"
    assert why(cloud) == said
    cloud.limits["StandardNCadsH100v5Family"] = 200
    cloud.limits["cores"] = 50
    assert "the quota of all families leaves 10 of 50 vCPU" in (why(cloud) or "")
    spot = EAST.model_copy(update={"spot": Spot.SPOT})
    assert why(cloud, spot) is None
    cloud.limits["lowPriorityCores"] = 39
    assert "the quota of spot leaves 39 of 39 vCPU" in (why(cloud, spot) or "")


def test_quotas_that_cannot_be_read_hide_nothing(cloud: FakeAzure) -> None:
    cloud.limits = {"odd": "many"}  # type: ignore[dict-item]
    assert why(cloud) is None


def test_what_is_never_sold_as_spot_says_so(cloud: FakeAzure) -> None:
    asked = Requirements(gpu=parse_gpu("H100:8"), spot=Spot.SPOT, regions=("eastus",))
    assert why(cloud, asked) == "Azure does not sell Standard_ND96isr_H100_v5 as spot"


def test_what_has_no_image_says_so_unless_the_block_has_one(cloud: FakeAzure) -> None:
    asked = Requirements(gpu=parse_gpu("A10"), regions=("eastus",))
    assert "GRID driver" in (why(cloud, asked) or "")
    assert why(cloud, asked, gpu_image=AzureImage(reference="me:grid:22:latest")) is None


def test_a_zone_is_named_only_where_zones_are_asked_for(cloud: FakeAzure) -> None:
    driver = azure(cloud)
    assert [one.zone for one in driver.fetch_offers(EAST)] == [None]
    (zoned,) = driver.fetch_offers(EAST.model_copy(update={"zones": ("eastus-2",)}))
    made = driver.create_instance(zoned, launch_spec(driver, lease_name()))
    assert (zoned.zone, cloud.body(made.name)["zones"], made.zone) == ("eastus-2", ["2"], "eastus-2")
    cloud.restrictions[TYPE, "eastus"] = restricted("Zone", "NotAvailableForSubscription", zones=["1"])
    others = azure(cloud).fetch_offers(EAST.model_copy(update={"exclude_zones": ("eastus-2",)}))
    assert [one.zone for one in others] == ["eastus-3"]


def test_a_region_that_cannot_be_asked_closes_only_itself(cloud: FakeAzure) -> None:
    answer = cloud.answer

    def refuse_one(request: Any) -> Any:
        if request.url.path.endswith("/skus") and "westeurope" in str(request.url):
            return facts.error(403, "RequestDisallowedByAzure", "This region is closed to you.")
        return answer(request)

    cloud.transport.handler = refuse_one  # type: ignore[method-assign]
    said = {one.region: one.unavailable_because or "" for one in azure(cloud).fetch_offers(H100)}
    assert said["eastus"] == ""
    assert "This region is closed to you" in said["westeurope"]


def test_credentials_that_are_no_good_are_an_error_and_not_a_list_of_closed_regions(cloud: FakeAzure) -> None:
    cloud.refused = facts.error(401, "AuthenticationFailed", "Authentication failed.")
    with pytest.raises(AuthFailed, match="Authentication failed"):
        azure(cloud).fetch_offers(H100)


def test_the_block_s_regions_are_all_that_is_asked(cloud: FakeAzure) -> None:
    driver = azure(cloud, regions=["West Europe"])
    assert {one.region for one in driver.fetch_offers(H100)} == {"westeurope"}
    assert driver.fetch_offers(EAST) == []
    assert not any("eastus" in path for _, path in cloud.requests)


def test_a_region_s_types_are_asked_for_once_in_a_while(cloud: FakeAzure, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = azure(cloud)
    for _ in range(3):
        driver.fetch_offers(EAST)
    asked = [path for _, path in cloud.requests if path.endswith("/skus")]
    assert len(asked) == 1
    monkeypatch.setattr(offers, "_KEPT_S", 0.0)
    driver.fetch_offers(EAST)
    assert len([path for _, path in cloud.requests if path.endswith("/skus")]) == 2


def reservation(cloud: FakeAzure, zone: str | None, capacity: int, taken: int = 0) -> None:
    driver = azure(cloud)
    driver.arm.put(GROUP.partition("/providers")[0], {"location": "eastus"}, what="make it")
    driver.arm.put(GROUP, {"location": "eastus"}, what="make it")
    row = {
        "name": "one", "location": "eastus", "sku": {"name": TYPE, "capacity": capacity},
        "properties": {"virtualMachinesAssociated": [{"id": f"x{n}"} for n in range(taken)]},
    }  # fmt: skip
    cloud.reservations[GROUP.lower()] = [row | ({"zones": [zone]} if zone else {})]


def test_what_is_reserved_is_available_whatever_quotas_say_and_an_order_is_placed_in_it(cloud: FakeAzure) -> None:
    reservation(cloud, "2", 2, taken=1)
    driver = azure(cloud, capacity_reservation_group=GROUP)
    (offer,) = driver.fetch_offers(EAST)
    assert offer.availability is Availability.AVAILABLE
    body = cloud.body(driver.create_instance(offer, launch_spec(driver, lease_name())).name)
    assert body["properties"]["capacityReservation"] == {"capacityReservationGroup": {"id": GROUP}}
    assert body["zones"] == ["2"], "a machine in another zone is not in the reservation"
    other = driver.fetch_offers(H100.model_copy(update={"regions": ("westeurope",)}))[0]
    body = cloud.body(driver.create_instance(other, launch_spec(driver, lease_name())).name)
    assert "capacityReservation" not in body["properties"]
    spot = driver.fetch_offers(SPOT.model_copy(update={"regions": ("eastus",)}))[0]
    assert (
        "capacityReservation"
        not in cloud.body(driver.create_instance(spot, launch_spec(driver, lease_name())).name)["properties"]
    )


def test_a_reservation_that_is_full_makes_nothing_available(cloud: FakeAzure) -> None:
    reservation(cloud, None, 1, taken=1)
    (offer,) = azure(cloud, capacity_reservation_group=GROUP).fetch_offers(EAST)
    assert offer.availability is Availability.UNKNOWN


def test_a_reservation_and_a_network_that_do_not_exist_are_errors_of_the_block(cloud: FakeAzure) -> None:
    driver = azure(cloud, capacity_reservation_group=GROUP)
    (offer,) = driver.fetch_offers(EAST)
    assert offer.availability is Availability.UNKNOWN, "the price list's offers stay"
    with pytest.raises(InvalidRequest, match=r"no capacity reservation group .*h100: look at the block"):
        driver.create_instance(offer, launch_spec(driver, lease_name()))
    driver = azure(
        cloud, subnets=[f"{GROUP.rpartition('/providers')[0]}/providers/Microsoft.Network/virtualNetworks/n/subnets/s"]
    )
    with pytest.raises(InvalidRequest, match=r"no network .*virtualNetworks/n: look at the block"):
        driver.create_instance(offer, launch_spec(driver, lease_name()))
    assert "look at the block's subnets" in (driver.fetch_offers(EAST)[0].unavailable_because or "")


def test_the_price_list_s_facts_stand_beside_the_driver() -> None:
    told = known.of("azure")
    assert told.countries["westeurope"] == "NL"
    assert told.expected is not None
    assert told.expected.everywhere == "Standard_D2s_v3"
