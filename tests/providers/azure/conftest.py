"""A cloud of each test's own, and drivers that speak to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from prefect_gpu.providers.azure.driver import Azure
from tests.fakes.azure.cloud import FakeAzure
from tests.providers.azure.ordering import azure


@pytest.fixture
def cloud() -> Iterator[FakeAzure]:
    with FakeAzure() as fake:
        yield fake


@pytest.fixture
def driver(cloud: FakeAzure) -> Azure:
    return azure(cloud)
