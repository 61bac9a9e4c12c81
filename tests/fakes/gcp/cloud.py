"""GcpCloud: what tests hold of the fake in its own process. It survives what happens to the flows that use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from prefect_gpu.blocks.gcp import GcpCredentials, GcpImage
from tests.fakes.gcp.project import key

ROOT = Path(__file__).resolve().parents[3]


class GcpCloud:
    """The running cloud: orders to it, and blocks that speak to it."""

    def __init__(self, port: int, ssh_port: int, process: subprocess.Popen[bytes]) -> None:
        self.url, self.ssh_port, self._process = f"http://127.0.0.1:{port}", ssh_port, process

    @classmethod
    def start(cls, folder: Path) -> GcpCloud:
        with (folder / "cloud.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.fakes.gcp.server", str(folder)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,  # its end is the cloud's end, however this process dies
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError((folder / "cloud.log").read_text())
        return cls(*json.loads(line), process)

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def block(self, **fields: Any) -> GcpCredentials:
        """A credentials block for this cloud, ready to be saved."""
        machine = GcpImage(project="ubuntu-os-cloud", family="ubuntu-2404-lts-amd64", user="root", port=self.ssh_port)
        login = SecretStr(key(f"{self.url}/token"))
        return GcpCredentials(
            **{"key": login, "endpoint": self.url, "cpu_image": machine, "gpu_image": machine, **fields}
        )

    def tell(self, op: str, **more: Any) -> Any:
        request = urllib.request.Request(f"{self.url}/_cloud", json.dumps({"op": op, **more}).encode())
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.loads(reply.read())
