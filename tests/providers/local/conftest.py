"""A `local` whose instances stand in a folder of the test's own, and end with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_gpu.providers.local.driver import Local
from tests.providers.local.instances import (
    end_all,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def provider(root: Path) -> Iterator[Local]:
    provider = Local(roots=[root])
    yield provider
    end_all(provider)
