"""What RunPod offers: each type in each place that has it, at the sum of its prices, and why not where it has none."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from prefect_gpu.blocks.runpod import RunpodOptions
from prefect_gpu.providers.core.errors import InvalidRequest, Transient
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import Availability
from prefect_gpu.providers.core.requests import Requirements
from tests.conformance import launch_spec, lease_name
from tests.fakes import runpod as fakes
from tests.fakes.runpod import FakeRunpod
from tests.providers.test_runpod import H100, _quick, cloud, offers, order, runpod

__all__ = ["_quick", "cloud"]


def test_offers_are_each_type_in_each_data_center_and_the_community_cloud_with_a_disk(cloud: FakeRunpod) -> None:
    found = offers(cloud)
    assert set(found) == {
        (fakes.H100, "US-KS-2"),
        (fakes.H100, "EUR-IS-1"),
        ("NVIDIA H100 PCIe", "US-KS-2"),
        ("NVIDIA H100 PCIe", "community"),
    }
    iceland = found[fakes.H100, "EUR-IS-1"]
    assert (iceland.country, iceland.gpu_name, iceland.gpu_count, iceland.gpu_memory_gb) == ("IS", "H100", 1, 80)
    assert (iceland.gpu_vendor, iceland.trust, iceland.disk_gb) == ("nvidia", "secure", 50)
    assert iceland.price == pytest.approx(2.69 + 50 * 0.10 / 730)
    assert (iceland.availability, iceland.priced_at, iceland.spot) == (Availability.AVAILABLE, None, False)
    strange = found["NVIDIA H100 PCIe", "community"]
    assert (strange.country, strange.trust, strange.host) == (None, "any", None)
    assert strange.price == pytest.approx(1.99 + 50 * 0.10 / 730)
    bigger = offers(cloud, H100.model_copy(update={"disk_gb": 200.0}), options=RunpodOptions(volume_gb=100))
    assert {region for _, region in bigger} == {"US-KS-2", "EUR-IS-1"}, "the community has no volumes"
    assert bigger[fakes.H100, "US-KS-2"].price == pytest.approx(2.69 + (200 * 0.10 + 100 * 0.07) / 730)
    assert bigger[fakes.H100, "US-KS-2"].disk_gb == 200


def test_a_disk_is_rounded_up_and_a_place_that_is_none_is_not_ordered_from(
    cloud: FakeRunpod, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = runpod(cloud)
    served = cloud._gpus

    def without_places(asked: httpx.QueryParams) -> httpx.Response:
        rows = [{key: row[key] for key in row if key != "dataCenters"} for row in served(asked).json()["gpus"]]
        return httpx.Response(200, json={"gpus": rows})

    monkeypatch.setattr(cloud, "_gpus", without_places)
    offer = next(
        one for one in driver.fetch_offers(H100.model_copy(update={"disk_gb": 50.5})) if one.region == "secure"
    )
    assert (offer.disk_gb, offer.availability, offer.country) == (51, Availability.AVAILABLE, None)
    monkeypatch.setattr(cloud, "_create", lambda body: fakes.error(400, json.dumps(sorted(body))))
    with pytest.raises(InvalidRequest) as refused:
        driver.create_instance(offer, launch_spec(driver, lease_name()))
    assert "dataCenterIds" not in refused.value.message


@pytest.mark.parametrize(
    ("asked", "regions"),
    [
        ({"trust": "secure"}, {"US-KS-2", "EUR-IS-1"}),
        ({"trust": "verified"}, {"US-KS-2", "EUR-IS-1"}),
        ({"regions": ("community",)}, {"community"}),
        ({"countries": ("IS",)}, {"EUR-IS-1"}),
        ({"exclude_countries": ("US",)}, {"EUR-IS-1"}),
        ({"max_price": 2.5}, {"US-KS-2", "community"}),
        ({"cpu": 8}, set()),  # RunPod tells no cores before the order
        ({"arch": "arm64"}, set()),
        ({"gpu_vendor": "amd"}, set()),
    ],
)
def test_what_is_asked_for_is_kept_to(cloud: FakeRunpod, asked: dict[str, Any], regions: set[str]) -> None:
    assert {region for _, region in offers(cloud, H100.model_copy(update=asked))} == regions


def test_the_community_is_not_asked_where_its_hosts_are_not_trusted_enough(cloud: FakeRunpod) -> None:
    for block, asked, calls in (
        ({}, {}, 2),
        ({}, {"trust": "secure"}, 1),
        ({"options": RunpodOptions(cloud="community")}, {}, 1),
        ({"options": RunpodOptions(cloud="community")}, {"trust": "verified"}, 0),
    ):
        cloud.requests.clear()
        offers(cloud, H100.model_copy(update=asked), **block)
        assert len(cloud.requests) == calls


def test_where_nothing_fits_two_questions_tell_how_many_there_are_of_each_type(cloud: FakeRunpod) -> None:
    asked = Requirements(gpu=parse_gpu("H100:9"), cpu=64)
    assert offers(cloud, asked) == {}
    cloud.requests.clear()
    nearest = offers(cloud, asked.to_nearest())
    assert len(cloud.requests) == 2
    assert {place: one.gpu_count for (_, place), one in nearest.items()} == {
        "US-KS-2": 8,
        "EUR-IS-1": 8,
        "community": 4,
    }


def test_what_is_sold_out_is_shown_with_the_reason(cloud: FakeRunpod) -> None:
    cloud.catalog[fakes.H100]["stock"]["EUR-IS-1"] = 0
    said = {where: one.unavailable_because for where, one in offers(cloud).items()}
    assert said[fakes.H100, "EUR-IS-1"] == "sold out in EUR-IS-1"
    assert said[fakes.H100, "US-KS-2"] is None
    cloud.catalog[fakes.H100]["stock"]["US-KS-2"] = 0  # then RunPod names no data center at all
    cloud.catalog["NVIDIA H100 PCIe"]["stock"][""] = 0
    found = offers(cloud)
    assert found[fakes.H100, "secure"].unavailable_because == "sold out in secure cloud"
    assert found["NVIDIA H100 PCIe", "community"].unavailable_because == "sold out in community cloud"
    assert found[fakes.H100, "secure"].availability is Availability.UNAVAILABLE


PCIE, MI300X = "NVIDIA H100 PCIe", "AMD Instinct MI300X OAM"


@pytest.mark.parametrize(
    ("gpu", "found"),
    [
        ("H100:8", {fakes.H100: [8], PCIE: [8]}),
        ("H100:4..6", {fakes.H100: [4, 5, 6], PCIE: [4, 5, 6]}),
        ("H100:7..", {fakes.H100: [7, 8], PCIE: [7, 8]}),
        ("RTX4090:9", {}),
        ("MI300X", {MI300X: [1]}),
        ("600GB.. total", {fakes.H100: [8], PCIE: [8], MI300X: [4, 5, 6, 7, 8]}),
    ],
)
def test_so_many_gpus_as_are_asked_for_and_a_machine_can_have(
    cloud: FakeRunpod, gpu: str, found: dict[str, list[int]]
) -> None:
    got = runpod(cloud).fetch_offers(Requirements(gpu=parse_gpu(gpu), trust="secure"))
    kinds = sorted({(one.instance_type, one.gpu_count, one.price) for one in got})
    assert {name: [n for of, n, _ in kinds if of == name] for name, _, _ in kinds} == found
    each = {fakes.H100: 2.69, PCIE: 2.39, MI300X: 1.99}
    assert all(price == pytest.approx(n * each[name] + 50 * 0.10 / 730) for name, n, price in kinds)


def test_a_vendor_alone_is_one_gpu_of_it_and_nothing_is_no_question(cloud: FakeRunpod) -> None:
    assert {one.gpu_name for one in runpod(cloud).fetch_offers(Requirements(gpu_vendor="amd"))} == {"MI300X"}
    cloud.requests.clear()
    assert runpod(cloud).fetch_offers(Requirements()) == []
    assert cloud.requests == []


def test_a_host_s_cuda_is_asked_of_the_catalog_and_in_the_order(cloud: FakeRunpod) -> None:
    driver, asked = runpod(cloud), list[str]()
    served = cloud.answer
    driver._api._transport = httpx.MockTransport(lambda it: (asked.append(str(it.url)), served(it))[1])
    made = order(driver, H100.model_copy(update={"min_cuda": 12.0}), image="me/app")
    assert "minCudaVersion=12.0" in asked[0]
    assert cloud.pod(made.name)["body"]["gpu"] == {"id": fakes.H100, "count": 1, "minCudaVersion": "12.0"}


@pytest.mark.parametrize(
    "odd",
    [
        {"price": None}, {"price": {"secure": None, "community": None}}, {"price": {"secure": 0, "community": 0}},
        {"price": {"secure": True, "community": True}}, {"price": {"secure": -1, "community": -1}}, {"maxCount": None},
        {"maxCount": {"secure": "many", "community": 1}}, {"id": None}, {"memory": None}, {"memory": "much"}, {"name": 7, "id": 7},
        {"dataCenters": "here"}, {"dataCenters": [7]},
    ],
)  # fmt: skip
def test_a_type_that_is_written_oddly_is_not_offered_and_hides_no_other(
    cloud: FakeRunpod, odd: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud, "hold_to_the_document", lambda *_: None)
    whole = offers(cloud)
    cloud.catalog = {"odd": {**cloud.catalog[fakes.H100], "name": "H100 Odd", **odd}, **cloud.catalog}
    assert set(offers(cloud)) >= set(whole)
    assert not any(one.price <= 0 for one in offers(cloud).values())


def test_stock_that_cannot_be_read_is_said_and_not_taken_for_none(cloud: FakeRunpod) -> None:
    cloud.broken.add("get")
    with pytest.raises(Transient, match=r"what RunPod has could not be read: .*service temporarily unavailable"):
        runpod(cloud).fetch_offers(H100)
