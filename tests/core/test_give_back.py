"""A give-back ends what is proved to be its own and nothing else, whatever a record says."""

from __future__ import annotations

import pytest

from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.renting.give_back import give_back
from tests.core.test_order import CloudClock, cloud_of, first_offer, spec
from tests.fakes.reference import reference


@pytest.mark.parametrize("name", ["", "pg-", "pg-test", spec().name[:32], "*", spec().name + "0"])
def test_what_is_no_whole_name_of_a_lease_ends_nothing(name: str) -> None:
    cloud = cloud_of()
    driver = reference(cloud)
    driver.create_instance(first_offer(driver), spec())
    with pytest.raises(InvalidRequest, match="the whole name of a lease"):
        give_back(driver, name, within_s=5, clock=CloudClock(cloud))
    with pytest.raises(InvalidRequest):
        give_back(driver, "pg-", names=frozenset({spec().name, name}), within_s=5, clock=CloudClock(cloud))
    assert len(cloud.alive()) == 1


@pytest.mark.parametrize("lag", [0.0, 30.0])
def test_an_id_that_bears_another_name_is_said_and_not_touched(lag: float) -> None:
    cloud = cloud_of(listing_lag_s=lag)
    driver = reference(cloud, listing_lag_s=lag)
    mine, other = (driver.create_instance(first_offer(driver), spec(attempt)) for attempt in (0, 1))
    absence = give_back(driver, mine.name, known_ids=(other.id,), within_s=300, clock=CloudClock(cloud))
    assert [one.id for one in cloud.alive()] == [other.id]
    assert absence.is_gone
    assert f"{other.id} bears the name {other.name!r} and was not touched" in absence.evidence
    assert cloud.calls("terminate").count(("terminate", other.id)) == 0


def test_an_id_of_a_record_is_ended_though_lists_lag_once_the_provider_says_that_it_bears_the_name() -> None:
    cloud = cloud_of(listing_lag_s=60)
    driver = reference(cloud, listing_lag_s=60)
    mine = driver.create_instance(first_offer(driver), spec())
    give_back(driver, mine.name, known_ids=(mine.id,), within_s=8, confirm=False, clock=CloudClock(cloud))
    assert cloud.alive() == []


def test_an_id_that_cannot_be_asked_for_is_owed_and_not_ended_unproved() -> None:
    cloud = cloud_of()
    driver = reference(cloud)
    mine, other = (driver.create_instance(first_offer(driver), spec(attempt)) for attempt in (0, 1))
    cloud.fault("get", "server error", times=None)
    absence = give_back(driver, mine.name, known_ids=(other.id,), within_s=20, clock=CloudClock(cloud))
    assert [one.id for one in cloud.alive()] == [other.id]
    assert other.id in absence.owed
    assert not absence.is_gone
