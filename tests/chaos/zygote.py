"""Where flow processes come from: a process that has imported everything forks one in milliseconds, which then is what Prefect's worker asked for.

`python -m tests.chaos.zygote SOCKET`. Each flow process knows its seed and dies, or is stopped, at the points that the schedule names.
"""

from __future__ import annotations

import array
import contextlib
import functools
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.chaos import clouds
from tests.chaos.schedule import Act, schedule

FOLDER = Path(os.environ["CHAOS_FOLDER"])


def main(address: str) -> dict[str, Any] | None:
    """Serve; returns in each process that it forks, with what that is to be."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(128)
    watched = selectors.DefaultSelector()
    watched.register(listener, selectors.EVENT_READ)
    children: dict[int, tuple[int, socket.socket]] = {}  # by its pidfd, or its launcher's descriptor
    executions: Counter[str] = Counter()
    while True:
        for key, _ in watched.select():
            if key.fileobj is listener:
                link, _ = listener.accept()
                order = _order(link)
                if order is None:
                    link.close()
                    continue
                run_id = order["env"].get("PREFECT__FLOW_RUN_ID", "")
                executions[run_id] += 1
                order["execution"] = executions[run_id]
                pid = os.fork()
                if not pid:
                    listener.close()
                    watched.close()
                    link.close()
                    for _, other in children.values():
                        other.close()
                    return order
                for descriptor in order["descriptors"]:
                    os.close(descriptor)
                link.sendall(f"{pid}\n".encode())
                handle = os.pidfd_open(pid)
                for one in (handle, link.fileno()):
                    children[one] = (pid, link)
                    watched.register(one, selectors.EVENT_READ)
                children[link.fileno()] = (pid, link)
                continue
            pid, link = children[key.fd]
            if key.fd == link.fileno():  # its launcher is gone: so is what the worker takes for the flow process
                _kill(pid)
                watched.unregister(key.fd)
                continue
            _, status = os.waitpid(pid, 0)
            watched.unregister(key.fd)
            os.close(key.fd)
            del children[key.fd]
            if link.fileno() in watched.get_map():
                watched.unregister(link.fileno())
            children.pop(link.fileno(), None)
            with contextlib.suppress(OSError):
                link.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            link.close()


def _order(link: socket.socket) -> dict[str, Any] | None:
    head, ancillary, _, _ = link.recvmsg(4, socket.CMSG_SPACE(8))
    if len(head) < 4:
        return None
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    size, body = int.from_bytes(head, "big"), b""
    while len(body) < size:
        body += link.recv(size - len(body))
    return {**json.loads(body), "descriptors": list(descriptors)}


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# --- in the flow process -----------------------------------------------------------------------------------------------


class Fate:
    """Counts the points that this process comes to, and carries out what the schedule has for them."""

    def __init__(self, run_id: str, acts: list[Act]) -> None:
        self._run_id = run_id
        self._acts = acts
        self._came: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def passing(self, point: str, side: str) -> None:
        with self._lock:
            self._came[point, side] += 1
            here = (point, self._came[point, side], side)
            due = [act for act in self._acts if (act.point, act.nth, act.side) == here]
        for act in due:
            told = {
                "run": self._run_id,
                "pid": os.getpid(),
                "execution": act.execution,
                "point": act.point,
                "do": act.do,
                "seconds": act.seconds,
            }
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
                link.sendto(json.dumps(told).encode(), str(FOLDER / "acts"))
            number = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}.get(act.do, signal.SIGSTOP)
            os.kill(os.getpid(), number)


def be(order: dict[str, Any]) -> None:
    """Become the flow process that was asked for."""
    for target, descriptor in zip((1, 2), order["descriptors"], strict=True):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    random.seed()
    run_id = os.environ["PREFECT__FLOW_RUN_ID"]
    if seed := os.environ.get("CHAOS_SEED"):
        acts = [act for act in schedule(int(seed)).acts if act.execution == order["execution"]]
        _watch(Fate(run_id, acts))
    sys.argv = ["prefect.engine"]
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)


def _watch(fate: Fate) -> None:
    from prefect.client.base import PrefectHttpxSyncClient

    from prefect_gpu.flows.run.record import Record
    from prefect_gpu.providers.core.machine.jobs import Machine
    from prefect_gpu.providers.core.renting.job_log import JobLog
    from tests.chaos.remote import RemoteCloud

    RemoteCloud.passing = staticmethod(fate.passing)
    _around(fate, Record, "write", "record")
    _around(fate, PrefectHttpxSyncClient, "send", "api")
    _around(fate, JobLog, "_post", "job log")
    for name in ("has_started", "start", "follow", "run"):
        _around(fate, Machine, name, "machine")


def _around(fate: Fate, owner: Any, name: str, point: str) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def watched(*arguments: Any, **named: Any) -> Any:
        fate.passing(point, "before")
        answer = original(*arguments, **named)
        fate.passing(point, "after")
        return answer

    setattr(owner, name, watched)


if __name__ == "__main__":
    clouds.install(FOLDER, int(os.environ["CHAOS_PORT"]))

    import prefect_gpu.flows.provision
    import prefect_gpu.flows.reap
    import prefect_gpu.providers.core.machine.ssh  # noqa: F401
    from prefect_gpu.flows.reaping import stuck

    # What a worker took and never started is looked for after minutes; here after less, as everything else.
    stuck.TAKEN, stuck.STARTING = timedelta(seconds=30), timedelta(seconds=60)  # type: ignore[misc]
    if seconds := os.environ.get("CHAOS_HEARTBEAT_S"):  # less than Prefect takes, so that a silence is soon one
        from prefect import flow_engine

        flow_engine.MINIMUM_HEARTBEAT_INTERVAL = int(seconds)
        flow_engine.BaseFlowRunEngine.heartbeat_seconds = int(seconds)  # type: ignore[assignment, method-assign]
    assert threading.active_count() == 1, "a process with threads is not to be forked"
    asked = main(sys.argv[1])
    if asked is not None:
        be(asked)
