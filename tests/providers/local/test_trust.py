"""Whose an instance of local is: what somebody else put there is not read, not followed, and no reason to signal anybody."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from prefect_gpu.providers.core.errors import InvalidRequest, NotFound, ProviderError
from prefect_gpu.providers.core.models import InstanceState
from prefect_gpu.providers.local import directory, keeper
from tests.conformance import lease_name
from tests.providers.local.instances import create, log_in, run, wait_for


@pytest.fixture
def stranger():
    """A process of ours that is no instance's."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def plant(place: Path, stranger: subprocess.Popen[bytes], **changes: object) -> Path:
    """A directory that looks like an instance, kept by that process."""
    (place / "home").mkdir(parents=True)
    now = "2026-11-28T00:00:00Z"
    told = {
        "name": place.name, "host": directory.machine_id(), "processes": directory.process_namespace(), "order": "",
        "port": 22, "user": "u", "created_at": now, "deadline": "2100-01-01T00:00:00Z",
    }  # fmt: skip
    (place / "machine.json").write_text(json.dumps(told | changes))
    record = {"pid": stranger.pid, "started": keeper.started(stranger.pid), "boot": keeper.boot_id(), "memory": 0}
    (place / "keeper").write_text(json.dumps(record))
    (place / "lock").touch()
    return place


def test_a_process_that_does_not_bear_the_mark_of_an_instance_keeps_none(provider, root, stranger):
    root.mkdir(mode=0o700)
    place = plant(root / lease_name(), stranger)
    assert provider.get_instance(place.name).state is InstanceState.FAILED
    provider.terminate_instance(place.name)
    assert stranger.poll() is None
    assert not place.exists()


def test_what_another_user_made_first_holds_nothing_and_is_left_alone(provider, root, stranger, monkeypatch):
    root.mkdir(mode=0o700)
    place = plant(root / lease_name(), stranger)
    (place / "failed").symlink_to(root / "made-by-a-link")
    before = sorted(path.name for path in root.rglob("*"))
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    listing = provider.list_instances("")
    assert listing.is_complete, "nothing of ours can be in it"
    assert (listing.instances, listing.leftovers) == ((), ())
    with pytest.raises(NotFound):
        provider.get_instance(place.name)
    provider.terminate_instance(place.name)
    with pytest.raises(InvalidRequest, match="belongs to somebody else"):
        create(provider)
    assert stranger.poll() is None
    assert sorted(path.name for path in root.rglob("*")) == before


def test_a_place_that_is_ours_and_open_to_others_is_said_and_not_believed(provider, root, stranger):
    root.mkdir()
    root.chmod(0o777)
    place = plant(root / lease_name(), stranger)
    assert "chmod 700" in provider.list_instances("").incomplete[0].reason
    for call in (provider.get_instance, provider.terminate_instance):
        with pytest.raises(ProviderError, match="chmod 700"):
            call(place.name)
    with pytest.raises(InvalidRequest, match="chmod 700"):
        create(provider)
    assert stranger.poll() is None
    root.chmod(0o700)


def test_no_link_is_followed(provider, root, stranger, tmp_path):
    root.mkdir(mode=0o700)
    elsewhere = plant(tmp_path / lease_name(), stranger)
    linked = root / elsewhere.name
    linked.symlink_to(elsewhere)
    inside = plant(root / lease_name(), stranger)
    for name in ("ending", "failed", "log"):
        (inside / name).symlink_to(tmp_path / f"target-{name}")
    (inside / "lock").unlink()
    (inside / "lock").symlink_to(tmp_path / "target-lock")
    assert [found.name for found in provider.list_instances("").instances] == [inside.name]
    for place in (linked, inside):
        provider.terminate_instance(place.name)
    assert elsewhere.exists()
    assert linked.is_symlink()
    assert not inside.exists()
    assert not list(tmp_path.glob("target-*"))


@pytest.mark.parametrize("name", ["machine.json", "keeper", "failed", "log", "lock", "ending"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "nothing but zeros", "noise"])
def test_whatever_stands_in_the_place_of_a_file_the_answer_comes_at_once(provider, root, stranger, name, kind):
    root.mkdir(mode=0o700)
    place = plant(root / lease_name(), stranger)
    (place / name).unlink(missing_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(place / name)
        case "folder":
            (place / name).mkdir()
        case "nothing but zeros":
            with (place / name).open("wb") as file:
                file.truncate(1 << 40)
        case _:
            (place / name).write_bytes(os.urandom(2000))
    listing = provider.list_instances("")
    assert len(listing.instances) + len(listing.leftovers) == 1
    assert all(len(found.reason) < 1000 for found in listing.instances)
    provider.terminate_instance(place.name)
    assert not place.exists()
    assert stranger.poll() is None


@pytest.mark.parametrize(
    "record",
    [
        "[]", "null", "{}", '{"pid": 1e400}', "[" * 60_000, '{"pid": "1"}', '{"pid": -1, "started": 1, "boot": "x"}',
        '{"pid": 0, "started": 0, "boot": "x"}', '{"pid": 99999999999999999999, "started": 1, "boot": "x"}',
    ],
)  # fmt: skip
def test_a_record_of_a_keeper_that_is_nonsense_signals_nobody(provider, root, stranger, record):
    root.mkdir(mode=0o700)
    place = plant(root / lease_name(), stranger)
    (place / "keeper").write_text(record)
    assert provider.get_instance(place.name).state is InstanceState.FAILED
    provider.terminate_instance(place.name)
    assert not place.exists()


@pytest.mark.parametrize(
    "change", [{"name": "pg-other"}, {"port": 0}, {"port": 70000}, {"deadline": "2026-01-01"}, {"x": 1}]
)
def test_a_machine_json_that_is_not_this_directorys_is_a_damaged_one(provider, root, stranger, change):
    root.mkdir(mode=0o700)
    place = plant(root / lease_name(), stranger, **change)
    assert [left.name for left in provider.list_instances("").leftovers] == [place.name]


def test_a_folder_that_is_no_instance_is_never_ended(provider, root):
    root.mkdir(mode=0o700)
    (root / "notes").mkdir()
    (root / "notes" / "file").touch()
    provider.terminate_instance("notes")
    assert [path.name for path in (root / "notes").iterdir()] == ["file"]


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_users_process_that_bears_the_mark_is_not_ours_to_end(provider, root):
    instance = create(provider)
    mark = {keeper.MARK: str(root / instance.name)}
    other = subprocess.Popen(["sleep", "1000"], env={**os.environ, **mark}, user=65534, start_new_session=True)
    try:
        assert other.pid not in keeper.marked(root / instance.name)
        provider.terminate_instance(instance.id)
        assert wait_for(lambda: not list(root.iterdir()))
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


# --- the calendar -----------------------------------------------------------------------------------------------------

SET = """
import runpy, time
read = time.time
time.time = lambda: read() + {seconds}
runpy.run_path({path!r}, run_name="__main__")
"""


def with_calendar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """From now on each keeper sees a calendar that somebody has set."""
    program = tmp_path / "keeper.py"
    program.write_text(SET.format(seconds=seconds, path=keeper.__file__))
    monkeypatch.setattr(keeper, "__file__", str(program))


def test_a_calendar_that_steps_an_hour_forward_ends_no_instance(provider, tmp_path, monkeypatch):
    with_calendar(tmp_path, monkeypatch, 3600)
    instance = create(provider)
    with log_in(instance) as connection:
        assert run(connection, "sleep 0.5; echo still here") == (b"still here\n", 0)
    time.sleep(keeper.LOOK_EVERY_S)
    assert provider.get_instance(instance.id).state is InstanceState.RUNNING


def test_a_calendar_that_steps_back_prolongs_no_lease(provider, root, tmp_path, monkeypatch):
    with_calendar(tmp_path, monkeypatch, -3600)
    create(provider, for_s=1)
    assert wait_for(lambda: not list(root.iterdir()), within_s=15)


# --- why it is gone ---------------------------------------------------------------------------------------------------


def test_a_host_that_ran_out_of_memory_is_said(provider, root, stranger, monkeypatch):
    root.mkdir(mode=0o700)
    place = plant(root / lease_name(), stranger)
    (place / "keeper").write_text(json.dumps({"pid": 2**22 + 5, "started": 1, "boot": keeper.boot_id(), "memory": 3}))
    monkeypatch.setattr(keeper, "out_of_memory", lambda: 3)
    assert "was killed" in provider.get_instance(place.name).reason
    monkeypatch.setattr(keeper, "out_of_memory", lambda: 4)
    assert "ran out of memory" in provider.get_instance(place.name).reason
