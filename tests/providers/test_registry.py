"""The registry gives the task libraries of the installed package, from whatever directory it is asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prefect_gpu import providers

_ASK = """
import sys
from prefect_gpu import providers
print(providers.library(sys.argv[1]).driver_class.__module__)
"""


def test_a_library_is_of_the_installed_package_in_any_directory(tmp_path: Path) -> None:
    (tmp_path / "providers").mkdir()
    (tmp_path / "providers" / "__init__.py").write_text("raise SystemExit('the user has a package of that name')")
    done = subprocess.run(
        [sys.executable, "-c", _ASK, "ssh"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip().startswith("prefect_gpu.providers.ssh"), done.stderr


def test_a_fault_of_our_own_is_not_taken_for_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        raise ModuleNotFoundError(f"No module named {name!r}", name=f"{name}.moved")

    monkeypatch.setattr(providers.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError):
        providers.library("ssh")
