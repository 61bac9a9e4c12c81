"""A background process is found, started and stopped as it should be, and nothing of it stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_gpu.flows.terminal.daemon import Background, Daemon
from prefect_gpu.flows.terminal.messages import Trouble

SLEEP = ["-c", "import time; time.sleep(60)"]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon("sleeper", tmp_path)
    yield daemon
    daemon.stop(grace_s=1)


def start(daemon: Daemon, arguments: list[str] = SLEEP, **changes: Any) -> subprocess.Popen[bytes]:
    given: dict[str, Any] = {"kept": False, "url": "http://127.0.0.1:1/api", **changes}
    return daemon.start(arguments, dict(os.environ), **given)


def test_a_running_process_is_found_with_what_was_noted_of_it(daemon: Daemon) -> None:
    process = start(daemon, kept=True)
    found = daemon.find()
    assert found is not None
    assert found[:3] == (process.pid, True, "http://127.0.0.1:1/api")
    assert found.folder == str(Path.cwd())


def test_what_is_stopped_is_gone(daemon: Daemon) -> None:
    process = start(daemon)
    daemon.stop()
    assert daemon.find() is None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_what_does_not_hear_sigterm_is_killed(daemon: Daemon) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    process = start(daemon, ["-c", deaf])
    while "deaf" not in daemon.log.read_text():
        time.sleep(0.05)
    daemon.stop(grace_s=0.3)
    assert process.wait(5) in (0, -signal.SIGKILL)
    assert daemon.find() is None


def test_a_record_whose_process_is_dead_is_not_believed(daemon: Daemon) -> None:
    process = start(daemon)
    process.kill()
    process.wait(5)
    assert daemon.record.exists()
    assert daemon.find() is None


def test_a_foreign_process_of_the_same_id_is_not_ours_to_end(daemon: Daemon) -> None:
    daemon.record.write_text(json.dumps(Background(os.getpid(), kept=False, url="http://127.0.0.1:1/api")._asdict()))
    daemon.lock.touch()
    daemon.stop()  # would end this very test


def test_a_second_one_is_refused_while_the_first_runs(daemon: Daemon) -> None:
    start(daemon)
    with pytest.raises(Trouble, match="wait a moment"):
        start(daemon)
