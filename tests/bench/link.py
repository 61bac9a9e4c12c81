"""How long a frozen link goes unnoticed."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.ssh import connect
from prefect_gpu.providers.core.models import JobSpec
from tests.bench import Metric
from tests.fakes.proxy import proxy
from tests.fakes.sshd import asyncssh_server


def measure() -> dict[str, Metric]:
    return {"link.dead_s": Metric(max(_noticed_after(delay) for delay in (0.0, 2.5, 4.9)), "s", 20.0, "lower")}


def _noticed_after(delay_s: float) -> float:
    """Freeze at another moment between two keepalives each time; what was written is compared as well."""
    with (
        tempfile.TemporaryDirectory() as folder,
        asyncssh_server() as server,
        proxy(server.endpoint.host, server.endpoint.port) as between,
    ):
        through = server.endpoint.model_copy(update={"port": between.port})
        machine = Machine(
            lambda: connect(through, server.client_key, server.host_key.public, timeout_s=2), root=f"{folder}/root"
        )
        frozen_at, noticed_at = [0.0], [0.0]
        begun = threading.Event()

        def freeze() -> None:
            begun.wait(10)
            time.sleep(delay_s)
            between.freeze()
            frozen_at[0] = time.perf_counter()

        def note(_text: str) -> None:
            if not noticed_at[0]:
                noticed_at[0] = time.perf_counter()
                between.thaw()

        threading.Thread(target=freeze, daemon=True).start()
        log = Path(folder) / "log"
        spec = JobSpec(id="job-1", command="for i in $(seq 1 220); do echo line $i; sleep 0.1; done")
        machine.run(spec, log, lambda _at, _data: begun.set(), on_link=note)
        machine.close()
        assert log.read_text() == "".join(f"line {n}\n" for n in range(1, 221)), "output lost or doubled"
        return noticed_at[0] - frozen_at[0]
