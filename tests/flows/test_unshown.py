"""What Prefect's log lacked when a job ended is shown later: nothing of the output is lost, nothing is there twice."""

from __future__ import annotations

import errno
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.sorting import LogSort
from prefect.exceptions import Abort
from prefect.states import Scheduled

from prefect_gpu.flows.run import outputs
from prefect_gpu.flows.run.budget import Budget
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers.core.models import JobResult, utc_now
from prefect_gpu.providers.core.renting.job_log import JobLog
from tests.flows.rented import Rented
from tests.flows.test_taking_over import Crashing

pytestmark = [pytest.mark.usefixtures("prefect_api"), pytest.mark.timeout(180)]

COUNT = 40
LINES = "".join(f"line {number}\n" for number in range(1, COUNT + 1))
COMMAND = f"for i in $(seq {COUNT}); do echo line $i; done"


def shown(run_id: Any) -> str:
    """The job's output as the run's log has it."""
    mine = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    with get_client(sync_client=True) as client:
        rows = client.read_logs(mine, limit=200, sort=LogSort.TIMESTAMP_ASC)
    return "".join(f"{row.message}\n" for row in rows if row.name.startswith("job@"))


@pytest.fixture
def no_logs_while_a_machine_is_there(rented: Rented, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's API takes no log of the job before its machine was given back."""
    original, close = SyncPrefectClient.create_logs, JobLog.close

    def create_logs(self: SyncPrefectClient, logs: Any) -> None:
        is_of_job = any(isinstance(one, dict) and one["name"].startswith("job@") for one in logs)
        if is_of_job and any(cloud.alive() for cloud in rented.clouds.values()):
            raise ConnectionError("the API is away")
        original(self, logs)

    monkeypatch.setattr(SyncPrefectClient, "create_logs", create_logs)
    monkeypatch.setattr(JobLog, "close", lambda self, timeout_s=0.5: close(self, timeout_s))


@pytest.mark.usefixtures("no_logs_while_a_machine_is_there")
def test_a_job_that_ends_while_the_api_takes_no_logs_is_shown_once_its_machine_is_gone(rented: Rented) -> None:
    assert rented.run(COMMAND).startswith("exit 0")
    assert shown(rented.run_id) == LINES
    rented.assert_nothing_is_left()


@pytest.mark.usefixtures("no_logs_while_a_machine_is_there")
def test_all_tries_are_shown_whole(rented: Rented) -> None:
    assert rented.run(f"{COMMAND}; exit 3", retries=1).startswith("exit 3 on try 2")
    assert shown(rented.run_id) == LINES * 2
    rented.assert_nothing_is_left()


@pytest.mark.usefixtures("no_logs_while_a_machine_is_there")
def test_a_job_that_its_budget_stopped_before_its_machine_did_is_shown_too(
    dear: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Budget, "job_until", lambda _: None)
    assert dear.run(f"{COMMAND}; sleep 60", max_cost=10.0).startswith("stopped by its budget")
    assert shown(dear.run_id) == LINES
    dear.assert_nothing_is_left()


@pytest.mark.parametrize("count", [0, 13, COUNT])
def test_a_process_that_died_before_all_was_shown_leaves_the_rest_to_the_next(rented: Rented, count: int) -> None:
    """The job had ended and its result is on the record; how many of its lines are in the run's log, the log alone tells."""
    crashing = Crashing(rented)
    instance_id = crashing.order()
    record = Record(crashing.run.id)
    line = record.open(crashing.line(), crashing.offer)
    record.note(line, outcome="current", instance_id=instance_id, began_at=utc_now())
    record.result = JobResult(exit_code=0, started_at=utc_now(), ended_at=utc_now(), log_bytes=len(LINES))
    record.write()
    with outputs.kept(crashing.run.id, 0) as folder:
        (folder / "job.log").write_text(LINES)
    if first := "".join(LINES.splitlines(keepends=True)[:count]):
        row = {"name": f"job@{len(first)}", "level": 20, "message": first.removesuffix("\n")}
        stamp = datetime.now(UTC).isoformat()
        with get_client(sync_client=True) as client:
            client.create_logs([{**row, "timestamp": stamp, "flow_run_id": str(crashing.run.id)}])
    assert crashing.go_on().startswith("exit 0 in")
    assert shown(crashing.run.id) == LINES
    rented.assert_nothing_is_left()


def test_a_process_whose_run_was_given_away_writes_no_result_over_its_successor_s_head(
    rented: Rented, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else the next one takes the job for over, and the lines that this one did not show are shown by nobody."""
    followed = tmp_path / "followed"
    original = JobLog.close
    run_ids: list[Any] = []

    def close(self: JobLog, timeout_s: float = 5.0) -> int:
        if not followed.exists():  # the job has ended; this is where the process was stopped, and wakes up again
            followed.touch()
            run_ids.append(self._run_id)
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(self._run_id, Scheduled(), force=True)
        return original(self, timeout_s)

    monkeypatch.setattr(JobLog, "close", close)
    monkeypatch.setattr("prefect_gpu.flows.run.execution.FRESH_S", 0.0)
    with pytest.raises(Abort):
        rented.run(COMMAND)
    assert Record.read(run_ids[0]).result is None
    assert len(rented["alpha"].alive()) == 1  # its successor's


@pytest.mark.usefixtures("no_logs_while_a_machine_is_there")
def test_a_worker_whose_disk_is_full_then_fails_no_run_whose_job_ended_well(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs, "log_file", full)
    assert rented.run(COMMAND).startswith("exit 0")
    assert rented.state.is_completed()
    rented.assert_nothing_is_left()
