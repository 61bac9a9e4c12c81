"""The budget on an account's block: over all runs of the server, before each order, whoever orders at the same moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from prefect_gpu import providers as registry
from prefect_gpu.blocks import collection
from prefect_gpu.blocks.budget import AccountBudget
from prefect_gpu.blocks.vultr import VultrCredentials
from prefect_gpu.flows.run import account_budget, cards, ledger
from prefect_gpu.flows.run.account_budget import must_pay_for
from prefect_gpu.flows.run.attempt import Attempt
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers.core.contract import Billing, Capabilities
from prefect_gpu.providers.core.errors import OverBudget
from prefect_gpu.providers.core.models import utc_now
from tests.flows.rented import Rented

pytestmark = pytest.mark.usefixtures("prefect_api", "no_run_logger")
NOON = datetime(2026, 3, 15, 12, tzinfo=UTC)


class Account:
    """One account of a provider that nobody else has, and its budget."""

    def __init__(self) -> None:
        self.provider = f"p{uuid4().hex[:8]}"
        self.budget = AccountBudget()
        self.billing = Billing(step_s=1, minimum_s=0)

    def order(self, *, price: float = 10.0, **changes: Any) -> Record:
        """The record of a run with one order."""
        line = Attempt(
            attempt=0, name=f"n{uuid4().hex}", provider=self.provider, account="default", account_id="i", scope="s",
            machine="m", gpu="none", spot=False, price=price, ordered_at=utc_now(),
        )  # fmt: skip
        record = Record(uuid4(), [line.model_copy(update=changes)])
        record.write()
        return record

    def refusal(self, record: Record, max_cost: float | None = None) -> str:
        try:
            must_pay_for(record, record.attempts[-1], max_cost, wait=lambda _: None)
        except OverBudget as over:
            return over.message if (over.category, over.reach) == ("budget", "provider") else repr(over)
        return ""


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    made = Account()

    def library(_: str) -> Any:
        driver = SimpleNamespace(credentials=SimpleNamespace(budget=made.budget))
        return SimpleNamespace(capabilities=Capabilities(billing=made.billing), driver=lambda _: driver)

    monkeypatch.setattr(registry, "library", library)
    monkeypatch.setattr(account_budget, "utc_now", lambda: NOON)
    monkeypatch.setattr(ledger, "utc_now", lambda: NOON)
    return made


def ended(account: Account, cost: float, began: datetime, hours: float = 1) -> None:
    account.order(ordered_at=began, gone_at=began + timedelta(hours=hours), outcome="gone", instance_id="i", cost=cost)


def test_every_account_s_block_has_a_budget() -> None:
    for block in collection.installed():
        if block.__name__ not in ("GpuRealm", "GpuRegistry"):
            assert block.model_fields["budget"].annotation is AccountBudget, block.__name__


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_a_budget_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(ValidationError):
        AccountBudget(per_day=limit)


def test_a_block_that_was_saved_before_there_were_budgets_has_none() -> None:
    saved = {"api_key": "x"}
    assert not VultrCredentials.model_validate(saved).budget.is_set


def test_without_a_budget_nobody_is_asked(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    record = account.order()
    monkeypatch.setattr(ledger, "lines", None)
    assert account.refusal(record) == ""


def test_what_ended_today_counts_and_what_ended_yesterday_only_for_the_month(account: Account) -> None:
    ended(account, 85.0, NOON - timedelta(hours=2))
    ended(account, 500.0, NOON - timedelta(days=2))
    account.budget = AccountBudget(per_day=100.0)
    assert account.refusal(account.order(ordered_at=NOON)) == ""
    account.budget = AccountBudget(per_day=1000.0, per_month=590.0)
    assert "is $590.00 a month, $595.00 of it are used up" in account.refusal(account.order(ordered_at=NOON))


def test_the_last_month_does_not_count(account: Account) -> None:
    ended(account, 500.0, NOON - timedelta(days=20))
    account.budget = AccountBudget(per_month=100.0)
    assert account.refusal(account.order(ordered_at=NOON)) == ""


def test_the_refusal_says_how_much_is_left_until_when_and_what_to_change(account: Account) -> None:
    ended(account, 95.0, NOON - timedelta(hours=2))
    account.budget = AccountBudget(per_day=100.0)
    assert account.refusal(account.order(ordered_at=NOON)) == (
        f"the budget of {account.provider} (default) is $100.00 a day, $95.00 of it are used up or promised to what runs, and this order"
        f" counts with $10.00: wait until 00:00 UTC, 12 h 00 min from now, or raise budget.per_day in the block"
        f" gpu-{account.provider}/default"
    )


def test_what_runs_counts_with_its_first_hour_and_with_more_once_it_has_cost_more(account: Account) -> None:
    account.budget = AccountBudget(per_day=25.0)
    account.order(ordered_at=NOON - timedelta(minutes=1), outcome="current", instance_id="i")
    assert account.refusal(account.order(ordered_at=NOON)) == ""
    account.order(ordered_at=NOON - timedelta(hours=2), outcome="current", instance_id="i")
    assert "$40.00 of it are used up or promised" in account.refusal(account.order(ordered_at=NOON))


def test_a_run_with_a_budget_of_its_own_counts_with_no_more_than_that(account: Account) -> None:
    ended(account, 97.0, NOON - timedelta(hours=2))
    account.budget = AccountBudget(per_day=100.0)
    assert account.refusal(account.order(ordered_at=NOON), max_cost=2.0) == ""


def test_another_account_s_money_is_its_own(account: Account) -> None:
    account.order(ordered_at=NOON - timedelta(hours=5), account="research", outcome="current", instance_id="i")
    account.budget = AccountBudget(per_day=10.0)
    assert account.refusal(account.order(ordered_at=NOON)) == ""


def test_what_cannot_be_looked_at_orders_nothing(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any) -> None:
        raise ConnectionError("no API")

    account.budget = AccountBudget(per_day=10.0)
    record = account.order()
    monkeypatch.setattr(ledger, "lines", breaks)
    assert account.refusal(record).endswith("could not be looked at (ConnectionError): nothing was ordered")


def test_of_orders_at_the_same_moment_never_more_pass_than_are_paid_for(account: Account) -> None:
    account.budget = AccountBudget(per_day=35.0)  # three of them
    records = [account.order(ordered_at=NOON) for _ in range(6)]
    at_once, passed = threading.Barrier(len(records)), list[Record]()

    def order(record: Record) -> None:
        at_once.wait()
        try:
            must_pay_for(record, record.attempts[-1], wait=lambda seconds: threading.Event().wait(seconds / 10))
        except OverBudget:
            record.put(record.attempts[-1].model_copy(update={"gone_at": NOON, "cost": 0.0, "outcome": "over budget"}))
            record.write()
        else:
            passed.append(record)

    threads = [threading.Thread(target=order, args=(record,)) for record in records]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(passed) <= 3


def test_two_that_are_only_in_each_other_s_way_do_not_both_go_without(account: Account) -> None:
    """The other steps back while this one waits."""
    account.budget = AccountBudget(per_day=15.0)
    other, record = account.order(ordered_at=NOON), account.order(ordered_at=NOON)

    def wait(_: float) -> None:
        other.put(other.attempts[-1].model_copy(update={"gone_at": NOON, "cost": 0.0}))
        other.write()

    must_pay_for(record, record.attempts[-1], wait=wait)
    assert record.attempts[-1].may_cost


def test_a_run_over_its_account_s_budget_goes_to_the_next_provider_and_says_why(rented: Rented) -> None:
    driver = rented.libraries["alpha"].driver()
    driver.credentials = driver.credentials.model_copy(update={"budget": AccountBudget(per_day=0.01)})
    assert rented.run("true").startswith("exit 0 in ")
    assert rented["alpha"].orders() == []
    assert len(rented["beta"].orders()) == 1
    refused = rented.record.attempts[0]
    assert (refused.outcome, refused.cost, refused.may_cost) == ("over budget", 0.0, False)
    assert "the budget of alpha (default) is $0.0100 a day" in rented.artifact(cards.TRIED.key)
