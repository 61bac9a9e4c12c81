"""What people do to runs, and the ends of workers and hosts, each as it really happens beside a real server and worker: who cleans up, or that the job goes on.

The acts are done to many runs at the same time; the tests then wait for what becomes of each. Each test's time is that of the row in docs/promises.md, twice as long on a busy
machine.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

import pytest

from prefect_gpu.flows.reaping import verdict
from prefect_gpu.flows.terminal.automations import automations
from prefect_gpu.providers.core.lease import run_prefix
from tests.flows.acts import BLOCK, BLUE, DOOMED, KEEPING, Acted, Stage

pytestmark = [pytest.mark.server, pytest.mark.timeout(400)]

GOING_ON = "going on with what an earlier execution of this run has"
UNHEARD = "prefect-gpu: reap after a cancel that nobody hears"
BUSY = 2.0
Runs = dict[str, Acted]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    found = Stage(tmp_path_factory.mktemp("acts"))
    try:
        found.prepare()
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def runs(stage: Stage) -> Runs:
    """All of them, each at work, then acted on."""
    stage.begin_worker_of(BLUE, name=BLUE)
    stage.begin_worker_of(DOOMED, name=DOOMED)
    found = {
        "redeploy": stage.counting("redeploy", queue=BLUE),
        "host dies": stage.counting("host", queue=DOOMED),
        "cancelled, no process": stage.long(queue=DOOMED),
    }
    stage.until(lambda: all(stage.state(one.run_id) != "Scheduled" for one in found.values()), 120, "their workers")
    stage.begin_worker_of(name="steady")  # takes what they had from now on
    found |= {"failed, then retried": Acted(begin_what_does_not_end(stage))}
    found |= {kind: stage.long() for kind in ("failed", "completed", "cancelled", "cancelled, paused")}
    found |= {kind: stage.counting(kind) for kind in ("crashed", "terminated")}
    found |= {"paused": stage.counting("paused", 2), "paused to its end": stage.counting("to-its-end")}
    at_work(stage, {name: one for name, one in found.items() if name != "failed, then retried"})
    for name in ("host dies", "redeploy"):
        stage.until(lambda run=found[name].run_id: stage.beats(run) > 2, 60, "three signs of life")  # type: ignore[misc]
    # The slowest first.
    stage.host_dies(DOOMED, found["host dies"], found["cancelled, no process"])
    stage.cancelled(found["cancelled, no process"])
    stage.told_to_end(found["redeploy"], BLUE)
    stage.told_to_end(found["terminated"])
    for kind in ("crashed", "failed", "completed", "cancelled"):
        stage.set_by_hand(found[kind], kind)
    for name in ("paused", "paused to its end", "cancelled, paused"):
        stage.set_by_hand(found[name], "paused", force=False)
    stage.cancelled(found["cancelled, paused"])
    return found


def at_work(stage: Stage, runs: Runs) -> None:
    for acted in runs.values():
        stage.until(lambda acted=acted: stage.speaks(acted.run_id), 240, "the first line of its job", acted.run_id)  # type: ignore[misc]


def begin_what_does_not_end(stage: Stage) -> UUID:
    """A run that fails, with files that it keeps, whose machine does not end when it is told to."""
    job = {"checkpoint": ["keep"], "checkpoint_every_s": 1}
    run_id = stage.begin(KEEPING, cloud="lambdalabs", job=job, in_s=3.0)
    stage.clouds["lambdalabs"].fault("create", "never ends", name=run_prefix(stage.realm_name, run_id))
    return run_id


def tell(**seconds: float) -> None:
    """What was measured: `--log-cli-level=INFO` shows it."""
    logging.getLogger("acts").info(", ".join(f"{name}: {value:.1f} s" for name, value in seconds.items()))


def is_whole(stage: Stage, acted: Acted) -> None:
    """It ended well: every line once, of one machine, which is gone."""
    stage.until_state(acted.run_id, "Completed", "Failed", "Cancelled")
    assert stage.state(acted.run_id) == "Completed", stage.message(acted.run_id)
    assert stage.job_output(acted.run_id) == acted.lines
    assert len(stage.ordered(acted.run_id)) == 1
    assert stage.alive_of(acted.run_id) == []


def goes_on(stage: Stage, acted: Acted, within_s: float) -> None:
    """In another process: with its machine, with its job, to its end."""
    again = stage.until_told(acted.run_id, GOING_ON, within_s * BUSY)
    tell(crashed=stage.entered(acted.run_id, "Crashed") - acted.at, going_on=again - acted.at)
    assert again - acted.at < within_s * BUSY
    stage.until(lambda: not stage.is_at_work(acted), 30, "the end of the old process", acted.run_id)
    assert len(stage.alive_of(acted.run_id)) == 1
    acted.gates[0].touch()
    is_whole(stage, acted)
    assert stage.story(acted.run_id)[-6:] == ["Running", "Crashed", "Scheduled", "Pending", "Running", "Completed"]


def test_what_set_up_ships_waits_as_the_page_says(stage: Stage) -> None:
    with stage.asked() as client:
        shipped = {one.name: one.trigger.within for one in automations(client, stage.deployments)}
    assert shipped[UNHEARD] == timedelta(seconds=60)
    assert shipped["prefect-gpu: look at a run that gives no sign of life"] == timedelta(seconds=90)
    assert shipped["prefect-gpu: resume a run whose process is gone"] == timedelta(seconds=10)
    assert verdict.CANCELLING_S == 60


def test_after_a_cancel_before_it_starts_nothing_is_bought(stage: Stage) -> None:
    run_id = stage.begin("echo hello", in_s=3600)
    answer = stage.client.post(f"/flow_runs/{run_id}/set_state", json={"state": {"type": "CANCELLING"}})
    assert answer.raise_for_status().json()["state"]["name"] == "Cancelled"
    assert stage.state(run_id) == "Cancelled"
    assert stage.ordered(run_id) == []


@pytest.mark.parametrize("kind", ["failed", "completed", "cancelled"])
def test_after_a_final_state_set_by_hand_the_flow_process_gives_the_machine_back_and_writes_no_state(
    stage: Stage, runs: Runs, kind: str
) -> None:
    acted = runs[kind]
    seconds = stage.gone_after(acted, 20)
    tell(gone=seconds)
    assert seconds < 20 * BUSY
    stage.until(lambda: not stage.is_at_work(acted), 30, "the end of the process", acted.run_id)
    assert stage.story(acted.run_id)[-2:] == ["Running", kind.title()]
    # What `reap` finds out, which is called as well, stands elsewhere.
    assert [line["outcome"] for line in stage.record(acted.run_id)] == ["gone"]


def test_a_cancel_of_a_paused_run_is_heard_as_any_other(stage: Stage, runs: Runs) -> None:
    acted = runs["cancelled, paused"]
    seconds = stage.gone_after(acted, 15)
    tell(gone=seconds)
    assert seconds < 15 * BUSY
    stage.until_state(acted.run_id, "Cancelled")


def test_a_paused_job_goes_on_is_shown_and_after_resume_the_same_process_brings_it_to_its_end(
    stage: Stage, runs: Runs
) -> None:
    acted = runs["paused"]
    acted.gates[0].touch()
    stage.until(lambda: len(stage.job_output(acted.run_id)) == 2 * BLOCK, 30, "lines of a paused run", acted.run_id)
    assert stage.state(acted.run_id) == "Paused"
    stage.client.post(f"/flow_runs/{acted.run_id}/resume").raise_for_status()
    stage.until_state(acted.run_id, "Running")
    assert stage.is_at_work(acted)
    acted.gates[1].touch()
    is_whole(stage, acted)
    assert stage.story(acted.run_id)[-4:] == ["Running", "Paused", "Running", "Completed"]


def test_a_job_that_ends_while_its_run_is_paused_leaves_nothing(stage: Stage, runs: Runs) -> None:
    acted = runs["paused to its end"]
    acted.gates[0].touch()
    is_whole(stage, acted)
    assert stage.story(acted.run_id)[-3:] == ["Running", "Paused", "Completed"]


def test_a_retry_of_a_run_that_failed_gives_back_first_what_is_owed_and_goes_on_from_its_files(
    stage: Stage, runs: Runs
) -> None:
    run_id, cloud = runs["failed, then retried"].run_id, stage.clouds["lambdalabs"]
    stage.until_state(run_id, "Failed")
    (first,) = stage.alive_of(run_id, "lambdalabs")
    assert [line["outcome"] for line in stage.record(run_id)] == ["owed"]
    # As `prefect flow-run retry` does.
    state = {"type": "SCHEDULED", "name": "Scheduled", "message": "Retried via CLI"}
    stage.client.post(f"/flow_runs/{run_id}/set_state", json={"state": state, "force": True}).raise_for_status()
    stage.until_told(run_id, "giving back what an earlier execution of this run left: 1 order")
    assert stage.alive_of(run_id, "lambdalabs") == [first]
    cloud.mend()
    stage.until_state(run_id, "Completed", "Failed")
    assert stage.job_output(run_id) == ["first", "again from 7"], stage.message(run_id)
    assert len(stage.ordered(run_id, "lambdalabs")) == 2
    assert stage.alive_of(run_id, "lambdalabs") == []


def test_a_run_set_by_hand_to_crashed_goes_on_in_another_process_and_the_old_one_touches_nothing(
    stage: Stage, runs: Runs
) -> None:
    goes_on(stage, runs["crashed"], 30)


def test_a_run_whose_process_is_told_to_end_goes_on_in_another_one(stage: Stage, runs: Runs) -> None:
    goes_on(stage, runs["terminated"], 30)


def test_after_a_redeploy_whose_worker_kills_its_flow_processes_another_worker_goes_on(
    stage: Stage, runs: Runs
) -> None:
    assert stage.processes[BLUE].wait(120) == 0
    goes_on(stage, runs["redeploy"], 120)


def test_when_a_host_dies_it_is_noticed_by_its_silence_and_another_worker_goes_on(stage: Stage, runs: Runs) -> None:
    goes_on(stage, runs["host dies"], 120)
    assert "prefect-gpu: look at a run that gives no sign of life" in stage.reaps()


def test_after_a_cancel_while_no_process_exists_reap_gives_the_machine_back(stage: Stage, runs: Runs) -> None:
    acted = runs["cancelled, no process"]
    seconds = stage.gone_after(acted, 120)
    tell(gone=seconds)
    assert 60 < seconds < 120 * BUSY
    assert stage.story(acted.run_id)[-1] in {"Cancelling", "Cancelled"}
    (order,) = stage.ordered(acted.run_id)
    assert stage.reaps(order.name), "it was a reap that ended it"
    stage.until(lambda: UNHEARD in stage.reaps(), 60, "the reap that the cancel calls for", acted.run_id)
