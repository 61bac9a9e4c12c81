"""The provider local against the contract that every provider keeps."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_gpu.providers.local import give_back, keeper, order
from prefect_gpu.providers.local.driver import Local
from tests.conformance import Faults, ProviderConformance, Subject, lease_name
from tests.providers.local.instances import (
    end_all,
    lives,
    record_of,
    wait_for,
)


class LocalFaults(Faults):
    def __init__(self, provider: Local, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.provider = provider
        self.root = root
        self.monkeypatch = monkeypatch

    def sell_out(self) -> str:
        def start(*_: object) -> None:
            self.monkeypatch.undo()
            raise OSError(errno.ENOSPC, "No space left on device")

        self.monkeypatch.setattr(order, "start", start)
        return "No space left on device"

    def make_unreadable(self) -> str:
        """An instance of another host that shares this home."""
        directory = self.root / lease_name()
        directory.mkdir()
        here = next(path for path in self.root.glob("pg-*/machine.json"))
        written = json.loads(here.read_text()) | {"name": directory.name, "host": "elsewhere-0"}
        (directory / "machine.json").write_text(json.dumps(written))
        self.elsewhere = directory
        return "elsewhere-0"

    def restore(self) -> None:
        keeper.remove(self.elsewhere)

    def leave_something(self) -> None:
        """The keeper is killed, and whoever terminates instead of it while removing the files."""

        def cut_off(directory: Path) -> None:
            if directory.exists():
                self.monkeypatch.undo()
                directory.rename(directory.with_name(f".gone-{directory.name}"))

        def end(root: Path, name: str) -> None:
            record = record_of(root / name)
            assert record is not None
            os.kill(record["pid"], signal.SIGKILL)
            wait_for(lambda: not lives(record["pid"]))
            original(root, name)

        original = give_back.end
        self.monkeypatch.setattr(keeper, "remove", cut_off)
        self.monkeypatch.setattr(give_back, "end", end)

    def someone_elses(self) -> str:
        name = "my-pg-conf-database"
        (self.root / name).mkdir()
        return name


class TestLocal(ProviderConformance):
    @pytest.fixture
    def subject(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subject]:
        root = tmp_path / "state"
        root.mkdir(mode=0o700)
        provider = Local(roots=[root])
        yield Subject(
            provider=provider,
            secrets=("PRIVATE KEY",),
            unknown_id=lease_name(),
            pass_time=lambda seconds: time.sleep(min(seconds, 0.02)),
            faults=LocalFaults(provider, root, monkeypatch),
            at_once_s=3,
        )
        end_all(provider)
