"""Who creates an instance of local, what becomes of it when its creator dies, and where it stands."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.models import InstanceState, utc_now
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.local import directory, keeper, order
from prefect_gpu.providers.local import driver as local
from prefect_gpu.providers.local.driver import Local
from tests.conformance import launch_spec, lease_name
from tests.providers.local.instances import (
    REPOSITORY,
    create,
    end_all,
    lives,
    log_in,
    record_of,
    run,
    wait_for,
)

CREATOR = """
import sys, time, os
sys.path.insert(0, {repository!r})
from pathlib import Path
from tests.providers.local.instances import create
from prefect_gpu.providers.local.driver import Local
instance = create(Local(roots=[Path({root!r})]), {name!r})
print(instance.ssh.port, flush=True)
time.sleep({stay})
"""


def creator(root: Path, name: str, *, stay: float) -> subprocess.Popen[str]:
    script = textwrap.dedent(CREATOR).format(repository=str(REPOSITORY), root=str(root), name=name, stay=stay)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_it_outlives_a_creator_that_is_killed(provider, root):
    name = lease_name()
    process = creator(root, name, stay=1000)
    process.stdout.readline()
    process.kill()
    process.wait()
    process.stdout.close()
    (found,) = provider.list_instances(name).instances
    assert found.state is InstanceState.RUNNING
    with log_in(found) as connection:
        assert run(connection, "echo here") == (b"here\n", 0)


def test_it_holds_nothing_of_its_creator_open(provider, root):
    """`make run | tee log` ends when the flow does: the pipe is not held by the instance."""
    name = lease_name()
    process = creator(root, name, stay=0)
    port, rest = process.stdout.readline(), process.stdout.read()  # read() ends only when nobody holds the pipe
    assert process.wait(20) == 0
    process.stdout.close()
    assert port
    assert rest == ""
    record = record_of(root / name)
    for pid in (record["pid"], *keeper.descendants(record["pid"])):
        targets = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
        inside = {target for target in targets if target.startswith("/") and not target.startswith("/dev/null")}
        assert all(target.startswith(str(root)) for target in inside)
    assert Path(f"/proc/{record['pid']}/cwd").readlink() == Path("/")
    assert os.getsid(record["pid"]) != os.getsid(0)


def test_the_creator_keeps_no_child_and_no_open_file(provider):
    before = len(list(Path("/proc/self/fd").iterdir()))
    children = set(keeper.descendants(os.getpid()))
    create(provider)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert set(keeper.descendants(os.getpid())) == children
    with contextlib.suppress(ChildProcessError):
        assert os.waitpid(-1, os.WNOHANG) == (0, 0)


def test_two_processes_that_create_the_same_name_make_one_instance(provider, root):
    name = lease_name()
    (offer,) = provider.fetch_offers(Requirements())
    spec = launch_spec(provider, name)

    def order(_: int) -> int:
        return provider.create_instance(offer, spec).ssh.port

    with ThreadPoolExecutor(8) as pool:
        ports = set(pool.map(order, range(8)))
    assert len(ports) == 1
    entries = [entry.name for entry in root.iterdir()]
    assert entries == [name]
    with log_in(provider.get_instance(name)) as connection:
        assert run(connection, "echo one") == (b"one\n", 0)


def test_the_same_name_with_another_order_is_refused(provider):
    instance = create(provider)
    (offer,) = provider.fetch_offers(Requirements())
    other = launch_spec(provider, instance.name, deadline=utc_now() + timedelta(hours=5))
    with pytest.raises(InvalidRequest, match="another"):
        provider.create_instance(offer, other)


def test_an_order_that_died_halfway_is_listed_as_failed_and_finished_by_the_same_order(provider, root, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    name = lease_name()
    (offer,) = provider.fetch_offers(Requirements())
    spec = launch_spec(provider, name)
    with monkeypatch.context() as patch:
        patch.setattr(order, "_run_keeper", killed)
        with pytest.raises(KeyboardInterrupt):
            provider.create_instance(offer, spec)
    (found,) = provider.list_instances(name).instances
    assert found.state is InstanceState.FAILED
    again = provider.create_instance(offer, spec)
    assert again.state is InstanceState.RUNNING
    with log_in(again) as connection:
        assert run(connection, "echo up") == (b"up\n", 0)


def test_an_order_that_died_halfway_can_be_terminated(provider, root, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(order, "_run_keeper", killed)
        with pytest.raises(KeyboardInterrupt):
            create(provider, name := lease_name())
    provider.terminate_instance(name)
    assert list(root.iterdir()) == []


def test_a_creator_killed_at_any_moment_leaves_one_instance_or_none(provider, root):
    """Whatever is found afterwards can be repeated into one running instance, and ended."""
    for delay in (0.0, 0.01, 0.02, 0.04, 0.08):
        name = lease_name()
        script = textwrap.dedent(CREATOR).format(repository=str(REPOSITORY), root=str(root), name=name, stay=1000)
        script = script.replace(
            "instance = create",
            f"os.kill and __import__('threading').Timer({delay}, os.kill, (os.getpid(), 9)).start()\ninstance = create",
        )
        subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL, check=False)
        time.sleep(0.3)
        assert len(provider.list_instances(name).instances) <= 1
        provider.terminate_instance(name)
        assert wait_for(lambda name=name: not provider.list_instances(name).instances)
    drafts = [entry for entry in root.iterdir() if entry.name.startswith(".new-")]
    for draft in drafts:
        os.utime(draft, (1, 1))
    provider.list_instances("")
    assert list(root.iterdir()) == []


def test_without_a_writable_home_the_next_directory_is_used_and_found_again(tmp_path):
    (tmp_path / "home").write_text("a file where a directory should be")
    roots = [tmp_path / "home" / "state", tmp_path / "fallback"]
    provider = Local(roots=roots)
    instance = create(provider)
    try:
        assert (tmp_path / "fallback" / instance.name).is_dir()
        assert [found.name for found in Local(roots=roots).list_instances("pg-").instances] == [instance.name]
    finally:
        end_all(provider)


def test_without_any_writable_directory_create_says_which_and_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    provider = Local(roots=[tmp_path / "file" / "a", tmp_path / "file" / "b"])
    with pytest.raises(InvalidRequest, match=r"file/a.*file/b.*make one of them writable"):
        create(provider)
    assert provider.list_instances("").instances == ()


def test_a_directory_that_somebody_else_prepared_in_tmp_is_not_trusted(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with pytest.raises(InvalidRequest, match="belongs to somebody else"):
        create(Local(roots=[tmp_path / "link"]))


def test_instances_are_found_by_the_users_entry_and_not_by_variables(monkeypatch):
    before = local._default_roots()
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("XDG_STATE_HOME", "/nonexistent")
    assert local._default_roots() == before


def test_an_instance_of_another_host_is_unread_and_unknown_and_not_removed(provider, root):
    instance = create(provider)
    path = root / instance.name / "machine.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps(written | {"host": "elsewhere-0"}))
    listing = provider.list_instances("pg-")
    assert listing.instances == ()
    assert [unread.scope for unread in listing.incomplete] == ["elsewhere-0"]
    assert provider.get_instance(instance.id).state is InstanceState.UNKNOWN
    # Terminate asks the keeper there, by the shared file, and it hears.
    provider.terminate_instance(instance.id)
    assert wait_for(lambda: list(root.iterdir()) == [])


def test_an_instance_of_another_container_with_the_same_files_is_unread(provider, root):
    instance = create(provider)
    path = root / instance.name / "machine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"processes": "pid:[1]"}))
    assert not provider.list_instances("pg-").is_complete


def test_after_a_restart_of_the_machine_what_is_left_is_failed_and_removable(provider, root):
    instance = create(provider)
    record = record_of(root / instance.name)
    provider.terminate_instance(instance.id)
    place = root / instance.name
    (place / "home").mkdir(parents=True)
    written = {
        "name": instance.name, "host": directory.machine_id(), "processes": str(Path("/proc/self/ns/pid").readlink()), "order": "", "port": 1,
        "user": "u", "created_at": utc_now().isoformat(), "deadline": utc_now().isoformat(),
    }  # fmt: skip
    (place / "machine.json").write_text(json.dumps(written))
    (place / "lock").touch()
    (place / "keeper").write_text(
        json.dumps(record | {"pid": os.getpid(), "started": keeper.started(os.getpid()), "boot": "before"})
    )
    (found,) = provider.list_instances("pg-").instances
    assert found.state is InstanceState.FAILED
    assert "restarted" in found.reason
    provider.terminate_instance(found.id)
    assert list(root.iterdir()) == []


def test_a_directory_that_a_power_cut_damaged_is_a_leftover_and_removable(provider, root):
    instance = create(provider)
    record = record_of(root / instance.name)
    os.kill(record["pid"], signal.SIGKILL)
    assert wait_for(lambda: not lives(record["pid"]))
    (root / instance.name / "machine.json").write_text("")
    listing = provider.list_instances("pg-")
    assert listing.instances == ()
    assert [(left.id, left.name) for left in listing.leftovers] == [(instance.name, instance.name)]
    provider.terminate_instance(listing.leftovers[0].id)
    assert list(root.iterdir()) == []
