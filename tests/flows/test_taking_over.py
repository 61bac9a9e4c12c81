"""An execution of a run finds what the one before it left: it goes on with the current instance, and settles an open order first."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import Abort
from prefect.flow_engine import run_flow
from prefect.states import Crashed, Failed, Pending, Running, Scheduled

from prefect_gpu.blocks.realm import GpuRealm
from prefect_gpu.flows.provision import provision
from prefect_gpu.flows.run import resuming
from prefect_gpu.flows.run.attempt import Attempt, new_attempt
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers.core.errors import Transient
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import JobResult, utc_now
from prefect_gpu.providers.core.requests import Job, Requirements
from tests.flows.rented import Rented

pytestmark = [pytest.mark.usefixtures("prefect_api"), pytest.mark.timeout(180)]


class Crashing:
    """A run whose first process died after an order; `go_on` is its second execution."""

    def __init__(self, rented: Rented, **parameters: Any) -> None:
        self.rented = rented
        self.library = rented.libraries["alpha"]
        self.parameters = {"command": "echo again", **parameters}
        with get_client(sync_client=True) as client:
            self.run = client.create_flow_run(provision, parameters=self.parameters)
        self.offer = self.library.driver().fetch_offers(Requirements())[0]
        deadline = utc_now() + timedelta(hours=1)
        self.lease = Lease(
            realm=GpuRealm.current().realm, run_id=self.run.id, deadline=deadline, run_count=1, attempt=0
        )

    def line(self, **changes: Any) -> Attempt:
        account = self.library.driver().account_id()
        return new_attempt(0, self.lease.name, self.offer, "default", account).model_copy(update=changes)

    def order(self) -> str:
        return self.library.driver().create_instance(self.offer, self.library.spec(self.lease)).id

    def wrote(self, line: Attempt) -> None:
        record = Record(self.run.id)
        record.open(line, self.offer)

    def go_on(self, *before: Any) -> str:
        with get_client(sync_client=True) as client:
            for state in (Running(), *(before or (Crashed(), resuming.scheduled())), Pending()):
                client.set_flow_run_state(self.run.id, state, force=True)
            run = client.read_flow_run(self.run.id)
        self.rented.state = run_flow(provision, flow_run=run, parameters=self.parameters, return_type="state")
        return self.rented.state.message or ""

    @property
    def orders(self) -> int:
        return sum(len(cloud.orders()) for cloud in self.rented.clouds.values())


def test_the_current_instance_is_gone_on_with_and_nothing_is_bought(rented: Rented) -> None:
    crashing = Crashing(rented)
    crashing.wrote(crashing.line(outcome="current", instance_id=crashing.order()))
    assert crashing.go_on().startswith("exit 0 in")
    assert crashing.orders == 1
    assert [one.outcome for one in rented.record.attempts] == ["gone"]
    rented.assert_nothing_is_left()


def test_an_order_whose_answer_was_lost_with_its_process_is_found_and_gone_on_with(rented: Rented) -> None:
    crashing = Crashing(rented)
    crashing.order()
    crashing.wrote(crashing.line())
    assert crashing.go_on().startswith("exit 0 in")
    assert crashing.orders == 1
    rented.assert_nothing_is_left()


def test_an_order_that_was_never_sent_is_settled_before_the_next_one(rented: Rented) -> None:
    crashing = Crashing(rented)
    crashing.wrote(crashing.line())
    assert crashing.go_on().startswith("exit 0 in")
    assert crashing.orders == 1
    rented.assert_nothing_is_left()


def test_a_machine_that_went_before_its_job_began_is_followed_by_the_next(rented: Rented) -> None:
    crashing = Crashing(rented)
    instance_id = crashing.order()
    crashing.wrote(crashing.line(outcome="current", instance_id=instance_id))
    crashing.library.driver().terminate_instance(instance_id)
    assert crashing.go_on().startswith("exit 0 in")
    assert crashing.orders == 2
    rented.assert_nothing_is_left()


def test_a_job_whose_machine_went_meanwhile_is_lost_and_not_begun_a_second_time(rented: Rented) -> None:
    crashing = Crashing(rented)
    instance_id = crashing.order()
    crashing.wrote(crashing.line(outcome="current", instance_id=instance_id, began_at=utc_now()))
    crashing.library.driver().terminate_instance(instance_id)
    assert crashing.go_on().startswith("lost in")
    assert crashing.orders == 1
    rented.assert_nothing_is_left()


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_job_that_had_ended_when_its_process_died_is_not_run_again_and_its_result_is_the_run_s(
    rented: Rented, is_gone: bool
) -> None:
    crashing = Crashing(rented, job=Job(checkpoint=("keep",)))
    instance_id = crashing.order()
    record = Record(crashing.run.id)
    line = record.open(crashing.line(), crashing.offer)
    record.note(line, outcome="current", instance_id=instance_id, began_at=utc_now())
    files = tuple(f"{'f' * 100}-{number}" for number in range(1000))
    record.result = JobResult(exit_code=3, started_at=utc_now(), ended_at=utc_now(), outputs=files, trouble="é" * 1200)
    record.write()
    if is_gone:
        crashing.library.driver().terminate_instance(instance_id)
    assert crashing.go_on().startswith("exit 3 in")
    assert crashing.orders == 1
    assert [one.outcome for one in rented.record.attempts] == ["gone"]
    assert rented.result.trouble == "é" * 1200
    assert rented.result.outputs == files[: len(rented.result.outputs)] != ()
    rented.assert_nothing_is_left()


def test_a_run_that_had_failed_is_begun_anew_by_a_person_and_not_given_its_old_result(rented: Rented) -> None:
    crashing = Crashing(rented)
    record = Record(crashing.run.id)
    line = record.open(crashing.line(), crashing.offer)
    record.note(line, outcome="gone", gone_at=utc_now(), instance_id="i-1", cost=0.0)
    record.result = JobResult(exit_code=3, started_at=utc_now(), ended_at=utc_now())
    record.write()
    assert crashing.go_on(Failed(message="exit 3"), Scheduled()).startswith("exit 0 in")
    assert crashing.orders == 1


def test_one_that_keeps_files_begins_anew(rented: Rented) -> None:
    crashing = Crashing(rented, job=Job(checkpoint=("keep",)))
    instance_id = crashing.order()
    crashing.wrote(crashing.line(outcome="current", instance_id=instance_id, began_at=utc_now()))
    crashing.library.driver().terminate_instance(instance_id)
    assert crashing.go_on().startswith("exit 0 in")
    assert crashing.orders == 2
    rented.assert_nothing_is_left()


def test_a_run_that_is_not_to_be_resumed_gives_back_what_it_has_and_fails(rented: Rented) -> None:
    crashing = Crashing(rented, resume=False)
    crashing.wrote(crashing.line(outcome="current", instance_id=crashing.order()))
    assert "asked not to be resumed" in crashing.go_on()
    assert rented.state.is_failed()
    assert crashing.orders == 1
    rented.assert_nothing_is_left()


def test_a_run_that_had_failed_is_not_run_again_by_an_automation_that_comes_late(rented: Rented) -> None:
    crashing = Crashing(rented)
    assert "had ended (Failed)" in crashing.go_on(Failed(message="exit 3"), resuming.scheduled())
    assert crashing.orders == 0


def test_what_is_seen_from_another_worker_alone_is_not_bought_a_second_time(rented: Rented) -> None:
    crashing = Crashing(rented)
    crashing.wrote(crashing.line(outcome="current", instance_id="i-elsewhere", account_id="another host's"))
    assert "was ordered on another host's" in crashing.go_on()
    assert crashing.orders == 0


def test_a_row_whose_instance_bears_another_name_is_not_gone_on_with(rented: Rented) -> None:
    crashing = Crashing(rented)
    foreign = rented["alpha"].order_by_hand("somebody-s-machine")
    crashing.wrote(crashing.line(outcome="current", instance_id=foreign))
    assert crashing.go_on().startswith("exit 0 in")
    assert [order.name for order in rented["alpha"].alive()] == ["somebody-s-machine"]


def give_away(run_id: Any) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, Scheduled(), force=True)


def test_a_process_that_was_stopped_before_its_order_while_its_run_went_to_another_sends_none(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write before it takes a moment: it may be stopped there for longer than another one needs to order."""
    original, runs = Record.open, list[Any]()

    def stopped_after(self: Record, *arguments: Any) -> Attempt:
        line = original(self, *arguments)
        runs.append(self.run_id)
        give_away(self.run_id)
        return line

    monkeypatch.setattr(Record, "open", stopped_after)
    monkeypatch.setattr("prefect_gpu.flows.run.execution.FRESH_S", 0.0)
    with pytest.raises(Abort):
        rented.run()
    assert [cloud.orders() for cloud in rented.clouds.values()] == [[], []]
    (line,) = Record.read(runs[0]).attempts
    assert (line.outcome, line.cost, line.may_cost) == ("not sent", 0.0, False)


def test_nor_does_one_that_was_stopped_before_it_sends_the_order_again(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = type(rented.libraries["alpha"].driver())
    sent: list[str] = []

    def stopped_after(self: Any, offer: Any, spec: Any) -> Any:
        lease = Lease.parse(spec.name)
        assert lease is not None
        sent.append(spec.name)
        give_away(lease.run_id)
        raise Transient("busy")

    monkeypatch.setattr(driver, "create_instance", stopped_after)
    monkeypatch.setattr("prefect_gpu.flows.run.execution.FRESH_S", 0.0)
    with pytest.raises(Abort):
        rented.run()
    assert len(sent) == 1
