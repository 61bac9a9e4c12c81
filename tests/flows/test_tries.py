"""A job that failed is tried again on its machine, in its directory, each try with its own log and exit code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.results import get_default_result_storage

from prefect_gpu.flows.run.outputs import place
from prefect_gpu.providers.core.models import MachineReport
from prefect_gpu.providers.core.requests import Job
from tests.flows.rented import Rented

pytestmark = [pytest.mark.usefixtures("prefect_api"), pytest.mark.timeout(180)]

# Three steps, each in a try of its own; what it wrote is its checkpoint.
IN_STEPS = "echo step >>steps; n=$(wc -l <steps); echo try $n; [ $n = 3 ] || exit 75"


def folder(rented: Rented, tries: int) -> Path:
    storage: Any = get_default_result_storage(_sync=True)  # type: ignore[call-arg]
    return Path(storage.basepath).expanduser() / place(rented.run_id, 0, tries)


def output(rented: Rented) -> list[tuple[str, str]]:
    mine = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[rented.run_id]))
    with get_client(sync_client=True) as client:
        return [(one.name, one.message) for one in client.read_logs(mine, limit=200) if one.name.startswith("job@")]


def test_it_goes_on_from_its_checkpoint_on_the_same_machine(rented: Rented, tmp_path: Path) -> None:
    (tmp_path / "steps").write_text("")
    job = Job(files=("steps",), outputs=("steps",))
    message = rented.run(IN_STEPS, retries=2, retry_exit_codes=[75], job=job)
    assert message.startswith("exit 0 on try 3 in ")
    assert len(rented["alpha"].orders()) == 1
    rented.assert_nothing_is_left()
    assert [(folder(rented, tries) / "job.log").read_text() for tries in (1, 2, 3)] == ["try 1\n", "try 2\n", "try 3\n"]
    assert [(folder(rented, tries) / "outputs").exists() for tries in (1, 2, 3)] == [False, False, True]
    assert (folder(rented, 3) / "outputs" / "steps").read_text() == "step\n" * 3  # not sent a second time
    assert rented.result.tries == rented.record.attempts[0].tries == 3
    assert output(rented) == [("job@6", "try 1"), ("job@6/2", "try 2"), ("job@6/3", "try 3")]


def test_another_exit_code_ends_it_and_so_does_the_last_try(rented: Rented) -> None:
    assert rented.run("exit 3", retries=5, retry_exit_codes=[75]).startswith("exit 3 in ")
    assert rented.run("exit 75", retries=1).startswith("exit 75 on try 2 in ")
    assert rented.state.is_failed()


def test_all_tries_together_have_the_job_s_time(rented: Rented) -> None:
    message = rented.run("sleep 1.5; exit 1", retries=50, job=Job(timeout_s=4))
    assert message.startswith(("timed out on try 3 in ", "exit 1 on try "))
    assert rented.result.tries <= 3


def test_a_machine_that_is_not_healthy_any_more_is_left_for_the_next(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks: list[str] = []

    def check(*_: Any, **__: Any) -> MachineReport:
        checks.append("")
        return MachineReport(problem="GPU 3 has fallen off the bus" if len(checks) == 2 else None)

    monkeypatch.setattr("prefect_gpu.providers.core.machine.check.check", check)
    message = rented.run("exit 75", retries=2)
    assert message.startswith("exit 75")
    assert [(one.outcome, one.tries) for one in rented.record.attempts] == [("boot failed", 2), ("gone", 1)]
    assert len(checks) == 3  # three tries, the second of which was none
    rented.assert_nothing_is_left()
