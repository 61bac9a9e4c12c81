"""Crashed runs that `reap` starts again, and what it tells a person of what nobody can end."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Crashed, Failed

from prefect_gpu.flows.provision import provision
from prefect_gpu.flows.reaping import by_hand, stuck, verdict
from prefect_gpu.flows.reaping.found import Found
from prefect_gpu.flows.run import resuming
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers import ProviderName
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import utc_now
from tests.flows.test_reap import Clouds, clouds, lease_of, nothing, reaped

__all__ = ["clouds"]
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def deployment(prefect_api: None) -> UUID:
    with get_client(sync_client=True) as client:
        return client.create_deployment(flow_id=client.create_flow(nothing), name="resumes", entrypoint="x.y")


def crashed(deployment: UUID, state: Any = None, **parameters: Any) -> UUID:
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(deployment, parameters=parameters)
        client.set_flow_run_state(run.id, state or Crashed(), force=True)
    return run.id


def state_of(run_id: UUID) -> Any:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id).state


def test_a_crashed_run_that_has_an_instance_is_started_again_and_keeps_it(
    clouds: Clouds, deployment: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stuck, "RESUMED", timedelta(0))
    run_id = crashed(deployment)
    line = clouds.order("alpha", run_id)
    Record(run_id, [line]).write()
    assert reaped() == "0 terminated and confirmed gone, 0 still to confirm, 1 in use"
    assert state_of(run_id).name == "Scheduled"
    assert clouds.alive("alpha") == [line.name]


def provision_that_crashed(times: int) -> UUID:
    """A run of which nobody ever counted an execution: its process ended before it began."""
    with get_client(sync_client=True) as client:
        of = client.create_deployment(flow_id=client.create_flow(provision), name="crashes", entrypoint="x.y")
        run = client.create_flow_run_from_deployment(of, parameters={"command": "true"})
        for _ in range(times):
            client.set_flow_run_state(run.id, resuming.scheduled(), force=True)
            client.set_flow_run_state(run.id, Crashed(), force=True)
    return run.id


def test_one_that_crashed_before_it_had_anything_is_started_again_too(
    clouds: Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = provision_that_crashed(times=1)
    reaped()
    assert state_of(run_id).name == "Crashed"  # the automation's turn
    monkeypatch.setattr(stuck, "RESUMED", timedelta(0))
    reaped()
    assert state_of(run_id).name == "Scheduled"


def test_one_whose_process_never_gets_to_begin_is_not_started_for_ever(clouds: Clouds) -> None:
    run_id = provision_that_crashed(times=6)
    reaped()
    state = state_of(run_id)
    assert (state.name, state.message) == ("Failed", stuck.HOPELESS)


def test_one_that_crashed_long_ago_is_left_to_a_person(clouds: Clouds, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = provision_that_crashed(times=1)
    monkeypatch.setattr(stuck, "RESUMED", timedelta(0))
    monkeypatch.setattr(stuck, "LATELY", timedelta(0))
    reaped()
    assert state_of(run_id).name == "Crashed"


@pytest.mark.parametrize(
    ("state", "parameters"), [(Crashed(), {"resume": False}), (Failed(), {})], ids=["resume is off", "failed"]
)
def test_one_that_nobody_takes_up_is_reaped(
    clouds: Clouds, deployment: UUID, state: Any, parameters: dict[str, Any]
) -> None:
    run_id = crashed(deployment, state, **parameters)
    Record(run_id, [clouds.order("alpha", run_id)]).write()
    assert reaped().startswith("1 terminated and confirmed gone")
    assert clouds.alive("alpha") == []


def test_a_crashed_run_whose_deployment_is_gone_is_reaped(clouds: Clouds, deployment: UUID) -> None:
    run_id = crashed(deployment)
    Record(run_id, [clouds.order("alpha", run_id)]).write()
    with get_client(sync_client=True) as client:
        client.delete_deployment(deployment)
    assert reaped().startswith("1 terminated and confirmed gone")


def test_a_lease_that_is_over_ends_also_what_would_be_resumed(clouds: Clouds, deployment: UUID) -> None:
    run_id = crashed(deployment)
    line = clouds.order("alpha", run_id)
    Record(run_id, [line]).write()
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(run_id)
    later = verdict.Bench(clouds.realm, utc_now() + timedelta(hours=3))
    assert verdict.why_end(lease_of(line), line.name, run, Record.read(run_id), later) == "its lease is over"


def test_a_user_s_own_flow_that_crashed_is_resumed_by_nobody(clouds: Clouds, deployment: UUID) -> None:
    run_id = crashed(deployment)
    clouds.order("alpha", run_id)  # it keeps no record
    assert reaped().startswith("1 terminated and confirmed gone")


def test_what_does_not_end_after_its_lease_is_a_failed_reap_that_says_how_to_end_it_by_hand(
    clouds: Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, really = clouds.orphan("alpha"), by_hand.overdue
    monkeypatch.setattr(by_hand, "overdue", lambda doomed, now: really(doomed, now + timedelta(hours=2)))  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
    clouds.clouds["alpha"].fault("terminate", "server error", times=1000)
    message = reaped()
    clouds.clouds["alpha"].mend()
    assert line.name in message
    assert "does not end and may cost money" in message


@pytest.mark.parametrize("provider", list(ProviderName), ids=lambda one: one.value)
def test_each_provider_says_where_a_person_sees_its_machines_and_what_ends_one(provider: ProviderName) -> None:
    lease = Lease(realm="abcd", run_id=UUID(int=1), deadline=utc_now(), run_count=1, attempt=0)
    one = Found(
        provider=provider.value,
        account="default",
        ids=("us-1/i-17",),
        machines=("us-1/i-17",),
        name=lease.name,
        came_of_it="owed: no answer",
    )
    said = by_hand.told(one)
    assert by_hand.BY_HAND[provider.value].console in said
    assert "`" in said
    assert by_hand.overdue([one], lease.deadline) == [one]
    assert by_hand.overdue([one], lease.deadline - timedelta(minutes=1)) == []
