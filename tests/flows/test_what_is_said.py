"""What a run says while it repeats something, and what its final message says of what failed."""

from __future__ import annotations

import math
from typing import Any

import pytest

from prefect_gpu.flows.run.execution import Run
from prefect_gpu.providers.core.models import Instance, InstanceState
from prefect_gpu.providers.core.renting import give_back, order, progress, ready
from prefect_gpu.providers.core.requests import Requirements
from tests.flows.rented import Rented

pytestmark = [pytest.mark.usefixtures("prefect_api"), pytest.mark.timeout(180)]


def test_order_boot_and_give_back_say_what_they_repeat(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(on_progress: progress.OnProgress, clock: order.Clock, **_: float) -> progress.Waiting:
        return progress.Waiting(on_progress, clock, first_s=0.0)

    for module in (order, ready, give_back):
        monkeypatch.setattr(module, "Waiting", at_once)
    said: list[str] = []
    monkeypatch.setattr(Run, "say_progress", lambda _run, what, _seconds: said.append(what))
    answers(monkeypatch, rented.libraries["alpha"].driver(), InstanceState.PROVISIONING, "a disk is made", times=1)
    rented["alpha"].fault("create", "lost")
    rented["alpha"].fault("terminate", "server error")
    assert rented.run().startswith("exit 0 in ")
    begins = [what.partition(":")[0] for what in said]
    assert begins[0] == "the order is sent again"
    assert "a disk is made" in begins
    assert begins[-1] == "not yet confirmed gone"


def test_an_image_s_cause_stands_in_the_final_message_and_not_only_in_the_log(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = "the image team/train:7 cannot be pulled: too many requests"
    for library in rented.libraries.values():
        answers(monkeypatch, library.driver(), InstanceState.FAILED, why)
    message = rented.run(requirements=Requirements(cpu=100))
    assert rented.state.is_failed()
    assert message.startswith("No machine: "), message
    assert f" alpha: {why}. beta: {why}." in message
    rented.assert_nothing_is_left()


def answers(
    monkeypatch: pytest.MonkeyPatch, driver: Any, state: InstanceState, reason: str, *, times: float = math.inf
) -> None:
    """So many times its machines are in this state; an order's answer is that they are made."""
    create, get, left = driver.create_instance, driver.get_instance, [times]

    def create_instance(*asked: Any) -> Instance:
        return create(*asked).model_copy(update={"state": InstanceState.PROVISIONING})

    def get_instance(instance_id: str) -> Instance:
        seen = get(instance_id)
        if seen.state.is_final or left[0] <= 0:
            return seen
        left[0] -= 1
        return seen.model_copy(update={"state": state, "reason": reason})

    monkeypatch.setattr(driver, "create_instance", create_instance)
    monkeypatch.setattr(driver, "get_instance", get_instance)
