"""Whatever happens to a run on a real server and worker, nothing it rented stays: each test states how soon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from prefect_gpu.providers.local.driver import Local
from tests.stack import ROOT, Stack, wait_until

pytestmark = [pytest.mark.server, pytest.mark.timeout(400)]

AFTER_END_S = 15.0  # after a normal end or a cancel
AFTER_KILL_S = 60.0
AFTER_SUSPEND_S = 20.0  # and after deletion of the run


@pytest.fixture(scope="module")
def provision(stack: Stack) -> UUID:
    return stack.deploy("prefect_gpu.flows.provision.provision", "clean-up")


def instances(stack: Stack, *, foreign: bool = False) -> list[str]:
    """The provider's own list of what is this server's, read by a process that has nothing to do with any run."""
    realm = "" if foreign else stack.realm()
    if realm is None:
        return []  # nobody has ordered anything yet
    return [one.name for one in Local().list_instances(f"pg-{realm}").instances]


def gone_within(stack: Stack, seconds: float, since: float) -> None:
    wait_until(
        lambda: instances(stack) == [], max(1.0, seconds - (time.monotonic() - since)), "an empty list of instances"
    )


def start_long_job(stack: Stack, deployment: UUID, command: str = "echo started; sleep 300", **more: object) -> UUID:
    run_id = stack.run(deployment, command=command, providers=["local"], **more)
    stack.wait_for_line(run_id, "started")
    assert len(instances(stack)) == 1
    return run_id


def test_after_a_normal_end_it_is_gone_before_the_run_is_completed(stack: Stack, provision: UUID) -> None:
    run_id = stack.run(provision, command="echo hello", providers=["local"])
    stack.wait_for_state(run_id, "Completed")
    assert instances(stack) == []
    assert stack.message(run_id).startswith("exit 0 in ")
    assert "hello" in stack.logs(run_id)


def test_after_exit_3_the_run_is_failed_and_it_is_gone(stack: Stack, provision: UUID) -> None:
    run_id = stack.run(provision, command="exit 3", providers=["local"])
    stack.wait_for_state(run_id, "Failed")
    assert instances(stack) == []
    assert stack.message(run_id).startswith("exit 3 in ")
    wait_until(lambda: not stack.all_of(run_id), 60, "the end of its process, which sends all that it logged before")
    lines = stack.logs(run_id)
    assert any("Finished in state Failed('exit 3 in " in line for line in lines)
    assert not any("Traceback" in line for line in lines)


def test_after_an_exception_in_the_flow_it_is_gone_within_15_s(stack: Stack) -> None:
    broken = stack.deploy("tests.fakes.spoiled_flows.provision_that_breaks", "breaks")
    run_id = stack.run(broken, command="sleep 300", providers=["local"])
    stack.wait_for_state(run_id, "Failed")
    gone_within(stack, AFTER_END_S, time.monotonic())


def cancel_from_the_cli(stack: Stack, run_id: UUID) -> None:
    """`prefect flow-run cancel`, as a person types it."""
    subprocess.run(
        [sys.executable, "-m", "prefect", "flow-run", "cancel", str(run_id)],
        cwd=ROOT,
        env=stack.env,
        check=True,
        capture_output=True,
        timeout=120,
    )


def test_after_a_cancel_during_the_job_it_is_gone_within_15_s_with_all_that_the_job_started(
    stack: Stack, provision: UUID, tmp_path: Path
) -> None:
    mark = tmp_path / "daemon.pid"
    daemon = f"import os,time\nif os.fork()==0:\n os.setsid()\n if os.fork()==0:\n  open({str(mark)!r},'w').write(str(os.getpid()))\n  time.sleep(600)\n os._exit(0)"
    run_id = stack.run(
        provision,
        command=[sys.executable, "-c", f"{daemon}\nprint('started',flush=True)\nimport time\ntime.sleep(300)"],
        providers=["local"],
    )
    stack.wait_for_line(run_id, "started")
    wait_until(lambda: mark.exists() and mark.read_text() != "", 10, "the double-forked child")
    cancel_from_the_cli(stack, run_id)
    since = time.monotonic()
    gone_within(stack, AFTER_END_S, since)
    assert stack.wait_for_state(run_id, "Cancelled") == "Cancelled"
    assert not Path(f"/proc/{mark.read_text()}").exists()


def test_after_a_cancel_during_create_it_is_gone_within_15_s(stack: Stack) -> None:
    slow = stack.deploy("tests.fakes.spoiled_flows.provision_with_a_slow_create", "slow-create")
    run_id = stack.run(slow, command="sleep 300", providers=["local"])
    wait_until(lambda: len(instances(stack)) == 1, 60, "the instance whose create has not answered yet")
    cancel_from_the_cli(stack, run_id)
    gone_within(stack, AFTER_END_S, time.monotonic())
    stack.wait_for_state(run_id, "Cancelled")


def test_after_suspend_it_is_gone_within_20_s(stack: Stack, provision: UUID) -> None:
    run_id = start_long_job(stack, provision)
    stack.client.post(
        f"/flow_runs/{run_id}/set_state", json={"state": {"type": "PAUSED", "name": "Suspended"}, "force": True}
    ).raise_for_status()
    gone_within(stack, AFTER_SUSPEND_S, time.monotonic())
    assert stack.state(run_id) == "Suspended"


def test_after_deletion_of_the_run_it_is_gone_within_20_s(stack: Stack, provision: UUID) -> None:
    run_id = start_long_job(stack, provision)
    stack.client.delete(f"/flow_runs/{run_id}").raise_for_status()
    gone_within(stack, AFTER_SUSPEND_S, time.monotonic())


def test_after_kill_9_of_a_process_whose_run_is_not_to_be_resumed_it_is_gone_within_60_s(
    stack: Stack, provision: UUID
) -> None:
    run_id = start_long_job(stack, provision, resume=False)
    os.kill(stack.flow_process(run_id), signal.SIGKILL)
    gone_within(stack, AFTER_KILL_S, time.monotonic())
    stack.wait_for_state(run_id, "Crashed")


@pytest.fixture
def automations(stack: Stack, provision: UUID) -> Iterator[None]:
    """Those of a deployed server; that nobody reaps is told after 20 s."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from prefect_gpu.flows.terminal.automations import automations, make_automations

    deployments = {"provision/default": provision, "reap/default": stack.deploy("prefect_gpu.flows.reap.reap", "reap")}
    with temporary_settings({PREFECT_API_URL: stack.api}), get_client(sync_client=True) as client:
        make_automations(client, deployments, silence=timedelta(seconds=20))
        yield
        for one in automations(client, deployments):
            client.delete_automation(client.read_automations_by_name(one.name)[0].id)


def test_a_process_that_gives_no_sign_of_life_any_more_crashes_its_run_which_is_reaped(
    stack: Stack, automations: None
) -> None:
    """As after the death of its host: nobody runs a hook. It takes as long as with what set-up ships: 90 s, and 63 s of a second look."""
    watched = stack.deploy("prefect_gpu.flows.provision.provision", "clean-up", PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30")
    run_id = start_long_job(stack, watched, resume=False)
    process = stack.flow_process(run_id)
    os.kill(process, signal.SIGSTOP)
    try:
        stack.wait_for_state(run_id, "Crashed", within_s=270)
        gone_within(stack, AFTER_KILL_S, time.monotonic())
        assert fired(stack, "prefect-gpu: alert when nobody reaps")  # none completed in the first 20 s
    finally:
        os.kill(process, signal.SIGKILL)


def fired(stack: Stack, name: str) -> bool:
    """Whether an automation was triggered."""
    question = {"filter": {"event": {"name": ["prefect.automation.triggered"]}}, "limit": 50}
    events = stack.client.post("/events/filter", json=question).raise_for_status().json()["events"]
    return any(event["resource"].get("prefect.resource.name") == name for event in events)


def test_a_process_that_was_stopped_while_its_run_went_to_another_touches_nothing(
    stack: Stack, provision: UUID
) -> None:
    run_id = start_long_job(stack, provision)
    old, mine = stack.flow_process(run_id), instances(stack)
    os.kill(old, signal.SIGSTOP)
    try:
        stack.client.post(
            f"/flow_runs/{run_id}/set_state", json={"state": {"type": "SCHEDULED", "name": "Scheduled"}, "force": True}
        ).raise_for_status()
        try:
            # The worker takes it up again: it looks for runs that are due, whatever becomes of the process it started before.
            stack.wait_for_log(run_id, "going on with what an earlier execution of this run has")
            wait_until(
                lambda: sum("5 run" in line for line in stack.logs(run_id)) == 2, 60, "the second execution's job"
            )
            assert instances(stack) == mine
            state = stack.flow_run(run_id)["state"]["id"]
            os.kill(old, signal.SIGCONT)
            wait_until(lambda: not Path(f"/proc/{old}").exists(), 60, "the end of the old process")
            time.sleep(3)
            assert instances(stack) == mine
            assert stack.flow_run(run_id)["state"]["id"] == state
        finally:
            stack.cancel(run_id)
    finally:
        if Path(f"/proc/{old}").exists():
            os.kill(old, signal.SIGCONT)
    gone_within(stack, AFTER_END_S, time.monotonic())


def test_reap_ends_what_a_deleted_run_left_and_touches_no_foreign_name(stack: Stack) -> None:
    program = f"""
from datetime import timedelta
from uuid import UUID
from prefect_gpu.blocks.realm import GpuRealm
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import utc_now
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.local import tasks
from prefect_gpu.flows.run.attempt import new_attempt
from prefect_gpu.flows.run.record import Record
for realm in (GpuRealm.current().realm, "zzzz"):
    lease = Lease(realm=realm, run_id=UUID("{uuid4()}"), deadline=utc_now() + timedelta(hours=1), run_count=1, attempt=0)
    driver = tasks.driver()
    offer = driver.fetch_offers(Requirements())[0]
    driver.create_instance(offer, tasks.spec(lease))
    if realm != "zzzz":  # its run was deleted, and its record says that there was one
        Record(lease.run_id, [new_attempt(0, lease.name, offer, "default", driver.account_id())]).write()
    print(lease.name)
"""
    own, foreign = stack.python(program).split()
    reap = stack.deploy("prefect_gpu.flows.reap.reap", "reap")
    dry = stack.run(reap, dry_run=True)
    stack.wait_for_state(dry, "Completed")
    assert stack.message(dry).startswith("would terminate 1, ")
    assert {own, foreign} <= set(instances(stack, foreign=True))
    run_id = stack.run(reap)
    stack.wait_for_state(run_id, "Completed")
    assert instances(stack) == []
    assert foreign in instances(stack, foreign=True)
    stack.python(f"from prefect_gpu.providers.local import tasks; tasks.give_back({foreign!r})")
