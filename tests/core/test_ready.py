"""The way from an accepted order to a machine that answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from prefect_gpu.providers.core.contract import Connection, Provider
from prefect_gpu.providers.core.errors import RateLimited, Transient
from prefect_gpu.providers.core.models import Instance, InstanceState
from prefect_gpu.providers.core.renting.ready import wait_until_ready


@pytest.mark.parametrize("hiccup", [Transient("the API answers 502"), RateLimited("slowly")])
def test_a_hiccup_of_the_api_while_connecting_throws_no_booted_machine_away(hiccup: Transient) -> None:
    driver = cast(
        "Provider[Any]", SimpleNamespace()
    )  # a machine that runs already is not looked at for the first second
    instance = Instance(id="i-1", name="pg-1", provider="ref", state=InstanceState.RUNNING, region="north")
    connection, failures = cast("Connection", object()), [hiccup, hiccup]

    def connect(_: Instance) -> Connection:
        if failures:
            raise failures.pop()
        return connection

    assert wait_until_ready(driver, instance, connect, boot_deadline_s=30) == (instance, connection)
