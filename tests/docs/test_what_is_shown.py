"""What the pages show can be typed, imported and applied: commands, code, unit files, manifests, messages."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs import facts, pages
from tests.stack import ROOT

README = ROOT / "README.md"
IN_TEXT = re.compile(r"`((?:prefect-gpu|make) [^`]+)`")


def typed() -> list[tuple[str, str]]:
    """Each command of ours that a page or the README shows: where, and the line."""
    found: list[tuple[str, str]] = []
    for page in [*pages.pages(), README]:
        text = page.read_text()
        lines = re.findall(r"^ *\$ ((?:prefect-gpu|make)\b.*)$", text, re.MULTILINE)
        lines += IN_TEXT.findall(text)
        found += [(page.name, re.split(r" {2,}", line)[0]) for line in lines if "<" not in line]
    return sorted(set(found))


TYPED = typed()


@pytest.mark.parametrize("line", sorted({line for _, line in TYPED if line.startswith("prefect-gpu")}))
def test_a_command_that_is_shown_can_be_typed(line: str) -> None:
    from prefect_gpu.flows.terminal import jobs, setting_up, watching  # noqa: F401 - they name their commands
    from prefect_gpu.flows.terminal.app import app

    words = shlex.split(line)[1:]
    if words[0] in {"COMMAND", "--install-completion", "--version"}:
        return
    app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("line", sorted({line for _, line in TYPED if line.startswith("make")}))
def test_a_target_that_is_shown_is_in_the_makefile(line: str) -> None:
    subprocess.run(["make", "-n", *shlex.split(line)[1:]], cwd=ROOT, check=True, capture_output=True)


def test_commands_are_found() -> None:
    assert len(TYPED) > 20, "else nothing was tested"


@pytest.mark.parametrize("fence", pages.fences("python"), ids=lambda fence: fence.id)
def test_code_that_is_shown_is_run(fence: pages.Fence) -> None:
    exec(compile(fence.body, str(fence.page), "exec"), {"__name__": "shown"})


@pytest.mark.parametrize("fence", pages.fences("yaml", "json"), ids=lambda fence: fence.id)
def test_yaml_and_json_that_are_shown_can_be_read(fence: pages.Fence) -> None:
    assert list(yaml.safe_load_all(fence.body))


@pytest.mark.parametrize("fence", pages.fences("sh"), ids=lambda fence: fence.id)
def test_shell_that_is_shown_is_shell(fence: pages.Fence) -> None:
    subprocess.run(["sh", "-n"], input=fence.body, text=True, check=True)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
@pytest.mark.parametrize("fence", pages.fences("ini"), ids=lambda fence: fence.id)
def test_a_unit_file_is_one_that_systemd_takes(fence: pages.Fence, tmp_path: Path) -> None:
    unit = tmp_path / fence.title
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", fence.body, flags=re.MULTILINE))
    ran = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    said = [line for line in ran.stderr.splitlines() if fence.title in line]
    assert (ran.returncode, said) == (0, []), ran.stderr


MANIFESTS = [fence.body for fence in pages.fences("yaml") if "apiVersion:" in fence.body]
MANIFESTS.append((pages.DOCS / "kubernetes-rbac.yaml").read_text())


@pytest.mark.kubernetes
@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda text: re.search(r"kind: (\w+)", text)[1])  # type: ignore[index]
def test_a_manifest_is_one_that_a_cluster_takes(manifest: str) -> None:
    kubeconfig = os.environ.get("PREFECT_GPU_TEST_KUBECONFIG", "/var/tmp/peers-k8s/kubeconfig")
    if not shutil.which("kubectl") or not Path(kubeconfig).is_file():
        pytest.skip("no cluster, or no kubectl")
    command = ["kubectl", "--kubeconfig", kubeconfig, "apply", "--dry-run=client", "--validate=strict", "-f", "-"]
    ran = subprocess.run(command, input=manifest, text=True, capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr


@cache
def strings_of_the_code() -> str:
    """All literals of the code that people may read, with what is filled in as a space."""
    found: list[str] = []
    for folder in ("flows", "providers", "blocks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append(
                        "".join(str(one.value) if isinstance(one, ast.Constant) else "\0" for one in node.values)
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def messages() -> list[str]:
    table = (pages.DOCS / "troubleshooting.md").read_text()
    return [part for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for part in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize("message", messages())
def test_a_message_of_the_troubleshooting_page_is_one_of_ours(message: str) -> None:
    said = re.escape(message).replace("aws", "(?:aws|\0)")
    assert re.search(said, strings_of_the_code()), message


def test_every_event_that_is_sent_is_described() -> None:
    assert set(facts.found_events()) == set(facts.EVENTS)


# On no index, so that name is anybody's there: pip would install whatever somebody put under it.
FROM_AN_INDEX = re.compile(
    r"(?<!make )install\b[^`\n]*?(?<![\w/.-])prefect[-_]gpu(?=[\[\"'`\s=<>~!]|$)|prefect[-_]gpu\[", re.IGNORECASE
)


@pytest.mark.parametrize(
    ("line", "is_from_an_index"),
    [
        ("pip install prefect-gpu", True),
        ("pip install --no-cache-dir 'prefect_gpu[all]'", True),
        ("uv pip install 'prefect-gpu>=0.1'", True),
        ("an environment with `prefect-gpu[all]` in it", True),
        ("pip install '.[aws]'", False),
        ("pip install 'dist/prefect_gpu-0.1.0-py3-none-any.whl[all]'", False),
        ("once it is installed, `prefect-gpu run`", False),
    ],
)
def test_who_names_the_package_to_an_installer_is_found(line: str, is_from_an_index: bool) -> None:
    assert bool(FROM_AN_INDEX.search(line)) is is_from_an_index


def test_nobody_is_told_to_install_a_name_that_anybody_can_register() -> None:
    told: list[str] = []
    for path in [*pages.pages(), *ROOT.glob("*.md"), *(ROOT / "docs").glob("Dockerfile*"), ROOT / "Makefile"]:
        told += [f"{path.name}: {line}" for line in path.read_text().splitlines() if FROM_AN_INDEX.search(line)]
    told += [line for line in strings_of_the_code().splitlines() if FROM_AN_INDEX.search(line)]
    assert told == []


def test_what_is_said_of_others_has_a_source_in_its_cell() -> None:
    rows = [line for line in (pages.DOCS / "comparison.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) > 8
    for row in rows[1:]:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 6, row
        for cell in cells[2:]:
            assert cell == "-" or re.search(r"\]\(https://[^)]+\)", cell), f"{cells[0]}: {cell}"


# --- commands of others --------------------------------------------------------------------------------------------------

PREFECT = sorted(
    {
        re.split(r" {2,}", line)[0]
        for page in [*pages.pages(), README]
        for line in re.findall(r"^ *\$ (prefect .*)$", page.read_text(), re.MULTILINE)
    }
)


@pytest.mark.parametrize("line", PREFECT)
def test_a_command_of_prefect_that_is_shown_can_be_typed(line: str) -> None:
    prefect: Any = vars(import_module("prefect.cli._app"))["_app"]
    prefect.parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)


def test_quotas_that_are_shown_are_read_as_quotas() -> None:
    from prefect_gpu.flows.run import quotas

    names = re.findall(r'prefect gcl create "([^"]+)"', (pages.DOCS / "team.md").read_text())
    assert len(names) == 2
    assert all(quotas.quota_of(name, 1) for name in names)


def test_files_that_an_installer_is_given_are_there() -> None:
    """`pip install -r FILE`, `docker build -f FILE`, `kubectl apply -f FILE`, on every page."""
    given = {
        path
        for page in [*pages.pages(), README]
        for path in re.findall(r"^ *\$ .*? (?:-r|-f|--role-definition) ([\w./-]+\w)", page.read_text(), re.MULTILINE)
    }
    assert {"requirements-all.lock", "docs/Dockerfile", "docs/kubernetes-rbac.yaml"} <= given
    assert [path for path in given if not (ROOT / path).is_file()] == []


def test_the_dockerfile_takes_only_what_is_in_the_tree() -> None:
    text = (pages.DOCS / "Dockerfile").read_text()
    taken = re.findall(r"/src/([\w./-]+\w)", text)
    assert taken
    assert [one for one in taken if not (ROOT / one).is_file()] == []
    assert "--require-hashes" in text
    assert re.search(r"^USER (?!root)", text, re.MULTILINE), "not as root"
