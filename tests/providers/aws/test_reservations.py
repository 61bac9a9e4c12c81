"""Capacity reservations and capacity blocks."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_gpu.providers.aws.driver import Aws
from prefect_gpu.providers.core.errors import (
    NoCapacity,
)
from prefect_gpu.providers.core.models import (
    Availability,
)
from prefect_gpu.providers.core.renting import order as orders
from prefect_gpu.providers.core.requests import Requirements, Spot
from tests.conformance import launch_spec, lease_name
from tests.fakes.aws import REGIONS, AwsCloud
from tests.providers.aws.ordering import (
    Quickly,
    offer_of,
    order_sent,
)

RESERVATION = "CapacityReservationSpecification.CapacityReservationTarget.CapacityReservationId"


def reservation_of(instance_type: str = "m5.large", zone: str = "us-east-1b", **more: Any) -> dict[str, Any]:
    reserved = {"InstanceType": instance_type, "AvailabilityZone": zone, "State": "active"}
    return {**reserved, "ReservationType": "default", "AvailableInstanceCount": 1, **more}


def test_only_on_demand_orders_of_the_reservations_type_in_its_zone_are_placed_in_it(cloud: AwsCloud) -> None:
    cloud.set(reservations={"cr-1": reservation_of()})
    driver = cloud.driver(capacity_reservation="cr-1")
    placed: list[str] = []
    for offer in (
        offer_of(),
        offer_of(zone="us-west-2b"),
        offer_of("c5.large", zone="us-east-1b"),
        offer_of(zone="us-east-1b", spot=True),
        offer_of(zone="us-east-1b"),
    ):
        driver.create_instance(offer, launch_spec(driver, lease_name()))
        sent = order_sent(cloud)
        if RESERVATION in sent:
            placed.append(f"{sent['InstanceType']} in {sent['Placement.AvailabilityZone']}")
    assert placed == ["m5.large in us-east-1b"]
    assert sent[RESERVATION] == "cr-1"
    assert len(cloud.alive()) == 5


@pytest.mark.parametrize("state", ["scheduled", "expired", "cancelled"])
def test_a_reservation_that_is_not_active_is_not_ordered_from(cloud: AwsCloud, state: str) -> None:
    cloud.set(reservations={"cr-1": reservation_of(State=state)})
    driver = cloud.driver(capacity_reservation="cr-1")
    driver.create_instance(offer_of(zone="us-east-1b"), launch_spec(driver, lease_name()))
    assert RESERVATION not in order_sent(cloud)


def test_a_full_reservation_rules_out_its_own_offer_only(cloud: AwsCloud) -> None:
    cloud.set(reservations={"cr-1": reservation_of(AvailableInstanceCount=0)})
    driver, offer = cloud.driver(capacity_reservation="cr-1"), offer_of(zone="us-east-1b")
    with pytest.raises(NoCapacity) as raised:
        driver.create_instance(offer, launch_spec(driver, lease_name()))
    assert not raised.value.rules_out(offer, offer_of())


def test_a_lost_answer_of_the_last_order_that_a_reservation_holds_is_asked_for_again(cloud: AwsCloud) -> None:
    cloud.set(reservations={"cr-1": reservation_of()}, hide_new=30)
    driver, spec = cloud.driver(capacity_reservation="cr-1"), launch_spec(cloud.driver(), lease_name())
    cloud.fail("RunInstances", how="lost")
    created = orders.place_order(driver, offer_of(zone="us-east-1b"), spec, clock=Quickly())
    assert [alive["id"] for alive in cloud.alive()] == [created.id]


@pytest.mark.parametrize("whose", ["block", "order"])
def test_a_capacity_block_is_told_by_its_reservation_and_is_not_spot(cloud: AwsCloud, whose: str) -> None:
    cloud.set(reservations={"cr-1": reservation_of(ReservationType="capacity-block")})
    driver = cloud.driver(capacity_reservation="cr-1" if whose == "block" else None)
    options = {"capacity_reservation": "cr-1"} if whose == "order" else {}
    driver.create_instance(offer_of(zone="us-east-1b"), launch_spec(driver, lease_name(), options=options))
    assert order_sent(cloud)["InstanceMarketOptions.MarketType"] == "capacity-block"
    assert order_sent(cloud)[RESERVATION] == "cr-1"


def test_an_offer_that_the_reservation_holds_is_available_while_it_has_room(cloud: AwsCloud) -> None:
    driver = cloud.driver(capacity_reservation="cr-1")
    for free in (2, 0):
        cloud.set(reservations={"cr-1": reservation_of(AvailableInstanceCount=free)})
        offers = driver.fetch_offers(Requirements(spot=Spot.EITHER))
        sure = [offer for offer in offers if offer.availability is Availability.AVAILABLE]
        assert [(offer.instance_type, offer.zone, offer.spot) for offer in sure] == (
            [("m5.large", "us-east-1b", False)] if free else []
        )
    assert len(cloud.calls("DescribeCapacityReservations")) == 2 * len(REGIONS)


def test_without_a_reservation_nobody_asks_for_one(cloud: AwsCloud, driver: Aws) -> None:
    driver.create_instance(driver.fetch_offers(Requirements())[0], launch_spec(driver, lease_name()))
    assert cloud.calls("DescribeCapacityReservations") == []
