"""The environment of a fresh clone: made whole or made again, and one sentence for whatever stands in the way."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The bootstrap of a project in tmp_path, with three lock files that name nothing."""
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / ".ci" / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    for name, value in {
        "PROJECT": str(tmp_path),
        "VENV": str(venv),
        "STAMP": str(venv / "complete.json"),
        "TOOLS_LOCK": str(tmp_path / "tools.lock"),
    }.items():
        monkeypatch.setattr(module, name, value)
    for name in (*module.LOCKS, "tools.lock", "pyproject.toml"):
        (tmp_path / name).write_text("")
    return module


@pytest.fixture
def made(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was installed, by lock file; nothing really is."""
    installed: list[str] = []

    def make_venv() -> None:
        python = Path(bootstrap.python_of(bootstrap.VENV))
        python.parent.mkdir(parents=True)
        python.touch()

    monkeypatch.setattr(bootstrap, "make_venv", make_venv)
    monkeypatch.setattr(bootstrap, "install", installed.append)
    monkeypatch.setattr(bootstrap, "install_project", lambda: None)
    return installed


def test_it_is_made_once(bootstrap: ModuleType, made: list[str]) -> None:
    bootstrap.main("requirements.lock")
    bootstrap.main("requirements.lock")
    assert made == ["requirements.lock"]


def test_a_changed_lock_is_installed_again(bootstrap: ModuleType, made: list[str], tmp_path: Path) -> None:
    bootstrap.main("requirements.lock")
    (tmp_path / "requirements.lock").write_text("anything==1\n")
    bootstrap.main("requirements.lock")
    assert made == ["requirements.lock"] * 2


def test_a_half_made_one_is_made_again(bootstrap: ModuleType, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "install", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            bootstrap.main("requirements.lock")
    bootstrap.main("requirements.lock")
    assert made == ["requirements.lock"]


def test_one_whose_upgrade_was_interrupted_is_not_taken_for_whole(
    bootstrap: ModuleType, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap.main("requirements.lock")
    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "install", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            bootstrap.main("requirements-dev.lock")
    bootstrap.main("requirements.lock")
    assert made == ["requirements.lock"] * 2


def test_what_the_tests_need_holds_what_the_flows_need(bootstrap: ModuleType, made: list[str]) -> None:
    bootstrap.main("requirements-dev.lock")
    bootstrap.main("requirements.lock")
    assert made == ["requirements-dev.lock"]


def test_what_was_installed_once_stays_when_the_small_lock_changes(
    bootstrap: ModuleType, made: list[str], tmp_path: Path
) -> None:
    bootstrap.main("requirements-all.lock")
    (tmp_path / "requirements-all.lock").write_text("anything==1\n")
    bootstrap.main("requirements.lock")
    assert made == ["requirements-all.lock"] * 2


def test_another_python_means_another_environment(
    bootstrap: ModuleType, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap.main("requirements.lock")
    monkeypatch.setattr(bootstrap.sys, "version", "3.99")
    bootstrap.main("requirements.lock")
    assert made == ["requirements.lock"] * 2
    assert json.loads(Path(bootstrap.STAMP).read_text())["python"] == bootstrap.python_identity()


def test_an_old_python_is_told_in_a_sentence(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 9, 2))
    with pytest.raises(bootstrap.Refusal, match=r"needs Python 3\.11 or newer, and .* is 3\.9"):
        bootstrap.main("requirements.lock")


@pytest.mark.parametrize(
    "output",
    [
        "WARNING: Retrying ... NewConnectionError: Failed to establish a new connection: [Errno -3] Temporary failure in name resolution",
        "error: Request failed after 3 retries\n  Caused by: dns error: failed to lookup address information",
        "ERROR: No matching distribution found for uv==0.13.9",
    ],
)
def test_no_network_is_told_in_a_sentence(bootstrap: ModuleType, output: str) -> None:
    with pytest.raises(bootstrap.Refusal, match="needs the network once"):
        bootstrap.refuse_install(output)


def test_a_wrong_digest_is_told_with_the_installers_words(bootstrap: ModuleType) -> None:
    with pytest.raises(bootstrap.Refusal, match="THESE PACKAGES DO NOT MATCH THE HASHES"):
        bootstrap.refuse_install("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE\n")


def test_pips_settings_reach_uv(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = b"global.cert='/etc/ssl/ca.pem'\nglobal.index-url='https://mirror.example/simple'\n"
    monkeypatch.setattr(
        bootstrap.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, stdout=listed)
    )
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    settings = bootstrap.uv_settings("python")
    assert settings["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert settings["SSL_CERT_FILE"] == "/etc/ssl/ca.pem"


def test_without_an_index_it_ends_in_one_sentence_and_no_traceback(tmp_path: Path) -> None:
    pytest.importorskip("ensurepip", reason="needs python3-venv")
    (tmp_path / ".ci").mkdir()
    for name in (".ci/bootstrap.py", ".ci/tools.lock", "requirements.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_"))}
    environment |= {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, ".ci/bootstrap.py", "requirements.lock"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("No package index answers: ")
    assert "Traceback" not in done.stderr


def test_the_lock_files_hold_digests_and_no_addresses() -> None:
    for name in ("requirements.lock", "requirements-all.lock", "requirements-dev.lock", ".ci/tools.lock"):
        text = (ROOT / name).read_text()
        assert "://" not in text, name
        assert text.count("--hash=sha256:") >= text.count("=="), name


def test_each_lock_file_holds_all_of_the_one_before_it_in_the_same_versions() -> None:
    def pins(name: str) -> set[str]:
        return {line.split(" ")[0] for line in (ROOT / name).read_text().splitlines() if "==" in line.split(" ")[0]}

    assert pins("requirements.lock") <= pins("requirements-all.lock") <= pins("requirements-dev.lock")


# --- make -------------------------------------------------------------------------------------------------------------


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_make_alone_lists_what_there_is() -> None:
    shown = make().stdout
    for word in (
        "install",
        "run",
        "plan",
        "providers",
        "reap",
        "fetch",
        "connect",
        "refresh",
        "up",
        "down",
        "test",
        "bench",
    ):
        assert f"make {word} " in shown


def test_a_missing_python_is_told_in_a_sentence() -> None:
    done = make("run", "PYTHON=no-such-python")
    assert done.stderr.splitlines()[0].startswith("prefect-gpu needs Python 3.11 or newer")
    assert done.stdout == ""


def test_the_job_reaches_the_command_as_it_was_written(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nprintf "%s" "$JOB" >"$0.job"\nexit 1\n')
    fake.chmod(0o755)
    job = """echo $HOME "a  b" $(ls) 'c' #d"""
    make("run", f"PYTHON={fake}", f"JOB={job}")
    assert (tmp_path / "python.job").read_text() == job
