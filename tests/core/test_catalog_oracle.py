"""gpuhunt itself is the judge: over the same rows our answer is its answer, sorted, and our reading of a CSV is its reading."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gpuhunt
import pytest
from gpuhunt._internal import storage
from gpuhunt._internal.catalog import CATALOG_URL, OFFLINE_PROVIDERS, ProviderCatalog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_gpu.providers.core.catalog import collect, published, query, rules, store
from prefect_gpu.providers.core.catalog.filters import Filters
from prefect_gpu.providers.core.catalog.kinds import Price
from prefect_gpu.providers.core.models import Offer
from tests.fakes import catalogs

WHEN = datetime(2026, 11, 24, tzinfo=UTC)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gpuhunt.Catalog]:
    """A catalog of 5,000 rows: in gpuhunt's memory, and in our snapshots."""
    theirs = gpuhunt.Catalog(auto_reload=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("home")))
        for provider in catalogs.OFFLINE:
            text = catalogs.csv_text(catalogs.rows(provider, 5_000))
            theirs.catalog[provider] = ProviderCatalog("1", list(storage.load(io.StringIO(text), provider=provider)))
            read = collect.read_csv(provider, io.BytesIO(text.encode()), "test", WHEN)
            store.publish(provider, rules.check(provider, read).prices, collected_at=WHEN, source="test")
        theirs.loaded_at = 1.0
        yield theirs


def same(item: gpuhunt.CatalogItem) -> tuple[Any, ...]:
    location = item.location
    return (
        item.provider,
        item.instance_name,
        location,
        item.price,
        item.cpu,
        item.memory,
        item.gpu_count,
        item.gpu_name,
        item.gpu_memory,
        item.spot,
        item.disk_size,
        item.gpu_vendor.value if item.gpu_vendor else None,
        {"x86": "x86_64", "arm": "arm64"}[item.cpu_arch.value],
        repr({**item.provider_data, **({"flags": item.flags} if item.flags else {})}),
    )


def ours(offer: Offer) -> tuple[Any, ...]:
    return (
        offer.provider,
        offer.instance_type,
        offer.zone or offer.region,
        offer.price,
        offer.cpu,
        offer.memory_gb,
        offer.gpu_count,
        offer.gpu_name,
        offer.gpu_memory_gb,
        offer.spot,
        offer.disk_gb,
        offer.gpu_vendor,
        offer.arch,
        repr(offer.raw),
    )


NAMES = [*sorted({name for name, _ in catalogs.GPUS}), "h100", "rtx4090", "Nothing", "L4"]
filters = st.fixed_dictionaries(
    {},
    optional={
        "provider": st.sampled_from([*catalogs.OFFLINE])
        | st.lists(st.sampled_from(catalogs.OFFLINE), min_size=1, max_size=4),
        "cpu_arch": st.sampled_from(["x86", "arm"]),
        "min_cpu": st.sampled_from([1, 2, 8, 26, 96, 1000]),
        "max_cpu": st.sampled_from([1, 2, 8, 26, 96, 1000]),
        "min_memory": st.sampled_from([0.0, 2.0, 16.0, 85.0, 241.65, 1360.0]),
        "max_memory": st.sampled_from([0.0, 2.0, 16.0, 85.0, 241.65, 1360.0]),
        "min_gpu_count": st.sampled_from([0, 0, 1, 2, 8]),
        "max_gpu_count": st.sampled_from([0, 1, 2, 8]),
        "gpu_vendor": st.sampled_from(["nvidia", "AMD", "google", "intel"]),
        "gpu_name": st.sampled_from(NAMES) | st.lists(st.sampled_from(NAMES), max_size=4),
        "min_gpu_memory": st.sampled_from([0.0, 12.0, 16.0, 24.0, 80.0, 94.0]),
        "max_gpu_memory": st.sampled_from([0.0, 12.0, 16.0, 24.0, 80.0, 94.0]),
        "min_total_gpu_memory": st.sampled_from([0.0, 48.0, 96.0, 640.0]),
        "max_total_gpu_memory": st.sampled_from([0.0, 48.0, 96.0, 640.0]),
        "min_disk_size": st.sampled_from([0, 500, 1000, 5000]),
        "max_disk_size": st.sampled_from([0, 500, 1000, 5000]),
        "min_price": st.sampled_from([0.0, 0.05, 1.0, 25.0, 500.0]),
        "max_price": st.sampled_from([0.0, 0.05, 1.0, 25.0, 500.0]),
        "min_compute_capability": st.sampled_from([(6, 0), (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)]),
        "max_compute_capability": st.sampled_from([(6, 0), (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)]),
        "spot": st.booleans(),
        "allowed_flags": st.lists(st.sampled_from(["oci-spot", "gcp-a4", "gcp-g4", "runpod-cpu", "other"]), max_size=3),
    },
)


def our_filters(theirs: dict[str, Any]) -> tuple[Filters, list[str] | None]:
    given_filters = dict(theirs)
    provider = given_filters.pop("provider", None)
    names = [provider] if isinstance(provider, str) else provider
    if "cpu_arch" in given_filters:
        given_filters["cpu_arch"] = {"x86": "x86_64", "arm": "arm64"}[given_filters["cpu_arch"]]
    if "gpu_vendor" in given_filters:
        given_filters["gpu_vendor"] = given_filters["gpu_vendor"].lower()
    if "gpu_name" in given_filters:
        name = given_filters["gpu_name"]
        given_filters["gpu_name"] = (name,) if isinstance(name, str) else tuple(name)
    return Filters(**given_filters), names


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(theirs=filters, limit=st.sampled_from([1, 7, 25]))
def test_every_filter_of_gpuhunt_gives_its_answer_sorted(
    judged: gpuhunt.Catalog, theirs: dict[str, Any], limit: int
) -> None:
    expected = [same(item) for item in judged.query(**theirs)]
    asked, names = our_filters(theirs)
    whole = query.query(asked, names)
    assert sorted(map(ours, whole), key=repr) == sorted(expected, key=repr)
    assert [offer.price for offer in whole] == sorted(item[3] for item in expected)
    first = query.query(asked, names, limit=limit)
    assert [offer.price for offer in first] == [offer.price for offer in whole][:limit]
    assert {ours(offer) for offer in first} <= {ours(offer) for offer in whole}


def test_every_filter_of_gpuhunt_is_a_filter_of_ours() -> None:
    import dataclasses
    import inspect

    theirs = set(inspect.signature(gpuhunt.Catalog.query).parameters) - {"self", "provider"}
    assert theirs <= {field.name for field in dataclasses.fields(Filters)}


def test_the_published_providers_and_their_address_are_gpuhunts() -> None:
    assert set(published.PROVIDERS) == set(OFFLINE_PROVIDERS)
    assert published.CATALOG_URL == CATALOG_URL


# --- reading ----------------------------------------------------------------------------------------------------------

cells = (
    st.sampled_from(
        [
            "",
            "1",
            "0",
            "-3",
            "8",
            "1.5",
            "nan",
            "NaN",
            "inf",
            "-inf",
            "1e400",
            "True",
            "False",
            "true",
            "yes",
            "None",
            "x86",
            "arm",
            "ARM",
        ]
    )
    | st.sampled_from(
        [
            "{}",
            "[]",
            "{",
            '{"a": [1]}',
            "null",
            "nvidia",
            "NVIDIA",
            "amd",
            "acme",
            "tpu-v2-8",
            "H100",
            "a b",
            "[" * 3000,
        ]
    )
    | st.text(max_size=12)
)
rows = st.lists(st.lists(cells, min_size=0, max_size=16), max_size=8)


def their_reading(text: str) -> list[gpuhunt.CatalogItem]:
    logging.getLogger("gpuhunt").setLevel(logging.CRITICAL)
    return list(storage.load(io.StringIO(text, newline=""), provider="aws"))


def as_theirs(price: Price) -> tuple[Any, ...]:
    kind = price.kind
    return (
        kind.instance_type,
        price.place.zone or price.place.region,
        repr(price.price),
        kind.cpu,
        repr(kind.memory_gb),
        kind.gpu_count,
        kind.gpu_name,
        repr(kind.gpu_memory_gb),
        kind.spot,
        repr(kind.disk_gb),
        kind.gpu_vendor,
        list(kind.flags),
        kind.arch,
    )


@settings(max_examples=300, deadline=None)
@given(
    found=rows,
    good=st.lists(st.sampled_from(catalogs.rows("aws", 2000)), max_size=4),
    order=st.permutations(catalogs.COLUMNS),
)
def test_any_csv_is_read_as_gpuhunt_reads_it_and_never_crashes(
    found: list[list[str]], good: list[tuple[str, ...]], order: list[str]
) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(order)
    writer.writerows([*found, *([row[catalogs.COLUMNS.index(column)] for column in order] for row in good)])
    read = collect.read_csv("aws", io.BytesIO(text.getvalue().encode("utf-8", "surrogatepass")), "test", WHEN)
    assert len(read.examples) <= read.malformed
    checked = rules.check("aws", read)
    for price in checked.prices:
        assert 0 < price.price < float("inf")
    try:
        theirs = their_reading(text.getvalue())
    except (RecursionError, UnicodeError, csv.Error):
        return  # what makes gpuhunt crash is a bad row here
    theirs = [
        item for item in theirs if isinstance(item.provider_data, dict)
    ]  # what is no object cannot be given to a driver
    expected = [
        (
            item.instance_name,
            item.location,
            repr(item.price),
            item.cpu,
            repr(item.memory),
            item.gpu_count,
            item.gpu_name or None,
            repr(item.gpu_memory),
            item.spot,
            repr(item.disk_size),
            item.gpu_vendor.value if item.gpu_vendor else None,
            item.flags,
            {"x86": "x86_64", "arm": "arm64"}[item.cpu_arch.value],
        )
        for item in theirs
    ]
    assert [as_theirs(price) for price in read.prices] == expected


@settings(max_examples=150, deadline=None)
@given(noise=st.binary(max_size=400))
def test_any_bytes_are_a_catalog_or_are_refused_in_a_sentence(noise: bytes) -> None:
    header = ",".join(catalogs.COLUMNS).encode() + b"\n"
    read = collect.read_csv("aws", io.BytesIO(header + noise), "test", WHEN)
    assert not rules.check("aws", read).prices
    try:
        collect.read_csv("aws", io.BytesIO(noise), "test", WHEN)
    except collect.InvalidRequest as refused:
        assert "it has another format" in refused.message  # noqa: PT017 - most bytes are refused, and by chance some are not


def test_a_row_that_swallows_the_rest_of_the_file_is_one_bad_row() -> None:
    good = catalogs.csv_text(catalogs.rows("aws", 2000)[:50])
    broken = good + '"' + "x" * 200_000 + "\n" + good.partition("\n")[2]
    read = collect.read_csv("aws", io.BytesIO(broken.encode()), "test", WHEN)
    assert len(read.prices) >= 50
    assert read.malformed >= 1


def test_an_old_catalog_without_the_newer_columns_is_read(tmp_path: Path) -> None:
    rows_ = catalogs.rows("aws", 2000)
    old = [column for column in catalogs.COLUMNS if column not in {"gpu_vendor", "flags", "cpu_arch", "provider_data"}]
    text = "\n".join(
        [",".join(old), *(",".join(row[catalogs.COLUMNS.index(column)] for column in old) for row in rows_)]
    )
    read = collect.read_csv("aws", io.BytesIO(text.encode()), "test", WHEN)
    assert len(read.prices) == len(rows_)
    assert {price.kind.gpu_vendor for price in read.prices} == {None, "nvidia"}
    assert [as_theirs(price)[10] for price in read.prices] == [
        item.gpu_vendor.value if item.gpu_vendor else None for item in their_reading(text)
    ]
