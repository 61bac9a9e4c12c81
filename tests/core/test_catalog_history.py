"""What a GPU cost, where: refreshes append what changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from prefect_gpu.providers.core.catalog import history, store
from prefect_gpu.providers.core.catalog.kinds import Kind, Place, Price

START = datetime(2026, 10, 1, tzinfo=UTC)
US, EU = Place("us-east-1", None, "US"), Place("eu-west-1", None, "IE")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))


def h100(price: float, place: Place = US, *, spot: bool = False, count: int = 8) -> Price:
    kind = Kind(f"p5.{count}", spot, 192, 2048, gpu_name="H100", gpu_count=count, gpu_memory_gb=80, gpu_vendor="nvidia")
    return Price(kind, place, price)


def day(number: float) -> datetime:
    return START + timedelta(days=number)


def refreshed(number: float, *rows: Price, provider: str = "aws") -> None:
    history.append(provider, rows, day(number))
    store.publish(provider, rows, collected_at=day(number), source="test")


def test_only_what_changed_is_kept_and_holds_until_the_next() -> None:
    for number, price in enumerate([24.0, 24.0, 24.0, 16.0, 16.0]):
        refreshed(number, h100(price))
    (series,) = history.of("H100", now=day(5))
    assert series.points == ((day(0), 3.0), (day(3), 2.0))
    assert (series.now, series.lowest, series.country) == (2.0, 2.0, "US")


def test_the_cheapest_machine_per_gpu_counts() -> None:
    refreshed(0, h100(24.0), h100(2.5, count=1))
    (series,) = history.of("h100", now=day(1))
    assert series.now == 2.5


def test_each_region_and_spot_is_a_series_of_its_own() -> None:
    refreshed(0, h100(24.0), h100(32.0, EU), h100(8.0, EU, spot=True))
    refreshed(0, h100(16.0), provider="gcp")
    found = [(one.provider, one.region, one.spot, one.now) for one in history.of("H100", now=day(1))]
    assert found == [
        ("aws", "eu-west-1", True, 1.0),
        ("gcp", "us-east-1", False, 2.0),
        ("aws", "us-east-1", False, 3.0),
        ("aws", "eu-west-1", False, 4.0),
    ]
    assert len(history.of("H100", spot=True, now=day(1))) == 1
    assert len(history.of("H100", providers=["gcp"], now=day(1))) == 1
    assert history.of("H100", providers=["nobody"], now=day(1)) == []
    assert history.of("A100", now=day(1)) == []


def test_what_is_no_longer_offered_has_a_gap_and_may_come_back() -> None:
    refreshed(0, h100(24.0), h100(32.0, EU))
    refreshed(1, h100(24.0))
    refreshed(2, h100(24.0), h100(40.0, EU))
    (eu,) = [one for one in history.of("H100", now=day(3)) if one.country == "IE"]
    assert eu.points == ((day(0), 4.0), (day(1), None), (day(2), 5.0))


def test_a_window_begins_with_the_price_that_held_then() -> None:
    refreshed(0, h100(24.0))
    refreshed(20, h100(16.0))
    (series,) = history.of("H100", days=5, now=day(22))
    assert series.points == ((day(17), 3.0), (day(20), 2.0))
    (series,) = history.of("H100", days=1, now=day(22))
    assert series.points == ((day(21), 2.0),)


def test_of_two_refreshes_in_one_second_both_are_kept_in_their_order() -> None:
    refreshed(1, h100(24.0))
    refreshed(1, h100(8.0))
    (series,) = history.of("H100", now=day(2))
    assert [price for _, price in series.points] == [3.0, 1.0]


def test_what_a_clock_that_was_ahead_wrote_does_not_block_what_comes_after_it() -> None:
    refreshed(1, h100(24.0))
    refreshed(30, h100(8.0))
    refreshed(2, h100(16.0))
    (series,) = history.of("H100", now=day(3))
    assert series.points == ((day(1), 3.0), (day(2), 2.0))


def test_after_two_weeks_the_cheapest_of_each_day_remains() -> None:
    refreshed(0, h100(16.0))
    for hour in range(3, 24 * 20, 3):
        history.append("aws", [h100(16.0 + (hour * 7) % 24)], day(hour / 24))
    (series,) = history.of("H100", days=60, now=day(20))
    old = [at for at, _ in series.points if at < day(19 - history.FINE_DAYS)]
    assert len(old) == len({at.date() for at in old})
    assert all(price == 2.0 for at, price in series.points if at < day(5)), "each day has an hour at $16"
    recent = [at for at, _ in series.points if at > day(10)]
    assert len(recent) > 60


def test_what_is_older_than_a_year_goes_except_the_price_that_holds() -> None:
    refreshed(0, h100(24.0), h100(32.0, EU))
    refreshed(1, h100(16.0), h100(32.0, EU))
    refreshed(500, h100(16.0), h100(32.0, EU))
    series = {one.country: one for one in history.of("H100", days=1000, now=day(501))}
    assert series["US"].points == ((day(1), 2.0),)
    assert series["IE"].points == ((day(0), 4.0),)


def test_the_cheapest_anywhere_is_a_line_by_provider() -> None:
    refreshed(0, h100(24.0), h100(32.0, EU))
    refreshed(1, h100(40.0), h100(32.0, EU))
    refreshed(2, h100(40.0))
    refreshed(3)
    lines = history.cheapest_anywhere(history.of("H100", now=day(4)))
    assert lines == {("aws", False): [(day(0), 3.0), (day(1), 4.0), (day(2), 5.0), (day(3), None)]}


def test_without_history_there_is_nothing_to_say() -> None:
    assert history.of("H100") == []
