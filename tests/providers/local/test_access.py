"""What a job sees on an instance of local, and who may come in."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import asyncssh
import pytest

from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.models import Instance
from prefect_gpu.providers.local import keeper
from tests.conformance import MASTER_SECRET, lease_name
from tests.providers.local.instances import (
    create,
    lives,
    log_in,
    pids_in,
    record_of,
    run,
    wait_for,
)


def test_a_command_runs_in_the_instances_directory_with_a_clean_environment(provider, root, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not for jobs")
    instance = create(provider)
    with log_in(instance) as connection:
        output, status = run(connection, "pwd; env; exit 7")
    assert status == 7
    where, *variables = output.decode().splitlines()
    assert Path(where) == root / instance.name / "home"
    names = {variable.partition("=")[0] for variable in variables}
    assert names <= {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "PWD", "OLDPWD", "SHLVL", "_", keeper.MARK}
    assert "AWS_SECRET_ACCESS_KEY" not in names


def test_python_is_found_although_the_machine_has_none_of_this_name(provider):
    with log_in(create(provider)) as connection:
        output, status = run(connection, "python -c 'print(6*7)'")
    assert (output, status) == (b"42\n", 0)


def test_bytes_pass_unchanged_both_ways_under_back_pressure(provider):
    data = os.urandom(1 << 20) * 20 + b"\0\r\n\xff"
    with log_in(create(provider)) as connection:
        output, status = run(connection, "sleep 0.3; cat", data)
    assert status == 0
    assert output == data


def test_stderr_arrives_and_does_not_mix_with_stdout(provider):
    with log_in(create(provider)) as connection:
        channel = connection.open("echo out; echo err >&2")
        output = b""
        while piece := channel.recv(65536):
            output += piece
        assert channel.exit_status(10) == 0
        assert output == b"out\n"
        assert channel.error_text() == "err\n"


def test_a_command_that_reads_no_input_does_not_hang_the_client(provider):
    with log_in(create(provider)) as connection:
        channel = connection.open("exec <&-; sleep 0.2; echo done")
        with contextlib.suppress(Exception):
            channel.sendall(b"x" * (6 << 20))
        channel.shutdown_write()
        assert channel.recv(100) == b"done\n"
        assert channel.exit_status(10) == 0


def test_a_command_that_a_signal_ended_has_no_exit_status_of_its_own(provider):
    with log_in(create(provider)) as connection:
        _, status = run(connection, "kill -9 $$")
        assert status == 255
        assert run(connection, "true") == (b"", 0)


def test_a_closed_channel_ends_the_foreground_and_leaves_what_has_its_own_session(provider):
    with log_in(create(provider)) as connection:
        output, _ = run(connection, "setsid sleep 1001 >/dev/null 2>&1 </dev/null & echo $!")
        (supervisor,) = pids_in(output)
        channel = connection.open("echo $$; exec sleep 1000")
        (foreground,) = pids_in(channel.recv(100))
        channel.close()
        assert wait_for(lambda: not lives(foreground))
        assert lives(supervisor)


def test_a_lost_connection_ends_the_foreground_too(provider):
    instance = create(provider)
    with log_in(instance) as connection:
        channel = connection.open("echo $$; exec sleep 1000")
        (foreground,) = pids_in(channel.recv(100))
    assert wait_for(lambda: not lives(foreground))
    with log_in(instance) as connection:
        assert run(connection, "echo still here") == (b"still here\n", 0)


def test_no_zombies_stay_of_what_jobs_leave(provider, root):
    instance = create(provider)
    record = record_of(root / instance.name)
    with log_in(instance) as connection:
        for _ in range(5):
            run(connection, "setsid sh -c 'sleep 0.01 & exit' & true")

        def zombies() -> list[int]:
            parents = {record["pid"], *keeper.descendants(record["pid"])}
            stats = {pid: keeper._stat(pid) for pid in keeper._pids()}
            return [pid for pid, fields in stats.items() if fields and fields[0] == "Z" and int(fields[1]) in parents]

        assert wait_for(lambda: not zombies())


async def _try_to_log_in(instance: Instance, **options: object) -> None:
    assert instance.ssh is not None
    options = {"username": instance.ssh.user, "client_keys": [], "known_hosts": None, "agent_path": None} | options
    async with asyncssh.connect("127.0.0.1", instance.ssh.port, config=None, **options):
        pass


def test_only_the_client_key_of_the_order_may_log_in(provider):
    import asyncio

    instance = create(provider)
    right = derive(MASTER_SECRET, instance.name, "client").private.get_secret_value()
    wrong = derive(MASTER_SECRET, lease_name(), "client").private.get_secret_value()
    asyncio.run(_try_to_log_in(instance, client_keys=[asyncssh.import_private_key(right)]))
    for options in (
        {"client_keys": [asyncssh.import_private_key(wrong)]},
        {"client_keys": [], "password": ""},
        {"client_keys": [asyncssh.import_private_key(right)], "username": "somebody"},
    ):
        with pytest.raises(asyncssh.PermissionDenied):
            asyncio.run(_try_to_log_in(instance, **options))


def test_it_listens_on_the_loopback_only(provider):
    instance = create(provider)
    port = f"{instance.ssh.port:04X}"
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port}")
    ]
    assert listening == [f"0100007F:{port}"]


def test_the_private_host_key_and_the_directory_are_nobody_elses(provider, root):
    instance = create(provider)
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert stat.S_IMODE((root / instance.name).stat().st_mode) == 0o700
    for path in (root / instance.name).rglob("*"):
        assert path.is_dir() or b"PRIVATE KEY" not in path.read_bytes()
