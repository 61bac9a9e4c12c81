"""Machines of one's own for a module's tests, each as new after a test that used it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.own_machines import (
    restore,
)
from tests.fakes.sshd_hosts import SshdHost, sshd_hosts


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[SshdHost, ...]]:
    with sshd_hosts(*(f"m{number}" for number in range(2))) as hosts:
        yield hosts


@pytest.fixture
def one(machines: tuple[SshdHost, ...]) -> Iterator[SshdHost]:
    yield machines[0]
    restore(machines[0])


@pytest.fixture
def two(machines: tuple[SshdHost, ...]) -> Iterator[SshdHost]:
    yield machines[1]
    restore(machines[1])
