"""The machines behind the fake Azure: each an SSH server on a loopback address of its own, with what its custom data places."""

from __future__ import annotations

import asyncio
import base64
import itertools
from pathlib import Path
from typing import Any

from tests.fakes.aws import machine as ec2


class AzureMachine(ec2.Machine):
    """One that takes any user, as the administrator whom an order names is made by Azure."""

    def _start_openssh(self) -> None:
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), ec2._loop()).result(10)


class Machines:
    """Those that run; without a folder none does."""

    def __init__(self, folder: Path | None, port: int) -> None:
        self.folder, self.port = folder, port
        self.running: dict[str, AzureMachine] = {}
        self._numbers = itertools.count(2)

    def next_address(self) -> str:
        number = next(self._numbers)
        return f"127.79.{number // 250}.{number % 250 + 1}" if self.folder else f"192.0.2.{number % 250 + 1}"

    def order(self, row: dict[str, Any]) -> None:
        row["booted"] = False

    def boot(self, row: dict[str, Any]) -> None:
        if self.folder is None or row["booted"]:
            return
        row["booted"] = True
        user_data = base64.b64decode(row["body"]["properties"]["osProfile"]["customData"]).decode()
        machine = AzureMachine(self.folder / row["name"], row["address"], self.port, user_data, lambda: None)
        machine.start()
        self.running[row["name"]] = machine

    def stop(self, row: dict[str, Any]) -> None:
        if (machine := self.running.pop(row["name"], None)) is not None:
            machine.stop()

    def stop_all(self) -> None:
        for machine in self.running.values():
            machine.stop()
        self.running.clear()
