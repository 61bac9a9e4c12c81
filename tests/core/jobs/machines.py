"""Jobs for the tests of jobs, machines that lack something or fall, and what lives of a job."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path

from prefect_gpu.providers.core.contract import Connection
from prefect_gpu.providers.core.errors import (
    LinkLost,
    ProviderError,
)
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.models import JobResult, JobSpec
from tests.fakes.sshd import Server


def job(command: str | tuple[str, ...], **options: object) -> JobSpec:
    return JobSpec(id=f"job-{uuid.uuid4().hex}", command=command, **options)


def run(machine: Machine, spec: JobSpec, log: Path, **options: object) -> JobResult:
    result = machine.run(spec, log, **options)
    assert result is not None
    return result


# Debian's essential programs without perl.
TOOLS = "sh bash sleep grep mv cat head tail mkdir chmod id stat setsid env flock wc date touch rm seq timeout".split()  # noqa: SIM905 - readable


# What a job can do to outlive itself: in the background, in a session of its own, twice forked, without its environment.
STRAYS = {
    "background": "sleep 7{n} & ",
    "session": "setsid sleep 7{n} & ",
    "double fork": "(setsid sh -c 'sleep 7{n} & sleep 0.01' &) ; sleep 0.1; ",
    "cleared environment": "env -i sleep 7{n} & ",
    "double fork without environment": "(env -i setsid sh -c 'sleep 7{n} & sleep 0.01' &) ; sleep 0.2; ",
    "deaf": "sh -c 'trap \"\" TERM HUP INT; sleep 7{n} & wait' & sleep 0.1; ",
    "stopped": "sleep 7{n} & kill -STOP $!; ",
}


def alive(word: str, within: str = "cmdline") -> list[str]:
    """Command lines of living processes with such an argument, or such a line in their environment."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / within).read_bytes().decode(errors="replace").split("\0")
            if word in words:
                found.append((process / "cmdline").read_text())
    return found


class WithPath:
    """A connection to a machine that has only some programs."""

    def __init__(self, inner: object, path: str) -> None:
        self._inner = inner
        self._path = path

    def open(self, command: str) -> object:
        return self._inner.open(f"PATH={self._path}; export PATH; {command}")

    def is_alive(self) -> bool:
        return self._inner.is_alive()

    def close(self) -> None:
        self._inner.close()


class Falling:
    """A way to a machine that breaks when it is told to, and then says what its provider says, each once."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._links: list[Connection] = []
        self.says: list[ProviderError] = []

    def connect(self) -> Connection:
        if self.says:
            raise self.says.pop(0)
        self._links.append(self._server.connect())
        return self._links[-1]

    def fall(self, *says: ProviderError) -> None:
        self.says += says
        self._links[-1].close()


class Answering:
    """A machine whose programs end with this exit code (None: the link breaks), and write nothing."""

    def __init__(self, exit_code: int | None) -> None:
        self._exit_code = exit_code
        self.opened = 0

    def open(self, command: str) -> Answering:
        self.opened += 1
        return self

    def sendall(self, data: bytes) -> None: ...

    def shutdown_write(self) -> None: ...

    def recv(self, size: int) -> bytes:
        return b""

    def exit_status(self, timeout_s: float) -> int:
        if self._exit_code is None:
            raise LinkLost("the link to the machine is lost")
        return self._exit_code

    def error_text(self) -> str:
        return ""

    def is_alive(self) -> bool:
        return self._exit_code is not None

    def close(self) -> None: ...
