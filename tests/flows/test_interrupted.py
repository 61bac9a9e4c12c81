"""A machine that is taken back: its job begins anew on the best offer there is then, with the files that it asked to keep."""

from __future__ import annotations

import pytest

from prefect_gpu.flows.run import outputs
from prefect_gpu.providers.core.requests import Job, Requirements, Spot
from tests.flows.rented import Rented

pytestmark = [pytest.mark.usefixtures("prefect_api"), pytest.mark.timeout(240)]

COUNT = """
mkdir -p keep; n=$(cat keep/count 2>/dev/null || echo 0)
while [ "$n" -lt 50 ]; do sleep 0.5; n=$((n + 1)); echo $n > keep/.new; mv keep/.new keep/count; echo "step $n"; done
echo "counted to $n"
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_gpu.providers.core.renting.running.ASK_EVERY_S", 0.2)
    monkeypatch.setattr("prefect_gpu.providers.core.renting.keeping.LOOK_EVERY_S", 0.3)


def kept_log(rented: Rented, attempt: int) -> str:
    return (outputs.checkpoints(rented.run_id).folder.parent / str(attempt) / "job.log").read_text()


def test_a_spot_job_that_is_interrupted_twice_ends_well_from_its_checkpoint_and_two_are_never_alive(
    rented: Rented,
) -> None:
    rented["alpha"].fault("create", "interrupted", seconds=9, times=2)
    job = Job(checkpoint=("keep",), checkpoint_every_s=1)
    message = rented.run(COUNT, job=job, requirements=Requirements(spot=Spot.SPOT))
    assert message.startswith("exit 0 in "), message
    attempts = rented.record.attempts
    assert [one.outcome for one in attempts] == ["interrupted", "interrupted", "gone"]
    assert all(one.cost for one in attempts)
    assert len({one.scope for one in attempts}) == 1, "what was interrupted is not passed over"
    logs = [kept_log(rented, number) for number in range(3)]
    assert logs[2].endswith("counted to 50\n")
    began_at = int(logs[2].split()[1])
    assert began_at > 1, "it began anew from its checkpoint"
    rented.assert_nothing_is_left()


def test_a_job_on_demand_that_keeps_nothing_is_not_begun_anew(rented: Rented) -> None:
    rented["alpha"].fault("create", "vanishes", seconds=4)
    message = rented.run("echo started; sleep 60")
    assert message.startswith("lost in ")
    assert len(rented["alpha"].orders()) + len(rented["beta"].orders()) == 1
    rented.assert_nothing_is_left()


def test_a_job_that_only_failed_is_not_interrupted(rented: Rented) -> None:
    assert rented.run("exit 3", requirements=Requirements(spot=Spot.SPOT)).startswith("exit 3 in")
    assert len(rented.record.attempts) == 1
