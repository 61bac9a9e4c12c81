"""An instance of local ends with everything it started, whoever dies: each way to die, each way to escape."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from prefect_gpu.providers.core.errors import NotFound
from prefect_gpu.providers.core.models import InstanceState
from prefect_gpu.providers.local import keeper
from tests.providers.local.instances import (
    REPOSITORY,
    create,
    escape,
    lives,
    log_in,
    pids_in,
    record_of,
    run,
    wait_for,
)


def test_terminate_ends_everything_and_keeps_nothing(provider, root):
    instance = create(provider)
    record = record_of(root / instance.name)
    with log_in(instance) as connection:
        pids = escape(connection)
        run(connection, "mkdir -p a/b; touch a/b/c; chmod 0 a/b; chmod 500 a")
        processes = [record["pid"], *keeper.descendants(record["pid"])]
        provider.terminate_instance(instance.id)
    with pytest.raises(NotFound):
        provider.get_instance(instance.id)
    assert not any(lives(pid) for pid in pids)
    assert list(root.iterdir()) == []
    assert wait_for(lambda: not any(lives(pid) for pid in processes), within_s=2)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", instance.ssh.port), timeout=2)


def test_folders_that_a_job_locked_are_removed_too():
    script = """
        import os, sys
        from pathlib import Path
        from prefect_gpu.providers.local import keeper
        if os.getuid() == 0:  # whom no mode keeps out
            os.setgid(65534)
            os.setuid(65534)
        root = Path(sys.argv[1])
        for mode in (0o555, 0):
            below = root / "machine" / oct(mode) / "pkg" / "mod"
            below.mkdir(parents=True)
            (below / "file").touch()
            (below / "up").symlink_to(root)
            for folder in (below, below.parent, below.parent.parent):
                folder.chmod(mode)
        keeper.remove(root / "machine")
        """
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are root's alone
        Path(folder).chmod(0o777)
        subprocess.run([sys.executable, "-c", textwrap.dedent(script), folder], cwd=REPOSITORY, check=True)
        assert list(Path(folder).iterdir()) == []


def test_the_lease_ends_it_with_what_double_forked(provider, root):
    instance = create(provider, for_s=2)
    with log_in(instance) as connection:
        pids = escape(connection)
        assert wait_for(lambda: not any(lives(pid) for pid in pids), within_s=6)
    assert wait_for(lambda: list(root.iterdir()) == [], within_s=3)


def test_the_lease_ends_it_even_when_the_server_hangs(provider, root):
    instance = create(provider, for_s=2)
    record = record_of(root / instance.name)
    for pid in keeper.descendants(record["pid"]):
        os.kill(pid, signal.SIGSTOP)
    assert wait_for(lambda: list(root.iterdir()) == [], within_s=6)


def test_a_stopped_keeper_is_woken_to_end_it(provider, root):
    instance = create(provider)
    record = record_of(root / instance.name)
    os.kill(record["pid"], signal.SIGSTOP)
    provider.terminate_instance(instance.id)
    assert wait_for(lambda: list(root.iterdir()) == [])


def test_killing_the_server_ends_its_jobs_and_shows_as_failed(provider, root):
    instance = create(provider)
    record = record_of(root / instance.name)
    with log_in(instance) as connection:
        pids = escape(connection)
        server = min(keeper.descendants(record["pid"]))
        os.kill(server, signal.SIGKILL)
        assert wait_for(lambda: not any(lives(pid) for pid in pids))
    assert wait_for(lambda: provider.get_instance(instance.id).state is InstanceState.FAILED)
    assert "signal 9" in provider.get_instance(instance.id).reason
    provider.terminate_instance(instance.id)
    assert list(root.iterdir()) == []


def test_killing_the_keeper_ends_its_jobs_and_shows_as_failed(provider, root):
    instance = create(provider)
    record = record_of(root / instance.name)
    with log_in(instance) as connection:
        run(connection, "true")
        output, _ = run(connection, "setsid sleep 1001 >/dev/null 2>&1 & echo $!")
        (pid,) = pids_in(output)
        os.kill(record["pid"], signal.SIGKILL)
        assert wait_for(lambda: not lives(pid))
    assert provider.get_instance(instance.id).state is InstanceState.FAILED
    provider.terminate_instance(instance.id)
    assert list(root.iterdir()) == []


def test_killing_keeper_and_server_leaves_the_job_to_terminate(provider, root):
    instance = create(provider)
    record = record_of(root / instance.name)
    with log_in(instance) as connection:
        output, _ = run(connection, "setsid sh -c 'sleep 1001 >/dev/null 2>&1 & echo $!'")
        (job,) = pids_in(output)
        server = min(keeper.descendants(record["pid"]))
        os.kill(record["pid"], signal.SIGSTOP)
        os.kill(server, signal.SIGKILL)
        os.kill(record["pid"], signal.SIGKILL)
    assert wait_for(lambda: not lives(record["pid"]))
    assert lives(job)
    assert provider.get_instance(instance.id).state is InstanceState.FAILED
    provider.terminate_instance(instance.id)
    assert not lives(job)
    assert list(root.iterdir()) == []


def test_a_server_that_cannot_start_is_a_failed_instance_that_says_why(provider, root, monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    instance = create(provider)
    assert wait_for(lambda: provider.get_instance(instance.id).state is InstanceState.FAILED)
    assert "asyncssh" in provider.get_instance(instance.id).reason


def test_another_process_with_the_keepers_number_is_never_touched(provider, root):
    """The number of a keeper that died may be given to somebody else's process."""
    instance = create(provider)
    directory = root / instance.name
    record = record_of(directory)
    os.kill(record["pid"], signal.SIGKILL)
    assert wait_for(lambda: not lives(record["pid"]))
    stranger = subprocess.Popen(["sleep", "1000"])
    try:
        for changed in (
            {"pid": stranger.pid},
            {"pid": stranger.pid, "started": keeper.started(stranger.pid), "boot": "an earlier one"},
        ):
            (directory / "keeper").write_text(json.dumps(record | changed))
            assert provider.get_instance(instance.id).state is InstanceState.FAILED
        provider.terminate_instance(instance.id)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
    assert list(root.iterdir()) == []
