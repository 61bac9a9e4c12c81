"""Offers from snapshots: what is asked is answered, in order, by the newest prices, and an empty answer explains itself."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prefect_gpu.providers.core.catalog import query, store
from prefect_gpu.providers.core.catalog.explain import explain
from prefect_gpu.providers.core.catalog.filters import Filters
from prefect_gpu.providers.core.catalog.kinds import Kind, Place, Price
from prefect_gpu.providers.core.catalog.places import place
from prefect_gpu.providers.core.catalog.snapshot import Snapshot
from prefect_gpu.providers.core.catalog.writing import FORMAT
from prefect_gpu.providers.core.errors import ProviderError, Transient, Unsupported
from prefect_gpu.providers.core.gpu.matching import fits
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import Availability, Offer
from prefect_gpu.providers.core.requests import Requirements, Spot

WHEN = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    return tmp_path


def kind(
    name: str = "p5.48xlarge", gpu: str | None = "H100", count: int = 8, memory: float = 80, **more: object
) -> Kind:
    return Kind(
        **{
            "instance_type": name,
            "cpu": 96,
            "memory_gb": 1000.0,
            "gpu_name": gpu,
            "gpu_count": count if gpu else 0,
            "gpu_memory_gb": memory if gpu else None,
            "gpu_vendor": "nvidia" if gpu else None,
            **more,
        }  # type: ignore[arg-type]
    )


CPU = kind("m5.large", None, cpu=2, memory_gb=8.0)
H100 = kind()
H100_SPOT = kind(spot=True)
A100 = kind("p4d.24xlarge", "A100", 8, 40)
US, EU, NOWHERE = Place("us-east-1", None, "US"), Place("eu-west-1", None, "IE"), Place("x-1", None, None)


def publish(provider: str = "aws", rows: Iterable[Price] = (), when: datetime = WHEN) -> None:
    store.publish(provider, rows, collected_at=when, source="test")


def asked(gpu: str = "", **more: object) -> Requirements:
    return Requirements(gpu=parse_gpu(gpu), **more)  # type: ignore[arg-type]


def test_an_offer_says_all_that_the_snapshot_knows() -> None:
    publish(
        rows=[
            Price(
                H100._replace(raw='{"fabric": 3}', flags=("f",), disk_gb=100.0),
                Place("us-east1", "us-east1-a", "US"),
                31.5,
            )
        ]
    )
    (offer,) = query.offers("aws", asked("H100:8"))
    assert offer == Offer(
        provider="aws",
        instance_type="p5.48xlarge",
        region="us-east1",
        zone="us-east1-a",
        country="US",
        price=31.5,
        cpu=96,
        memory_gb=1000,
        disk_gb=100,
        arch="x86_64",
        gpu_name="H100",
        gpu_count=8,
        gpu_memory_gb=80,
        gpu_vendor="nvidia",
        availability=Availability.UNKNOWN,
        priced_at=WHEN,
        raw={"fabric": 3, "flags": ["f"]},
    )
    assert Offer.model_validate(offer.model_dump()) == offer
    assert Offer.model_validate_json(offer.model_dump_json()) == offer
    assert list(offer.model_dump()) == list(Offer.model_fields)
    assert offer.model_copy(update={"price": 1.0}).price == 1.0


def test_offers_share_nothing_that_can_be_changed() -> None:
    publish(rows=[Price(H100._replace(raw='{"list": []}'), US, 31.5)])
    (first,), (second,) = query.offers("aws", asked()), query.offers("aws", asked())
    first.raw["list"].append("mine")
    assert second.raw == {"list": []}
    assert query.offers("aws", asked())[0].raw == {"list": []}


def test_offers_come_by_alternative_and_then_by_price() -> None:
    publish(
        rows=[
            Price(A100, US, 11.0),
            Price(H100, US, 31.0),
            Price(H100, EU, 30.0),
            Price(A100, EU, 12.0),
            Price(CPU, US, 0.1),
        ]
    )
    got = [(offer.gpu, offer.price) for offer in query.offers("aws", asked("H100:8|A100:8"))]
    assert got == [("H100:8", 30.0), ("H100:8", 31.0), ("A100:8", 11.0), ("A100:8", 12.0)]
    got = [(offer.gpu, offer.price) for offer in query.offers("aws", asked("A100:8|..:8"))]
    assert got == [("A100:8", 11.0), ("A100:8", 12.0), ("H100:8", 30.0), ("H100:8", 31.0)], "each offer once"


def test_a_limit_counts_for_each_alternative_and_takes_the_cheapest() -> None:
    rows = [Price(H100, Place(f"r-{n}"), 30.0 + n) for n in range(5)] + [
        Price(A100, Place(f"r-{n}"), 10.0 + n) for n in range(5)
    ]
    publish(rows=rows)
    assert [offer.price for offer in query.offers("aws", asked("H100:8|A100:8"), limit=2)] == [30, 31, 10, 11]


@pytest.mark.parametrize(
    ("requirements", "prices_found"),
    [
        (asked("H100:8"), [30, 31]),
        (asked("H100:8", spot=Spot.SPOT), [15]),
        (asked("H100:8", spot=Spot.EITHER), [15, 30, 31]),
        (asked("H100:8", max_price=30.5), [30]),
        (asked("H100:8", regions=("EU-WEST-1",)), [30]),
        (asked("H100:8", exclude_regions=("eu-west-1",)), [31]),
        (asked("H100:8", countries=("us",)), [31]),
        (asked("H100:8", exclude_countries=("US",)), [30]),
        (asked("H100:8", zones=("us-east-1b",)), [31]),
        (asked("H100:8", memory_gb=2000), []),
        (asked("H100:8", cpu=96), [30, 31]),
        (asked("H100:8", disk_gb=5000), [30, 31]),
        (asked("H100:8", arch="arm64"), []),
        (asked("H100:8", gpu_vendor="amd"), []),
        (asked("..:8", min_compute_capability=9.0), [30, 31]),
        (asked("40GB:8"), [11]),
        (asked("640GB.. total"), [30, 31]),
        (asked(), [0.1, 11, 30, 31]),
    ],
)
def test_requirements_restrict_what_they_say(requirements: Requirements, prices_found: list[float]) -> None:
    publish(
        rows=[
            Price(CPU, US, 0.1),
            Price(A100, US, 11),
            Price(H100, EU, 30),
            Price(H100, US, 31),
            Price(H100_SPOT, US, 15),
        ]
    )
    found = query.offers("aws", requirements)
    assert [offer.price for offer in found] == prices_found
    without_zones = requirements.model_copy(update={"zones": ()})
    assert all(fits(offer, without_zones) for offer in found), "what the catalog finds, the rest of the code takes"


def test_a_zone_is_known_where_prices_are_by_zone() -> None:
    rows = [Price(H100, place("gcp", f"us-central1-{zone}"), 30 + n) for n, zone in enumerate("abc")]
    publish("gcp", rows)
    assert [o.zone for o in query.offers("gcp", asked(zones=("us-central1-b",)))] == ["us-central1-b"]
    assert [o.zone for o in query.offers("gcp", asked(regions=("us-central1",), exclude_zones=("us-central1-b",)))] == [
        "us-central1-a",
        "us-central1-c",
    ]
    assert len(query.offers("gcp", asked(regions=("us-central1-c",)))) == 1, "a zone may stand among the regions"
    assert query.offers("gcp", asked(zones=("us-central2-b",))) == []


def test_what_might_be_in_an_excluded_country_is_left_out() -> None:
    publish(rows=[Price(H100, NOWHERE, 30), Price(H100, US, 31)])
    assert [o.price for o in query.offers("aws", asked(exclude_countries=("CN",)))] == [31]
    assert [o.price for o in query.offers("aws", asked(countries=("US",)))] == [31]
    assert [o.price for o in query.offers("aws", asked())] == [30, 31]


def test_flags_that_the_driver_does_not_know_are_left_out() -> None:
    publish(rows=[Price(H100, US, 30), Price(H100._replace(flags=("new-flag",)), EU, 20)])
    assert [o.price for o in query.offers("aws", asked(), allowed_flags={"other"})] == [30]
    assert [o.price for o in query.offers("aws", asked(), allowed_flags={"new-flag"})] == [20, 30]


@pytest.mark.parametrize("limit", [1, 3, 25, None])
@pytest.mark.parametrize(
    "filters",
    [
        Filters(),
        Filters(min_price=50.0),
        Filters(min_price=50.0, max_price=60.0),
        Filters(regions=("r-3",)),
        Filters(regions=("r-3", "r-9"), min_price=20.0, gpu_name=("A100",)),
        Filters(exclude_regions=("r-0", "r-1"), spot=True),
        Filters(min_gpu_memory=60, spot=False),
        Filters(gpu_name=("nothing",)),
        Filters(countries=("US",)),
    ],
)
def test_a_limited_answer_is_the_beginning_of_the_whole_answer(filters: Filters, limit: int | None) -> None:
    """Whatever way SQLite takes to it: a thousand offers, so that each way is taken."""
    rows = [
        Price(
            kind(f"t{k}", ("H100", "A100", None)[k % 3], 8, 80.0 if k % 2 else 40.0, spot=k % 5 == 0),
            Place(f"r-{p}"),
            1 + (k * 37 + p * 11) % 97,
        )
        for k in range(50)
        for p in range(20)
    ]
    publish("aws", rows)
    publish("gcp", [Price(row.kind, row.place, row.price + 0.5) for row in rows])
    expected = sorted(
        (price, name)
        for name, more in (("aws", 0.0), ("gcp", 0.5))
        for k, where, base in rows
        if (price := base + more) >= (filters.min_price or 0)
        and price <= (filters.max_price or 1e9)
        and filters.take_place(where)
        and (filters.spot is None or k.spot == filters.spot)
        and (filters.gpu_name is None or k.gpu_name in filters.gpu_name)
        and (filters.min_gpu_memory is None or (k.gpu_memory_gb or 0) >= filters.min_gpu_memory)
    )
    got = [(offer.price, offer.provider) for offer in query.query(filters, limit=limit)]
    assert [price for price, _ in got] == [price for price, _ in expected][
        : limit if limit is not None else len(expected)
    ]
    if limit is None:
        assert sorted(got) == expected


# --- publishing -------------------------------------------------------------------------------------------------------


def test_without_a_snapshot_one_sentence_says_what_to_do() -> None:
    with pytest.raises(
        Unsupported,
        match="no price snapshot of aws here yet: run `prefect-gpu refresh`, or the deployment refresh-catalog/default",
    ):
        query.offers("aws", asked("H100:8"))
    with pytest.raises(ProviderError):
        query.query(Filters(), ["gcp"])
    assert query.query(Filters()) == []


def test_a_newer_snapshot_is_seen_by_who_has_the_old_one_open() -> None:
    publish(rows=[Price(H100, US, 31)])
    assert query.offers("aws", asked())[0].price == 31
    publish(rows=[Price(H100, US, 29)], when=WHEN + timedelta(hours=1))
    assert query.offers("aws", asked())[0].price == 29
    assert query.offers("aws", asked())[0].priced_at == WHEN + timedelta(hours=1)


@pytest.mark.parametrize("hours", [-1, 0, 24 * 365])
def test_what_is_published_last_counts_whatever_its_source_says_of_its_own_time(hours: int) -> None:
    """A source whose date is older, the same or in the future; and nothing blocks the refresh after it."""
    publish(rows=[Price(H100, US, 29)])
    publish(rows=[Price(H100, US, 31)], when=WHEN + timedelta(hours=hours))
    (offer,) = query.offers("aws", asked())
    assert offer.price == 31
    assert offer.priced_at is not None
    assert offer.priced_at <= datetime.now(UTC), "nothing is younger than now"
    publish(rows=[Price(H100, US, 30)])
    assert query.offers("aws", asked())[0].price == 30


def test_an_edition_of_a_clock_that_was_ahead_is_followed_by_the_next() -> None:
    publish(rows=[Price(H100, US, 29)])
    folder = store.folder() / "aws"
    edition = store.latest(folder)
    assert edition is not None
    version = f"20991231T235959999999Z-{'f' * 6}"
    ahead = edition._replace(version=version, file=f"{version}.sqlite")
    (folder / edition.file).rename(folder / ahead.file)
    (folder / "latest.json").write_text(json.dumps(ahead._asdict()))
    publish(rows=[Price(H100, US, 30)])
    assert query.offers("aws", asked())[0].price == 30
    publish(rows=[Price(H100, US, 31)])
    assert query.offers("aws", asked())[0].price == 31


def test_a_provider_without_a_snapshot_hides_nobody_elses() -> None:
    publish(rows=[Price(H100, US, 29)])
    assert [offer.price for offer in query.query(Filters(), ["aws", "gcp"])] == [29]
    assert [offer.price for offer in query.query(Filters(), ["gcp", "aws"], limit=1)] == [29]
    with pytest.raises(ProviderError, match="no price snapshot of gcp"):
        query.query(Filters(), ["gcp"])


def test_only_the_newest_editions_stay_and_nothing_else() -> None:
    for hour in range(6):
        publish(rows=[Price(H100, US, 30 + hour)], when=WHEN + timedelta(hours=hour))
    folder = store.folder() / "aws"
    assert len(list(folder.glob("*.sqlite"))) == 3
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".sqlite") == [".lock", "latest.json"]
    assert query.offers("aws", asked())[0].price == 35


def test_a_publisher_that_fails_leaves_the_old_snapshot_and_no_rubbish(monkeypatch: pytest.MonkeyPatch) -> None:
    publish(rows=[Price(H100, US, 31)])

    def broken(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(store, "_install", broken)
    with pytest.raises(OSError, match="no space"):
        publish(rows=[Price(H100, US, 29)], when=WHEN + timedelta(hours=1))
    assert query.offers("aws", asked())[0].price == 31
    assert not list(store.folder().rglob("*unfinished"))


@pytest.mark.parametrize("damage", ["truncated", "empty", "gone", "text", "another application", "another format"])
def test_a_damaged_snapshot_gives_way_to_the_one_before_it(damage: str) -> None:
    publish(rows=[Price(H100, US, 31)])
    publish(rows=[Price(H100, US, 29)], when=WHEN + timedelta(hours=1))
    edition = store.latest(store.folder() / "aws")
    assert edition is not None
    path = store.folder() / "aws" / edition.file
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    elif damage == "gone":
        path.unlink()
    elif damage in {"empty", "text"}:
        path.write_bytes(b"" if damage == "empty" else b"x" * edition.bytes)
    else:
        with sqlite3.connect(path) as db:
            db.execute(
                "PRAGMA application_id = 1" if "application" in damage else f"PRAGMA user_version = {FORMAT + 1}"
            )
        db.close()
    assert query.offers("aws", asked())[0].price == 31


@pytest.mark.parametrize(
    "pointer", ["", "{", "[]", '{"version": "1"}', '{"version": 1, "file": "../x", "bytes": 1, "sha256": ""}']
)
def test_a_pointer_that_says_nothing_counts_for_nothing(pointer: str) -> None:
    publish(rows=[Price(H100, US, 31)])
    (store.folder() / "aws" / "latest.json").write_text(pointer)
    assert query.offers("aws", asked())[0].price == 31, "the edition is still there"
    shutil.rmtree(store.folder() / "aws")
    (store.folder() / "aws").mkdir()
    (store.folder() / "aws" / "latest.json").write_text(pointer)
    with pytest.raises(Unsupported, match="no price snapshot"):
        query.offers("aws", asked())


def test_many_threads_may_ask_one_snapshot_while_it_is_replaced() -> None:
    rows = [Price(kind(f"t{k}"), Place(f"r-{p}"), 1.0 + k + p / 100) for k in range(40) for p in range(40)]
    publish(rows=rows)
    stop = threading.Event()

    def ask() -> int:
        asked_times = 0
        while not stop.is_set():
            found = query.offers("aws", asked("H100:8"), limit=50)
            assert len(found) == 50
            assert [offer.price for offer in found] == sorted(offer.price for offer in found)
            asked_times += 1
        return asked_times

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask) for _ in range(8)]
        for hour in range(1, 12):
            publish(rows=rows, when=WHEN + timedelta(hours=hour))
        stop.set()
        assert all(future.result() > 0 for future in asking)


def test_a_person_can_ask_the_file() -> None:
    publish(rows=[Price(H100, US, 31), Price(A100, US, 12)])
    edition = store.latest(store.folder() / "aws")
    assert edition is not None
    with sqlite3.connect(store.folder() / "aws" / edition.file) as db:
        row = db.execute("SELECT instance_type, region, price FROM offer WHERE gpu_name = 'H100'").fetchall()
    db.close()
    assert row == [("p5.48xlarge", "us-east-1", 31.0)]
    if shutil.which("file"):
        assert (
            "SQLite"
            in subprocess.run(
                ["file", store.folder() / "aws" / edition.file], capture_output=True, text=True, check=True
            ).stdout
        )


def test_a_snapshot_gives_back_all_that_was_put_in(home: Path) -> None:
    rows = {Price(H100, US, 31.0), Price(H100_SPOT, US, 15.0), Price(CPU._replace(flags=("a", "b")), NOWHERE, 0.1)}
    publish(rows=rows)
    snapshot = store.opened("aws")
    assert snapshot is not None
    assert set(snapshot.all()) == rows
    assert snapshot.about.gpu_names == ("H100",)
    (home / "nonsense").write_text("nonsense")
    with pytest.raises(ValueError, match="not a whole snapshot"):
        Snapshot(home / "nonsense")


# --- explanations -----------------------------------------------------------------------------------------------------


def market() -> None:
    publish("lambdalabs", [Price(kind("gpu_8x_h100"), Place("us-west-1", None, "US"), 23.12)])
    publish(
        "aws",
        [
            Price(H100, US, 31),
            Price(H100_SPOT, EU, 15),
            Price(A100._replace(gpu_memory_gb=80.0), US, 11.2),
            Price(CPU, US, 0.1),
        ],
    )


@pytest.mark.parametrize(
    ("requirements", "says"),
    [
        (
            asked("H100:8", max_price=20.0),
            "No H100:8 under $20/h. Cheapest $23.12 lambdalabs us-west-1. Also A100:8 $11.20.",
        ),
        (asked("H100:8", max_price=5.0), "No H100:8 under $5/h. Cheapest $23.12 lambdalabs us-west-1."),
        (asked("H100:8", regions=("eu-west-1",)), "No H100:8 in eu-west-1. As spot: H100:8 $15 aws eu-west-1."),
        (asked("H100:8", regions=("mars",)), "No H100:8 in mars. Elsewhere: H100:8 $23.12 lambdalabs us-west-1."),
        (
            asked("H100:8", memory_gb=4000),
            "No H100:8. With less than 4000 GB of memory: H100:8 $23.12 lambdalabs us-west-1.",
        ),
        (asked("A100:8", spot=Spot.SPOT), "No A100:8 spot. On-demand: A100:8 $11.20 aws us-east-1. Also H100:8 $15."),
        (asked("H100:4"), "No H100:4. H100 comes with 8 in one machine."),
        (asked("T4"), "No T4. None of aws, lambdalabs, local has T4."),
        (
            asked("H100:8", min_compute_capability=12.0),
            "No H100:8. Below compute capability 12: H100:8 $23.12 lambdalabs us-west-1.",
        ),
        (asked("", cpu=500), "No machine. With fewer than 500 cores: m5.large $0.10 aws us-east-1."),
        (
            asked("H100:8"),
            "No H100:8. The price list has it for $23.12 at lambdalabs us-west-1, where it is not available now. Also A100:8 $11.20.",
        ),
    ],
)
def test_an_empty_answer_says_what_is_missing_and_what_is_nearest(requirements: Requirements, says: str) -> None:
    market()
    assert explain(requirements, ["aws", "lambdalabs", "local"]) == says


def test_an_explanation_passes_over_a_price_list_that_cannot_be_read() -> None:
    market()
    (store.folder() / "lambdalabs" / "latest.json").write_text("{")
    assert explain(asked("A100:8", max_price=5.0), ["aws", "lambdalabs"]) == (
        "No A100:8 under $5/h. Cheapest $11.20 aws us-east-1."
    )


def test_an_explanation_knows_offers_that_no_price_list_has() -> None:
    seen = [
        Offer(provider="ssh", instance_type="box", region="", price=9.5, gpu_name="H100", gpu_count=8, gpu_memory_gb=80)
    ]
    assert explain(asked("H100:8", max_price=5.0), ["ssh"], seen) == "No H100:8 under $5/h. Cheapest $9.50 ssh."
    assert explain(asked("H100:8", max_price=5.0), ["ssh"]) == "No H100:8 under $5/h. ssh has no H100."


# --- gpuhunt's online providers ---------------------------------------------------------------------------------------


def live(**more: object) -> Offer:
    return Offer(
        **{  # type: ignore[arg-type]
            "provider": "kubernetes", "instance_type": "gpu-1", "region": "", "price": 0.0, "cpu": 96, "memory_gb": 1000,
            "gpu_name": "H100", "gpu_count": 8, "gpu_memory_gb": 80, "gpu_vendor": "nvidia", **more,
        }
    )  # fmt: skip


def test_a_number_or_size_of_gpus_is_judged_on_live_offers_too() -> None:
    says = explain(asked("H100:9"), ["kubernetes"], [live(), live(gpu_count=4)])
    assert says == "No H100:9. kubernetes has H100, at most 8 in one machine."
    says = explain(asked("H100:6"), ["kubernetes"], [live(), live(gpu_count=4)])
    assert says == "No H100:6. H100 comes with 4 or 8 in one machine."
    says = explain(asked("H100:8", cpu=200), ["kubernetes"], [live(cpu=8), live(instance_type="gpu-2")])
    assert says == "No H100:8. With at most 96 cores: H100:8 $0 kubernetes."
    says = explain(asked("H100:8", memory_gb=2000), ["runpod"], [live(provider="runpod", memory_gb=None)])
    assert says == "No H100:8. With an unknown amount of memory: H100:8 $0 runpod."
    says = explain(asked("H100:8", min_cuda=12.8), ["kubernetes"], [live(raw={"cuda": 12.2})])
    assert says == "No H100:8. With a driver below CUDA 12.8: H100:8 $0 kubernetes."
    says = explain(asked("A100:80GB:8"), ["kubernetes"], [live(gpu_name="A100", gpu_memory_gb=40)])
    assert says == "No A100:80GB:8. A100 comes with 40 GB here."


def test_what_providers_say_of_offers_that_would_fit_is_the_reason() -> None:
    closed = {"availability": Availability.UNAVAILABLE}
    seen = [
        live(**closed, unavailable_because="node gpu-1 is cordoned"),
        live(**closed, unavailable_because="node gpu-1 is cordoned", instance_type="gpu-2"),
        live(**closed, provider="ssh", unavailable_because="10.0.0.7 has another host key than before"),
    ]
    publish(rows=[Price(H100, US, 31)])
    says = explain(asked("H100:8"), ["aws", "kubernetes", "ssh"], seen)
    assert says == ("No H100:8. kubernetes: node gpu-1 is cordoned. ssh: 10.0.0.7 has another host key than before.")


def test_what_could_not_be_looked_at_is_said_whatever_was_asked_for_and_whatever_else_is_there() -> None:
    def dark(name: str, **more: object) -> Offer:
        return Offer(
            provider="ssh", instance_type=name, region="", price=0.0, availability=Availability.UNAVAILABLE,
            unavailable_because=f"{name} is out of reach", is_unseen=True, **more,  # type: ignore[arg-type]
        )  # fmt: skip

    seen = [dark("m1"), dark("m2"), dark("m3"), dark("m4", is_alarm=True)]
    told = "ssh: m4 is out of reach; m1 is out of reach; m2 is out of reach; and 1 more."
    for wishes in ({}, {"cpu": 4}, {"memory_gb": 10.0}, {"min_cuda": 12.8}):
        assert explain(asked("H100:9", **wishes), ["ssh"], seen) == f"No H100:9. {told}"
    assert explain(asked("H100:9"), ["ssh", "kubernetes"], [*seen, live()]) == (
        f"No H100:9. kubernetes has H100, at most 8 in one machine. {told}"
    )
    assert explain(asked("T4"), ["ssh", "kubernetes"], seen) == f"No T4. kubernetes has no T4. {told}"
    assert explain(asked("T4", regions=("attic",)), ["ssh"], seen) == "No T4 in attic.", "they stand elsewhere"


def test_a_collector_of_gpuhunt_becomes_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuhunt import AcceleratorVendor, CatalogItem
    from gpuhunt.providers import vultr

    item = CatalogItem(
        "vultr",
        "vcg-a100",
        "ewr",
        2.4,
        12,
        120.0,
        1,
        "A100",
        80.0,
        spot=False,
        disk_size=1400.0,
        gpu_vendor=AcceleratorVendor.NVIDIA,
        flags=["f"],
    )
    monkeypatch.setattr(vultr, "fetch_offers", lambda api_key, regions: [item] if api_key == "key" else [])
    (offer,) = query.online("vultr", api_key="key")
    assert (offer.region, offer.country, offer.gpu, offer.arch, offer.raw) == (
        "ewr",
        "US",
        "A100:1",
        "x86_64",
        {"flags": ["f"]},
    )


def test_a_collector_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuhunt.providers import vultr

    def broken(**_: object) -> None:
        raise KeyError("plans")

    monkeypatch.setattr(vultr, "fetch_offers", broken)
    with pytest.raises(Transient, match="gpuhunt's collector of vultr failed: KeyError"):
        query.online("vultr")
    with pytest.raises(Unsupported, match="gpuhunt does not ask tensordock for prices"):
        query.online("tensordock")
