"""Spot jobs on Vast.ai: outbid, killed, or refused with something left standing. Its contracts are containers of the Docker Engine."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import get_current_settings
from pydantic import SecretStr

from prefect_gpu import providers as registry
from prefect_gpu.blocks.vastai import VastaiCredentials, VastaiOptions
from prefect_gpu.flows.report import text
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import MachineReport
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.core.requests import Job, Requirements, Spot
from prefect_gpu.providers.vastai import driver as driver_module
from prefect_gpu.providers.vastai.driver import Vastai
from tests.core.test_container_boot import has_image
from tests.fakes.rented import ssh_is_possible
from tests.fakes.vastai import FakeVastai, ask
from tests.flows.rented import Named, Rented
from tests.providers.test_vastai import KEY
from tests.stack import wait_until

HAS_DOCKER = has_image("sshd:local")
IMAGE = "sshd:local" if HAS_DOCKER else None
SPOT = Requirements(spot=Spot.SPOT)
pytestmark = [
    pytest.mark.usefixtures("prefect_api"),
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not HAS_DOCKER and ssh_is_possible() is not None,
        reason=f"needs a Docker Engine with the image sshd:local; without one {ssh_is_possible()}",
    ),
]
# Each machine adds an x to what the one before it kept, and only the third goes to the end.
THREE = """
mkdir -p keep; t="$(cat keep/trail 2>/dev/null)x"; echo "$t" >keep/.new; mv keep/.new keep/trail
echo "so far $t"; [ "$t" = xxx ] || sleep 600
"""


class Quick(Vastai):
    """As it is, but for the times that nobody waits for in a test."""

    capabilities = Vastai.capabilities.model_copy(update={"listing_lag_s": 1.0, "rate_limits": {}})


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeVastai]:
    """Vast.ai as the only provider. Its meter runs in real time: what a run says that it cost is compared with that."""
    with FakeVastai(KEY, machines="docker" if HAS_DOCKER else "process", boots_s=0.6, speed=1.0) as fake:
        fake.asks = [ask(number, min_bid=10.0 + number, storage_cost=90.0) for number in range(1, 5)]
        library: TaskLibrary[Any] = TaskLibrary(Quick, VastaiCredentials)
        options = VastaiOptions(image=IMAGE) if IMAGE else VastaiOptions()
        block = VastaiCredentials(api_key=SecretStr(KEY), options=options)
        library.connections.drivers["default"] = Quick(block, transport=fake.transport)
        monkeypatch.setattr(driver_module, "PAGE_S", 0.0)
        monkeypatch.setattr(driver_module, "END_S", 0.0)
        monkeypatch.setattr(registry, "library", lambda _: library)
        monkeypatch.setattr(registry, "enabled", lambda *_: [Named("vastai")])
        monkeypatch.setattr("prefect_gpu.providers.core.renting.running.ASK_EVERY_S", 0.2)
        monkeypatch.setattr("prefect_gpu.providers.core.renting.keeping.LOOK_EVERY_S", 0.3)
        monkeypatch.chdir(tmp_path)
        yield fake


def kept(run_id: object) -> Path:
    return Path(get_current_settings().results.local_storage_path) / "prefect-gpu" / str(run_id)


def trail(name: str) -> str:
    """What is kept here of the job of this machine's run."""
    lease = Lease.parse(name)
    assert lease is not None
    return max(
        (path.read_text().strip() for path in kept(lease.run_id).glob("checkpoint/whole/keep/trail")), default=""
    )


def take_back_twice(cloud: FakeVastai) -> None:
    """The first machine is outbid, the second killed, each when what it did is kept."""
    for number, takes in ((1, cloud.outbid), (2, cloud.kill)):
        wait_until(lambda n=number: len(cloud.contracts) == n, 60, "the next machine")
        contract = list(cloud.contracts.values())[-1]
        wait_until(lambda one=contract, n=number: trail(one["body"]["label"]) == "x" * n, 60, "a checkpoint")
        instance_id = f"instances/{contract['id']}"
        cloud.moved(instance_id, up_gb=number, down_gb=10 * number)
        takes(instance_id)


def test_a_spot_job_that_is_taken_back_twice_ends_well_on_other_hosts_and_costs_what_vast_ai_s_own_meter_says(
    cloud: FakeVastai,
) -> None:
    thief = threading.Thread(target=take_back_twice, args=(cloud,))
    thief.start()
    run = Rented({}, {})
    job = Job(checkpoint=("keep",), checkpoint_every_s=1)
    message = run.run(THREE, gpu="H100", job=job, requirements=SPOT)
    thief.join(10)
    assert message.startswith("exit 0 in "), message
    attempts, contracts = run.record.attempts, list(cloud.contracts.values())
    assert [one.outcome for one in attempts] == ["interrupted", "interrupted", "gone"]
    assert [one.name for one in attempts] == [one["body"]["label"] for one in contracts]
    assert [one["ask"]["id"] for one in contracts] == [1, 2, 3], "the best bid that is left each time"
    assert (kept(run.run_id) / "2" / "job.log").read_text() == "so far xxx\n", "it went on from its checkpoint"
    assert cloud.alive() == []
    for one, after in itertools.pairwise(contracts):
        assert one["gone_at"] <= after["at"], "it would start again by itself: the next is bought when it is seen gone"
    for attempt, contract in zip(attempts, contracts, strict=True):
        meter, second = cloud.bill(contract), attempt.price / 3600
        assert attempt.price == pytest.approx(contract["body"]["price"] + 90 * 32 / 720), "what is bid, and the disk"
        assert attempt.traffic == pytest.approx(cloud.traffic(contract))
        assert attempt.cost is not None
        assert attempt.estimate is not None
        assert attempt.gone_at is not None
        stayed = (attempt.gone_at - attempt.ordered_at).total_seconds()
        assert attempt.cost == pytest.approx(Quick.capabilities.billing.cost(attempt.price, stayed) + attempt.traffic)
        assert meter - second < attempt.cost, "at most: from the order until it is seen gone, stopped or not"
        # What a busy machine sees late: that it runs, and that it does no more.
        assert abs(attempt.estimate - meter) < 10 * second
    assert text.dollars(sum(one.cost or 0.0 for one in attempts)) in message


def test_a_bid_that_is_too_low_and_leaves_a_stopped_contract_is_seen_gone_before_the_next_is_bought(
    cloud: FakeVastai,
) -> None:
    cloud.leaves_stopped = True
    search = cloud._search

    def others_bid_more(body: dict[str, Any]) -> Any:
        found = search(body)
        cloud.asks[0]["min_bid"] = 99.0
        return found

    cloud._search = others_bid_more  # type: ignore[method-assign]
    run = Rented({}, {})
    message = run.run("echo done", gpu="H100", requirements=SPOT)
    assert message.startswith("exit 0 in "), message
    low, good = cloud.contracts.values()
    assert [one["ask"]["id"] for one in (low, good)] == [1, 2]
    assert low["gone_at"] <= good["at"]
    assert cloud.alive() == []
    assert len(run.record.attempts) == 2


@pytest.fixture
def ec2(cloud: FakeVastai, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """EC2 beside Vast.ai, of which there is one H100 left; its machines (moto's) have no GPUs to be checked."""
    pytest.importorskip("boto3", reason="needs the extra aws")
    from prefect_gpu.blocks.aws import AwsCredentials
    from prefect_gpu.providers.aws.driver import Aws
    from prefect_gpu.providers.core.machine import check
    from tests.fakes.aws import AwsCloud

    cloud.asks = [ask(1, gpu="Tesla T4", gpu_ram=15360, compute_cap=750, min_bid=0.1)]
    (tmp_path / "aws").mkdir()
    aws = AwsCloud.start(tmp_path / "aws")
    library: TaskLibrary[Any] = TaskLibrary(Aws, AwsCredentials)
    library.connections.drivers["default"] = aws.driver(regions=["us-east-1"])
    both = {"vastai": registry.library("vastai"), "aws": library}
    whole = check.check
    monkeypatch.setattr(registry, "library", lambda name: both[str(name)])
    monkeypatch.setattr(registry, "enabled", lambda *_: [Named(name) for name in both])
    monkeypatch.setattr(
        check,
        "check",
        lambda there, offer, *a, **k: MachineReport() if offer.provider == "aws" else whole(there, offer, *a, **k),
    )
    yield aws
    aws.stop()


def test_a_spot_job_that_is_outbid_on_the_last_host_goes_on_from_its_checkpoint_at_another_provider(
    cloud: FakeVastai, ec2: Any
) -> None:
    def outbid() -> None:
        wait_until(lambda: len(cloud.contracts) == 1, 60, "a machine")
        (contract,) = cloud.contracts.values()
        wait_until(lambda: trail(contract["body"]["label"]) == "x", 60, "a checkpoint")
        cloud.outbid(f"instances/{contract['id']}")

    thief = threading.Thread(target=outbid)
    thief.start()
    run = Rented({}, {})
    job = Job(checkpoint=("keep",), checkpoint_every_s=1)
    message = run.run(THREE.replace("xxx", "xx"), gpu="T4", job=job, requirements=SPOT)
    thief.join(10)
    assert message.startswith("exit 0 in "), message
    first, second = run.record.attempts
    assert [(one.provider, one.outcome) for one in (first, second)] == [("vastai", "interrupted"), ("aws", "gone")]
    assert (kept(run.run_id) / "1" / "job.log").read_text() == "so far xx\n"
    assert (cloud.alive(), ec2.alive()) == ([], [])
    assert len(ec2.calls("RunInstances")) == 1
    (contract,) = cloud.contracts.values()
    assert contract["gone_at"] <= second.ordered_at.timestamp()
