"""What the tests of files share: a tree with odd names, what is in a folder, a machine that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from prefect_gpu.providers.core.errors import LinkLost
from prefect_gpu.providers.core.machine.jobs import Machine

JOB = "job-1"

TREE = {
    "a.txt": b"a",
    "empty": b"",
    "deep/er/b.bin": bytes(range(256)) * 100,
    "with space/ü\n'\"$x": b"odd",
    "-dash": b"dash",
    "x" * 200 + "/" + "y" * 200: b"long",
}


def work(machine: Machine) -> Path:
    return Path(machine.root) / JOB / "work"


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def late(seconds: float) -> Callable[[], str | None]:
    end = time.monotonic() + seconds
    return lambda: "still at it" if time.monotonic() > end else None


class Hanging:
    """A machine whose sshd answers and whose programs never do anything: they take `takes` bytes of their input."""

    def __init__(self, takes: int) -> None:
        self._takes = takes
        self._is_closed = threading.Event()

    def open(self, command: str) -> Hanging:
        return self

    def sendall(self, data: bytes) -> None:
        self._takes -= len(data)
        if self._takes < 0:
            self._is_closed.wait()
            raise LinkLost("the machine takes no more input")

    def shutdown_write(self) -> None: ...

    def recv(self, size: int) -> bytes:
        self._is_closed.wait()
        return b""

    def exit_status(self, timeout_s: float) -> int:
        raise LinkLost("the link to the machine is lost")

    def error_text(self) -> str:
        return ""

    def is_alive(self) -> bool:
        return True

    def close(self) -> None:
        self._is_closed.set()
