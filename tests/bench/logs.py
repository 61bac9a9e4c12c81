"""Following a job's output: 1,000,000 lines (100 MB) against `ssh tail -f`, with Prefect attached, and how soon a line is seen."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.models import JobSpec
from tests.bench import Metric
from tests.fakes.sshd import Server, asyncssh_server, free_port, has_openssh, openssh_server, ssh_options

_LINES = 1_000_000
_BYTES = 100 * _LINES
_PAIRS = 3
_ROOT = Path(__file__).parents[2]


def measure() -> dict[str, Metric]:
    figures: dict[str, Metric] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder_name:
        folder = Path(folder_name)
        expected = _write_lines(folder / "lines")
        if has_openssh():
            # An empty home: a slow ~/.bashrc is run for each command and is not what is measured.
            home = f"SetEnv HOME={folder}"
            with openssh_server(options=(home,)) as server, ssh_options(server) as options:
                ratio = _against_tail(server, options, folder, expected)
            figures["logs.vs_ssh_tail"] = Metric(ratio, "x", 0.8, "higher")
        with _prefect_server(folder) as env:
            # In a process of its own: memory is counted for following alone.
            told = subprocess.run(
                [sys.executable, "-m", "tests.bench.logs", str(folder), expected],
                cwd=_ROOT, env=env, check=True, capture_output=True, text=True,
            ).stdout  # fmt: skip
        for name, (value, unit, target, better) in json.loads(told.splitlines()[-1]).items():
            figures[name] = Metric(value, unit, target, better)
    return figures


def _write_lines(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as lines:
        for start in range(0, _LINES, 10_000):
            data = "".join(f"{n:<98} \n" for n in range(start, start + 10_000)).encode()
            digest.update(data)
            lines.write(data)
    return digest.hexdigest()


def _against_tail(server: Server, options: list[str], folder: Path, expected: str) -> float:
    """Seconds of `ssh tail -f` into a file over ours, from the command to the last byte, pair by pair."""
    machine = Machine(server.connect, root=str(folder / "root"))
    machine.connection()
    ratios: list[float] = []
    for number in range(_PAIRS):
        log = folder / f"log{number}"
        spec = JobSpec(id=f"job-{number}", command=f"cat {folder}/lines")
        machine.start(spec)
        time.sleep(1)  # the output stands there already: following is measured, not `cat`
        began = time.perf_counter()
        machine.run(spec, log)
        ours = time.perf_counter() - began
        assert hashlib.sha256(log.read_bytes()).hexdigest() == expected, "lines lost"
        log.unlink()
        began = time.perf_counter()
        with log.open("wb") as target:
            tail = subprocess.Popen(
                ["ssh", *options, server.endpoint.host, f"exec tail -c +1 -f {folder}/lines"],
                stdin=subprocess.DEVNULL,
                stdout=target,
            )
            while log.stat().st_size < _BYTES:
                time.sleep(0.002)
            theirs = time.perf_counter() - began
            tail.kill()
            tail.wait()
        log.unlink()
        ratios.append(theirs / ours)
    machine.close()
    return statistics.median(ratios)


@contextlib.contextmanager
def _prefect_server(folder: Path) -> Iterator[dict[str, str]]:
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    env = {
        **os.environ,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": api,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "ERROR",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{api}/health", timeout=2).is_success:
                    break
            time.sleep(0.2)
        else:
            raise RuntimeError("the Prefect server does not answer")
        yield env
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


# --- in the process of its own ----------------------------------------------------------------------------------------


def _attached(folder: Path, expected: str) -> dict[str, Metric]:
    from prefect import flow
    from prefect.client.orchestration import get_client

    from prefect_gpu.providers.core.renting.job_log import CAP_BYTES, posting

    figures: dict[str, Metric] = {}

    @flow
    def follow(server: Server, root: str) -> str:
        from prefect.runtime import flow_run

        machine = Machine(server.connect, root=root)
        machine.run(JobSpec(id="warm", command="true"), folder / "warm")
        before = _rss_mb()
        began = time.perf_counter()
        with posting(folder / "log") as post:
            machine.run(JobSpec(id="many", command=f"cat {folder}/lines"), folder / "log", post.output)
            took = time.perf_counter() - began
            figures["logs.rss_mb"] = Metric(_peak_rss_mb() - before, "MB", 48, "lower")
        figures["logs.mb_per_s"] = Metric(_BYTES / 1e6 / took, "MB/s", 20, "higher")
        data = (folder / "log").read_bytes()
        lost = 0 if hashlib.sha256(data).hexdigest() == expected else _LINES - data.count(b"\n") or 1
        figures["logs.lines_lost"] = Metric(lost, "lines", 0, "lower")
        machine.close()
        return str(flow_run.get_id())

    with asyncssh_server() as server:
        run_id = follow(server, str(folder / "root2"))
        _first_lines(server, folder, figures)
    with get_client(sync_client=True) as api:
        records = 0
        while page := api.request(
            "POST", "/logs/filter", json={"offset": records, "limit": 200, "logs": {"flow_run_id": {"any_": [run_id]}}}
        ).json():
            records += len(page)
    assert records >= CAP_BYTES / 16_000, f"only {records} records in Prefect's log"
    return figures


def _first_lines(server: Server, folder: Path, figures: dict[str, Metric]) -> None:
    """Lines that say when they were written, at odd moments; when each was received."""
    from prefect.client.orchestration import get_client

    from prefect_gpu.providers.core.renting.job_log import JobLog

    machine = Machine(server.connect, root=str(folder / "root3"))
    lags: list[float] = []
    stored: list[float] = []

    class Timed:
        def __init__(self, api: Any) -> None:
            self._api = api

        def create_logs(self, records: list[dict[str, Any]]) -> None:
            self._api.create_logs(records)
            now = time.time()
            stored.extend(now - float(line) for record in records for line in record["message"].split())

    @contextlib.contextmanager
    def client() -> Iterator[Timed]:
        with get_client(sync_client=True) as api:
            yield Timed(api)

    shown = JobLog(folder / "first", uuid4(), client=client)

    def seen(offset: int, data: bytes) -> None:
        now = time.time()
        lags.extend(now - float(line) for line in data.split())
        shown.output(offset, data)

    script = "import time\nfor n in range(40):\n  time.sleep(0.1 + n % 7 * 0.013)\n  print(time.time(), flush=True)"
    machine.run(JobSpec(id="first", command=(sys.executable, "-c", script)), folder / "first", seen)
    shown.close()
    machine.close()
    figures["logs.prefect_line_s"] = Metric(statistics.median(stored), "s", 0.2, "lower")
    figures["logs.first_line_s"] = Metric(statistics.median(lags), "s", 0.05, "lower")
    figures["logs.first_line_max_s"] = Metric(max(lags), "s", 0.2, "lower")


def _rss_mb() -> float:
    with Path("/proc/self/clear_refs").open("w") as clear:
        clear.write("5")  # the peak begins here
    return _peak_rss_mb()


def _peak_rss_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    print(json.dumps(_attached(Path(sys.argv[1]), sys.argv[2])))
