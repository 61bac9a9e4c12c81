"""The gates: what cannot be true is left out and counted, what looks wrong as a whole is refused, each by a named rule."""

from __future__ import annotations

import io
import json
import math
from datetime import UTC, datetime, timedelta

import pytest

from prefect_gpu.providers.core.catalog import collect, findings, levels, rules
from prefect_gpu.providers.core.catalog.collect import Collection
from prefect_gpu.providers.core.catalog.findings import Checked
from prefect_gpu.providers.core.catalog.kinds import Kind, Levels, Place, Price
from prefect_gpu.providers.core.models import utc_now
from tests.fakes import catalogs

US, EU = Place("us-east-1", None, "US"), Place("eu-west-1", None, "IE")
H100 = Kind("p5.48xlarge", cpu=192, memory_gb=2048, gpu_name="H100", gpu_count=8, gpu_memory_gb=80, gpu_vendor="nvidia")
CPU = Kind("m5.large", cpu=2, memory_gb=8)
GOOD = Price(H100, US, 31.0)


class Before(list[Price]):
    """A last good snapshot."""

    def all(self) -> list[Price]:
        return self

    def kinds(self) -> list[Kind]:
        return [offer.kind for offer in self]

    def levels(self) -> Levels:
        return levels.remembered(self, None, utc_now())


def check(*rows: Price, provider: str = "somebody", before: list[Price] | None = None, **more: object) -> Checked:
    market = more.pop("market", None)
    collection = Collection([*rows], "test", utc_now())._replace(**more)  # type: ignore[arg-type]
    return rules.check(provider, collection, None if before is None else Before(before), market)  # type: ignore[arg-type]


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
    assert len({rule.name for rule in findings.RULES}) == len(findings.RULES) >= 25
    assert all(rule.reason and not rule.reason.endswith(".") for rule in findings.RULES)


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
    assert not check(*market(80), before=market(100)).refusals
    assert [finding.rule.name for finding in check(*market(79), before=market(100)).refusals] == ["row-count"]
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
    assert not rules.check("aws", read).refusals
    ten = read._replace(prices=[price._replace(price=price.price * 10) for price in read.prices])
    assert "few-bad" in [finding.rule.name for finding in rules.check("aws", ten).refusals]


@pytest.mark.parametrize("provider", catalogs.OFFLINE)
def test_a_sound_catalog_passes_every_gate(provider: str) -> None:
    checked = rules.check(provider, collect.read_csv(provider, _csv(provider), "test", datetime.now(UTC)))
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
    checked = rules.check(provider, _read(provider, rows))
    (finding,) = [finding for finding in checked.findings if finding.rule.name == rule]
    assert says in str(finding)
    assert (finding in checked.refusals) == (rule == "content")


def test_lambda_has_no_spot_and_oci_marks_it() -> None:
    rows = catalogs.rows("lambdalabs")
    spot = [(*row[:8], "True", *row[9:]) for row in rows[:1]]
    assert found(rules.check("lambdalabs", _read("lambdalabs", [*rows, *spot])))["content-seen"] == 1
    unmarked = [row for row in catalogs.rows("oci", 20_000) if row[8] == "True"][:2]
    rows = [*catalogs.rows("oci", 20_000), *((*row[:11], "", *row[12:]) for row in unmarked)]
    assert found(rules.check("oci", _read("oci", rows)))["spot-flag"] == 2


def _csv(provider: str) -> object:
    import io

    return io.BytesIO(catalogs.csv_text(catalogs.rows(provider)).encode())


def _read(provider: str, rows: list[tuple[str, ...]]) -> Collection:
    import io

    return collect.read_csv(provider, io.BytesIO(catalogs.csv_text(rows).encode()), "test", datetime.now(UTC))


def test_offers_of_a_driver_pass_the_same_gates() -> None:
    from prefect_gpu.providers.core.models import Offer

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
    checked = rules.check("tensordock", collection)
    (price,) = checked.prices
    assert (price.kind.flags, price.place, price.price) == (("new",), Place("chubbuck", None, "US"), 2.25)
    assert json.loads(price.kind.raw)["location"] == "1"
    assert found(checked) == {"priced": 1}


# --- GPU by GPU -------------------------------------------------------------------------------------------------------

A100 = H100._replace(instance_type="p4d.24xlarge", gpu_name="A100", gpu_memory_gb=40, cpu=96, memory_gb=1152)
ONE = H100._replace(instance_type="one", gpu_count=1, cpu=24, memory_gb=256)
PLACES = [Place(f"us-east-{number}", None, "US") for number in range(4)]
SOUND = [
    *(Price(H100, place, 31.0) for place in PLACES),
    *(Price(H100._replace(spot=True), place, 12.0) for place in PLACES),
    *(Price(ONE, place, 4.0) for place in PLACES),
    *(Price(A100, place, 22.0) for place in PLACES),
    *(Price(A100._replace(spot=True), place, 8.0) for place in PLACES),
    *(Price(CPU._replace(instance_type=f"m{size}.large"), place, 0.1) for size in range(5) for place in PLACES),
]


def of(prices: list[Price], gpu: str | None) -> list[Price]:
    return [offer for offer in prices if offer.kind.gpu_name == gpu]


def changed(gpu: str, **fields: object) -> list[Price]:
    """The sound prices, those of one GPU with these fields of their kinds."""
    return [
        offer._replace(kind=offer.kind._replace(**fields)) if offer.kind.gpu_name == gpu else offer  # type: ignore[arg-type]
        for offer in SOUND
    ]


def priced(times: float, gpu: str = "H100", at_least: int = 1) -> list[Price]:
    return [
        offer._replace(price=offer.price * times)
        if offer.kind.gpu_name == gpu and offer.kind.gpu_count >= at_least
        else offer
        for offer in SOUND
    ]


MARKET = {
    levels.Group("H100", spot=False): (2.5, 3.9),
    levels.Group("H100", spot=True): (1.4, 2.0),
    levels.Group("A100", spot=False): (1.2, 2.8),
}


@pytest.mark.parametrize("times", [0.1, 0.2, 10])
def test_a_gpu_whose_prices_jump_is_left_out_and_the_rest_is_published(times: float) -> None:
    checked = check(*priced(times), before=SOUND)
    assert not checked.refusals
    assert checked.prices == [offer for offer in SOUND if offer.kind.gpu_name != "H100"]
    held_back = {finding.rule.name for finding in checked.held_back}
    assert held_back <= {"gpu-level", "price-bounds"}
    assert held_back


def test_it_stays_left_out_until_it_is_believed_again() -> None:
    first = check(*priced(0.1), before=SOUND)
    after = Before(first.prices)
    remembered = levels.remembered(first.prices, Before(SOUND), utc_now())
    after.levels = lambda: remembered  # type: ignore[method-assign]
    again = rules.check("somebody", Collection(priced(0.1), "test", utc_now()), after)
    assert not of(again.prices, "H100")
    mended = rules.check("somebody", Collection(SOUND, "test", utc_now()), after)
    assert of(mended.prices, "H100") == of(SOUND, "H100")


@pytest.mark.parametrize("times", [0.1, 10])
def test_a_first_collection_is_held_against_what_others_ask(times: float) -> None:
    checked = check(*priced(times), market=MARKET)
    assert not of(checked.prices, "H100")
    assert of(checked.prices, "A100") == of(SOUND, "A100")
    assert check(*SOUND, market=MARKET).prices == SOUND


def test_a_step_to_what_everybody_asks_is_believed() -> None:
    once = priced(3.5)
    checked = check(*SOUND, before=once, market=MARKET)
    assert of(checked.prices, "H100") == of(SOUND, "H100")


def test_spot_and_on_demand_swapped_is_left_out() -> None:
    swapped = [
        offer._replace(kind=offer.kind._replace(spot=not offer.kind.spot)) if offer.kind.gpu_name == "A100" else offer
        for offer in SOUND
    ]
    for before in (None, SOUND):
        checked = check(*swapped, before=before)
        assert not of(checked.prices, "A100")
        assert of(checked.prices, "H100") == of(SOUND, "H100")
        assert found(checked)["swapped"] == 8


def test_the_price_of_one_gpu_for_a_machine_of_eight_is_left_out() -> None:
    several = priced(1 / 8, at_least=2)
    for before in (None, SOUND):
        checked = check(*several, before=before)
        assert {offer.kind.gpu_count for offer in of(checked.prices, "H100") if not offer.kind.spot} == {1}
        assert of(checked.prices, "A100") == of(SOUND, "A100")


def test_two_gpus_for_the_price_of_one_are_noticed_against_the_last_snapshot() -> None:
    one, two = (
        [
            Price(
                ONE._replace(instance_type=f"x{count}", gpu_name="L40S", gpu_memory_gb=48, gpu_count=count),
                place,
                price,
            )
            for place in PLACES
        ]
        for count, price in ((1, 1.0), (2, 2.0))
    )
    checked = check(*one, *[offer._replace(price=1.0) for offer in two], *SOUND, before=[*one, *two, *SOUND])
    assert of(checked.prices, "L40S") == one
    half = [offer._replace(price=offer.price / 2) for offer in (*one, *two)]
    assert of(check(*half, *SOUND, before=[*one, *two, *SOUND]).prices, "L40S") == half, "half the price is a sale"


@pytest.mark.parametrize(
    "fields", [{"gpu_memory_gb": 81920.0}, {"memory_gb": 2097152.0}, {"cpu": 192000}, {"cpu": 192000, "memory_gb": 2e6}]
)
def test_sizes_in_another_unit_are_left_out_for_that_gpu_alone(fields: dict[str, object]) -> None:
    for before in (None, SOUND):
        checked = check(*changed("H100", **fields), before=before)
        assert not of(checked.prices, "H100")
        assert len(checked.prices) == len(SOUND) - len(of(SOUND, "H100"))
        assert not checked.refusals


@pytest.mark.parametrize("fields", [{"memory_gb": 8192.0}, {"cpu": 2000}, {"cpu": 2000, "memory_gb": 8192.0}])
def test_sizes_of_machines_without_a_gpu_in_another_unit_are_left_out_too(fields: dict[str, object]) -> None:
    wrong = [
        offer._replace(kind=offer.kind._replace(**fields)) if offer.kind.gpu_name is None else offer  # type: ignore[arg-type]
        for offer in SOUND
    ]
    checked = check(*wrong)
    assert not of(checked.prices, None)


def test_a_price_next_to_nothing_is_no_price() -> None:
    checked = check(*SOUND, Price(CPU._replace(instance_type="free"), US, 1e-300))
    assert checked.prices == SOUND


def test_all_prices_in_another_currency_refuse_the_whole() -> None:
    every = [offer._replace(price=offer.price * 3.2) for offer in SOUND]
    assert check(*every, before=SOUND).refusals


@pytest.mark.parametrize("gone", [1 / 4, 1 / 3])
def test_a_file_that_lost_a_part_is_refused(gone: float) -> None:
    cut = SOUND[: int(len(SOUND) * (1 - gone))]
    assert "row-count" in {finding.rule.name for finding in check(*cut, before=SOUND).refusals}
    assert not check(*SOUND[:-4], before=SOUND).refusals, "a few offers come and go"


def test_a_file_that_ends_within_a_line_is_refused() -> None:
    whole = catalogs.csv_text(catalogs.rows("verda")).encode()
    read = collect.read_csv("verda", io.BytesIO(whole), "test", utc_now())
    assert not read.is_cut
    for end in range(len(whole) // 2, len(whole) // 2 + 40):
        cut = collect.read_csv("verda", io.BytesIO(whole[:end]), "test", utc_now())
        assert cut.is_cut == (whole[end - 1 : end] not in (b"\r", b"\n"))
        assert cut.is_cut == ("cut" in {finding.rule.name for finding in rules.check("verda", cut).refusals})
