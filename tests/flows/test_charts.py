"""Charts: well-formed, bounded, and with nothing that a page could run."""

from __future__ import annotations

import base64
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_gpu.flows.report import charts
from prefect_gpu.flows.report.charts import Dot, Line

NOW = datetime(2026, 11, 24, tzinfo=UTC)
prices_ = st.floats(0.0001, 500, allow_nan=False)
names = st.text(min_size=1, max_size=20).filter(
    lambda text: all(ord(c) >= 32 and not 0xD800 <= ord(c) < 0xE000 and c not in "\ufffe\uffff" for c in text)
)


def circles(svg: str) -> list[ET.Element]:
    return list(ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}circle"))


@settings(deadline=None)
@given(
    rows=st.dictionaries(
        names, st.lists(st.builds(Dot, prices_, st.booleans(), st.booleans()), max_size=30), max_size=9
    ),
    limit=st.none() | prices_,
)
def test_any_prices_are_drawn_inside_the_picture(rows: dict[str, list[Dot]], limit: float | None) -> None:
    svg = charts.prices('USD per GPU-hour <by> "provider"', list(rows.items()), limit=limit)
    if not any(rows.values()):
        assert svg == ""
        return
    root = ET.fromstring(svg)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for circle in circles(svg):
        assert 0 <= float(circle.attrib["cx"]) <= width
        assert 0 <= float(circle.attrib["cy"]) <= height
    assert not [one.tag for one in root.iter() if "script" in one.tag], "a name is text, whatever it says"


@settings(deadline=None)
@given(values=st.lists(st.lists(st.none() | prices_, min_size=1, max_size=40), max_size=9))
def test_any_history_is_a_well_formed_picture(values: list[list[float | None]]) -> None:
    lines = [
        Line(
            f"provider {n}",
            [(NOW - timedelta(days=30) + timedelta(days=d), price) for d, price in enumerate(of_line)],
            n % 2 == 0,
        )
        for n, of_line in enumerate(values)
    ]
    svg = charts.over_time("H100", lines, NOW - timedelta(days=30), NOW)
    assert svg == "" or ET.fromstring(svg).tag.endswith("svg")


def test_the_cheapest_provider_comes_first_and_its_price_is_said() -> None:
    svg = charts.prices("t", [("dear", [Dot(3.0), Dot(4.0)]), ("cheap", [Dot(1.25), Dot(9.0)])])
    assert svg.index(">cheap<") < svg.index(">dear<")
    assert ">$1.25<" in svg
    assert ">$3.00<" in svg


def test_a_thousand_offers_of_one_price_are_one_dot() -> None:
    assert len(circles(charts.prices("t", [("one", [Dot(2.0)] * 1000)]))) == 2, "and the one of the legend"


def test_an_image_is_markdown_that_holds_the_picture() -> None:
    markdown = charts.image("<svg/>", "what it shows")
    assert markdown.startswith("![what it shows](data:image/svg+xml;base64,")
    assert base64.b64decode(markdown.rpartition(",")[2].rstrip(")")) == b"<svg/>"


def test_every_colour_can_be_read_on_white_and_on_prefects_dark_page() -> None:
    def luminance(colour: str) -> float:
        channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        high, low = sorted((luminance(one), luminance(other)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for colour in (charts.INK, *charts.COLOURS):
        assert contrast(colour, "#ffffff") >= 3.4, colour
        assert contrast(colour, "#0f1115") >= 3.4, colour


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_chromium_draws_what_was_drawn(tmp_path: Path) -> None:
    svg = charts.prices("USD per GPU-hour", [("aws", [Dot(2.0), Dot(3.0, spot=True)])], limit=2.5)
    page = tmp_path / "page.html"
    page.write_text(
        f"<img src='{charts.image(svg, 'x').partition('(')[2].rstrip(')')}' onload=\"document.title=this.naturalWidth\">"
    )
    done = subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--dump-dom",
            "--virtual-time-budget=3000",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "<title>760</title>" in done.stdout
