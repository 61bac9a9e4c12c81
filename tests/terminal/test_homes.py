"""What holds the server's secrets lies where nobody else reads it and nothing uploads it, and is taken over from a checkout."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from prefect_gpu.flows.terminal import homes
from prefect_gpu.flows.terminal.messages import Trouble
from prefect_gpu.providers.core import private


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user's HOME, with a temporary folder and a checkout of its own."""
    for variable in ("XDG_STATE_HOME", "PREFECT_GPU_HOME", "PREFECT_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for name in ("user", "tmp", "checkout"):
        (tmp_path / name).mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(private, "_checkout", lambda: tmp_path / "checkout")
    return tmp_path / "user"


def test_the_home_is_the_users_state_folder_for_nobody_else(user: Path) -> None:
    home = homes.found()
    assert home == user / ".local" / "state" / "prefect-gpu"
    assert mode(home) == 0o700


def test_the_variables_name_another_one(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(user / "elsewhere"))
    assert homes.found() == user / "elsewhere" / "prefect-gpu"
    monkeypatch.setenv("PREFECT_GPU_HOME", str(user / "mine"))
    assert homes.found() == user / "mine"


def test_a_home_that_others_could_read_is_closed_to_them(user: Path) -> None:
    home = user / ".local" / "state" / "prefect-gpu"
    home.mkdir(parents=True, mode=0o755)
    homes.found()
    assert mode(home) == 0o700


def test_where_home_cannot_be_written_a_private_folder_is_made(
    user: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    (tmp_path / "file").touch()
    home = homes.found()
    assert home.parent == tmp_path / "tmp"
    assert mode(home) == 0o700
    assert homes.found() == home


@pytest.mark.parametrize("was_there_first", ["link", "other"])
def test_a_folder_that_another_user_made_first_is_not_believed(
    user: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, was_there_first: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    fallback = private._fallback()
    if was_there_first == "link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        fallback.symlink_to(tmp_path / "theirs")
    else:
        fallback.mkdir(mode=0o700)
        somebody = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: somebody)
        fallback.rename(private._fallback())
    with pytest.raises(Trouble, match="is not your own: name another with PREFECT_GPU_HOME"):
        homes.found()


def test_a_named_home_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PREFECT_GPU_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(
        Trouble,
        match=r"file/home holds the Prefect server's data and cannot be written: (Not a directory|File exists)\.",
    ):
        homes.found()


def test_what_must_never_be_uploaded_is_named_by_what_is_there(user: Path, tmp_path: Path) -> None:
    home = homes.found()
    (tmp_path / "checkout" / ".prefect-gpu").mkdir()
    (user / ".prefect").mkdir()
    assert private.never_uploaded() == [home, tmp_path / "checkout" / ".prefect-gpu", user / ".prefect"]


# --- an earlier version's ------------------------------------------------------------------------------------------------


@pytest.fixture
def old(user: Path, tmp_path: Path) -> Path:
    """What the first version left in the checkout, readable by everybody."""
    old = tmp_path / "checkout" / ".prefect-gpu"
    (old / "storage").mkdir(parents=True)
    (old / "prefect.db").write_text("blocks")
    (old / "storage" / "result").write_text("42")
    for path in (old, *old.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return old


def test_an_earlier_versions_folder_is_taken_over(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = homes.found()
    assert (home / "prefect.db").read_text() == "blocks"
    assert (home / "storage" / "result").read_text() == "42"
    assert not old.exists()
    assert [mode(home), mode(home / "prefect.db"), mode(home / "storage")] == [0o700, 0o600, 0o700]
    assert capsys.readouterr().err == (
        f"{old} was moved to {home}: what holds secrets lies outside the checkout now.\n"
    )
    assert homes.found() == home
    assert capsys.readouterr().err == ""


def test_it_leaves_the_checkout_also_where_there_is_a_newer_one(old: Path) -> None:
    private.wished_home().mkdir(parents=True)
    (private.wished_home() / "prefect.db").write_text("newer")
    home = homes.found()
    assert (home / "prefect.db").read_text() == "newer"
    assert (home / "earlier" / "prefect.db").read_text() == "blocks"
    assert not old.exists()


def test_it_is_copied_to_another_disk(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def across(source: Path, target: Path) -> Path:
        if source == old:
            raise OSError(18, "Invalid cross-device link")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", across)
    home = homes.found()
    assert (home / "storage" / "result").read_text() == "42"
    assert [path.name for path in home.parent.iterdir()] == ["prefect-gpu"]
    assert not old.exists()


def test_it_is_not_moved_under_a_running_server_and_make_down_finds_that(old: Path) -> None:
    with (old / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(
            Trouble, match=r"^An earlier version of prefect-gpu is at work in .*: `prefect-gpu down` stops it"
        ):
            homes.found()
        assert homes.to_stop() == old
    assert homes.to_stop() == private.wished_home()
    shutil.rmtree(private.wished_home())
    assert homes.found() == private.wished_home()


def test_who_names_a_home_takes_nothing_over(old: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_GPU_HOME", str(tmp_path / "mine"))
    homes.found()
    assert old.exists()
