"""The gates: what cannot be true is left out and counted, what looks wrong as a whole is refused, each by a named rule."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import pytest

from providers.core import changes, collect, quality
from providers.core.collect import Collection
from providers.core.models import utc_now
from providers.core.quality import Checked
from providers.core.snapshot import Kind, Place, Price
from tests.fakes import catalogs

US, EU = Place("us-east-1", None, "US"), Place("eu-west-1", None, "IE")
H100 = Kind("p5.48xlarge", cpu=192, memory_gb=2048, gpu_name="H100", gpu_count=8, gpu_memory_gb=80, gpu_vendor="nvidia")
CPU = Kind("m5.large", cpu=2, memory_gb=8)
GOOD = Price(H100, US, 31.0)


def check(*rows: Price, provider: str = "somebody", before: list[Price] | None = None, **more: object) -> Checked:
    collection = Collection([*rows], "test", utc_now())._replace(**more)  # type: ignore[arg-type]
    return quality.check(provider, collection, lambda kept: None if before is None else changes.compare(before, kept))


def found(checked: Checked) -> dict[str, int]:
    return {finding.rule.name: finding.count for finding in checked.findings}


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (GOOD._replace(price=0.0), "priced"),
        (GOOD._replace(price=-3.0), "priced"),
        (GOOD._replace(price=math.nan), "priced"),
        (GOOD._replace(price=math.inf), "priced"),
        (GOOD._replace(price=310.0), "price-bounds"),
        (GOOD._replace(price=0.31), "price-bounds"),
        (Price(CPU, US, 9.6), "price-bounds"),
        (Price(H100._replace(instance_type=""), US, 31), "named"),
        (Price(H100._replace(instance_type="a\x00b"), US, 31), "named"),
        (Price(H100._replace(instance_type="\ufffd"), US, 31), "named"),
        (Price(H100, Place(""), 31), "named"),
        (Price(CPU._replace(cpu=0), US, 0.1), "sized"),
        (Price(CPU._replace(memory_gb=-1.0), US, 0.1), "sized"),
        (Price(CPU._replace(memory_gb=math.nan), US, 0.1), "sized"),
        (Price(CPU._replace(disk_gb=0.0), US, 0.1), "sized"),
        (Price(CPU._replace(cpu=10**30), US, 0.1), "sized"),
        (Price(H100._replace(gpu_name=None), US, 31), "gpu-told-whole"),
        (Price(H100._replace(gpu_memory_gb=None), US, 31), "gpu-told-whole"),
        (Price(H100._replace(gpu_vendor=None), US, 31), "gpu-told-whole"),
        (Price(H100._replace(gpu_count=0), US, 31), "gpu-told-whole"),
        (Price(H100._replace(gpu_count=-8), US, 31), "gpu-told-whole"),
    ],
)
def test_what_cannot_be_true_is_left_out_by_a_rule_that_says_why(row: Price, rule: str) -> None:
    checked = check(GOOD, row)
    assert checked.prices == [GOOD]
    assert found(checked) == {rule: 1}
    assert not checked.refusals


def test_every_rule_has_a_name_and_a_reason() -> None:
    assert len({rule.name for rule in quality.RULES}) == len(quality.RULES) >= 25
    assert all(rule.reason and not rule.reason.endswith(".") for rule in quality.RULES)


def test_rows_that_could_not_be_read_are_counted_with_examples() -> None:
    checked = check(GOOD, malformed=3, examples=("line 7: price is empty",))
    (finding,) = checked.findings
    assert (finding.rule.name, finding.count, finding.examples) == ("well-formed", 3, ["line 7: price is empty"])


def test_of_two_prices_for_the_same_offer_the_dearer_counts() -> None:
    checked = check(GOOD, GOOD._replace(price=33.0), GOOD._replace(price=32.0))
    assert checked.prices == [GOOD._replace(price=33.0)]
    assert found(checked)["once"] == 2


def test_the_maker_of_a_known_gpu_is_mended() -> None:
    wrong = Kind("7", cpu=8, memory_gb=64, gpu_name="MI300X", gpu_count=1, gpu_memory_gb=192, gpu_vendor="nvidia")
    checked = check(Price(wrong, US, 2.0), provider="vastai")
    assert checked.prices == [Price(wrong._replace(gpu_vendor="amd"), US, 2.0)]
    assert found(checked) == {"vendor": 1}


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        ([Price(H100._replace(spot=True), US, 32.0)], "spot-below-on-demand"),
        ([Price(H100._replace(instance_type="x", gpu_memory_gb=60), US, 31)], "gpu-memory"),
        ([Price(H100._replace(instance_type="x", gpu_memory_gb=79), US, 31)], "gb-or-gib"),
        ([Price(H100._replace(instance_type="x", gpu_name="H900"), US, 31)], "gpu-name"),
        ([Price(H100._replace(instance_type="x", gpu_count=7), US, 31)], "gpu-count"),
        ([Price(H100, Place("mars-1"), 31)], "place"),
        ([Price(H100._replace(cpu=96), EU, 31)], "one-shape"),
    ],
)
def test_what_a_person_should_see_is_noted_and_kept(rows: list[Price], rule: str) -> None:
    checked = check(GOOD, *rows)
    assert len(checked.prices) == 1 + len(rows)
    assert rule in found(checked)
    assert not checked.refusals


def test_old_prices_new_columns_and_an_order_that_is_none_are_noted() -> None:
    assert found(check(GOOD, GOOD._replace(place=EU, price=30.0), source="gpuhunt 1")) == {"sorted": 1}
    assert found(check(GOOD, collected_at=utc_now() - timedelta(days=3))) == {"fresh": 1}
    assert found(check(GOOD, unknown_columns=("discount",))) == {"columns": 1}


def test_parts_of_a_gpu_and_slices_of_a_tpu_are_nothing_to_note() -> None:
    part = Kind(
        "g4-standard-6", cpu=6, memory_gb=24, gpu_name="RTXPRO6000", gpu_count=1, gpu_memory_gb=12, gpu_vendor="nvidia"
    )
    tpu = Kind("v2-8", cpu=96, memory_gb=334, gpu_name="v2-8", gpu_count=1, gpu_memory_gb=64, gpu_vendor="google")
    assert found(check(Price(part, US, 0.3), Price(tpu, US, 4.5))) == {}


def test_nothing_to_sell_is_refused() -> None:
    assert [finding.rule.name for finding in check().refusals] == ["not-empty"]


def test_a_tenth_of_bad_rows_refuses_the_rest() -> None:
    good = [GOOD._replace(place=Place(f"r-{n}", None, "US")) for n in range(60)]
    assert not check(*good, malformed=6).refusals
    assert [finding.rule.name for finding in check(*good, malformed=7).refusals] == ["few-bad"]


def market(count: int = 100, times: float = 1.0, gpus: int = 8) -> list[Price]:
    return [
        Price(H100._replace(gpu_count=gpus), Place(f"r-{n}", None, "US"), (20 + n / 10) * times) for n in range(count)
    ]


def test_offers_that_vanish_or_multiply_are_refused() -> None:
    assert not check(*market(70), before=market(100)).refusals
    assert [finding.rule.name for finding in check(*market(69), before=market(100)).refusals] == ["row-count"]
    assert not check(*market(300), before=market(100)).refusals
    assert [finding.rule.name for finding in check(*market(301), before=market(100)).refusals] == ["row-count"]


def test_all_prices_times_three_is_a_wrong_unit_and_a_few_are_a_market() -> None:
    refused = check(*market(times=3.01), before=market())
    assert "price-level" in [finding.rule.name for finding in refused.refusals]
    some = [*market(times=3.01)[:20], *market()[20:]]
    checked = check(*some, before=market())
    assert not checked.refusals
    assert found(checked)["big-step"] == 20
    more = [*market(times=3.01)[:21], *market()[21:]]
    assert [finding.rule.name for finding in check(*more, before=market()).refusals] == ["price-level"]


def test_prices_times_ten_are_refused_even_before_there_is_anything_to_compare_with() -> None:
    read = collect.read_csv("aws", _csv("aws"), "test", datetime.now(UTC))
    assert not quality.check("aws", read).refusals
    ten = read._replace(prices=[price._replace(price=price.price * 10) for price in read.prices])
    assert "few-bad" in [finding.rule.name for finding in quality.check("aws", ten).refusals]


@pytest.mark.parametrize("provider", catalogs.OFFLINE)
def test_a_sound_catalog_passes_every_gate(provider: str) -> None:
    checked = quality.check(provider, collect.read_csv(provider, _csv(provider), "test", datetime.now(UTC)))
    assert {finding.rule.name for finding in checked.findings} <= {"gb-or-gib", "content-seen"}
    assert not checked.refusals


@pytest.mark.parametrize(
    ("provider", "without", "rule", "says"),
    [
        ("aws", lambda row: row[8] == "True", "content", "no spot offers"),
        ("aws", lambda row: row[8] == "False", "content", "no on-demand offers"),
        ("aws", lambda row: row[6] == "H100", "content-seen", "1 of 8 GPUs missing: H100"),
        ("aws", lambda row: row[6] in {"H100", "A100", "T4"}, "content", "3 of 8 GPUs missing: H100, A100, T4"),
        (
            "aws",
            lambda row: row[0] == "m5.large" and row[1].startswith("u"),
            "content-seen",
            "regions with m5.large missing",
        ),
        ("gcp", lambda row: row[6].startswith("v2-"), "content-seen", "GPUs missing: v2-"),
        ("oci", lambda row: row[5] == "0", "content", "no machine without a GPU"),
        ("verda", lambda row: row[1] == "FIN-01", "content", "1 of 2 locations missing: FIN-01"),
        ("cloudrift", lambda row: row[5] == "2", "content", "1 of 2 numbers of GPUs missing: 2"),
        ("nebius", lambda row: row[5] == "0", "content", "no machine without a GPU"),
    ],
)
def test_what_a_provider_always_has_is_missed(provider: str, without: object, rule: str, says: str) -> None:
    rows = [row for row in catalogs.rows(provider, 20_000) if not without(row)]  # type: ignore[operator]
    checked = quality.check(provider, _read(provider, rows))
    (finding,) = [finding for finding in checked.findings if finding.rule.name == rule]
    assert says in str(finding)
    assert (finding in checked.refusals) == (rule == "content")


def test_lambda_has_no_spot_and_oci_marks_it() -> None:
    rows = catalogs.rows("lambdalabs")
    spot = [(*row[:8], "True", *row[9:]) for row in rows[:1]]
    assert found(quality.check("lambdalabs", _read("lambdalabs", [*rows, *spot])))["content-seen"] == 1
    unmarked = [row for row in catalogs.rows("oci", 20_000) if row[8] == "True"][:2]
    rows = [*catalogs.rows("oci", 20_000), *((*row[:11], "", *row[12:]) for row in unmarked)]
    assert found(quality.check("oci", _read("oci", rows)))["spot-flag"] == 2


def _csv(provider: str) -> object:
    import io

    return io.BytesIO(catalogs.csv_text(catalogs.rows(provider)).encode())


def _read(provider: str, rows: list[tuple[str, ...]]) -> Collection:
    import io

    return collect.read_csv(provider, io.BytesIO(catalogs.csv_text(rows).encode()), "test", datetime.now(UTC))


def test_offers_of_a_driver_pass_the_same_gates() -> None:
    from providers.core.models import Offer

    offers = [
        Offer(
            provider="tensordock",
            instance_type="h100-sxm5-80gb",
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
            raw={"location": "1", "flags": ["new"], "odd": {1, 2}},
        ),
        Offer(provider="tensordock", instance_type="free", region="x", price=0.0),
    ]
    collection = collect.from_offers(offers, "tensordock's own price list")
    checked = quality.check("tensordock", collection)
    (price,) = checked.prices
    assert (price.kind.flags, price.place, price.price) == (("new",), Place("chubbuck", None, "US"), 2.25)
    assert json.loads(price.kind.raw)["location"] == "1"
    assert found(checked) == {"priced": 1}
