"""Rate limits that all workers keep together, and that never stand in the way."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prefect.context import SyncClientContext

from prefect_gpu.providers.core.contract import RateLimit
from prefect_gpu.providers.core.renting import limits
from prefect_gpu.providers.core.renting.limits import Limits
from prefect_gpu.providers.core.requests import Requirements
from tests.conformance import launch_spec, lease_name
from tests.fakes.reference import ReferenceCloud, reference


def limited(calls: int, per_s: float, account: str, method: str = "*") -> tuple[Any, ReferenceCloud]:
    cloud = ReferenceCloud(is_stopped=True)
    driver = reference(cloud)
    Limits("reference", account, {method: RateLimit(calls=calls, per_s=per_s)}).apply(driver)
    return driver, cloud


def test_two_workers_of_one_server_keep_one_limit_together(prefect_api: None) -> None:
    workers = [limited(2, 1.0, "shared")[0] for _ in range(2)]
    workers[0].fetch_offers(Requirements())  # makes the limit
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: workers[n % 2].fetch_offers(Requirements()), range(6)))
    assert time.monotonic() - began > 1.5, "six calls, two a second"
    with SyncClientContext.get_or_create() as prefect:
        found = prefect.client.request("POST", "/v2/concurrency_limits/filter", json={}).json()
    (made,) = [one for one in found if one["name"] == "prefect-gpu reference shared all calls"]
    assert (made["limit"], made["slot_decay_per_second"]) == (2, 2.0)


def test_what_an_operator_changed_counts(prefect_api: None) -> None:
    driver, _ = limited(1, 3600, "changed")
    driver.fetch_offers(Requirements())
    with SyncClientContext.get_or_create() as prefect:
        prefect.client.request(
            "PATCH", "/v2/concurrency_limits/prefect-gpu reference changed all calls", json={"active": False}
        )
    began = time.monotonic()
    for _ in range(5):
        driver.fetch_offers(Requirements())
    assert time.monotonic() - began < 30


def test_giving_back_never_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(limits, "_take_slot", lambda name, _: asked.append(name))
    driver, cloud = limited(1, 3600, "x")
    made = driver.create_instance(driver.fetch_offers(Requirements())[0], launch_spec(driver, lease_name()))
    assert len(asked) == 2
    driver.terminate_instance(made.id)
    driver.terminate_instances([made.id])
    assert len(asked) == 2
    assert not cloud.alive()


@pytest.mark.parametrize("how", ["hangs", "fails"])
def test_a_server_that_does_not_answer_is_asked_once_a_minute_and_holds_up_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    asked: list[str] = []

    def never(name: str, _: RateLimit) -> None:
        asked.append(name)
        if how == "hangs":
            time.sleep(1)
        raise ConnectionError("connection refused")

    monkeypatch.setattr(limits, "_take_slot", never)
    monkeypatch.setattr(limits, "ANSWER_S", 0.1)
    driver, _ = limited(1, 1, "down")
    for _ in range(3):
        assert driver.fetch_offers(Requirements())
    assert len(asked) == 1
    assert caplog.text.count("calls go on without it for 60 s") == 1


def test_a_turn_that_does_not_come_is_not_waited_for_longer_than_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(limits, "_take_slot", lambda *_: 10.0)
    monkeypatch.setattr(limits, "LONGEST_S", 25.0)
    clock = [0.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(
        limits.time, "sleep", lambda seconds: (waits.append(seconds), clock.__setitem__(0, clock[0] + seconds))
    )
    only = Limits("x", "y", {"get_instance": RateLimit(calls=1, per_s=100)})
    only.take("get_instance")
    only.take("fetch_offers")
    assert waits == [10.0, 10.0]
