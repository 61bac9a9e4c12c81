"""What is repeated is said while it is repeated, with the time so far: orders, looks for lost ones, give-backs, boots."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, cast

import pytest

from prefect_gpu.flows.run.execution import Run
from prefect_gpu.providers.core.contract import Connection
from prefect_gpu.providers.core.errors import InstanceFailed, NotReady
from prefect_gpu.providers.core.models import InstanceState
from prefect_gpu.providers.core.renting.give_back import give_back
from prefect_gpu.providers.core.renting.order import find_order, place_order
from prefect_gpu.providers.core.renting.progress import FIRST_S, THEN_S, Waiting
from prefect_gpu.providers.core.renting.ready import wait_until_ready
from tests.core.test_order import CloudClock, cloud_of, first_offer, spec
from tests.fakes.reference import ReferenceCloud, reference


class Said(list[tuple[str, float]]):
    """All that was said, and for how many seconds it was waited by then."""

    def __call__(self, what: str, seconds: float) -> None:
        self.append((what, seconds))

    def is_all_about(self, what: str, *, until_s: float, first_s: float = FIRST_S) -> None:
        """Nobody waited in silence for longer than a pause between two tries more than is promised, and the time so far grew."""
        assert {told for told, _ in self} == {what}
        times = [0.0, *(seconds for _, seconds in self), until_s]
        assert times == sorted(times)
        assert times[1] >= first_s
        pause = 30.0
        assert all(later - earlier <= THEN_S + pause for earlier, later in itertools.pairwise(times))
        assert all(later - earlier >= THEN_S for earlier, later in itertools.pairwise(times[1:-1]))


def waited(cloud: ReferenceCloud, began: float) -> float:
    return cloud.now() - began


def test_what_takes_no_time_is_not_said_and_then_it_is_said_every_15_s() -> None:
    said, clock = Said(), SimpleNamespace(now=lambda: next(ticks))
    ticks = iter(range(100))
    waiting = Waiting(said, clock)
    for number in range(45):
        waiting.on(f"it {number}")
    assert said == [("it 9", 10), ("it 24", 25), ("it 39", 40)]


@pytest.mark.parametrize("fault", ["server error", "lost"])
def test_an_order_that_is_sent_again_is_said_with_the_reason(fault: Any) -> None:
    cloud = cloud_of()
    driver, said = reference(cloud), Said()
    offer, began = first_offer(driver).model_copy(update={"boot_deadline_s": 600}), cloud.now()
    cloud.fault("create", fault, times=8)
    place_order(driver, offer, spec(), on_progress=said, clock=CloudClock(cloud))
    reasons = {what.partition(": ")[0] for what, _ in said}
    assert reasons == {"the order is sent again"}
    assert all(what.partition(": ")[2] for what, _ in said)
    said.is_all_about(said[0][0], until_s=waited(cloud, began))
    assert len(said) >= 3


def test_an_order_that_waits_for_a_rate_limit_is_said() -> None:
    cloud = cloud_of()
    driver, said = reference(cloud), Said()
    cloud.fault("create", "rate limited", times=3, seconds=20)
    place_order(driver, first_offer(driver), spec(), on_progress=said, clock=CloudClock(cloud))
    assert said
    assert all(what.startswith("the order is sent again: ") for what, _ in said)


@pytest.mark.parametrize("is_found_by_its_successor", [False, True])
def test_a_look_for_a_lost_order_is_said(is_found_by_its_successor: bool) -> None:
    cloud = cloud_of(is_repeatable=False, listing_lag_s=50)
    driver, said = reference(cloud, create_repeatable=None, listing_lag_s=60), Said()
    offer, order, began = first_offer(driver), spec(), cloud.now()
    clock = CloudClock(cloud)
    if is_found_by_its_successor:
        driver.create_instance(offer, order)
        find_order(driver, order.name, on_progress=said, clock=clock)
    else:
        cloud.fault("create", "lost")
        place_order(driver, offer, order, on_progress=said, clock=clock)
    assert said[0][0].startswith("the order's answer was lost and its machine is looked for: ")
    said.is_all_about(said[0][0], until_s=waited(cloud, began))
    assert len(said) >= 3


def test_a_give_back_whose_credentials_are_refused_is_said_at_once_and_again() -> None:
    cloud = cloud_of()
    driver, said, order = reference(cloud), Said(), spec()
    place_order(driver, first_offer(driver), order, clock=CloudClock(cloud))
    for call in ("terminate", "list"):
        cloud.fault(call, "bad credentials", times=None)  # type: ignore[arg-type]
    began = cloud.now()
    assert not give_back(driver, order.name, within_s=120, on_progress=said, clock=CloudClock(cloud)).is_gone
    assert "revoked" in said[0][0]
    assert said[0][0].startswith("not yet confirmed gone: ")
    said.is_all_about(said[0][0], until_s=waited(cloud, began))
    assert len(said) >= 6


@pytest.mark.parametrize("state", [InstanceState.PROVISIONING, InstanceState.RUNNING])
def test_a_boot_is_said_with_what_it_waits_for(monkeypatch: pytest.MonkeyPatch, state: InstanceState) -> None:
    cloud = cloud_of()
    driver, said, order = reference(cloud), Said(), spec()
    made = place_order(driver, first_offer(driver), order, clock=CloudClock(cloud))
    seen = made.model_copy(update={"state": state, "reason": "the disk is made"})
    monkeypatch.setattr(driver, "get_instance", lambda _: seen)

    def connect(_: Any) -> Connection:
        raise NotReady("port 22 is closed")

    with pytest.raises(InstanceFailed, match="not ready after 2 min"):
        wait_until_ready(driver, seen, connect, boot_deadline_s=120, on_progress=said, clock=CloudClock(cloud))
    reason = "the disk is made" if state is InstanceState.PROVISIONING else "port 22 is closed"
    said.is_all_about(reason, until_s=120, first_s=5.0)
    assert said[0][1] < 6
    assert len(said) >= 7


def test_a_run_says_it_in_its_story_with_the_time_so_far() -> None:
    lines: list[str] = []
    run = cast("Run", SimpleNamespace(say=lines.append))
    Run.say_progress(run, "the order is sent again: the API answers 500", 95.0)
    assert [line.strip() for line in lines] == ["the order is sent again: the API answers 500, 2 min so far"]
