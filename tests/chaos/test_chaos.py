"""A handful of seeds, whole, on what teams run Prefect's server on: `make chaos` runs hundreds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests import postgres
from tests.chaos.__main__ import run_seeds
from tests.chaos.batch import Ground

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]
SEEDS = [2, 10, 33, 57]  # what they do stands in schedule.py; none of them waits for minutes


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    if postgres.programs() is None:
        pytest.skip("no PostgreSQL here: install the package postgresql")
    with ExitStack() as stack:
        found = Ground(tmp_path_factory.mktemp("chaos"), stack.enter_context(postgres.running()))
        stack.callback(found.stop)
        found.start()
        yield found


def test_nothing_leaks_is_bought_twice_or_lost_whatever_dies(ground: Ground) -> None:
    verdicts = run_seeds(ground, SEEDS, with_events=False)
    assert {one.seed: one.faults for one in verdicts if one.faults} == {}
    assert sum(one.fired for one in verdicts) >= 3, "what the seeds are picked for came to pass"


def test_a_run_on_postgresql_is_whole_and_so_is_what_a_reap_sees_of_it(ground: Ground) -> None:
    asked = {"command": "for i in $(seq 500); do echo line $i; done", "providers": ["verda"]}
    run_id = ground.run(ground.deployments["provision/default"], **asked)
    ground.wait_for_state(run_id, "Completed", "Failed", "Crashed")
    assert ground.message(run_id).startswith("exit 0 in ")
    assert ground.job_output(run_id) == [f"line {number}" for number in range(1, 501)]
    (line,) = ground.records([run_id])[run_id]
    assert (line["outcome"], line["cost"] > 0) == ("gone", True)
    reap = ground.run(ground.deployments["reap/default"])
    ground.wait_for_state(reap, "Completed", "Failed")
    assert ground.message(reap).startswith("0 terminated and confirmed gone, 0 still to confirm, 0 in use")
