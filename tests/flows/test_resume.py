"""A run whose process dies goes on in another one: same machine, same job, its output once, nothing bought twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from prefect_gpu.providers.local.driver import Local
from tests.stack import Stack

pytestmark = [pytest.mark.server, pytest.mark.timeout(400)]

LINES = 100
COUNTING = f"for i in $(seq {LINES}); do echo {{word}} $i; sleep 0.05; done"


@pytest.fixture(scope="module")
def provision(stack: Stack) -> Iterator[UUID]:
    """`provision` and what set-up ships beside it: the automations."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from prefect_gpu.flows.terminal.automations import automations, make_automations

    deployment = stack.deploy(
        "prefect_gpu.flows.provision.provision", "resumes", PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30"
    )
    deployments = {
        "provision/default": deployment,
        "reap/default": stack.deploy("prefect_gpu.flows.reap.reap", "reap-resumes"),
    }
    with temporary_settings({PREFECT_API_URL: stack.api}), get_client(sync_client=True) as client:
        make_automations(client, deployments)
        yield deployment
        for one in automations(client, deployments):
            client.delete_automation(client.read_automations_by_name(one.name)[0].id)


def names(stack: Stack) -> list[str]:
    """What this server has on this machine, in the provider's own list."""
    return [one.name for one in Local().list_instances(f"pg-{stack.realm()}").instances]


def attempts(stack: Stack, run_id: UUID) -> list[dict[str, object]]:
    import json

    rows = stack.client.post("/artifacts/filter", json={"artifacts": {"key": {"any_": [f"attempts-{run_id}"]}}}).json()
    newest = max(rows, key=lambda row: row["created"], default=None)  # each execution writes one of its own
    return json.loads(newest["data"]) if newest else []


def test_after_kill_9_the_run_goes_on_with_its_machine_and_job_and_no_line_is_lost_or_doubled(
    stack: Stack, provision: UUID, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    command = (
        f"{COUNTING.format(word='line')}; while [ ! -e {gate} ]; do sleep 0.2; done; {COUNTING.format(word='more')}"
    )
    run_id = stack.run(provision, command=command, providers=["local"])
    stack.wait_for_line(run_id, "line 5")
    mine = names(stack)
    os.kill(stack.flow_process(run_id), signal.SIGKILL)
    stack.wait_for_log(run_id, "going on with what an earlier execution of this run has")
    assert names(stack) == mine
    gate.touch()  # on a busy machine it may take long until here
    assert stack.wait_for_state(run_id, "Completed", "Failed") == "Completed", stack.message(run_id)
    assert stack.job_output(run_id) == [
        f"{word} {number}" for word in ("line", "more") for number in range(1, LINES + 1)
    ]
    assert [one["outcome"] for one in attempts(stack, run_id)] == ["gone"]
    assert stack.flow_run(run_id)["run_count"] == 2  # type: ignore[index]
    assert names(stack) == []
