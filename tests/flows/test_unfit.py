"""Hosts of a marketplace: what is said of them, and that one which failed the machine check is rented by no run for a day."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from prefect_gpu.flows.report.artifacts import publish
from prefect_gpu.flows.run import cards, story, unfit
from prefect_gpu.flows.run.offers import Ranked
from prefect_gpu.providers.core import models
from prefect_gpu.providers.core.contract import Provider
from prefect_gpu.providers.core.errors import InstanceFailed
from prefect_gpu.providers.core.models import MachineReport, Offer, Trust, utc_now
from prefect_gpu.providers.core.requests import Requirements
from tests.flows.rented import Rented

pytestmark = [pytest.mark.usefixtures("prefect_api"), pytest.mark.timeout(180)]
BROKEN = InstanceFailed("GPU 3 needs a reset", category="machine_check", reach="host")


class Log:
    def __init__(self) -> None:
        self.said: list[str] = []

    def warning(self, what: str, *with_: object) -> None:
        self.said.append(what % with_)


@pytest.fixture
def provider() -> str:
    return f"market-{uuid4().hex[:6]}"  # what failed there is no other test's


def offer(provider: str, host: str | None = "host-1", trust: Trust | None = "any", **more: Any) -> Offer:
    return Offer(provider=provider, instance_type="2x-A40", region="DE", price=1.0, host=host, trust=trust, **more)


def ranked(*offers: Offer) -> list[Ranked]:
    return [
        Ranked(rank=n, offer=one, stay_cost=one.price, price_per_gpu=None, why="the cheapest")
        for n, one in enumerate(offers, start=1)
    ]


def test_a_host_that_failed_the_check_is_passed_over_for_a_day_whatever_it_is_offered_as(provider: str) -> None:
    failed, same_host = offer(provider), offer(provider, spot=True, raw={"ask_id": 7})
    others = [offer(provider, host="host-2"), offer(provider, host=None), offer(f"{provider}-2")]
    unfit.note(uuid4(), failed, BROKEN, Log())
    after = unfit.passed_over(ranked(failed, others[0], same_host, *others[1:]))
    assert [one.offer for one in after if one.is_buyable] == others
    assert [one.rank for one in after] == [1, 2, 3, None, None]
    assert all(one.is_unfit for one in after if not one.is_buyable)
    assert after[-1].why.startswith(f"{unfit.WHY} (GPU 3 needs a reset): passed over until ")
    later = unfit.passed_over(ranked(failed), utc_now() + timedelta(days=1, minutes=1))
    assert later[0].is_buyable


@pytest.mark.parametrize(
    "failure",
    [
        InstanceFailed("the job requires a disk of 900 GB", category="machine_check"),
        InstanceFailed("not ready after 10 min", reach="host"),
    ],
    ids=["what only this job requires", "no check"],
)
def test_what_is_not_the_host_s_own_fault_is_not_held_against_it(provider: str, failure: InstanceFailed) -> None:
    unfit.note(uuid4(), offer(provider), failure, Log())
    assert unfit.passed_over(ranked(offer(provider)))[0].is_buyable


def test_nothing_is_asked_where_no_offer_names_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfit.ledger, "artifacts", lambda *_: pytest.fail("asked"))
    assert len(unfit.passed_over(ranked(offer("aws", host=None)))) == 1


def test_what_nobody_can_read_hides_no_other_and_what_cannot_be_written_is_said(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfit.note(uuid4(), offer(provider), BROKEN, Log())
    for nonsense in ("[]", "{}", "no json", '[{"provider": 3}]', "[[]]"):
        publish(f"unfit-{uuid4().hex[:8]}", "result", nonsense, None)
    assert not unfit.passed_over(ranked(offer(provider)))[0].is_buyable

    def down(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(unfit, "publish", down)
    log = Log()
    unfit.note(uuid4(), offer(provider), BROKEN, log)
    assert log.said == ["that the host host-1 failed the machine check could not be written: ConnectionError"]


def test_a_run_whose_host_fails_the_check_goes_on_elsewhere_and_the_next_run_asks_that_host_no_more(
    rented: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each cloud's north is one host in two zones, and it is not what it is sold as."""
    for name, cloud in rented.clouds.items():
        cloud.change(types=[cloud.terms.types[0].model_dump()])
        monkeypatch.setattr(rented.libraries[name].driver(), "fetch_offers", _of_hosts(rented.libraries[name].driver()))
    real = "prefect_gpu.providers.core.renting.running.check.check"

    def check(_: object, offer: Offer, *__: object, **___: object) -> MachineReport:
        bad = offer.region == "north"
        return MachineReport(problem="GPU 3 needs a reset", is_unfit=True) if bad else MachineReport()

    monkeypatch.setattr(real, check)
    north = Requirements(regions=("north",))
    first = rented.run(requirements=north)
    assert first.startswith("No machine in north: 2 offers tried (alpha boot failed, beta boot failed)"), first
    assert "passed over: boot failed" in rented.artifact(cards.TRIED.key), "one host, in two zones"
    second = rented.run(requirements=north)
    assert "the hosts of all 4 offers that fit failed the machine check of a run of this server within a day" in second
    assert rented.record.attempts == []
    third = rented.run()
    assert third.startswith("exit 0 in "), third
    assert [(one.provider, one.scope) for one in rented.record.attempts] == [("alpha", "south-1")]
    tried = rented.artifact(cards.TRIED.key)
    assert f"{unfit.WHY} (GPU 3 needs a reset): passed over until " in tried
    assert "north-1 (stranger)" in tried
    assert "Hosts of alpha and beta are other people's" in tried
    untrusted = rented.run(requirements=Requirements(trust="secure"))
    assert untrusted.startswith("No machine on secure hosts. On any host: "), untrusted
    rented.assert_nothing_is_left()


def _of_hosts(driver: Provider[Any]) -> Any:
    ask, name = driver.fetch_offers, driver.name

    def fetch_offers(requirements: Requirements) -> list[Offer]:
        found = ask(requirements.model_copy(update={"trust": "any"}))
        account = driver.account_id()  # a host of this test's own
        return [
            one.model_copy(update={"host": f"{account}-{one.region}", "trust": "any", "provider": name})
            for one in found
        ]

    return fetch_offers


def test_the_offers_table_tells_whose_hosts_they_are_where_that_is_not_the_provider_itself() -> None:
    own = offer("aws", host=None, trust=None)
    assert story.offers_table([own])[0].split() == ["#", "provider", "machine", "gpu", "spot", "$/h"]
    lines = story.offers_table([own, offer("vastai", trust="verified"), offer("runpod", trust="any")])
    assert lines[0].split() == ["#", "provider", "machine", "gpu", "spot", "host", "$/h"]
    assert [line.split()[-2] for line in lines[1:4]] == ["no", "verified", "stranger"]
    assert " ".join(lines[4:]) == (
        "hosts of runpod and vastai are other people's: who has one can read what runs there, the job's files and "
        "secrets too; requirements.trust asks for verified or secure ones"
    )
    assert models.TRUST == ("any", "verified", "secure")
