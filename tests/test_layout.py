"""The tree is as CONTRIBUTING says: imports go one way, each library has its one home, no file outgrows a screenful of screens."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP = ("flows", "providers", "blocks")
FILES = sorted(path for top in TOP for path in (ROOT / top).rglob("*.py"))
MODULES = {path: ".".join(("prefect_gpu", *path.relative_to(ROOT).with_suffix("").parts)) for path in FILES}
NAMES = {name.removesuffix(".__init__") for name in MODULES.values()}

# What each part of the core may import of the core.
FIRST = {"contract", "models", "requests", "errors", "lease", "aside", "private", "typed"}
ALLOWED = {
    "gpu": FIRST | {"gpu"},
    "catalog": FIRST | {"gpu", "catalog"},
    "machine": FIRST | {"gpu", "machine"},
    "renting": FIRST | {"gpu", "catalog", "machine", "renting", "toolkit"},
    "toolkit": FIRST | {"toolkit"},
}
ONE_HOME = {"paramiko": "providers/core/machine/ssh.py", "gpuhunt": "providers/core/catalog"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, in functions too, but not for type checkers alone."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree(path)):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in NAMES else node.module or ""


def ours(path: Path) -> set[str]:
    return {name.removeprefix("prefect_gpu.") for name in imports(path) if name.startswith("prefect_gpu.")}


def parts(path: Path) -> tuple[str, ...]:
    return path.relative_to(ROOT).with_suffix("").parts


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
class TestEveryFile:
    def test_imports_ours_as_prefect_gpu(self, path: Path) -> None:
        assert not [name for name in imports(path) if name.partition(".")[0] in TOP]

    def test_imports_only_what_stands_below_it(self, path: Path) -> None:
        top, imported = parts(path)[0], {name.split(".")[0] for name in ours(path)}
        below = {"flows": set(TOP), "providers": {"providers", "blocks"}, "blocks": {"blocks"}}
        assert imported <= below[top], imported
        if parts(path)[:2] != ("flows", "terminal"):
            assert not [name for name in ours(path) if name.startswith("flows.terminal")]
        if parts(path)[:2] == ("providers", "core"):
            assert not [name for name in ours(path) if name.startswith("providers.") and name.split(".")[1] != "core"]

    def test_of_the_core_imports_what_its_part_may(self, path: Path) -> None:
        if parts(path)[:2] != ("providers", "core") or len(parts(path)) < 3:
            return
        part = parts(path)[2]
        allowed = ALLOWED.get(part, FIRST)
        imported = {name.split(".")[2] for name in ours(path) if name.startswith("providers.core.")}
        assert imported <= allowed, imported - allowed

    def test_knows_of_a_provider_only_its_package(self, path: Path) -> None:
        where = parts(path)
        for name in ours(path):
            inner = name.split(".")
            if inner[0] == "providers" and len(inner) > 2 and inner[1] != "core":
                assert where[:2] == ("providers", inner[1]), f"{name} is the provider's own"

    def test_imports_prefect_where_prefect_belongs(self, path: Path) -> None:
        where = parts(path)
        if where[0] != "providers" or where[:3] == ("providers", "core", "renting"):
            return
        assert not [name for name in imports(path) if name.partition(".")[0] == "prefect"]

    def test_imports_a_library_only_in_its_home(self, path: Path) -> None:
        for library, home in ONE_HOME.items():
            if not str(path.relative_to(ROOT)).startswith(home):
                assert library not in {name.partition(".")[0] for name in imports(path)}

    def test_is_at_most_300_lines(self, path: Path) -> None:
        assert len(path.read_text().splitlines()) <= 300

    def test_has_a_name_that_says_what_it_holds(self, path: Path) -> None:
        assert path.stem not in {"utils", "helpers", "base", "constants", "common", "misc"}

    def test_holds_shell_only_in_sh_files(self, path: Path) -> None:
        scripts = [
            node.lineno
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.count("\n") > 5
            if looks_like_shell(node.value)
        ]
        assert not scripts, f"lines {scripts}"


def looks_like_shell(text: str) -> bool:
    return sum(word in text for word in ("\nfi\n", "; then", "; do\n", "\ndone", "2>/dev/null", "esac")) >= 2


def test_no_circle_between_packages() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        here = ".".join(parts(path)[:-1])
        graph.setdefault(here, set()).update(
            package
            for name in ours(path)
            if (package := package_of(name)) != here and package not in {"flows", "providers"}
        )
    for start, direct in graph.items():
        seen, edge = set[str](), set(direct)
        while edge:
            package = edge.pop()
            assert package != start, f"{start} imports itself in a circle"
            if package not in seen:
                seen.add(package)
                edge |= graph.get(package, set())


def package_of(name: str) -> str:
    path = ROOT / Path(*name.split("."))
    return name if path.is_dir() else name.rpartition(".")[0]


def test_every_package_is_installed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {f"prefect_gpu.{'.'.join(parts(path)[:-1])}" for path in FILES if path.name == "__init__.py"}
    assert listed == there


def test_a_package_names_its_modules_in_its_docstring() -> None:
    for path in FILES:
        if path.name != "__init__.py" or len(parts(path)) < 3:
            continue
        said = ast.get_docstring(tree(path)) or ""
        for module in path.parent.glob("*.py"):
            assert module.stem == "__init__" or module.stem in said, (
                f"{path.relative_to(ROOT)} leaves out {module.stem}"
            )
