"""Quotas of a team: global concurrency limits that say how many machines or GPUs may stand, over all runs of the server."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

from prefect_gpu.flows.run import cards, quotas
from prefect_gpu.flows.run.attempt import Attempt
from prefect_gpu.flows.run.quotas import NoRoom, Quota, must_have_room
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers.core.models import Offer, utc_now
from tests.flows.rented import Rented

pytestmark = pytest.mark.usefixtures("prefect_api", "no_run_logger")


class Team:
    """A provider and a GPU that nobody else has, and the quotas on them."""

    def __init__(self) -> None:
        self.provider, self.gpu = f"p{uuid4().hex[:8]}", f"G{uuid4().hex[:6]}"
        self.made: list[str] = []

    def sets(self, what: str, limit: int, *, active: bool = True) -> str:
        name = f"prefect-gpu quota {what}"
        with get_client(sync_client=True) as client:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=limit, active=active))
        self.made.append(name)
        return name

    def order(self, gpus: int = 1, **changes: Any) -> Record:
        """The record of a run with one order, whose answer is open."""
        line = Attempt(
            attempt=0, name=f"n{uuid4().hex}", provider=self.provider, account="default", account_id="i", scope="s",
            machine="m", gpu=f"{self.gpu}:{gpus}", spot=False, price=1.0, ordered_at=utc_now(),
        )  # fmt: skip
        record = Record(uuid4(), [line.model_copy(update=changes)])
        record.write()
        return record

    def stands(self, gpus: int = 1, **changes: Any) -> Record:
        return self.order(gpus, outcome="current", instance_id="i", **changes)


@pytest.fixture
def team() -> Iterator[Team]:
    made = Team()
    yield made
    with get_client(sync_client=True) as client:
        for name in made.made:
            client.delete_global_concurrency_limit_by_name(name)


def refusal(record: Record) -> str:
    """What the order is refused with; in either case nothing of it stands afterwards."""
    try:
        must_have_room(record, record.attempts[-1], quotas.set_here(), wait=lambda _: None)
    except NoRoom as full:
        return full.message
    else:
        return ""
    finally:
        record.put(record.attempts[-1].model_copy(update={"gone_at": utc_now(), "cost": 0.0}))
        record.write()


def test_without_a_quota_no_record_is_read(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas.ledger, "standing", None)
    team.sets(f"machines on other{team.provider}", 0)
    assert refusal(team.order()) == ""


def test_machines_of_a_provider_count_while_they_stand(team: Team) -> None:
    name = team.sets(f"machines on {team.provider}", 2)
    first = team.stands()
    assert refusal(team.order(gone_at=utc_now(), cost=0.0)) == ""
    team.stands()
    assert refusal(team.order()) == (
        f"the quota {name!r} of this Prefect server is 2 machines, 2 of it in use, and this order takes 1: "
        "wait for them, or raise the global concurrency limit of that name"
    )
    first.put(first.attempts[-1].model_copy(update={"gone_at": utc_now(), "cost": 1.0}))
    first.write()
    assert refusal(team.order()) == ""


def test_gpus_of_a_model_count_by_their_number_wherever_they_are(team: Team) -> None:
    team.sets(team.gpu.lower(), 16)
    team.stands(8, provider=f"other{team.provider}")
    assert refusal(team.order(8)) == ""
    team.stands(4)
    assert "is 16 GPUs, 12 of it in use, and this order takes 8" in refusal(team.order(8))


def test_a_quota_of_one_provider_leaves_the_others(team: Team) -> None:
    team.sets(f"{team.gpu} on {team.provider}", 0)
    assert refusal(team.order())
    assert refusal(team.order(provider=f"other{team.provider}")) == ""


def test_one_that_is_switched_off_does_not_count(team: Team) -> None:
    team.sets(f"machines on {team.provider}", 0, active=False)
    assert refusal(team.order()) == ""


def test_all_of_many_limits_are_read(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_gpu.flows.report.rows.PAGE", 1)
    names = {team.sets(f"{what} on {team.provider}", 3) for what in ("machines", team.gpu)}
    assert names <= {one.name for one in quotas.set_here()}


def test_an_answer_that_is_old_or_none_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[list[Quota] | Exception] = [[], ConnectionError(), [], []]
    asked: list[int] = []

    def ask() -> list[Quota]:
        asked.append(1)
        if isinstance(answer := answers[len(asked) - 1], Exception):
            raise answer
        return answer

    monkeypatch.setattr(quotas, "set_here", ask)
    assert quotas.Asked().now() == []
    assert len(asked) == 1
    assert quotas.Asked().now() == []  # the second was none
    assert len(asked) == 3
    early = quotas.Asked()
    monkeypatch.setattr(quotas, "FRESH_S", -1.0)
    answers.append([Quota("prefect-gpu quota machines", "machines", "", 1)])
    assert early.now() == answers[-1]


def test_of_orders_at_the_same_moment_never_more_pass_than_there_is_room_for(team: Team) -> None:
    team.sets(f"machines on {team.provider}", 3)
    records = [team.order() for _ in range(6)]
    at_once, passed = threading.Barrier(len(records)), list[Record]()

    def order(record: Record) -> None:
        at_once.wait()
        try:
            must_have_room(
                record,
                record.attempts[-1],
                quotas.set_here(),
                wait=lambda seconds: threading.Event().wait(seconds / 10),
            )
        except NoRoom:
            record.put(record.attempts[-1].model_copy(update={"gone_at": utc_now(), "cost": 0.0}))
            record.write()
        else:
            passed.append(record)

    threads = [threading.Thread(target=order, args=(record,)) for record in records]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(passed) <= 3


def test_two_that_are_only_in_each_other_s_way_do_not_both_go_without(team: Team) -> None:
    """The other steps back while this one waits."""
    team.sets(f"machines on {team.provider}", 1)
    other, record = team.order(), team.order()

    def wait(_: float) -> None:
        other.put(other.attempts[-1].model_copy(update={"gone_at": utc_now(), "cost": 0.0}))
        other.write()

    must_have_room(record, record.attempts[-1], quotas.set_here(), wait=wait)
    assert record.attempts[-1].may_cost


def offer(provider: str, gpu: str | None, count: int) -> Offer:
    return Offer(provider=provider, instance_type="m", region="r", price=1.0, gpu_name=gpu, gpu_count=count)


def test_what_takes_less_of_a_quota_is_still_worth_an_order() -> None:
    full = NoRoom("full", Quota("q", "h100", "", 8))
    assert full.category == "quota"
    failed = offer("aws", "H100", 8)
    assert full.rules_out(failed, offer("gcp", "H100", 8)), "the model counts wherever it is"
    assert not full.rules_out(failed, offer("aws", "H100", 4))
    assert not full.rules_out(failed, offer("aws", "A100", 8))
    machines = NoRoom("full", Quota("q", "machines", "aws", 8))
    assert machines.rules_out(failed, offer("aws", None, 0))
    assert not machines.rules_out(failed, offer("gcp", "H100", 8))
    assert pickle.loads(pickle.dumps(full)).rules_out(failed, offer("gcp", "H100", 8))


def test_a_run_without_room_at_one_provider_goes_to_the_next_and_says_why(rented: Rented, team: Team) -> None:
    team.sets("machines on alpha", 0)
    assert rented.run("true").startswith("exit 0 in ")
    assert rented["alpha"].orders() == []
    assert len(rented["beta"].orders()) == 1
    refused = rented.record.attempts[0]
    assert (refused.outcome, refused.cost, refused.may_cost) == ("over quota", 0.0, False)
    assert "the quota 'prefect-gpu quota machines on alpha'" in rented.artifact(cards.TRIED.key)
