"""Orders to the fake Azure, and the drivers that send them."""

from __future__ import annotations

from typing import Any

from prefect_gpu.blocks.azure import AzureCredentials
from prefect_gpu.providers.azure.driver import Azure
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import Instance, InstanceState
from prefect_gpu.providers.core.requests import Requirements, Spot
from tests.conformance import launch_spec, lease_name
from tests.fakes.azure import facts
from tests.fakes.azure.cloud import FakeAzure

H100 = Requirements(gpu=parse_gpu("H100NVL"))
SPOT = Requirements(gpu=parse_gpu("H100NVL"), spot=Spot.SPOT)


def azure(cloud: FakeAzure, credential: Any = None, **block: Any) -> Azure:
    credentials = AzureCredentials(subscription_id=facts.SUBSCRIPTION, **block)
    return Azure(
        credentials,
        transport=cloud.transport,
        credential=credential or facts.FakeCredential(),
        priced_offers=facts.priced_offers,
    )


def order(driver: Azure, requirements: Requirements | None = None, name: str = "", **more: Any) -> Instance:
    offers = driver.fetch_offers(requirements or Requirements())
    offer = min(offers, key=lambda one: (one.unavailable_because is not None, one.price))
    return driver.create_instance(offer, launch_spec(driver, name or lease_name(), **more))


def run(cloud: FakeAzure, driver: Azure, made: Instance) -> Instance:
    """The machine once it runs."""
    cloud.advance(10)
    seen = driver.get_instance(made.id)
    assert seen.state is InstanceState.RUNNING, seen
    return seen
