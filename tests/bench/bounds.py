"""What a machine or a job can cost the worker: memory while it writes without end, and time for patterns against odd names.

A scenario is a function here with the decorator `scenario`: it makes the worker read from something that never stops writing, until
what reads it gives up or `_LONGEST_S` are over. Each runs in a process of its own; `bounds.rss_mb` is the worst growth, and
`bounds.rss_mb.<scenario>` each.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prefect_gpu.providers.core.aside import Stopped
from prefect_gpu.providers.core.contract import Connection
from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.machine import listing
from prefect_gpu.providers.core.machine.download import download
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.ssh import connect
from tests.bench import Metric
from tests.bench._child import in_a_process_of_its_own
from tests.fakes import lawless_sshd
from tests.fakes.sshd import Server, asyncssh_server

Scenario = Callable[[], None]
SCENARIOS: dict[str, Scenario] = {}

_RSS_MB = 64.0
_LONGEST_S = 15.0
_PATTERNS = ("*-*-*-*.pt", "*a*-*-*b*.pt", "**/*-*/*-*-*.pt", "*?*?*?*?*.pt", "**/**/**/x", "[!a]*[!b]*[!c]*.pt")


def scenario(function: Scenario) -> Scenario:
    """A way in which what somebody else writes reaches the worker's memory."""
    SCENARIOS[function.__name__] = function
    return function


def measure() -> dict[str, Metric]:
    figures: dict[str, Metric] = {}
    for name in SCENARIOS:
        grown = in_a_process_of_its_own("tests.bench.bounds", name)
        figures[f"bounds.rss_mb.{name}"] = Metric(grown, "MB", _RSS_MB, "lower")
    worst = max(metric.value for metric in figures.values())
    seconds, stall = patterns()
    return figures | {
        "bounds.rss_mb": Metric(worst, "MB", _RSS_MB, "lower"),
        "bounds.pattern_s": Metric(seconds, "s", 1.0, "lower"),
        "bounds.pattern_stall_s": Metric(stall, "s", 0.05, "lower"),
    }


# --- memory -----------------------------------------------------------------------------------------------------------


@scenario
def script_output() -> None:
    """A machine answers a short question without end."""
    with _machine() as (machine, _folder), contextlib.suppress(ProviderError):
        machine.execute("exec yes", timeout_s=_LONGEST_S)


@scenario
def script_error() -> None:
    """The same on stderr."""
    with _machine() as (machine, _folder), contextlib.suppress(ProviderError):
        machine.execute("exec yes >&2", timeout_s=_LONGEST_S)


@scenario
def login_noise() -> None:
    """A login shell prints without end before anything of ours runs."""
    with (
        tempfile.TemporaryDirectory() as tools,
        _programs(tools, sh="#!/bin/sh\nexec yes") as server,
        _machine(server) as (machine, _folder),
        contextlib.suppress(ProviderError),
    ):
        machine.execute(":", timeout_s=_LONGEST_S)


@scenario
def file_list() -> None:
    """A list of files that never ends, all of which are wanted."""
    _listed(b"", "f 1 644 results/some folder/%09d.pt\0\0")


@scenario
def file_list_of_others() -> None:
    """The same, and none of them is wanted."""
    _listed(b"", "f 1 644 cache/some folder/%09d.bin\0\0")


@scenario
def file_name() -> None:
    """A list of one file, whose name never ends."""
    _listed(b"f 1 644 results/", "%09d")


@scenario
def job_log() -> None:
    """A job that writes without end; the worker keeps and shows its output."""
    from prefect_gpu.providers.core.models import JobSpec

    with _machine() as (machine, folder):
        machine.run(JobSpec(id="job", command="yes", timeout_s=int(_LONGEST_S)), folder / "job.log")


@scenario
def ssh_banner() -> None:
    """An SSH server greets without end, in one line."""
    _unlawful(b"")


@scenario
def ssh_packet() -> None:
    """An SSH server announces a packet of 4 GB and sends it."""
    _unlawful(lawless_sshd.GREETING + b"\xff\xff\xff\xfc\x0a\x14")


@scenario
def ssh_data() -> None:
    """A machine sends more than it was asked for, whatever the window says, to a worker that does not read it at once."""
    with lawless_sshd.lawless(lambda channel: lawless_sshd.send_without_end(channel, [0])) as endpoint:
        connection = connect(endpoint, lawless_sshd.CLIENT, lawless_sshd.HOST.public)
        with contextlib.suppress(ProviderError):
            connection.open("anything").exit_status(_LONGEST_S)
        connection.close()


def _unlawful(first: bytes) -> None:
    """Log in to what says `first` and then goes on for ever."""

    def flood(client: socket.socket) -> None:
        client.sendall(first)
        while True:
            client.sendall(b"x" * 65536)

    with lawless_sshd.listening(flood) as endpoint, contextlib.suppress(ProviderError):
        connect(endpoint, lawless_sshd.CLIENT, lawless_sshd.HOST.public, timeout_s=_LONGEST_S)


@scenario
def pod_output() -> None:
    """A pod writes without end while somebody writes to it and nobody reads."""
    with _pod() as link:
        channel = link.open("exec yes")
        given_up = threading.Timer(_LONGEST_S / 3, channel.close)
        given_up.start()
        with contextlib.suppress(ProviderError):
            for _ in range(64):
                channel.sendall(bytes(1 << 20))
        given_up.cancel()
        channel.close()


@scenario
def pod_bytes() -> None:
    """A pod writes byte by byte, each in a frame of its own, and nobody reads."""
    from websockets.frames import Frame, Opcode

    frames = Frame(Opcode.BINARY, b"\1x").serialize(mask=False) * 20_000

    def drip(peer: Any) -> None:
        for _ in range(200):
            peer.socket.sendall(frames)

    with _pod(drip) as link:
        channel = link.open("true")
        with contextlib.suppress(ProviderError):
            channel.exit_status(_LONGEST_S / 3)
        channel.close()


@scenario
def pod_frame() -> None:
    """A frame says that it has a terabyte, and begins to come."""

    def boast(peer: Any) -> None:
        peer.socket.sendall(b"\x82\x7f" + (1 << 40).to_bytes(8, "big") + b"\1")
        for _ in range(2000):
            peer.socket.sendall(bytes(1 << 20))

    with _pod(boast) as link, contextlib.suppress(ProviderError):
        channel = link.open("true")
        channel.recv(9)


@contextlib.contextmanager
def _pod(behaviour: Callable[[Any], object] | None = None) -> Iterator[Connection]:
    """A way onto a pod, without a cluster."""
    from tests.fakes import kubernetes_exec

    with kubernetes_exec.pod(behaviour or kubernetes_exec.shell) as link:
        yield link


def _listed(first: bytes, record: str) -> None:
    """Bring `results` from a machine whose `find` prints `first`, and then the record with a number in it for ever."""
    with tempfile.TemporaryDirectory() as tools:
        find = f"""#!{sys.executable}
import itertools, sys
if "-maxdepth" not in sys.argv:  # whether it knows -printf
    sys.stdout.buffer.write({first!r})
    for start in itertools.count(0, 1000):
        sys.stdout.write("".join({record!r} % (start + number) for number in range(1000)))
"""
        with _programs(tools, find=find) as server, _machine(server) as (machine, folder):
            (folder / "root/job/work").mkdir(parents=True)
            end = time.monotonic() + _LONGEST_S
            with contextlib.suppress(ProviderError, Stopped):
                download(
                    machine, "job", ["results"], folder / "back",
                    lambda: "long enough" if time.monotonic() > end else None, lost_after_s=1,
                )  # fmt: skip


@contextlib.contextmanager
def _programs(tools: str, **programs: str) -> Iterator[Server]:
    """A machine on which these programs are not what they should be."""
    for name, text in programs.items():
        (Path(tools) / name).write_text(text)
        (Path(tools) / name).chmod(0o755)
    with asyncssh_server(env={**os.environ, "PATH": f"{tools}:/usr/bin:/bin"}) as server:
        yield server


@contextlib.contextmanager
def _machine(server: Server | None = None) -> Iterator[tuple[Machine, Path]]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = server or stack.enter_context(asyncssh_server())
        machine = Machine(server.connect, root=str(folder / "root"))
        stack.callback(machine.close)
        machine.connection()
        yield machine, folder


# --- time -------------------------------------------------------------------------------------------------------------


def patterns() -> tuple[float, float]:
    """Seconds for 10,000 names of 400 characters against the patterns, and the longest that another thread stood still."""
    names = [f"{'-' * 199}/{'-' * 180}{number:020}" for number in range(5_000)]  # a name has at most 255 letters
    names += [f"{'a-b/' * 95}{number:020}"[-400:] for number in range(5_000)]
    listed = b"".join(f"f 1 644 {name}\0\0".encode() for name in names)
    longest, is_over = [0.0], threading.Event()

    def watch() -> None:
        last = time.perf_counter()
        while not is_over.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            longest[0], last = max(longest[0], now - last), now

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        began = time.perf_counter()
        reader = listing.Reader(_PATTERNS)
        for start in range(0, len(listed), 32_000):
            reader.feed(listed[start : start + 32_000])
        assert len(reader.found().missing) == len(_PATTERNS)  # in vain, which takes longest
        return time.perf_counter() - began, longest[0]
    finally:
        is_over.set()
        watcher.join()


def _grown(run: Scenario) -> float:
    status = Path("/proc/self/status")

    def peak_mb() -> float:
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024

    with _machine() as (machine, _folder):
        machine.execute(":")  # what a first connection imports is not growth
    if run.__name__.startswith("pod_"):
        with _pod() as link:
            link.open("true").close()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = peak_mb()
    run()
    return peak_mb() - before


if __name__ == "__main__":
    print(json.dumps(_grown(SCENARIOS[sys.argv[1]])))
