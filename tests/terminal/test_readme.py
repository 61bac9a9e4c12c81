"""What the README counts is so."""

from __future__ import annotations

import re

from prefect_gpu.providers import ProviderName
from tests.stack import ROOT

README = (ROOT / "README.md").read_text()


def test_it_is_at_most_160_lines() -> None:
    assert len(README.splitlines()) <= 160


def lines_of(provider: str) -> int:
    """Everything that only this provider needs: its file or package, and its block."""
    package = ROOT / "providers" / provider
    files = [path for path in package.rglob("*") if path.suffix in {".py", ".sh", ".toml"}]
    files += [
        path
        for path in (package.with_suffix(".py"), package.with_suffix(".toml"), ROOT / "blocks" / f"{provider}.py")
        if path.exists()
    ]
    return sum(len(path.read_text().splitlines()) for path in files)


def slack(lines: int) -> float:
    """The table says "about": whoever moves a line need not touch it."""
    return max(15, lines / 20)


def test_its_table_has_every_provider_with_the_lines_that_it_takes() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", README, re.MULTILINE))
    counted = {name.value: lines_of(name.value) for name in ProviderName}
    assert rows.keys() == counted.keys()
    told = {name: (int(rows[name]), lines) for name, lines in counted.items()}
    assert {name: pair for name, pair in told.items() if abs(pair[0] - pair[1]) > slack(pair[1])} == {}


def test_every_command_that_it_names_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"(?:\$ |`)make ([a-z]+)", README))
    assert named <= targets, named - targets
