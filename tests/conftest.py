"""What many tests share. Prefect, its server and its harness cost seconds: only tests that ask for them pay, importing included."""

from __future__ import annotations

import functools
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.stack import Stack

# Prefect reads its home when it is imported. The user's own, with its profile and its results, is none of the tests' business.
_home = tempfile.TemporaryDirectory(prefix="prefect-gpu-tests-", ignore_cleanup_errors=True)
os.environ["PREFECT_HOME"] = f"{_home.name}/prefect"
os.environ.setdefault("GPUHUNT_CATALOG_URL", "http://127.0.0.1:1")  # no test fetches what is published today
if not os.access(os.environ.get("HOME", ""), os.W_OK):
    os.environ["HOME"] = _home.name
# Hundreds of processes are started: each file is compiled once, by the first that needs it.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# A script that starts the tests in the background has them ignore Ctrl-C, and so would each server and worker that they start: Prefect's own end by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    _home.cleanup()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: the cluster's tests wait most of the time."""
    return min(4, (os.cpu_count() or 1) + 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Side by side, a file's tests stay in one process, which has its fixtures; the cluster is had one by one, real servers two at a time."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return _shared(file) or file

    config.option.loadscopereorder = False
    return ByFile(config, log)


REAL = ("server", "kubernetes", "docker", "root", "openssh", "browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first: the tests that have to go one by one.

    On a shared machine of CI, a test beside real servers gets a second try (a neighbour can take a core for seconds); the summary names
    each that needed it.
    """
    if os.environ.get("CI"):
        for item in items:
            if any(item.get_closest_marker(one) for one in REAL):
                item.add_marker(pytest.mark.flaky(reruns=1))
    items.sort(
        key=lambda item: ["cluster", "servers of providers", "servers", ""].index(
            _shared(item.nodeid.partition("::")[0])
        )
    )


@functools.cache
def _shared(file: str) -> str:
    """What this file's tests share with other files', or nothing."""
    text = (Path(__file__).parents[1] / file).read_text()
    if "pytest.mark.kubernetes" in text:
        return "cluster"
    if "pytest.mark.server" not in text:
        return ""
    return "servers of providers" if file.startswith("tests/providers/") else "servers"


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    """A temporary Prefect server with an empty database, for the whole session."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A real server and worker, for all tests marked `server`, which see each other's runs."""
    from tests.stack import running

    with running(tmp_path_factory.mktemp("stack")) as found:
        yield found


@pytest.fixture
def no_run_logger() -> Iterator[None]:
    """For code that logs to the flow run around it, called outside of any."""
    from prefect.logging.loggers import disable_run_logger

    with disable_run_logger():
        yield
