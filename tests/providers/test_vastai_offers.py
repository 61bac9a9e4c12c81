"""What Vast.ai offers: each ask that fits, on demand or by bid, from searches that the API filters, however many there are."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from prefect_gpu.providers.core.errors import RateLimited, Transient
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import Offer
from prefect_gpu.providers.core.requests import Requirements, Spot
from prefect_gpu.providers.vastai import offers as offers_module
from tests.fakes import vastai as fakes
from tests.fakes.vastai import FakeVastai
from tests.providers.test_vastai import H100, SPOT, _quick, cloud, vastai

__all__ = ["_quick", "cloud"]

STORAGE = 0.15 * 32 / 720


def found(cloud: FakeVastai, asked: Requirements = H100, **options: Any) -> dict[int, Offer]:
    return {one.raw["ask_id"]: one for one in vastai(cloud, **options).fetch_offers(asked)}


def test_an_offer_is_one_ask_of_one_machine_with_its_disk(cloud: FakeVastai) -> None:
    one = found(cloud)[102]
    assert (one.instance_type, one.region, one.country) == ("1x-H100-SXM", "california-us", "US")
    assert (one.zone, one.host, one.trust) == ("9102", "9102", "secure")
    assert (one.gpu_name, one.gpu_count, one.gpu_memory_gb, one.gpu_vendor) == ("H100", 1, 80.0, "nvidia")
    assert (one.cpu, one.memory_gb, one.disk_gb, one.arch, one.spot) == (16.0, 125.0, 32, "x86_64", False)
    assert one.price == pytest.approx(1.5 + STORAGE)
    assert one.raw["usd_per_gb"] == {"up": 0.004, "down": 0.002}


def test_spot_is_the_lowest_bid_and_some_more(cloud: FakeVastai) -> None:
    bids = found(cloud, SPOT)
    assert {one.spot for one in bids.values()} == {True}
    assert bids[101].price == pytest.approx(0.8 * 1.1 + STORAGE)
    assert found(cloud, SPOT, bid_over=0)[101].price == pytest.approx(0.8 + STORAGE)
    either = vastai(cloud).fetch_offers(H100.model_copy(update={"spot": Spot.EITHER}))
    assert sorted((one.raw["ask_id"], one.spot) for one in either) == [
        (101, False),
        (101, True),
        (102, False),
        (102, True),
    ]


def test_the_cheapest_reliable_one_is_first_to_be_rented_and_both_can_be_set(cloud: FakeVastai) -> None:
    def ranked(**options: Any) -> list[int]:
        return [
            one.raw["ask_id"] for one in sorted(vastai(cloud, **options).fetch_offers(H100), key=lambda one: one.price)
        ]

    assert ranked() == [102, 101], "104 is cheaper, and fails too often"
    assert ranked(min_reliability=0.8) == [104, 102, 101]
    assert ranked(min_reliability=0.8, unverified=True) == [103, 104, 102, 101]
    assert ranked(min_reliability=0.995) == []


def test_what_is_wanted_is_asked_of_the_api(cloud: FakeVastai) -> None:
    asked = Requirements(
        gpu=parse_gpu("H100:2..4|A100:1"), spot=Spot.SPOT, disk_gb=100, cpu=8, min_cuda=12.4, min_compute_capability=8.0, arch="x86_64",
        countries=("se", "US"), max_price=3.0, trust="secure",
    )  # fmt: skip
    found(cloud, asked, min_reliability=0.9, min_download_mbps=500, lasts_h=2, max_traffic_per_gb=0.01, unverified=True)
    (query,) = cloud.queries
    assert query == {
        "type": "bid", "limit": 500, "order": [["dph_total", "asc"]], "allocated_storage": 100, "verified": {"eq": True},
        "rentable": {"eq": True}, "rented": {"eq": False}, "direct_port_count": {"gte": 1}, "reliability": {"gte": 0.9},
        "inet_down": {"gte": 500}, "duration": {"gte": 7200}, "disk_space": {"gte": 100}, "num_gpus": {"gte": 1, "lte": 4},
        "gpu_name": {"in": ["A100 PCIE", "A100 SXM4", "H100 PCIE", "H100 SXM"]}, "dph_total": {"lte": 3.04},
        "cpu_cores_effective": {"gte": 8}, "cuda_max_good": {"gte": 12.4}, "compute_cap": {"gte": 800}, "cpu_arch": {"eq": "amd64"},
        "geolocation": {"in": ["SE", "US"]}, "datacenter": {"eq": True}, "inet_up_cost": {"lte": 0.01}, "inet_down_cost": {"lte": 0.01},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ({"gpu": "24GB..:2.."}, {"num_gpus": {"gte": 2}, "gpu_ram": {"gte": round(24 * 1024 * 0.93)}}),
        ({"gpu": "RTX4090"}, {"gpu_name": {"in": ["RTX 4090"]}}),
        ({"gpu": "RTX6000Ada"}, {"gpu_name": {"in": ["RTX 6000Ada"]}}),
        ({"gpu": "RTX4070Ti"}, {"gpu_name": {"in": ["RTX 4070 Ti"]}}),
        ({"gpu": "A6000"}, {"gpu_name": {"in": ["RTX A6000"]}}),
        ({"gpu": "V100"}, {"gpu_name": {"in": ["Tesla V100"]}}),
        ({"gpu": "H100", "exclude_countries": ("cn",)}, {"geolocation": {"notin": ["CN"]}}),
        ({"gpu": "H100", "arch": "arm64"}, {"cpu_arch": {"eq": "arm64"}}),
    ],
)
def test_a_filter_is_written_as_vast_ai_writes_it(
    cloud: FakeVastai, asked: dict[str, Any], part: dict[str, Any]
) -> None:
    found(cloud, Requirements(**{**asked, "gpu": parse_gpu(asked["gpu"])}))
    assert part.items() <= cloud.queries[0].items()


def test_a_name_that_vast_ai_may_write_otherwise_is_not_asked_for_and_is_looked_for_among_all(
    cloud: FakeVastai,
) -> None:
    cloud.asks.append(fakes.ask(300, gpu="MI300X", gpu_ram=196_592))
    (one,) = found(cloud, Requirements(gpu=parse_gpu("MI300X"))).values()
    assert "gpu_name" not in cloud.queries[0]
    assert (one.gpu_name, one.gpu_vendor) == ("MI300X", "amd"), "Vast.ai calls all of them nvidia's"


@pytest.mark.parametrize(
    "most", [64, 500], ids=["a server that gives 64 whatever is asked", "the most that is asked for"]
)
def test_all_asks_are_found_however_many_there_are(cloud: FakeVastai, most: int) -> None:
    count = most * 2 + 10
    cloud.most = most
    cloud.asks = [fakes.ask(number, dph_base=1 + number / 1000) for number in range(1, count + 1)]
    assert len(found(cloud)) == count
    assert len(cloud.queries) == 3
    assert [query["dph_total"]["gte"] > 1 for query in cloud.queries[1:]] == [True, True]
    limited = found(cloud, H100.model_copy(update={"max_price": 1.05}))
    assert 30 < len(limited) < 64
    assert all(one.price <= 1.05 for one in limited.values())


def test_a_search_that_cannot_go_on_ends(cloud: FakeVastai, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.most = 64
    cloud.asks = [fakes.ask(number) for number in range(1, 200)]  # all at one price
    assert len(found(cloud)) == 64
    assert len(cloud.queries) == 2
    cloud.queries.clear()
    cloud.asks = [fakes.ask(number, dph_base=1 + number / 1000) for number in range(1, 64 * 10)]
    assert len(found(cloud)) >= 64 * offers_module.PAGES - offers_module.PAGES
    assert len(cloud.queries) == offers_module.PAGES
    odd = [{**one, "dph_total": None} for one in cloud.asks[:64]]
    monkeypatch.setattr(cloud, "hold_to_the_document", lambda *_: None)
    monkeypatch.setattr(cloud, "_search", lambda _: httpx.Response(200, json={"offers": odd}))
    assert len(found(cloud)) == 64


def test_a_search_that_is_asked_too_often_keeps_what_is_cheapest_and_one_that_found_nothing_says_so(
    cloud: FakeVastai,
) -> None:
    cloud.most = 64
    cloud.asks = [fakes.ask(number, dph_base=1 + number / 1000) for number in range(1, 200)]
    search, asked = cloud._search, list[int]()
    too_often = fakes.error(429, "search_quota_exceeded", "API requests too frequent")

    def once(body: dict[str, Any]) -> httpx.Response:
        asked.append(1)
        return search(body) if len(asked) == 1 else too_often

    cloud._search = once  # type: ignore[method-assign]
    assert sorted(found(cloud)) == list(range(1, 65))
    with pytest.raises(RateLimited):
        found(cloud)


def test_what_the_api_did_not_filter_is_filtered_here(cloud: FakeVastai, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        fakes.ask(1), fakes.ask(2, gpu="RTX 4090", gpu_ram=24564), fakes.ask(3, reliability=0.5, reliability2=0.5),
        fakes.ask(4, geolocation="Hebei, CN"), fakes.ask(5, dph_base=99.0), fakes.ask(6, count=2), fakes.ask(7, verification="unverified"),
    ]  # fmt: skip
    monkeypatch.setattr(cloud, "_search", lambda _: httpx.Response(200, json={"offers": rows}))
    asked = H100.model_copy(update={"exclude_countries": ("CN",), "max_price": 50.0, "trust": "verified"})
    assert list(found(cloud, asked)) == [1]


@pytest.mark.parametrize(
    ("asked", "options", "ids", "searches"),
    [
        ({}, {}, {101, 102}, 1),
        ({}, {"unverified": True}, {101, 102, 103}, 2),
        ({"trust": "verified"}, {"unverified": True}, {101, 102}, 1),
        ({"trust": "secure"}, {"unverified": True}, {102}, 1),
        ({"spot": Spot.EITHER}, {"unverified": True}, {101, 102, 103}, 4),
    ],
)
def test_hosts_are_as_trusted_as_asked_for_and_unverified_ones_have_to_be_wanted(
    cloud: FakeVastai, asked: dict[str, Any], options: dict[str, Any], ids: set[int], searches: int
) -> None:
    seen = found(cloud, H100.model_copy(update=asked), **options)
    assert set(seen) == ids
    assert len(cloud.queries) == searches
    trusted = {101: "verified", 102: "secure", 103: "any"}
    assert {number: one.trust for number, one in seen.items()} == {number: trusted[number] for number in ids}


@pytest.mark.parametrize(
    "odd",
    [
        {"gpu_name": None}, {"num_gpus": 0}, {"num_gpus": None}, {"dph_base": None}, {"dph_base": "dear"}, {"dph_base": -5.0},
        {"storage_cost": None}, {"cpu_cores_effective": None}, {"cpu_cores": 0}, {"cpu_ram": None}, {"gpu_ram": None}, {"machine_id": None},
        {"id": None}, {"id": "x"}, {"reliability2": None, "reliability": None}, {"reliability2": "often"},
    ],
)  # fmt: skip
def test_an_ask_that_is_written_oddly_is_not_offered_and_hides_no_other(
    cloud: FakeVastai, odd: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud, "hold_to_the_document", lambda *_: None)
    rows = [fakes.ask(1), {**fakes.ask(2), **odd}, 7, None, fakes.ask(3)]
    monkeypatch.setattr(cloud, "_search", lambda _: httpx.Response(200, json={"offers": rows}))
    assert set(found(cloud)) == {1, 3}


@pytest.mark.parametrize("place", [None, "", "Somewhere", "Texas, us", "X,  ,"])
def test_a_place_that_is_not_told_is_in_no_country(cloud: FakeVastai, place: str | None) -> None:
    cloud.asks = [fakes.ask(1, geolocation=place)]
    (one,) = found(cloud).values()
    assert one.country is None
    assert one.region


@pytest.mark.parametrize("answer", [{"offers": None}, {"offers": {}}, [], {"success": True}])
def test_an_answer_without_asks_is_not_an_empty_market(cloud: FakeVastai, answer: Any) -> None:
    cloud.next["search"] = httpx.Response(200, json=answer)
    with pytest.raises(Transient, match="no list of offers"):
        found(cloud)


def test_a_vendor_alone_is_asked_for_and_a_machine_without_gpus_is_not(cloud: FakeVastai) -> None:
    assert set(found(cloud, Requirements(gpu_vendor="nvidia"))) >= {101, 102, 106}
    cloud.requests.clear()
    assert found(cloud, Requirements()) == {}
    assert cloud.requests == []


@pytest.mark.parametrize(("wanted", "gb"), [(None, 32), (10, 32), (50, 50), (51, 51), (51.5, 52), (52.5, 53)])
def test_a_disk_is_as_large_as_asked_for_and_as_the_block_says(
    cloud: FakeVastai, wanted: float | None, gb: int
) -> None:
    one = found(cloud, H100.model_copy(update={"disk_gb": wanted}))[101]
    assert one.disk_gb == gb
    assert one.price == pytest.approx(2.0 + 0.15 * gb / 720)
