"""Reaping: 1,000 instances of 500 runs that have failed, over five providers, in one `reap` run; its time beyond the listing lag, and its memory.

On a real Prefect server of its own. The providers are reference clouds in the same process, whose answers take no time worth counting: vendors'
rate limits are left out.
"""

from __future__ import annotations

import json
import os
import resource
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect_gpu.flows.terminal import server
from tests.bench import Metric
from tests.bench._child import in_a_process_of_its_own

CLOUDS = 5
RUNS = 500
EACH = 2  # instances
LAG_S = 5.0


def measure() -> dict[str, Metric]:
    found: dict[str, float] = in_a_process_of_its_own("tests.bench.reap")
    return {
        "reap.thousand_s": Metric(found["seconds"] - LAG_S, "s", 30.0, "lower"),
        "reap.rss_mb": Metric(found["rss_mb"], "MB", 200.0, "lower"),
    }


def _reaped() -> dict[str, float]:
    os.environ["PREFECT_GPU_HOME"] = os.environ["BENCH_HOME"]
    with server.reached(kept=False) as place:
        place.wait_for_server()
        from prefect_gpu.flows.reap import reap

        clouds = _clouds(Path(os.environ["BENCH_HOME"]))
        _orders(clouds)
        assert sum(len(cloud.alive()) for cloud in clouds.values()) == RUNS * EACH
        time.sleep(LAG_S)  # until the last of them is listed
        if os.environ.get("BENCH_PROFILE"):
            import cProfile
            import pstats

            profile = cProfile.Profile()
            profile.enable()
        began = time.monotonic()
        state: Any = reap(return_state=True)
        seconds = time.monotonic() - began
        if os.environ.get("BENCH_PROFILE"):
            import sys

            profile.disable()
            pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(60)
        assert state.message.startswith(f"{RUNS * EACH} terminated and confirmed gone, 0 still to confirm"), (
            state.message
        )
        assert not any(cloud.alive() for cloud in clouds.values())
        rss_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for cloud in clouds.values():
            cloud.close()
    return {"seconds": seconds, "rss_mb": rss_kb / 1024}


def _clouds(folder: Path) -> dict[str, Any]:
    """The only providers with saved credentials."""
    from prefect_gpu import providers as registry
    from prefect_gpu.providers.core.renting.library import TaskLibrary
    from tests.fakes.reference import Reference, ReferenceCloud, Terms, reference

    names = list(registry.ProviderName)[-CLOUDS:]
    libraries: dict[str, TaskLibrary[Any]] = {}
    clouds: dict[str, Any] = {}
    for name in names:
        # As it is asked of a vendor: pages of a hundred, ids that are known for a while after their end.
        clouds[name] = ReferenceCloud(folder / f"{name}.db", Terms(listing_lag_s=LAG_S, page_size=100))
        capabilities = Reference.capabilities.model_copy(update={"listing_lag_s": LAG_S})
        driver = type(str(name).title(), (Reference,), {"name": name.value, "capabilities": capabilities})
        libraries[name] = TaskLibrary(driver)
        libraries[name].connections.drivers["default"] = reference(clouds[name], driver)
    registry.library = lambda name: libraries[name]  # type: ignore[index]
    registry.saved_accounts = lambda: {name: ["default"] for name in names}  # type: ignore[assignment]
    return clouds


def _orders(clouds: dict[str, Any]) -> None:
    """Two orders of each run, on its record; then the run has failed, and its process is gone."""
    from prefect.client.orchestration import get_client
    from prefect.states import Failed

    from prefect_gpu import providers as registry
    from prefect_gpu.blocks.realm import GpuRealm
    from prefect_gpu.flows.provision import provision
    from prefect_gpu.flows.run.attempt import Attempt, new_attempt
    from prefect_gpu.flows.run.record import Record
    from prefect_gpu.providers.core.lease import Lease
    from prefect_gpu.providers.core.models import utc_now
    from prefect_gpu.providers.core.requests import Requirements

    realm = GpuRealm.current().realm
    names = list(clouds)
    with get_client(sync_client=True) as client:
        for number in range(RUNS):
            run_id: UUID = client.create_flow_run(provision, parameters={"command": "true"}, state=Failed()).id
            lines: list[Attempt] = []
            for attempt in range(EACH):
                library = registry.library(names[(number + attempt) % CLOUDS])
                driver = library.driver()
                offer = driver.fetch_offers(Requirements())[0]
                deadline = utc_now() + timedelta(hours=1)
                lease = Lease(realm=realm, run_id=run_id, deadline=deadline, run_count=1, attempt=attempt)
                instance = driver.create_instance(offer, library.spec(lease))
                line = new_attempt(attempt, lease.name, offer, "default", driver.account_id())
                lines.append(line.model_copy(update={"outcome": "current", "instance_id": instance.id}))
            Record(run_id, lines).write()


if __name__ == "__main__":
    print(json.dumps(_reaped()))
