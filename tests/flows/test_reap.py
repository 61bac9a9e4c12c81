"""`reap` on two clouds: what ends, what lives, and that one provider's bad day keeps nobody else's orphans alive."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Running, Scheduled

from prefect_gpu import providers as registry
from prefect_gpu.blocks.realm import GpuRealm, _of_server
from prefect_gpu.flows.reap import reap
from prefect_gpu.flows.reaping import clock, ending, found, siblings, stuck
from prefect_gpu.flows.reaping.memory import keep, recall
from prefect_gpu.flows.reaping.verdict import UNKNOWN, Bench, why_end
from prefect_gpu.flows.report import last_reap
from prefect_gpu.flows.report.artifacts import newest
from prefect_gpu.flows.run import giving_back, own_realm
from prefect_gpu.flows.run.attempt import Attempt
from prefect_gpu.flows.run.giving_back import end, end_run
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers.core.errors import AuthFailed
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import Listing, Unproved, utc_now
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.core.requests import Requirements
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

    def orphan(self, cloud: str) -> Attempt:
        """An instance whose run was deleted: its record is left."""
        run_id = uuid4()
        line = self.order(cloud, run_id)
        Record(run_id, [line]).write()
        return line

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
        library.connections.drivers["default"] = library.connections.drivers["same"] = reference(cloud, driver)
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


def page() -> str:
    """The artifact that a person reads."""
    row = newest("reap")
    assert row is not None
    return str(row["data"])


def versions(key: str) -> list[Any]:
    with get_client(sync_client=True) as client:
        return client.request("POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": [key]}}}).json()


def lease_of(line: Attempt) -> Lease:
    lease = Lease.parse(line.name)
    assert lease is not None
    return lease


def reaped(**parameters: Any) -> str:
    return reap(return_state=True, **parameters).message or ""


def test_what_a_deleted_run_left_ends_and_what_a_live_run_uses_stays(clouds: Clouds) -> None:
    run_id = live_run()
    Record(run_id, [clouds.order("alpha", run_id)]).write()
    orphan = clouds.orphan("beta")
    assert reaped(dry_run=True) == "would terminate 1, 1 in use"
    assert clouds.alive("beta") == [orphan.name]
    assert reaped() == "1 terminated and confirmed gone, 0 still to confirm, 1 in use"
    assert clouds.alive("beta") == []
    assert len(clouds.alive("alpha")) == 1


def test_a_driver_that_breaks_keeps_nobody_else_s_orphans_alive(
    clouds: Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> Any:
        raise KeyError("items")

    clouds.orphan("alpha")
    clouds.orphan("beta")
    monkeypatch.setattr(clouds.libraries["alpha"].driver(), "list_instances", breaks)
    assert reaped() == "1 terminated and confirmed gone, 0 still to confirm, 0 in use; could not read 1 scope"
    assert clouds.alive("beta") == []
    monkeypatch.undo()


def test_a_driver_that_breaks_over_terminating_leaves_its_own_owed(
    clouds: Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> Any:
        raise KeyError("id")

    clouds.orphan("alpha")
    clouds.orphan("beta")
    monkeypatch.setattr(clouds.libraries["alpha"].driver(), "terminate_instance", breaks)
    assert reaped() == "1 terminated and confirmed gone, 1 still to confirm, 0 in use"
    assert clouds.alive("beta") == []


def test_a_provider_that_hangs_holds_up_nobody(clouds: Clouds, monkeypatch: pytest.MonkeyPatch) -> None:
    clouds.orphan("beta")
    monkeypatch.setattr(found, "LISTING_S", 1.0)
    clouds.clouds["alpha"].fault("list", "slow before", times=None, seconds=20)
    before = time.monotonic()
    assert "1 terminated and confirmed gone" in reaped()
    assert time.monotonic() - before < 15
    assert clouds.alive("beta") == []


def test_a_record_that_nobody_can_read_stops_no_reap_and_its_live_run_keeps_its_machine(clouds: Clouds) -> None:
    run_id = live_run()
    clouds.order("alpha", run_id)
    with get_client(sync_client=True) as client:
        artifact = {"key": f"attempts-{run_id}", "type": "table", "data": "not json", "flow_run_id": str(run_id)}
        client.request("POST", "/artifacts/", json=artifact)
    clouds.orphan("beta")
    assert reaped() == "1 terminated and confirmed gone, 0 still to confirm, 1 in use"


def test_the_record_of_a_newer_version_is_read() -> None:
    line = Attempt(
        attempt=0, name="n", provider="p", account="a", account_id="i", scope="s", machine="m", gpu="none", spot=False,
        price=1, ordered_at=utc_now(),
    )  # fmt: skip
    assert Record.parse(f'[{line.model_dump_json()[:-1]}, "host": "h1"}}]') == [line]


def test_what_two_blocks_of_one_account_show_counts_once(clouds: Clouds, monkeypatch: pytest.MonkeyPatch) -> None:
    clouds.orphan("alpha")
    monkeypatch.setattr(registry, "saved_accounts", lambda: {Named("alpha"): ["default", "same"]})
    assert reaped() == "1 terminated and confirmed gone, 0 still to confirm, 0 in use"


def test_another_realm_is_touched_only_when_it_is_named_and_overdue(clouds: Clouds) -> None:
    clouds.order("alpha", uuid4(), realm="zzzz")
    overdue = clouds.order("beta", uuid4(), realm="zzzz", hours=-1)
    assert reaped() == "0 terminated and confirmed gone, 0 still to confirm, 0 in use"
    if overdue.name in clouds.alive("beta"):  # a cloud that ends machines at their deadline is faster
        assert reaped(realm="zzzz") == "1 terminated and confirmed gone, 0 still to confirm, 0 in use"
    assert len(clouds.alive("alpha")) == 1
    assert "is not a realm" in reaped(realm="pg-zzzz")


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
    absence = end(run_id, elsewhere)
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
    assert reaped() == "1 terminated and confirmed gone, 0 still to confirm, 0 in use"
    (line,) = Record.read(run_id).attempts
    assert line.instance_id == order.instance_id
    assert line.cost
    assert line.cost > 0


def test_an_instance_of_a_run_that_nobody_knows_is_said_first_and_ended_by_a_reap_an_hour_later(
    clouds: Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another server's, whose database was copied here: its name alone proves nothing."""
    stranger = clouds.order("alpha", uuid4())
    assert (
        reaped() == "0 terminated and confirmed gone, 0 still to confirm, 0 in use; 1 of runs that are not known here"
    )
    assert UNKNOWN in page()
    memory, artifact = recall()
    assert list(memory.unknown) == [stranger.name]
    assert "1 of runs that are not known here" in reaped()
    assert clouds.alive("alpha") == [stranger.name]
    memory, artifact = recall()
    earlier = {stranger.name: utc_now() - timedelta(minutes=61)}
    keep(memory.model_copy(update={"unknown": earlier}), "as an hour ago", artifact)
    assert reaped().startswith("1 terminated and confirmed gone")
    assert clouds.alive("alpha") == []


def test_what_only_bears_a_name_of_ours_is_reported_and_not_touched(
    clouds: Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = clouds.orphan("alpha")
    driver = clouds.libraries["alpha"].driver()
    unproved = Unproved(id="i-4711", kind="instance", name=line.name, reason="its client token is not its name")
    monkeypatch.setattr(driver, "list_instances", lambda _: Listing(unproved=(unproved,)))
    assert reaped().startswith("0 terminated and confirmed gone, 0 still to confirm, 0 in use")
    assert "i-4711 on alpha (default) bears the name" in page()
    assert clouds.clouds["alpha"].calls("terminate") == []
    monkeypatch.undo()


@pytest.mark.parametrize("name", ["", "pg-", "pg-{realm}", "other run", "other realm"])
def test_a_record_s_row_whose_name_is_not_one_of_its_run_ends_nothing(clouds: Clouds, name: str) -> None:
    run_id, others = uuid4(), clouds.orphan("alpha")
    foreign = clouds.order("alpha", run_id, realm="zzzz")
    name = {"other run": others.name, "other realm": foreign.name}.get(name, name.format(realm=clouds.realm))
    row = others.model_copy(update={"name": name, "instance_id": others.instance_id})
    absence = end(run_id, row, within_s=3)
    assert not absence.is_gone
    assert "is not a name of this run, and nothing was touched" in absence.evidence
    assert sorted(clouds.alive("alpha")) == sorted([others.name, foreign.name])


def test_a_record_s_row_whose_id_bears_another_name_ends_nothing(clouds: Clouds) -> None:
    run_id, others = uuid4(), clouds.orphan("alpha")
    line = clouds.order("alpha", run_id)
    row = line.model_copy(update={"instance_id": others.instance_id})
    assert "bears the name" in end(run_id, row).evidence
    assert clouds.alive("alpha") == [others.name]


def test_a_copy_of_the_server_s_database_ends_nothing_until_an_operator_trusts_it(
    clouds: Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reaped().startswith("0 terminated")  # binds the realm to this server
    orphan = clouds.orphan("alpha")
    monkeypatch.setattr(own_realm, "this_server", lambda **_: "prefect.staging.example:4200")
    message = reaped()
    assert "this is prefect.staging.example:4200: nothing was bought or terminated" in message
    assert "-p trust_server=true" in message
    assert clouds.alive("alpha") == [orphan.name]
    assert reaped(trust_server=True).startswith("1 terminated and confirmed gone")
    orphan = clouds.orphan("alpha")
    assert reaped().startswith("1 terminated and confirmed gone")  # said once


@contextlib.contextmanager
def bound_to(*servers: str) -> Iterator[None]:
    realm = GpuRealm.load_or_make()

    def bind(known: list[str]) -> None:
        realm.model_copy(update={"servers": known}).save("default", overwrite=True, _sync=True)  # type: ignore[call-arg]
        _of_server.cache_clear()

    bind(list(servers))
    try:
        yield
    finally:
        bind(realm.servers)


def test_a_server_that_was_given_a_name_is_known_by_it_and_a_copy_by_another_name_is_not(
    clouds: Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Prefect server is `server:4200` to every composed stack."""
    orphan = clouds.orphan("alpha")
    monkeypatch.setattr(own_realm, "unnamed_server", lambda **_: "server:4200")
    with bound_to("server:4200"):
        monkeypatch.setenv("PREFECT_GPU_SERVER", "production")
        assert reaped(dry_run=True).startswith("would terminate 1")
        assert GpuRealm.load_or_make().servers == ["server:4200", "named production"]
        monkeypatch.setenv("PREFECT_GPU_SERVER", "staging")
        assert "this is named staging: nothing was bought or terminated" in reaped()
        assert clouds.alive("alpha") == [orphan.name]


@pytest.mark.parametrize("whose", ["own", "provider"])
def test_a_clock_that_is_a_day_ahead_ends_no_lease(clouds: Clouds, monkeypatch: pytest.MonkeyPatch, whose: str) -> None:
    run_id = live_run()
    Record(run_id, [clouds.order("alpha", run_id)]).write()

    def tomorrow() -> datetime:
        return utc_now() + timedelta(days=1, seconds=5)  # which a busy machine takes to ask the others, too

    if whose == "own":
        monkeypatch.setattr(clock, "utc_now", tomorrow)
    else:
        monkeypatch.setattr(clouds.libraries["beta"].driver(), "provider_time", tomorrow)
    assert reaped() == "0 terminated and confirmed gone, 0 still to confirm, 1 in use"
    assert "is 1 day, 0:00:0" in page()
    assert "set it right" in page()


def test_a_provider_s_clock_behind_all_others_is_believed() -> None:
    now = utc_now()
    told = {"this host": now, "the Prefect server": now, "alpha (default)": now - timedelta(hours=2)}
    agreed, said = clock.agreed(told)
    assert agreed == now - timedelta(hours=2)
    assert len(said) == 2


def test_an_account_that_did_not_answer_costs_seconds_from_then_on_and_once_an_hour_the_whole_time() -> None:
    now = utc_now()
    listings: Any = {("ssh", "lab"): "no answer within 90 s", ("aws", "default"): Listing(), ("x", "y"): "refused"}
    late = found.late_ones(listings, {}, now)
    assert late == {"ssh (lab)": now}
    assert found.patience_s("ssh (lab)", late, now) == found.LATE_S
    assert found.patience_s("aws (default)", late, now) == found.LISTING_S
    later = now + timedelta(minutes=30)
    assert found.late_ones(listings, late, later) == late
    much_later = now + timedelta(minutes=61)
    assert found.patience_s("ssh (lab)", late, much_later) == found.LISTING_S
    assert found.late_ones(listings, late, much_later) == {"ssh (lab)": much_later}


def test_what_a_reap_remembers_of_hundreds_of_runs_comes_back_whole_and_gets_shorter_again(clouds: Clouds) -> None:
    reaped()
    memory, artifact = recall()
    runs = tuple(uuid4() for _ in range(300))
    long = memory.model_copy(update={"owed": tuple(f"name-{n}" for n in range(300)), "open_runs": runs})
    keep(long, "hundreds", artifact)
    assert recall() == (long, artifact)
    short = memory.model_copy(update={"owed": ("one",), "open_runs": ()})
    keep(short, "one", artifact)
    assert recall() == (short, artifact)
    keep(memory, "as before", artifact)


def test_what_was_owed_before_is_asked_for_again_and_holds_up_nothing(
    clouds: Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "CONFIRM_S", 2.0)
    clouds.clouds["alpha"].fault("create", "never ends")
    orphan = clouds.orphan("alpha")
    assert reaped().startswith("0 terminated and confirmed gone, 1 still to confirm")
    assert recall()[0].owed == (orphan.name,)
    monkeypatch.setattr(ending, "CONFIRM_S", 100.0)
    monkeypatch.setattr(ending, "AGAIN_S", 1.0)
    before = time.monotonic()
    assert reaped().startswith("0 terminated and confirmed gone, 1 still to confirm")
    assert time.monotonic() - before < 30
    assert len(versions(f"settled-{lease_of(orphan).run_id}")) == 1  # once, not with each reap
    clouds.clouds["alpha"].mend()


def test_an_owed_machine_costs_until_it_was_seen_gone(clouds: Clouds) -> None:
    run_id = uuid4()
    order = clouds.order("alpha", run_id)
    Record(run_id, [order.model_copy(update={"outcome": "owed", "ordered_at": utc_now() - timedelta(hours=3)})]).write()
    clouds.libraries["alpha"].driver().terminate_instance(str(order.instance_id))
    reaped()
    (line,) = Record.read(run_id).attempts
    billing = clouds.libraries["alpha"].capabilities.billing
    assert line.outcome == "gone"
    assert line.cost == pytest.approx(billing.cost(order.price, 3 * 3600), rel=0.05)


def test_the_flow_s_own_word_says_what_a_live_run_uses(clouds: Clouds) -> None:
    """What another wrote beside it, by mistake or in bad faith, ends nobody's machine."""
    run_id = live_run()
    line = clouds.order("alpha", run_id)
    Record(run_id, [line]).write()
    Record.read(run_id).settle(line.model_copy(update={"outcome": "gone", "gone_at": utc_now(), "cost": 0.0}))
    assert reaped() == "0 terminated and confirmed gone, 0 still to confirm, 1 in use"


class TestReapsBesideEachOther:
    def test_one_ends_at_once_when_another_looked_after_it_was_called_for(self, clouds: Clouds) -> None:
        orphan = clouds.orphan("alpha")
        memory, artifact = recall()
        keep(memory.model_copy(update={"looked_at": utc_now() + timedelta(seconds=30)}), "newer", artifact)
        state = reap(return_state=True)
        assert (state.name, state.is_completed()) == ("Skipped", True)
        assert clouds.alive("alpha") == [orphan.name]
        assert reap(realm="zzzz", return_state=True).name == "Completed"  # one with a wish of its own is not skipped
        keep(memory.model_copy(update={"looked_at": utc_now() - timedelta(seconds=30)}), "older", artifact)
        clouds.orphan("alpha")
        assert reaped().startswith("1 terminated")

    def test_those_that_wait_and_were_called_for_before_it_looked_are_ended(
        self, clouds: Clouds, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(siblings, "APART", timedelta(seconds=1))
        with get_client(sync_client=True) as client:
            flow_id = client.create_flow(reap)
            make = client.create_flow_run
            past, future = utc_now() - timedelta(minutes=1), utc_now() + timedelta(minutes=5)
            late = make(reap, state=Scheduled(scheduled_time=past)).id
            slot = make(reap, state=Scheduled(scheduled_time=future, name="AwaitingConcurrencySlot")).id
            dry = make(reap, parameters={"dry_run": True}, state=Scheduled(scheduled_time=past)).id
            time.sleep(2.5)  # two clocks that agree may be two seconds apart
            reaped()
            after = make(reap, state=Scheduled(scheduled_time=future)).id
            names = {one: client.read_flow_run(one).state.name for one in (late, slot, dry, after)}
        assert flow_id
        assert names == {late: "Skipped", slot: "Skipped", dry: "Scheduled", after: "Scheduled"}

    def test_when_the_last_one_completed_is_known_to_whoever_asks(self, clouds: Clouds) -> None:
        reaped()
        assert last_reap.overdue() == ""
        memory, artifact = recall()
        long_ago = utc_now() - timedelta(hours=3)
        keep(memory.model_copy(update={"completed_at": long_ago}), "long ago", artifact)
        assert last_reap.overdue().startswith("the last reap completed 3 h 00 min ago: rented machines may stay")

    def test_one_that_looked_by_a_clock_that_was_ahead_stops_no_other(self, clouds: Clouds) -> None:
        """A day ahead, it was "another reap has looked since" to every reap of that day."""
        clouds.orphan("alpha")
        memory, artifact = recall()
        ahead = utc_now() + timedelta(days=1)
        wrong = {"looked_at": ahead, "completed_at": ahead, "late": {"alpha (default)": ahead}}
        keep(memory.model_copy(update=wrong), "ahead", artifact)
        assert last_reap.overdue().startswith("the last reap completed by a clock that was ahead: rented machines")
        assert recall()[0].late == {}
        assert reaped().startswith("1 terminated")
        assert last_reap.overdue() == ""

    def test_an_account_that_does_not_tell_its_id_stops_none(
        self, clouds: Clouds, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run_id = uuid4()
        order = clouds.order("alpha", run_id)
        long_ago = utc_now() - timedelta(hours=3)
        Record(run_id, [order.model_copy(update={"outcome": "owed", "ordered_at": long_ago})]).write()
        driver = clouds.libraries["alpha"].driver()
        driver.terminate_instance(str(order.instance_id))
        clouds.orphan("beta")

        def refuse(_self: object) -> str:
            raise AuthFailed("its token endpoint is not to be reached from here")

        monkeypatch.setattr(type(driver), "account_id", refuse)
        state = reap(return_state=True)
        assert state.is_completed(), state.message
        assert run_id in recall()[0].open_runs  # the next one settles it


class TestRunsThatNobodyRuns:
    def stuck(self, age: timedelta, **more: Any) -> Any:
        state = SimpleNamespace(id=uuid4(), timestamp=utc_now() - age, type=StateType.PENDING)
        run = {
            "id": uuid4(),
            "state": state,
            "deployment_id": uuid4(),
            "work_pool_name": "p",
            "name": "r",
            "labels": {},
        }
        return SimpleNamespace(**{**run, **more})

    def workers(self, worker: str | None, _: str) -> list[Any]:
        if worker == "nobody says":
            raise ConnectionError("the API is down")
        return [SimpleNamespace(name="lives", status="ONLINE"), SimpleNamespace(name="dead", status="OFFLINE")]

    @pytest.mark.parametrize(
        ("worker", "age", "expected"),
        [
            ("dead", 130, True),
            ("dead", 60, False),
            ("lives", 130, False),
            ("lives", 310, True),
            (None, 310, True),
            ("nobody says", 130, False),
            ("nobody says", 310, True),
        ],
    )
    def test_what_a_worker_took_and_did_not_start_is_scheduled_again(
        self, monkeypatch: pytest.MonkeyPatch, worker: str | None, age: int, expected: bool
    ) -> None:
        run = self.stuck(timedelta(seconds=age), labels={"prefect.worker.name": worker} if worker else {})
        told: list[Any] = []
        client = SimpleNamespace(
            read_workers_for_work_pool=partial(self.workers, worker),
            set_flow_run_state=lambda run_id, state: told.append((run_id, state.type)),
            read_flow_run=lambda _: run,
        )
        monkeypatch.setattr(stuck, "_runs", lambda *_: [run])
        context = contextlib.nullcontext(SimpleNamespace(client=client))
        monkeypatch.setattr(stuck.SyncClientContext, "get_or_create", lambda: context)
        assert bool(stuck.schedule_again(utc_now())) is expected
        assert told == ([(run.id, StateType.SCHEDULED)] if expected else [])

    @pytest.mark.parametrize(
        ("every", "beats", "is_dead"),
        [
            (None, [100], False),  # Prefect's own interval: the next is due after 180 s
            (None, [550], True),
            ("30", [100], True),
            ("30", [80], False),
            (None, [100, 130, 160], True),
            (None, [100, 140, 320], False),  # resumed between the last two
            ("nonsense", [100], False),
        ],
    )
    def test_one_is_silent_after_three_of_its_own_heartbeats(
        self, monkeypatch: pytest.MonkeyPatch, every: str | None, beats: list[int], is_dead: bool
    ) -> None:
        """A run of somebody's own deployment, or of none, was declared dead while it waited for its second heartbeat."""
        assert bool(self.silent(monkeypatch, 600, beats, every=every)) is is_dead

    @pytest.mark.parametrize(
        ("worker", "others", "age", "every", "is_dead"),
        [
            ("dead", [40], 100, "30", True),  # the server was away when its first heartbeat came, and its host died
            ("dead", [40], 80, "30", False),
            ("dead", [40], 100, None, False),  # Prefect's own interval
            ("dead", [], 100, "30", False),  # no event of anybody gets through to the server
            ("dead", [140], 100, "30", False),  # nor did one since it began
            ("lives", [40], 100, "30", False),
            (None, [40], 100, "30", False),
            ("nobody says", [40], 100, "30", False),
        ],
    )
    def test_one_of_which_nothing_was_ever_heard_is_silent_where_its_worker_is_gone_and_others_are_heard(
        self,
        monkeypatch: pytest.MonkeyPatch,
        worker: str | None,
        others: list[int],
        age: int,
        every: str | None,
        is_dead: bool,
    ) -> None:
        """It was Running for ever, with its machine until that one's lease was over."""
        assert bool(self.silent(monkeypatch, age, [], others, worker, every)) is is_dead

    def test_a_process_that_goes_on_is_not_as_silent_as_the_one_before_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.silent(monkeypatch, 80, [600, 630, 660], every="30") == {}

    def silent(
        self,
        monkeypatch: pytest.MonkeyPatch,
        age: int,
        beats: list[int],
        others: Sequence[int] = (),
        worker: str | None = None,
        every: str | None = None,
    ) -> dict[UUID, Any]:
        """What is silent of one run that began to run so long ago and was heard so long ago, as others were; in seconds."""
        now = utc_now()
        run = SimpleNamespace(
            id=uuid4(),
            deployment_id=uuid4(),
            job_variables=None,
            state=SimpleNamespace(timestamp=now - timedelta(seconds=age)),
            labels={"prefect.worker.name": worker} if worker else {},
            work_pool_name="gpu-flows",
        )
        variables = {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": every}} if every else {}

        def read_events(wanted: Any, limit: int) -> Any:
            heard = beats if wanted.resource is not None else others
            times = [now - timedelta(seconds=ago) for ago in heard]
            return SimpleNamespace(
                events=[SimpleNamespace(occurred=one) for one in times if one >= wanted.occurred.since][:limit]
            )

        client = SimpleNamespace(
            read_deployment=lambda _: SimpleNamespace(job_variables=variables),
            read_events=read_events,
            read_workers_for_work_pool=partial(self.workers, worker),
        )
        monkeypatch.setattr(stuck, "_runs", lambda *_: [run])
        context = contextlib.nullcontext(SimpleNamespace(client=client))
        monkeypatch.setattr(stuck.SyncClientContext, "get_or_create", lambda: context)
        return stuck.silent(now, timedelta(seconds=90))

    def test_one_that_was_suspended_or_is_heard_again_meanwhile_is_not_crashed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        last = utc_now() - timedelta(minutes=4)
        suspended, heard, again, dead, unheard = (uuid4() for _ in range(5))
        kinds = {suspended: StateType.PAUSED}
        beats = {suspended: [last], heard: [utc_now(), last], again: [last], dead: [last], unheard: []}
        told: list[UUID] = []

        def read_flow_run(run_id: UUID) -> Any:
            began = utc_now() if run_id == again else last
            return SimpleNamespace(state=SimpleNamespace(type=kinds.get(run_id, StateType.RUNNING), timestamp=began))

        client = SimpleNamespace(read_flow_run=read_flow_run, set_flow_run_state=lambda run_id, _: told.append(run_id))
        context = contextlib.nullcontext(SimpleNamespace(client=client))
        monkeypatch.setattr(stuck.SyncClientContext, "get_or_create", lambda: context)
        monkeypatch.setattr(stuck, "_heartbeats", lambda _, __, run_id: beats[run_id])
        silent = dict.fromkeys(beats, last)
        assert stuck.crash(silent, 0.3, wait=lambda _: time.sleep(0.1)) == told == [dead, unheard]


class TestTheHook:
    def test_it_goes_on_trying_while_the_api_is_down(self, clouds: Clouds, monkeypatch: pytest.MonkeyPatch) -> None:
        line = clouds.orphan("alpha")
        run_id = lease_of(line).run_id
        original, tries = Record.read, []

        def read(of: UUID) -> Record:
            tries.append(of)
            if len(tries) < 4:
                raise ConnectionError("the API is down")
            return original(of)

        monkeypatch.setattr(giving_back.Record, "read", read)
        monkeypatch.setattr(giving_back.time, "sleep", lambda _: None)
        end_run(flow=nothing, flow_run=FlowRun(id=run_id, name="deleted", flow_id=uuid4()), state=Running())
        assert len(tries) == 4
        assert clouds.alive("alpha") == []


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
        assert (
            why_end(
                lease, lease.name, self.run(StateType.RUNNING), self.line(lease.name, outcome), Bench("test", utc_now())
            )
            is None
        )

    def test_it_lives_while_its_run_is_paused_or_waits_for_its_retry(self) -> None:
        lease = self.lease()
        for run in (self.run(StateType.PAUSED, "Paused"), self.run(StateType.SCHEDULED, "AwaitingRetry")):
            assert why_end(lease, lease.name, run, self.line(lease.name), Bench("test", utc_now())) is None

    def test_it_ends_when_its_run_was_suspended_or_hangs_in_cancelling(self) -> None:
        lease = self.lease()
        for run in (self.run(StateType.PAUSED, "Suspended"), self.run(StateType.CANCELLING, since=61)):
            assert why_end(lease, lease.name, run, self.line(lease.name), Bench("test", utc_now())) is not None

    def test_what_the_execution_that_runs_now_ordered_lives_though_a_stale_copy_hides_its_line(self) -> None:
        lease = self.lease(run_count=2)
        assert (
            why_end(lease, lease.name, self.run(StateType.RUNNING), self.line("another"), Bench("test", utc_now()))
            is None
        )

    def test_what_an_earlier_execution_ordered_ends_when_the_record_does_not_know_it(self) -> None:
        lease = self.lease(run_count=1)
        why = why_end(lease, lease.name, self.run(StateType.RUNNING), self.line("another"), Bench("test", utc_now()))
        assert why == "its run's record does not know it"

    def test_what_the_run_has_done_with_ends(self) -> None:
        lease = self.lease()
        for outcome in ("owed", "boot failed"):
            assert (
                why_end(
                    lease,
                    lease.name,
                    self.run(StateType.RUNNING),
                    self.line(lease.name, outcome),
                    Bench("test", utc_now()),
                )
                is not None
            )
