"""What the terminal's tests share: a home of their own, and processes that only sleep where workers would be started."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_gpu.flows.terminal import server
from prefect_gpu.flows.terminal.daemon import Daemon
from tests.fakes.prefect_api import FakePrefect, served

SLEEP = ["-c", "import time; time.sleep(60)"]
VARIABLES = (
    *("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_PROFILES_PATH", "PREFECT_UI_URL"),
    *("FORCE", "XDG_STATE_HOME"),
)


@pytest.fixture
def clean(tmp_path: Path) -> Iterator[Path]:
    """An empty home, in an environment without Prefect's variables, and a folder to type in."""
    from prefect.context import SettingsContext, refresh_global_settings_context

    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (tmp_path / "cwd").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for variable in VARIABLES:
            patch.setenv(variable, "")
            patch.delenv(variable)
        patch.setenv("PREFECT_HOME", str(tmp_path))
        patch.setenv("PREFECT_GPU_HOME", str(home))
        patch.chdir(tmp_path / "cwd")
        refresh_global_settings_context()
        harness = SettingsContext.__var__.set(None)  # another test's harness goes on for the whole session
        yield home
        SettingsContext.__var__.reset(harness)
    refresh_global_settings_context()


@pytest.fixture
def sleeping_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers that only sleep, and servers that are none: which of them are found, started and stopped is the question."""
    begin = Daemon.start
    begun: list[subprocess.Popen[bytes]] = []

    def sleep(daemon: Daemon, _: list[str], environment: dict[str, str], **noted: Any) -> subprocess.Popen[bytes]:
        begun.append(begin(daemon, SLEEP, environment, **noted))
        return begun[-1]

    monkeypatch.setattr(Daemon, "start", sleep)
    monkeypatch.setattr(server, "_start_server", lambda _place: None)
    yield
    for process in begun:
        process.wait(5)  # each was stopped by then


@pytest.fixture
def api() -> Iterator[FakePrefect]:
    with served() as fake:
        yield fake
