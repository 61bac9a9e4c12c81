"""`refresh-catalog`: prices made new, each provider on its own; what fails or looks wrong keeps its last good snapshot and is reported."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.filesystems import LocalFileSystem
from prefect.settings import PREFECT_DEFAULT_RESULT_STORAGE_BLOCK, temporary_settings

from prefect_gpu import providers as registry
from prefect_gpu.flows import refresh_catalog as module
from prefect_gpu.flows.refresh_catalog import refresh_catalog
from prefect_gpu.flows.report import prices as price_report
from prefect_gpu.providers.core.catalog import history, published, query, store
from prefect_gpu.providers.core.catalog.filters import Filters
from prefect_gpu.providers.core.catalog.refresh import Drop
from prefect_gpu.providers.core.errors import Transient, Unsupported
from prefect_gpu.providers.core.models import Offer
from prefect_gpu.providers.core.renting import shared_prices
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.core.requests import Requirements
from tests.fakes import catalogs
from tests.fakes.reference import Reference
from tests.stack import Stack, wait_until

SMALL = ("verda", "lambdalabs", "nebius", "cloudrift")


class Market:
    """gpuhunt's bucket on loopback, this machine's snapshots, and what the flow told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions = 0
        self.events: list[dict[str, Any]] = []
        self.state: Any = None

    def publish(self, provider: str, rows: list[tuple[str, ...]]) -> None:
        self.versions += 1
        catalogs.publish(self.folder, provider, rows, version=f"20261124-{self.versions}")

    def publish_all(self, day: int = 0) -> None:
        for provider in SMALL:
            self.publish(provider, catalogs.rows(provider, day=day))

    def refresh(self, **parameters: Any) -> str:
        self.events.clear()
        parameters.setdefault("providers", list(SMALL))
        self.state = refresh_catalog(return_state=True, **parameters)
        return self.state.message

    def named(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]

    def cheapest(self, provider: str) -> float:
        return query.offers(provider, Requirements())[0].price

    @property
    def artifact(self) -> str:
        question = {"artifacts": {"key": {"any_": ["prices"]}}, "limit": 1}
        with get_client(sync_client=True) as client:
            return client.request("POST", "/artifacts/latest/filter", json=question).json()[0]["data"]


@pytest.fixture
def market(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prefect_api: None) -> Iterator[Market]:
    folder = tmp_path / "v3"
    folder.mkdir()
    found = Market(folder)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(registry, "enabled", lambda _account="default": [])
    monkeypatch.setattr(module, "emit_event", lambda event, **more: found.events.append({"event": event, **more}))
    with catalogs.serve(folder) as address:
        monkeypatch.setenv("GPUHUNT_CATALOG_URL", address)
        yield found


def times(rows: list[tuple[str, ...]], factor: float, only: str = "") -> list[tuple[str, ...]]:
    return [(*row[:2], str(round(float(row[2]) * (factor if only in row[6] else 1), 6)), *row[3:]) for row in rows]


def test_a_first_refresh_publishes_all_that_is_sound(market: Market) -> None:
    market.publish_all()
    assert market.refresh() == "4 of 4 providers refreshed"
    assert market.state.is_completed()
    assert store.providers() == sorted(SMALL)
    assert len(query.offers("verda", Requirements(), limit=None)) == len(
        [row for row in catalogs.rows("verda") if row[8] == "False"]
    )
    assert [event["resource"]["provider"] for event in market.named("prefect-gpu.prices.published")] == list(SMALL)
    assert market.named("prefect-gpu.price.dropped") == [], "there was nothing to fall from"
    assert "| verda | new | 336 |" in market.artifact


def test_a_catalog_that_has_not_changed_is_not_fetched_again(market: Market) -> None:
    market.publish_all()
    market.refresh()
    for archive in market.folder.rglob("catalog.zip"):
        archive.unlink()
    assert market.refresh() == "4 of 4 providers refreshed"
    assert len(market.named("prefect-gpu.prices.unchanged")) == 4
    assert "verda: 336 offers, nothing newer than" in market.state.result().line("verda")


def test_the_report_says_what_changed(market: Market) -> None:
    market.publish_all()
    market.refresh()
    rows = catalogs.rows("verda")
    h100 = times(rows, 0.5, only="H100")
    market.publish("verda", [row for row in h100 if not row[0].startswith("8L40S")])
    market.refresh(providers=["verda"])
    gone = sum(row[0].startswith("8L40S") for row in rows)
    fallen = sum(row[6] == "H100" for row in rows)
    assert market.state.result().line("verda") == f"verda: {336 - gone} offers, 0 new, {gone} gone, 0 up, {fallen} down"
    text = market.artifact
    assert f"| verda | new | {336 - gone} | 0.0 s ago" in re.sub(r"\d+\.\d s ago", "0.0 s ago", text)
    assert "## Cheaper now" in text
    assert "| H100 | verda |" in text
    assert "## Biggest moves" in text
    assert "-50 % |" in text
    assert "* **gb-or-gib** notes: memory a few per cent off" in text
    drops = market.named("prefect-gpu.price.dropped")
    assert {(one["resource"]["gpu"], one["resource"]["spot"]) for one in drops} == {("H100", "true"), ("H100", "false")}


@pytest.mark.parametrize("trouble", ["broken", "not published", "half its rows gone", "prices times ten", "empty"])
def test_one_suspicious_provider_keeps_its_last_good_snapshot_and_the_others_are_refreshed(
    market: Market, trouble: str
) -> None:
    market.publish_all()
    market.refresh()
    before = market.cheapest("verda")
    market.publish_all(day=1)
    rows = catalogs.rows("verda", day=1)
    if trouble == "broken":
        market.publish("verda", rows)
        (market.folder / "verda" / f"20261124-{market.versions}" / "catalog.zip").write_bytes(
            b"<html>Service unavailable</html>"
        )
    elif trouble == "not published":
        shutil.rmtree(market.folder / "verda")
    else:
        market.publish(
            "verda", {"half its rows gone": rows[::2], "prices times ten": times(rows, 10), "empty": []}[trouble]
        )
    message = market.refresh()
    says = {
        "broken": "is not a ZIP file with verda.csv",
        "not published": "no price catalog of verda is published",
        "half its rows gone": "row-count: 168 offers, 336 before",
        "prices times ten": "price-level: the median price is",
        "empty": "not-empty: no offer is left",
    }[trouble]
    assert market.state.is_completed()
    assert message.startswith("3 of 4 providers refreshed: verda: the snapshot of ")
    assert says in message
    assert market.cheapest("verda") == before
    assert query.offers("nebius", Requirements())[0].price == pytest.approx(
        min(float(row[2]) for row in catalogs.rows("nebius", day=1) if row[8] == "False")
    )
    (kept,) = market.named("prefect-gpu.prices.kept")
    assert kept["resource"]["provider"] == "verda"
    assert "| verda | **kept** | 336 |" in market.artifact


def test_what_is_held_back_of_a_provider_is_said_and_its_rest_is_published(market: Market) -> None:
    market.publish_all()
    market.refresh()
    market.publish("verda", times(catalogs.rows("verda"), 0.1, only="H100"))
    assert market.refresh(providers=["verda"]) == "1 of 1 provider refreshed"
    sold = {offer.gpu_name for offer in query.query(Filters(), ["verda"])}
    assert "A100" in sold
    assert "H100" not in sold
    assert "held back (" in market.state.result().line("verda")
    assert "## Held back" in market.artifact
    assert "H100: the median price is 0.1 times what it was" in market.artifact
    assert "accept=['verda']" in market.artifact
    market.publish("verda", times(catalogs.rows("verda"), 0.1, only="H100"))
    market.refresh(providers=["verda"])
    assert "H100" not in {offer.gpu_name for offer in query.query(Filters(), ["verda"])}, "twice said is not believed"
    market.publish("verda", catalogs.rows("verda"))
    market.refresh(providers=["verda"])
    assert "H100" in {offer.gpu_name for offer in query.query(Filters(), ["verda"])}


def test_a_person_who_has_looked_may_publish_what_was_refused(market: Market) -> None:
    market.publish_all()
    market.refresh()
    market.publish("verda", catalogs.rows("verda")[::2])
    assert "verda: the snapshot of" in market.refresh(providers=["verda"])
    assert market.state.is_failed()
    assert market.refresh(providers=["verda"], accept=["verda"]) == "1 of 1 provider refreshed"
    assert store.opened("verda").about.offers == 168  # type: ignore[union-attr]
    market.publish("verda", [])
    market.refresh(providers=["verda"], accept=["verda"])
    assert store.opened("verda").about.offers == 168, "nothing is never published"  # type: ignore[union-attr]


def test_without_network_and_without_a_snapshot_one_sentence_says_so(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", "http://127.0.0.1:1")
    message = market.refresh(providers=["verda"])
    assert market.state.is_failed()
    assert message == (
        "0 of 1 provider refreshed: verda: there is no snapshot yet:"
        " the price catalog of verda could not be fetched: ConnectError from 127.0.0.1"
    )
    with pytest.raises(Unsupported, match="no price snapshot of verda here yet"):
        query.offers("verda", Requirements())


def test_without_network_all_providers_share_one_sentence(
    market: Market, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    market.publish_all()
    market.refresh(providers=["nebius"])
    caplog.clear()
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", "http://127.0.0.1:1")
    message = market.refresh()
    none = "the price catalog of each could not be fetched: ConnectError from 127.0.0.1"
    assert message.startswith(
        f"0 of 4 providers refreshed: verda, lambdalabs, cloudrift: there is no snapshot yet: {none}"
    )
    assert message.count("ConnectError") == 2, "those without a snapshot, and the one that has one"
    assert sum("ConnectError" in record.message for record in caplog.records if record.levelname == "WARNING") == 2
    found = market.state.result(raise_on_failure=False).found
    assert [one.outcome for one in found.providers] == ["kept"] * 4
    assert len(market.named("prefect-gpu.prices.kept")) == 4, "each has its own event all the same"


def test_without_network_the_last_snapshot_is_used_and_its_age_is_said(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    market.publish_all()
    market.refresh()
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", "http://127.0.0.1:1")
    assert "verda: the snapshot of " in market.refresh(providers=["verda"])
    assert re.search(r"the snapshot of \d+\.\d s ago stays", market.state.message)
    (offer, *_) = query.offers("verda", Requirements())
    assert offer.priced_at is not None
    assert abs((datetime.now(UTC) - offer.priced_at).total_seconds()) < 120


def test_a_bug_in_one_provider_is_its_own(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    market.publish_all()
    real = published.catalog

    def catalog(provider: str, *, unless: str | None = None) -> Any:
        if provider == "nebius":
            raise ZeroDivisionError("a bug")
        return real(provider, unless=unless)

    monkeypatch.setattr(published, "catalog", catalog)
    assert market.refresh() == "3 of 4 providers refreshed: nebius: there is no snapshot yet: ZeroDivisionError: a bug"


def test_a_provider_may_collect_prices_of_its_own(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    offers = [
        Offer(
            provider="tensordock",
            instance_type="h100",
            region="chubbuck",
            country="US",
            price=2.25,
            cpu=8,
            memory_gb=64,
            arch="x86_64",
            gpu_name="H100",
            gpu_count=1,
            gpu_memory_gb=80,
            gpu_vendor="nvidia",
        )
    ]

    def collect_prices(_self: Any) -> list[Offer]:
        if not offers:
            raise Transient("tensordock does not answer")
        return offers

    driver = type("Tensordock", (Reference,), {"name": "tensordock", "collect_prices": collect_prices})
    library: TaskLibrary[Any] = TaskLibrary(driver)
    library.connections.drivers["default"] = driver.__new__(driver)
    monkeypatch.setattr(registry, "enabled", lambda _account="default": ["tensordock"])
    monkeypatch.setattr(registry, "library", lambda _name: library)
    assert market.refresh(providers=["tensordock"]) == "1 of 1 provider refreshed"
    (offer,) = query.offers("tensordock", Requirements())
    assert (offer.gpu, offer.price, offer.country) == ("H100:1", 2.25, "US")
    offers.clear()
    assert "tensordock does not answer" in market.refresh(providers=["tensordock"])
    assert query.offers("tensordock", Requirements())[0].price == 2.25
    assert "nobody publishes prices of elsewhere" in market.refresh(providers=["elsewhere"])


def test_all_that_is_published_is_refreshed_by_default(market: Market) -> None:
    for provider in catalogs.OFFLINE:
        market.publish(provider, catalogs.rows(provider, 200_000 if provider == "runpod" else 30_000))
    assert market.refresh(providers=[]) == "9 of 9 providers refreshed"
    assert store.providers() == sorted(published.PROVIDERS)
    assert {one.provider for one in history.of("H100")} >= {"aws", "gcp", "oci", "verda"}


# --- events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("was", "now", "thresholds"),
    [
        (2.1, 1.9, [1.95, 2.0, 2.05, 2.1]),
        (2.0, 1.99, [2.0]),
        (1.99, 1.98, []),
        (2.0, 1.95, [2.0]),
        (11.2, 9.93, [9.95, 10.0, 10.5, 11.0]),
    ],
)
def test_a_price_falls_below_the_thresholds_it_crosses(was: float, now: float, thresholds: list[float]) -> None:
    assert price_report.crossed(was, now) == thresholds


def test_what_was_not_offered_before_comes_from_above() -> None:
    assert price_report.crossed(None, 1.98)[:3] == [2.0, 2.05, 2.1]
    assert len(price_report.crossed(None, 0.01)) == len(price_report.crossed(500.0, 0.01)) == 80


def test_an_event_says_all_that_a_trigger_may_ask() -> None:
    event = price_report.drop_event(Drop("aws", "H100", False, 2.04, 1.98, "p5.48xlarge", "us-east-1"))  # noqa: FBT003
    assert event["resource"] == {
        "prefect.resource.id": "prefect-gpu.price.aws.H100",
        "prefect.resource.name": "H100 at aws",
        "provider": "aws",
        "gpu": "H100",
        "spot": "false",
        "region": "us-east-1",
    }
    assert event["related"] == [
        {"prefect.resource.id": "prefect-gpu.price-below.H100.2.00", "prefect.resource.role": "threshold"}
    ]
    assert event["payload"]["price_per_gpu_hour"] == 1.98


# --- a real server and worker -----------------------------------------------------------------------------------------


@pytest.mark.server
@pytest.mark.timeout(400)
def test_a_price_that_falls_starts_a_deployment_through_its_event(stack: Stack, tmp_path: Path) -> None:
    """As in the docstring of flows/refresh_catalog.py: when an H100 falls below $2 per GPU-hour on demand, the backlog runs."""
    folder = tmp_path / "v3"
    rows = catalogs.rows("verda")
    on_demand = [float(row[2]) / int(row[5]) for row in rows if row[6] == "H100" and row[8] == "False"]
    to_2_10 = 2.1 / min(on_demand)
    with catalogs.serve(folder) as address:
        refresh = stack.deploy(
            "prefect_gpu.flows.refresh_catalog.refresh_catalog", "default", GPUHUNT_CATALOG_URL=address
        )
        backlog = stack.deploy("prefect_gpu.flows.plan.plan", "backlog")
        automation = {
            "name": "H100 below $2",
            "trigger": {
                "type": "event",
                "posture": "Reactive",
                "expect": ["prefect-gpu.price.dropped"],
                "match": {"gpu": "H100", "spot": "false"},
                "match_related": {"prefect.resource.id": "prefect-gpu.price-below.H100.2.00"},
                "threshold": 1,
                "within": 0,
            },
            "actions": [
                {
                    "type": "run-deployment",
                    "source": "selected",
                    "deployment_id": str(backlog),
                    "parameters": {"providers": ["local"]},
                }
            ],
        }
        stack.client.post("/automations/", json=automation).raise_for_status()

        def refreshed(version: str, factor: float) -> None:
            catalogs.publish(folder, "verda", times(rows, factor, only="H100"), version=version)
            run = stack.run(refresh, providers=["verda"])
            assert stack.wait_for_state(run, "Completed", "Failed", "Crashed", within_s=120) == "Completed", (
                stack.message(run)
            )

        def backlog_runs() -> list[dict[str, Any]]:
            question = {"flow_runs": {"deployment_id": {"any_": [str(backlog)]}}}
            return stack.client.post("/flow_runs/filter", json=question).json()

        refreshed("20261124-1", to_2_10)
        refreshed("20261124-2", to_2_10 * 0.97)  # $2.04: fell, and is not below $2
        assert backlog_runs() == []
        refreshed("20261124-3", to_2_10 * 0.93)  # $1.95
        wait_until(lambda: len(backlog_runs()) == 1, 60, "the run of the backlog")
        run = backlog_runs()[0]
        assert stack.wait_for_state(run["id"], "Completed", "Failed", "Crashed", within_s=120) == "Completed"


# --- the storage block in use -----------------------------------------------------------------------------------------


def test_what_one_worker_refreshes_another_finds_by_way_of_the_storage_block(
    market: Market, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    LocalFileSystem(basepath=str(tmp_path / "bucket")).save("prices", overwrite=True, _sync=True)  # type: ignore[call-arg]
    market.publish_all()
    with temporary_settings({PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: "local-file-system/prices"}):
        market.refresh(providers=["verda"])
        assert (tmp_path / "bucket" / shared_prices.PREFIX / "verda" / "latest.json").exists()
        monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "another worker"))
        with pytest.raises(Unsupported, match="no price snapshot"):
            query.offers("verda", Requirements())
        shared_prices.fetch_newer("verda")
        assert query.offers("verda", Requirements())[0].price > 0
        assert history.of("H100", providers=["verda"])


def test_a_storage_block_that_cannot_be_loaded_leaves_the_prices_of_this_machine(
    market: Market, caplog: pytest.LogCaptureFixture
) -> None:
    market.publish_all()
    with temporary_settings({PREFECT_DEFAULT_RESULT_STORAGE_BLOCK: "local-file-system/nobody-saved-it"}):
        shared_prices.fetch_newer("verda")
        assert "the storage block local-file-system/nobody-saved-it cannot be loaded" in caplog.text
        # As the task does it; the flow cannot begin, because Prefect loads the same block for its results.
        result = module._refresh.fn("verda", None, accept_suspicious=False)
    assert "on this machine only: the storage block" in price_report.line(result)
    assert market.cheapest("verda") > 0
