"""Installed from a wheel into the environment of a project that has `flows/`, `blocks/` and `providers/` of its own, in its folder.

One server and worker, made by the command itself, serve all tests here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.fakes import catalogs
from tests.stack import ROOT, wait_until

pytestmark = [pytest.mark.server, pytest.mark.timeout(900)]  # a busy machine takes minutes to start a server

MINE = {
    "flows/__init__.py": "",
    "flows/train.py": "NAME = 'my own flows'\n",
    "blocks/__init__.py": "MINE = True\n",
    "providers/__init__.py": "MINE = True\n",
    "mine.py": """
import blocks, providers
from flows.train import NAME
from prefect import flow
from prefect_gpu.providers import library
from prefect_gpu.providers.core.requests import Requirements

assert blocks.MINE and providers.MINE

@flow
def mine():
    return [offer.provider for offer in library("local").fetch_offers(Requirements())]

print(NAME, mine())
""",
}


class Project(NamedTuple):
    """Somebody's project, and the environment in which prefect_gpu is installed."""

    folder: Path
    bin: Path
    variables: dict[str, str]

    def type(self, *words: str, code: int = 0, program: str = "prefect-gpu") -> str:
        """What a line says on stdout; its exit code is as expected."""
        done = subprocess.run(
            [self.bin / program, *words],
            cwd=self.folder,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.bin / "prefect-gpu", *words],
            cwd=self.folder,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ps(self, *words: str) -> list[dict[str, Any]]:
        return json.loads(self.type("ps", "--json", *words))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("installed")
    source, venv, project, home = (folder / name for name in ("source", "venv", "project", "home"))
    for one in ("flows", "providers", "blocks"):
        shutil.copytree(ROOT / one, source / one, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for one in ("pyproject.toml", "README.md", "LICENSE", "prefect.yaml"):
        shutil.copy(ROOT / one, source)
    uv = Path(sys.executable).with_name("uv")
    # Built as pip would, with the setuptools that is here; what the wheel needs is taken from this environment.
    subprocess.run(
        [
            uv,
            "build",
            "--wheel",
            "--no-build-isolation",
            "--offline",
            "-q",
            "--python",
            sys.executable,
            "-o",
            folder,
            source,
        ],
        check=True,
        timeout=120,
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=60)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)}))
    (packages / "here.pth").write_text(
        f"{sysconfig.get_path('purelib')}\n"
    )  # its own .pth files do not count: no checkout
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [uv, "pip", "install", "-q", "--offline", "--no-deps", "--python", venv / "bin" / "python", wheel],
        check=True,
        timeout=60,
    )
    for name, text in MINE.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    home.mkdir(mode=0o700)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MAKE", "PYTHON"))}
    kept |= {"HOME": str(folder), "PREFECT_GPU_HOME": str(home), "COLUMNS": "120"}
    return Project(project, venv / "bin", {**kept, "GPUHUNT_CATALOG_URL": "http://127.0.0.1:1"})


@pytest.fixture(scope="module")
def up(installed: Project) -> Iterator[Project]:
    said = installed.type("up")
    assert "Server and worker run until `prefect-gpu down`." in said
    try:
        yield installed
    finally:
        installed.type("down", "--force")


def test_it_is_what_was_installed_and_not_the_checkout(installed: Project) -> None:
    where = installed.type("-c", "import prefect_gpu.flows as it; print(it.__path__[0])", program="python")
    assert Path(where.strip()).is_relative_to(installed.bin.parent)
    assert installed.type("--version").strip() == "0.1.0"


def test_its_help_teaches(installed: Project) -> None:
    listed = installed.type("--help")
    for command in (
        "run",
        "plan",
        "providers",
        "ps",
        "logs",
        "stop",
        "fetch",
        "reap",
        "connect",
        "refresh",
        "up",
        "down",
        "deploy",
    ):
        assert command in listed
    shown = installed.type("run", "--help")
    assert "prefect-gpu run --gpu H100:8" in shown
    assert "USD per hour" in shown
    assert 'Did you mean "plan"' in installed.type("plam", code=2)


def test_a_worker_in_that_project_runs_provision(up: Project) -> None:
    (up.folder / "hello.py").write_text("print('hello', 6 * 7)\nopen('made.txt', 'w').write('made')\n")
    shown = up.type("run", "--provider", "local", "--output", "*.txt", "--", "python3", "hello.py")
    assert "  | hello 42\n" in shown
    assert "Completed" in shown
    assert "instances left behind: 0" in shown
    (run,) = up.ps("--all")
    assert [path.read_text() for path in (up.folder / "fetched" / run["name"]).rglob("made.txt")] == ["made"]
    assert (run["state"], run["command"], run["provider"], run["may_cost"]) == (
        "Completed",
        "python3 hello.py",
        "local",
        0,
    )
    assert run["who"].partition("@")[0]
    assert up.ps() == []
    assert "  | hello 42\n" in up.type("logs", run["name"])
    assert up.type("logs", run["id"][:8], "--tail", "1").count("\n") == 1
    assert json.loads(up.type("fetch", run["name"], "--json"))["folder"] == str(up.folder / "fetched" / run["name"])
    assert "had ended already (Completed): its machine is gone" in up.type("stop", run["name"])


def test_a_flow_of_that_project_uses_the_task_library(up: Project) -> None:
    home = Path(up.variables["PREFECT_GPU_HOME"])
    url = json.loads((home / "server.json").read_text())["url"]
    asked = up._replace(
        variables={
            **up.variables,
            "PREFECT_API_URL": url,
            "PREFECT_API_AUTH_STRING": (home / "password").read_text().strip(),
        }
    )
    assert "my own flows ['local']" in asked.type("mine.py", program="python")


def test_prices_are_told_there(up: Project) -> None:
    """At the first question already: what is published is fetched, and nobody has to know another command."""
    catalogs.publish(up.folder / "v3", "verda", catalogs.rows("verda"))
    with catalogs.serve(up.folder / "v3") as address:
        priced = up._replace(variables={**up.variables, "GPUHUNT_CATALOG_URL": address})
        found = json.loads(priced.type("plan", "--json"))
    assert found["buyable"] >= 1
    assert {one["offer"]["provider"] for one in found["market"]} == {"verda"}
    assert "prices" not in found["troubles"]
    assert found["offers"][0]["offer"]["provider"] == "local"
    assert "'H100:0' asks for 0 GPUs" in up.type("plan", "--gpu", "H100:0", code=2)


def test_a_run_is_followed_by_others_and_stopped_and_its_machine_is_gone(up: Project) -> None:
    running = up.start("run", "--provider", "local", "--", "sh", "-c", "echo begun; sleep 600")
    started = [running]
    try:
        wait_until(lambda: any(row["provider"] for row in up.ps()), 300, "the run's machine")
        (row,) = up.ps()
        assert (row["state"], row["provider"], row["may_cost"], row["is_over"]) == ("Running", "local", 1, False)
        others = up.start("logs", row["name"], "-f")
        started.append(others)
        assert others.stdout is not None
        while "begun" not in (line := others.stdout.readline()):
            assert line, "it ended before the job began"
        assert "1 job is at work" in up.type("down", code=1)
        looked = json.loads(up.type("reap", "--dry-run", "--json"))
        assert [(one["provider"], one["end_because"]) for one in looked["found"]] == [("local", None)]
        assert (looked["dry_run"], looked["message"]) == (True, "would terminate 0, 1 in use")
        said = json.loads(up.type("stop", row["name"], "--json"))
        assert (said["state"], said["remains"]) == ("Cancelled", [])
        assert others.wait(120) == 0
        shown = running.communicate(timeout=120)[0]
        assert running.returncode == 130
        assert "instances left behind: 0" in shown
        assert up.ps() == []
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_who_asks_for_a_run_that_is_not_there_hears_what_was_meant(up: Project) -> None:
    name = up.ps("--all")[0]["name"]
    assert f"did you mean {name}?" in up.type("logs", name[:-1] + "_", code=1)
    assert up.type("stop", code=2).startswith("Say which run: `prefect-gpu stop NAME`")
