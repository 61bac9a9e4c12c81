"""What many tests share. The Prefect harness costs 14 s once: only tests that ask for it pay."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prefect.logging.loggers import disable_run_logger
from prefect.testing.utilities import prefect_test_harness


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side, a file's tests stay in one process, which has its fixtures; and one process has the cluster."""
    for item in items:
        group = "cluster" if item.get_closest_marker("kubernetes") else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    """A temporary Prefect server with an empty database, for the whole session."""
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def no_run_logger() -> Iterator[None]:
    """For code that logs to the flow run around it, called outside of any."""
    with disable_run_logger():
        yield
