"""Runs on RunPod: a pod that is taken away, orders that are all refused, and what RunPod had once. Its pods are containers of the Docker Engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.settings import get_current_settings

from prefect_gpu import providers as registry
from prefect_gpu.blocks.runpod import RunpodCredentials
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.core.requests import Job, Requirements, Spot
from prefect_gpu.providers.runpod.driver import Runpod
from tests.core.test_container_boot import has_image
from tests.fakes.rented import ssh_is_possible
from tests.fakes.runpod import Container, FakeRunpod, Process, error
from tests.flows.rented import Named, Rented
from tests.providers.test_runpod import KEY, runpod
from tests.stack import wait_until

# Where it began at its beginning it waits at 6, so that it never ends on its first pod, however busy this machine is.
TO_12 = """
mkdir -p keep; again=; [ ! -e keep/count ] || again=yes; n=$(cat keep/count 2>/dev/null || echo 0)
while [ "$n" -lt 12 ]; do
    sleep 0.2; [ "$again" ] || [ "$n" -lt 6 ] || continue
    n=$((n + 1)); echo $n > keep/.new; mv keep/.new keep/count; echo "step $n"
done
echo "counted to $n"
"""
HAS_DOCKER = has_image("sshd:local")
pytestmark = [
    pytest.mark.usefixtures("prefect_api"),
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not HAS_DOCKER and ssh_is_possible() is not None,
        reason=f"needs a Docker Engine with the image sshd:local; without one {ssh_is_possible()}",
    ),
]


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeRunpod]:
    """RunPod as the only provider; its time goes ten times as fast, and a pod that is gone is TERMINATED by its id."""
    machines = Container if HAS_DOCKER else Process
    with FakeRunpod(KEY, machines=machines, shows_deleted_s=3600, folder=tmp_path / "runpod", speed=10.0) as fake:
        library: TaskLibrary[Any] = TaskLibrary(Runpod, RunpodCredentials)
        library.connections.drivers["default"] = runpod(fake)
        monkeypatch.setattr(registry, "library", lambda _: library)
        monkeypatch.setattr(registry, "enabled", lambda *_: [Named("runpod")])
        monkeypatch.setattr("prefect_gpu.providers.core.renting.running.ASK_EVERY_S", 0.2)
        monkeypatch.setattr("prefect_gpu.providers.core.renting.keeping.LOOK_EVERY_S", 0.3)
        monkeypatch.chdir(tmp_path)
        yield fake


def checkpoint(run_id: UUID) -> int:
    """How far the job had come, as far as that is kept here."""
    kept = Path(get_current_settings().results.local_storage_path) / "prefect-gpu" / str(run_id)
    counts = [int(path.read_text() or 0) for path in kept.glob("checkpoint/whole/keep/count")]
    return max(counts, default=0)


def test_a_job_survives_its_pod_being_taken_away(cloud: FakeRunpod) -> None:
    taken: list[str] = []

    def take_away() -> None:
        wait_until(lambda: cloud.pods != {}, 100, "a pod")
        name = next(iter(cloud.pods.values()))["body"]["name"]
        lease = Lease.parse(name)
        assert lease is not None
        wait_until(lambda: checkpoint(lease.run_id) >= 3, 100, "a checkpoint")
        cloud.take_away(name)
        taken.append(name)

    thief = threading.Thread(target=take_away)
    thief.start()
    run = Rented({}, {})
    message = run.run(
        TO_12,
        gpu="H100",
        job=Job(checkpoint=("keep",), checkpoint_every_s=1, image="sshd:local" if HAS_DOCKER else None),
    )
    thief.join(10)
    assert message.startswith("exit 0 in "), message
    first, second = run.record.attempts
    assert [first.name, second.name] == [pod["body"]["name"] for pod in cloud.pods.values()]
    assert taken == [first.name]
    assert (first.outcome, second.outcome) == ("interrupted", "gone")
    kept = Path(get_current_settings().results.local_storage_path) / "prefect-gpu" / str(run.run_id)
    log = (kept / "1" / "job.log").read_text()
    assert log.endswith("counted to 12\n")
    assert int(log.split()[1]) > 3, "it began anew from its checkpoint"
    assert cloud.left() == []
    gone, began = (pod for pod in cloud.pods.values())
    assert gone["gone_at"] <= began["at"], "two are never alive"


def test_where_every_offer_answers_400_the_words_are_the_run_s_and_nothing_was_made(
    cloud: FakeRunpod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud, "_create", lambda _: error(400, "the image's name is not valid"))
    run = Rented({}, {})
    message = run.run("true", gpu="H100", job=Job(image="bad//image"))
    assert message.startswith("No H100: 4 offers tried (runpod request refused 4 times)."), message
    assert "the image's name is not valid" in message
    assert cloud.creates == 4, "each candidate is tried, for one of them may only have had no room"
    assert cloud.left() == []


def test_what_runpod_had_once_is_refused_in_its_own_words_and_not_called_silence(cloud: FakeRunpod) -> None:
    run = Rented({}, {})
    message = run.run("true", gpu="H100", requirements=Requirements(spot=Spot.SPOT))
    assert message == (
        "No H100 spot. runpod says no: RunPod took spot machines out of its API in 2026: ask for on-demand or either, or "
        "choose another provider."
    )
    message = run.run("true", gpu="H100", options={"runpod": {"terminateAfter": "2026-12-01"}})
    assert message.startswith("RunPod took terminateAfter and stopAfter, which never ended a pod, out of its API")
    assert cloud.creates == 0
