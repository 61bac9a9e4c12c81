"""The fake project, and drivers of it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from prefect_gpu.blocks.gcp import GcpCredentials
from prefect_gpu.providers.core.models import Offer
from prefect_gpu.providers.gcp.driver import Gcp
from tests.conformance import launch_spec, lease_name
from tests.fakes.gcp import FakeGcp
from tests.fakes.gcp.project import PRICES, key, priced_offers


def gcp(cloud: FakeGcp, **block: Any) -> Gcp:
    credentials = GcpCredentials(**{"key": SecretStr(key()), **block})
    return Gcp(credentials, transport=cloud.transport, priced_offers=priced_offers)


@pytest.fixture
def cloud() -> FakeGcp:
    return FakeGcp()


def offer_of(kind: str, zone: str = "us-central1-a", *, spot: bool = False, gpu: str | None = None) -> Offer:
    """One of the fake's offers."""
    fits = [one for one in PRICES if (one.instance_type, one.zone, one.spot) == (kind, zone, spot)]
    return next(one for one in fits if gpu in (None, one.gpu_name))


def ordered(cloud: FakeGcp, kind: str = "e2-standard-4", *, block: Any = None, spec: Any = None, **which: Any) -> Any:
    """The body of an order as the fake got it."""
    driver = gcp(cloud, **(block or {}))
    made = driver.create_instance(offer_of(kind, **which), launch_spec(driver, lease_name(), **(spec or {})))
    return cloud.vm(made.id).body
