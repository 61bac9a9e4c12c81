"""The record of a run: one writer per artifact, and what they wrote is joined."""

from __future__ import annotations

import threading
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import get_client

from prefect_gpu.flows.report.artifacts import publish
from prefect_gpu.flows.run import ledger
from prefect_gpu.flows.run import record as recording
from prefect_gpu.flows.run.attempt import Attempt, join
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers.core.models import Offer, utc_now

NOW = utc_now()
FLOW = Attempt(
    attempt=0, name="n", provider="p", account="a", account_id="i", scope="s", machine="m", gpu="none", spot=False,
    price=1.0, ordered_at=NOW - timedelta(hours=1), outcome="current", instance_id="i-1",
)  # fmt: skip


def line(**changes: object) -> Attempt:
    return FLOW.model_copy(update=changes)


GONE = line(outcome="gone", gone_at=NOW, cost=2.0)


def test_an_absence_that_was_seen_beats_every_other_word() -> None:
    owed = line(outcome="owed", why="no answer", cost=5.0)
    assert join([FLOW], [owed, GONE]) == [GONE]
    assert join([GONE], [owed]) == [GONE]
    assert join([owed], []) == [owed]


def test_of_two_absences_the_earlier_one_counts() -> None:
    later = line(outcome="gone", gone_at=NOW + timedelta(minutes=5), cost=9.0)
    assert join([later], [GONE]) == join([GONE], [later]) == [GONE]


def test_the_newest_word_from_outside_counts_where_nothing_was_seen_gone() -> None:
    first, newest = line(outcome="owed", why="a"), line(outcome="owed", why="b")
    assert join([FLOW], [newest, first]) == [newest]


def test_what_others_say_of_names_that_the_flow_never_wrote_is_not_taken_for_its_own() -> None:
    assert join([FLOW], [line(name="foreign", cost=7.0)]) == [FLOW]


@pytest.mark.usefixtures("prefect_api", "no_run_logger")
class TestOnAServer:
    def versions(self, key: str) -> list[dict[str, object]]:
        with get_client(sync_client=True) as client:
            return client.request("POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": [key]}}}).json()

    def test_an_offer_comes_back_whole_however_long_it_is(self) -> None:
        offer = Offer(
            provider="p", instance_type="m", region="r" * 600, price=1.0, unavailable_because="said at length: " + "é" * 1700
        )  # fmt: skip
        run_id = uuid4()
        record = Record(run_id)
        record.open(line(attempt=0), offer)
        record.write()
        assert Record.read(run_id).offer == offer

    def test_what_is_written_aside_is_written_before_the_next_writes_and_what_changed_meanwhile_is_not_taken_for_written(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gate = threading.Event()
        order: list[str] = []

        def slow(*about: object, **more: object) -> UUID:
            gate.wait(30)
            order.append("second" if "i-2" in str(about[2]) else "first")
            return publish(*about, **more)  # type: ignore[arg-type]

        record = Record(uuid4(), [line()])
        record.write()
        monkeypatch.setattr(recording, "publish", slow)
        record.note(record.attempts[0], instance_id="i-1")
        record.write_aside()
        record.note(record.attempts[0], instance_id="i-2")
        assert order == [], "nobody waits for it"
        gate.set()
        assert not record.is_written
        record.write_aside()
        assert record.is_written
        assert order == ["first", "second"]
        assert [one.instance_id for one in Record.read(record.run_id).attempts] == ["i-2"]
        assert len(self.versions(f"attempts-{record.run_id}")) == 1

    def test_what_could_not_be_written_aside_is_known_and_written_with_the_next_fact(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        record = Record(uuid4(), [line()])
        with monkeypatch.context() as away:
            away.setattr(recording, "publish", lambda *_, **__: 1 / 0)
            record.note(record.attempts[0], instance_id="i-3")
            record.write_aside()
            assert not record.is_written
        record.write()
        assert record.is_written
        assert [one.instance_id for one in Record.read(record.run_id).attempts] == ["i-3"]

    def two(self) -> tuple[UUID, Record, Record]:
        run_id = uuid4()
        flows = Record(run_id, [line(name="n1", attempt=0), line(name="n2", attempt=1)])
        flows.write()
        return run_id, flows, Record.read(run_id)

    def test_what_reap_settles_while_the_flow_writes_loses_no_money_of_either(self) -> None:
        run_id, flows, reaps = self.two()
        reaps.settle(line(name="n1", outcome="gone", gone_at=NOW, cost=2.0))
        flows.put(line(name="n2", attempt=1, outcome="gone", gone_at=NOW, cost=3.0))
        flows.write()
        read = Record.read(run_id)
        assert [(one.name, one.outcome, one.cost) for one in read.attempts] == [
            ("n1", "gone", 2.0),
            ("n2", "gone", 3.0),
        ]
        assert read.cost == 5.0
        assert [one.outcome for one in read.own] == ["current", "gone"]

    def test_two_who_settle_at_once_from_outside_lose_nothing_either(self) -> None:
        run_id, _, reaps = self.two()
        hooks = Record.read(run_id)
        reaps.settle(line(name="n1", outcome="gone", gone_at=NOW, cost=2.0))
        hooks.settle(line(name="n2", outcome="gone", gone_at=NOW, cost=3.0))
        assert Record.read(run_id).cost == 5.0

    def test_the_flow_s_card_is_written_over_itself_and_what_is_known_already_is_not_settled_again(self) -> None:
        run_id, flows, reaps = self.two()
        for cost in (1.0, 2.0):
            flows.put(line(name="n2", attempt=1, cost=cost))
            flows.write()
        assert len(self.versions(f"attempts-{run_id}")) == 1
        owed = line(name="n1", outcome="owed", why="it does not end")
        for cost in (1.0, 2.0):
            reaps.settle(owed.model_copy(update={"cost": cost}))
        Record.read(run_id).settle(owed)
        assert len(self.versions(f"settled-{run_id}")) == 1

    def test_what_a_process_writes_late_whose_run_another_goes_on_with_hides_nothing_and_is_not_lost(self) -> None:
        run_id, stale, _ = self.two()
        successor = Record.read(run_id)
        successor.open(line(name="n3", attempt=2))
        stale.put(line(name="n2", attempt=1, outcome="gone", gone_at=NOW, cost=3.0))
        stale.open(line(name="n4", attempt=2))
        assert [one.name for one in Record.read(run_id).attempts] == ["n4", "n1", "n2", "n3"]
        assert [one.name for one in ledger.records([run_id])[run_id].attempts] == ["n4", "n1", "n2", "n3"]
        assert Record.read(run_id).own_line("n2") == line(name="n2", attempt=1)  # as who runs it now has it

    def test_a_card_that_somebody_deleted_is_made_again(self) -> None:
        run_id, flows, _ = self.two()
        with get_client(sync_client=True) as client:
            client.delete_artifact(UUID(str(self.versions(f"attempts-{run_id}")[0]["id"])))
        flows.write()
        assert [one.name for one in Record.read(run_id).attempts] == ["n1", "n2"]
