"""`reap` on two clouds: what ends, what lives, and that one provider's bad day keeps nobody else's orphans alive."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Running

import providers as registry
from blocks.realm import GpuRealm
from flows import reap as reaping
from flows.reap import _why_end, end_run, reap
from flows.record import Attempt, Record
from flows.run import end_attempt
from providers.core.lease import Lease
from providers.core.library import TaskLibrary
from providers.core.models import Requirements, utc_now
from tests.fakes.reference import Reference, ReferenceCloud, reference

pytestmark = pytest.mark.timeout(180)


class Clouds:
    """Two clouds as the only providers with saved credentials."""

    def __init__(self, clouds: dict[str, ReferenceCloud], libraries: dict[str, TaskLibrary[Any]]) -> None:
        self.clouds = clouds
        self.libraries = libraries
        self.realm = GpuRealm.current().realm

    def order(self, cloud: str, run_id: UUID, attempt: int = 0, *, realm: str = "", hours: float = 1) -> Attempt:
        """An instance of a run, and its line, which is not written anywhere."""
        driver = self.libraries[cloud].driver()
        deadline = utc_now() + timedelta(hours=hours)
        lease = Lease(realm=realm or self.realm, run_id=run_id, deadline=deadline, run_count=1, attempt=attempt)
        offer = driver.fetch_offers(Requirements())[0]
        instance = driver.create_instance(offer, self.libraries[cloud].spec(lease))
        return Attempt(
            attempt=attempt,
            name=lease.name,
            provider=cloud,
            account="default",
            account_id="ref-4711",
            scope=offer.scope,
            machine=offer.instance_type,
            gpu=offer.gpu,
            spot=False,
            price=offer.price,
            ordered_at=utc_now(),
            outcome="current",
            instance_id=instance.id,
        )

    def alive(self, cloud: str) -> list[str]:
        return [one.name for one in self.clouds[cloud].alive()]


@flow
def nothing() -> None: ...


def live_run() -> UUID:
    with get_client(sync_client=True) as client:
        return client.create_flow_run(nothing, state=Running()).id


@pytest.fixture
def clouds(prefect_api: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Clouds]:
    clouds, libraries = {}, {}
    for name in ("alpha", "beta"):
        cloud = ReferenceCloud(tmp_path / f"{name}.db")
        driver = type(name.title(), (Reference,), {"name": name})
        library: TaskLibrary[Any] = TaskLibrary(driver)
        library._drivers["default"] = library._drivers["same"] = reference(cloud, driver)
        clouds[name], libraries[name] = cloud, library
    monkeypatch.setattr(registry, "library", lambda name: libraries[str(name)])
    monkeypatch.setattr(registry, "saved_accounts", lambda: {Named(name): ["default"] for name in libraries})
    yield Clouds(clouds, libraries)
    for cloud in clouds.values():
        cloud.close()


class Named(str):  # noqa: SLOT000 - made a few times a test
    """A provider's name as the registry's enum gives it."""

    @property
    def value(self) -> str:
        return str(self)


def reaped(**parameters: Any) -> str:
    return reap(return_state=True, **parameters).message or ""


def test_what_a_deleted_run_left_ends_and_what_a_live_run_uses_stays(clouds: Clouds) -> None:
    run_id = live_run()
    Record(run_id, [clouds.order("alpha", run_id)]).write()
    orphan = clouds.order("beta", uuid4())
    assert reaped(dry_run=True) == "would terminate 1, 1 live rightly"
    assert clouds.alive("beta") == [orphan.name]
    assert reaped() == "1 terminated and seen gone, 0 owed, 1 live rightly"
    assert clouds.alive("beta") == []
    assert len(clouds.alive("alpha")) == 1


def test_a_driver_that_breaks_keeps_nobody_else_s_orphans_alive(
    clouds: Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> Any:
        raise KeyError("items")

    clouds.order("alpha", uuid4())
    clouds.order("beta", uuid4())
    monkeypatch.setattr(clouds.libraries["alpha"].driver(), "list_instances", breaks)
    assert reaped() == "1 terminated and seen gone, 0 owed, 0 live rightly; could not read 1 scope"
    assert clouds.alive("beta") == []
    monkeypatch.undo()


def test_a_driver_that_breaks_over_terminating_leaves_its_own_owed(
    clouds: Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> Any:
        raise KeyError("id")

    clouds.order("alpha", uuid4())
    clouds.order("beta", uuid4())
    monkeypatch.setattr(clouds.libraries["alpha"].driver(), "terminate_instance", breaks)
    assert reaped() == "1 terminated and seen gone, 1 owed, 0 live rightly"
    assert clouds.alive("beta") == []


def test_a_provider_that_hangs_holds_up_nobody(clouds: Clouds, monkeypatch: pytest.MonkeyPatch) -> None:
    clouds.order("beta", uuid4())
    monkeypatch.setattr(reaping, "LISTING_S", 1.0)
    clouds.clouds["alpha"].fault("list", "slow before", times=None, seconds=20)
    before = time.monotonic()
    assert "1 terminated and seen gone" in reaped()
    assert time.monotonic() - before < 15
    assert clouds.alive("beta") == []


def test_a_record_that_nobody_can_read_stops_no_reap_and_its_live_run_keeps_its_machine(clouds: Clouds) -> None:
    run_id = live_run()
    clouds.order("alpha", run_id)
    with get_client(sync_client=True) as client:
        artifact = {"key": f"attempts-{run_id}", "type": "table", "data": "not json", "flow_run_id": str(run_id)}
        client.request("POST", "/artifacts/", json=artifact)
    clouds.order("beta", uuid4())
    assert reaped() == "1 terminated and seen gone, 0 owed, 1 live rightly"


def test_the_record_of_a_newer_version_is_read() -> None:
    line = Attempt(
        attempt=0, name="n", provider="p", account="a", account_id="i", scope="s", machine="m", gpu="none", spot=False,
        price=1, ordered_at=utc_now(),
    )  # fmt: skip
    assert Record.parse(f'[{line.model_dump_json()[:-1]}, "host": "h1"}}]') == [line]


def test_what_two_blocks_of_one_account_show_counts_once(clouds: Clouds, monkeypatch: pytest.MonkeyPatch) -> None:
    clouds.order("alpha", uuid4())
    monkeypatch.setattr(registry, "saved_accounts", lambda: {Named("alpha"): ["default", "same"]})
    assert reaped() == "1 terminated and seen gone, 0 owed, 0 live rightly"


def test_another_realm_is_touched_only_when_it_is_named_and_overdue(clouds: Clouds) -> None:
    clouds.order("alpha", uuid4(), realm="zzzz")
    overdue = clouds.order("beta", uuid4(), realm="zzzz", hours=-1)
    assert reaped() == "0 terminated and seen gone, 0 owed, 0 live rightly"
    if overdue.name in clouds.alive("beta"):  # a cloud that ends machines at their deadline is faster
        assert reaped(realm="zzzz") == "1 terminated and seen gone, 0 owed, 0 live rightly"
    assert len(clouds.alive("alpha")) == 1
    assert "is no realm" in reaped(realm="pg-zzzz")


def test_what_a_run_owed_and_no_list_shows_any_more_is_written_off(clouds: Clouds) -> None:
    run_id = uuid4()
    seen = clouds.order("alpha", run_id)
    never_seen = seen.model_copy(
        update={"attempt": 1, "name": seen.name[:-1] + "1", "instance_id": None, "outcome": "owed"}
    )
    Record(run_id, [seen.model_copy(update={"outcome": "owed"}), never_seen]).write()
    clouds.libraries["alpha"].driver().terminate_instance(str(seen.instance_id))
    reaped(dry_run=True)
    assert [one.outcome for one in Record.read(run_id).attempts] == ["owed", "owed"]
    reaped()
    assert [one.outcome for one in Record.read(run_id).attempts] == ["gone", "owed"]


def test_the_hook_goes_on_to_the_next_instance_when_a_driver_breaks(
    clouds: Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> Any:
        raise KeyError("id")

    run_id = uuid4()
    Record(run_id, [clouds.order("alpha", run_id), clouds.order("beta", run_id, 1)]).write()
    monkeypatch.setattr(clouds.libraries["alpha"].driver(), "terminate_instance", breaks)
    flow_run = FlowRun(id=run_id, name="deleted", flow_id=uuid4())
    end_run(flow=nothing, flow_run=flow_run, state=Running())
    assert clouds.alive("beta") == []
    assert [one.outcome for one in Record.read(run_id).attempts] == ["owed", "gone"]


def test_credentials_of_another_account_prove_nothing(clouds: Clouds) -> None:
    """A block that was saved anew, or another machine's `local`: its empty list is about somebody else."""
    run_id = uuid4()
    elsewhere = clouds.order("alpha", run_id).model_copy(update={"account_id": "ref-4712", "outcome": "owed"})
    Record(run_id, [elsewhere]).write()
    clouds.libraries["alpha"].driver().terminate_instance(str(elsewhere.instance_id))
    reaped()
    assert [one.outcome for one in Record.read(run_id).attempts] == ["owed"]
    absence = end_attempt(elsewhere)
    assert not absence.is_gone
    assert absence.evidence == "it was ordered on ref-4712, and from here ref-4711 is seen"


def test_what_vanished_while_nobody_looked_cost_until_it_was_not_seen(clouds: Clouds) -> None:
    run_id = uuid4()
    order = clouds.order("alpha", run_id)
    Record(run_id, [order.model_copy(update={"ordered_at": utc_now() - timedelta(minutes=40)})]).write()
    clouds.libraries["alpha"].driver().terminate_instance(str(order.instance_id))
    reaped()
    (line,) = Record.read(run_id).attempts
    billing = clouds.libraries["alpha"].capabilities.billing
    assert line.outcome == "gone"
    assert line.cost == pytest.approx(billing.cost(order.price, 40 * 60), rel=0.05)


def test_an_instance_whose_answer_nobody_noted_is_paid_for_all_the_same(clouds: Clouds) -> None:
    run_id = uuid4()
    order = clouds.order("alpha", run_id)
    unnoted = {"instance_id": None, "outcome": "owed", "ordered_at": utc_now() - timedelta(minutes=40)}
    Record(run_id, [order.model_copy(update=unnoted)]).write()
    assert reaped() == "1 terminated and seen gone, 0 owed, 0 live rightly"
    (line,) = Record.read(run_id).attempts
    assert line.instance_id == order.instance_id
    assert line.cost
    assert line.cost > 0


class TestWhyAnInstanceEnds:
    run_id = uuid4()

    def lease(self, run_count: int = 2) -> Lease:
        deadline = utc_now() + timedelta(hours=1)
        return Lease(realm="test", run_id=self.run_id, deadline=deadline, run_count=run_count, attempt=0)

    def run(self, state: StateType, name: str = "", **more: Any) -> Any:
        stamp = utc_now() - timedelta(seconds=more.pop("since", 0))
        seen = SimpleNamespace(type=state, name=name or state.value.title(), timestamp=stamp)
        return SimpleNamespace(state=seen, run_count=2, deployment_id=None, **more)

    def line(self, name: str, outcome: str = "current") -> Record:
        attempt = Attempt(
            attempt=0, name=name, provider="p", account="a", account_id="i", scope="s", machine="m", gpu="none",
            spot=False, price=1, ordered_at=utc_now(), outcome=outcome,
        )  # fmt: skip
        return Record(self.run_id, [attempt])

    @pytest.mark.parametrize("outcome", ["ordered", "current"])
    def test_it_lives_while_its_run_uses_it(self, outcome: str) -> None:
        lease = self.lease()
        assert _why_end(lease, lease.name, self.run(StateType.RUNNING), self.line(lease.name, outcome)) is None

    def test_it_lives_while_its_run_is_paused_or_waits_for_its_retry(self) -> None:
        lease = self.lease()
        for run in (self.run(StateType.PAUSED, "Paused"), self.run(StateType.SCHEDULED, "AwaitingRetry")):
            assert _why_end(lease, lease.name, run, self.line(lease.name)) is None

    def test_it_ends_when_its_run_was_suspended_or_hangs_in_cancelling(self) -> None:
        lease = self.lease()
        for run in (self.run(StateType.PAUSED, "Suspended"), self.run(StateType.CANCELLING, since=61)):
            assert _why_end(lease, lease.name, run, self.line(lease.name)) is not None

    def test_what_the_execution_that_runs_now_ordered_lives_though_a_stale_copy_hides_its_line(self) -> None:
        lease = self.lease(run_count=2)
        assert _why_end(lease, lease.name, self.run(StateType.RUNNING), self.line("another")) is None

    def test_what_an_earlier_execution_ordered_ends_when_the_record_does_not_know_it(self) -> None:
        lease = self.lease(run_count=1)
        why = _why_end(lease, lease.name, self.run(StateType.RUNNING), self.line("another"))
        assert why == "its run's record does not know it"

    def test_what_the_run_has_done_with_ends(self) -> None:
        lease = self.lease()
        for outcome in ("owed", "boot failed"):
            assert _why_end(lease, lease.name, self.run(StateType.RUNNING), self.line(lease.name, outcome)) is not None
