"""What many tests share. Prefect, its server and its harness cost seconds: only tests that ask for them pay, importing included."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side, a file's tests stay in one process, which has its fixtures; the cluster and real servers are had one by one."""
    for item in items:
        is_heavy = item.get_closest_marker("kubernetes") or item.get_closest_marker("server")
        group = "cluster and servers" if is_heavy else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    """A temporary Prefect server with an empty database, for the whole session."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def no_run_logger() -> Iterator[None]:
    """For code that logs to the flow run around it, called outside of any."""
    from prefect.logging.loggers import disable_run_logger

    with disable_run_logger():
        yield
