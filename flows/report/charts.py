"""Charts as SVG by hand, for markdown artifacts: read on a light and on a dark page, no script, no font of their own.

Prefect strips inline SVG and shows an image with a data URI, so `image` makes that of it.
"""

from __future__ import annotations

import math
from base64 import b64encode
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import escape
from typing import TYPE_CHECKING, Final

from prefect_gpu.flows.report import text

if TYPE_CHECKING:
    from collections.abc import Sequence

# Every colour has a contrast of 3.5 or more against white and against Prefect's dark page (#0f1115).
INK: Final = "#768397"
COLOURS: Final = ("#3b82f6", "#e8590c", "#2f9e44", "#ae5bd1", "#d6336c", "#0b96a6", "#b7791f", "#768397")
_WIDTH: Final = 760
_FONT: Final = "font-family=\"ui-sans-serif, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif\""


@dataclass(frozen=True)
class Dot:
    """One offer on a chart of prices: USD per hour."""

    price: float
    spot: bool = False
    buyable: bool = True


@dataclass(frozen=True)
class Line:
    """One line of a chart over time; each price holds until the next, None is a gap."""

    name: str
    points: Sequence[tuple[datetime, float | None]]
    dashed: bool = False


def image(svg: str, alt: str) -> str:
    """Markdown that shows the chart; `alt` is what is said where it cannot be seen."""
    return f"![{alt}](data:image/svg+xml;base64,{b64encode(svg.encode()).decode()})"


def prices(title: str, rows: Sequence[tuple[str, Sequence[Dot]]], *, limit: float | None = None) -> str:
    """One row a provider, its offers as dots from cheap to dear; filled on-demand, a ring for spot, pale where not available.

    `limit` is drawn as a line: what the user would pay.
    """
    ordered = sorted((row for row in rows if row[1]), key=lambda row: min(dot.price for dot in row[1]))
    if not ordered:
        return ""
    left, right, top, row_height = 112, 36, 66, 38
    height = top + row_height * len(ordered) + 40
    dearest = max(dot.price for _, dots in ordered for dot in dots)
    # A few offers that are far dearer than what anybody would take are drawn at the edge, so that the others can be told apart.
    shown_to = _nice_end(max(_shown_to(ordered), limit or 0.0))
    scale = (_WIDTH - left - right) / shown_to
    parts = [_head(height, title), _legend(ordered, limit)]
    for step in _steps(shown_to):
        x = left + step * scale
        parts.append(_rule(x, top - 6, x, height - 34))
        parts.append(_text(x, height - 16, text.dollars(step), anchor="middle"))
    if limit is not None:
        x = left + limit * scale
        parts.append(
            f'<path d="M{x:.1f} {top - 8}V{height - 34}" stroke="#d6336c" stroke-width="1.5" stroke-dasharray="5 4"/>'
        )
    for number, (name, dots) in enumerate(ordered):
        parts += _price_row(
            name, dots, COLOURS[number % 7], top + row_height * number + row_height / 2, left, scale, shown_to
        )
    if dearest > shown_to:
        parts.append(_text(_WIDTH - 6, height - 16, "▸", anchor="end"))
    return "".join([*parts, "</svg>"])


def over_time(title: str, lines: Sequence[Line], since: datetime, until: datetime) -> str:
    """Prices over time as steps; the name and the last price stand at the end of each line."""
    drawn = [line for line in lines if any(price is not None for _, price in line.points)][:7]
    if not drawn:
        return ""
    left, right, top, height = 56, 178, 58, 320
    bottom = height - 36
    known = [price for line in drawn for _, price in line.points if price is not None]
    shown_to = _nice_end(max(known) * 1.05)
    span = max(1.0, (until - since).total_seconds())

    def x(at: datetime) -> float:
        return left + max(0.0, (at - since).total_seconds()) / span * (_WIDTH - left - right)

    def y(price: float) -> float:
        return bottom - price / shown_to * (bottom - top)

    parts = [_head(height, title)]
    for step in _steps(shown_to):
        parts.append(_rule(left, y(step), _WIDTH - right, y(step)))
        parts.append(_text(left - 8, y(step) + 4, text.dollars(step), anchor="end"))
    parts += [_text(x(day), height - 14, f"{day:%b} {day.day}", anchor="middle") for day in _days(since, until)]
    labels = _spread([y(_last(line)) for line in drawn], low=top + 4, high=bottom, apart=17)
    for number, (line, label_y) in enumerate(zip(drawn, labels, strict=True)):
        colour = COLOURS[number % 7]
        dash = ' stroke-dasharray="2 4" stroke-linecap="round"' if line.dashed else ""
        path = _steps_path([(x(at), None if price is None else y(price)) for at, price in line.points], x(until))
        parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2.25" stroke-linejoin="round"{dash}/>'
        )
        parts.append(
            f'<path d="M{_WIDTH - right:.1f} {y(_last(line)):.1f}L{_WIDTH - right + 10} {label_y:.1f}" stroke="{colour}" opacity=".6" fill="none"/>'
        )
        parts.append(
            _text(
                _WIDTH - right + 14, label_y + 4, f"{line.name}  {text.dollars(_last(line))}", colour=colour, bold=True
            )
        )
    return "".join([*parts, "</svg>"])


def stacked(title: str, days: Sequence[str], layers: Sequence[tuple[str, Sequence[float]]]) -> str:
    """One bar a day, of a layer for each name from the bottom up; `layers` has an amount for each day."""
    tallest = max((sum(amounts) for amounts in zip(*(layer for _, layer in layers), strict=True)), default=0.0)
    if tallest <= 0:
        return ""
    drawn = list(layers)[:8]
    left, right, top, height = 56, 178, 40, 300
    bottom = height - 36
    shown_to = _nice_end(tallest * 1.02)
    room = (_WIDTH - left - right) / len(days)
    parts = [_head(height, title)]
    for step in _steps(shown_to):
        y = bottom - step / shown_to * (bottom - top)
        parts += [_rule(left, y, _WIDTH - right, y), _text(left - 8, y + 4, text.dollars(step), anchor="end")]
    apart = max(1, math.ceil(len(days) / 8))
    for number, day in enumerate(days):
        x, y = left + room * number, float(bottom)
        for layer, (_, amounts) in enumerate(drawn):
            tall = amounts[number] / shown_to * (bottom - top)
            y -= tall
            if tall > 0:
                size = f'x="{x + room * 0.12:.1f}" y="{y:.1f}" width="{room * 0.76:.1f}" height="{tall:.1f}"'
                parts.append(f'<rect {size} fill="{COLOURS[layer]}"/>')
        if number % apart == 0:
            parts.append(_text(x + room / 2, height - 14, day, anchor="middle"))
    for layer, (name, amounts) in enumerate(drawn):
        said = f"{name}  {text.dollars(sum(amounts))}"
        parts.append(_text(_WIDTH - right + 14, top + 14 + 20 * layer, said, colour=COLOURS[layer], bold=True))
    return "".join([*parts, "</svg>"])


def _price_row(
    name: str, dots: Sequence[Dot], colour: str, y: float, left: float, scale: float, shown_to: float
) -> list[str]:
    placed = sorted(((left + min(dot.price, shown_to) * scale, dot) for dot in dots), key=lambda one: -one[0])
    first, last = placed[-1][0], placed[0][0]
    parts = [
        _text(left - 14, y + 5, name, anchor="end", bold=True, size=13),
        f'<path d="M{first:.1f} {y:.1f}H{last:.1f}" stroke="{colour}" stroke-width="6" stroke-linecap="round" opacity=".16"/>',
    ]
    drawn: set[tuple[int, bool, bool]] = set()
    for x, dot in placed:
        where = (round(x / 2), dot.spot, dot.buyable)  # a thousand dots on one spot are one dot
        if where in drawn:
            continue
        drawn.add(where)
        fill = "none" if dot.spot else colour
        opacity = ".9" if dot.buyable else ".28"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{colour}" stroke-width="2" opacity="{opacity}"/>'
        )
    cheapest = min(dots, key=lambda dot: (not dot.buyable, dot.price))
    x = left + min(cheapest.price, shown_to) * scale
    parts.append(_text(x, y - 9, text.dollars(cheapest.price), colour=colour, anchor="middle", bold=True))
    return parts


def _legend(rows: Sequence[tuple[str, Sequence[Dot]]], limit: float | None) -> str:
    dots = [dot for _, of_row in rows for dot in of_row]
    parts: list[str] = []
    x = 20.0
    for is_shown, shape, said in (
        (any(not dot.spot for dot in dots), f'fill="{INK}" stroke="{INK}" stroke-width="2"', "on-demand"),
        (any(dot.spot for dot in dots), f'fill="none" stroke="{INK}" stroke-width="2"', "spot"),
        (any(not dot.buyable for dot in dots), f'fill="{INK}" opacity=".35"', "not available, or over the limit"),
    ):
        if is_shown:
            parts.append(f'<circle cx="{x + 4:.1f}" cy="42" r="4" {shape}/>' + _text(x + 14, 46, said))
            x += 30 + 5.7 * len(said)
    if limit is not None:
        parts.append(f'<path d="M{x:.1f} 42h16" stroke="#d6336c" stroke-width="1.5" stroke-dasharray="5 4"/>')
        parts.append(_text(x + 22, 46, "your limit"))
    return "".join(parts)


def _head(height: float, title: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" height="{height:.0f}" role="img"'
        f' aria-label="{escape(title, quote=True)}" {_FONT}>' + _text(16, 24, title, bold=True, size=15)
    )


def _text(
    x: float, y: float, said: str, *, anchor: str = "start", colour: str = INK, bold: bool = False, size: int = 12
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}"{weight}>{escape(said)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{INK}" stroke-width="1" opacity=".22"/>'


def _steps_path(points: Sequence[tuple[float, float | None]], end: float) -> str:
    """A staircase: each height holds until the next point, and there is none where nothing was offered."""
    path: list[str] = []
    is_drawing = False
    for x, y in points:
        if y is None:
            path.append(f"H{x:.1f}" if is_drawing else "")
            is_drawing = False
        elif is_drawing:
            path.append(f"H{x:.1f}V{y:.1f}")
        else:
            path.append(f"M{x:.1f} {y:.1f}")
            is_drawing = True
    return "".join(path) + (f"H{end:.1f}" if is_drawing else "")


def _last(line: Line) -> float:
    return next(price for _, price in reversed(line.points) if price is not None)


def _spread(wanted: Sequence[float], *, low: float, high: float, apart: float) -> list[float]:
    """Heights of labels near what they stand for, and not upon each other."""
    order = sorted(range(len(wanted)), key=lambda number: wanted[number])
    placed: dict[int, float] = {}
    above = low - apart
    for number in order:
        above = placed[number] = max(wanted[number], above + apart)
    below = high + apart
    for number in reversed(order):
        below = placed[number] = min(placed[number], below - apart)
    return [placed[number] for number in range(len(wanted))]


def _shown_to(rows: Sequence[tuple[str, Sequence[Dot]]]) -> float:
    cheapest = [min(dot.price for dot in dots) for _, dots in rows]
    amounts = sorted(dot.price for _, dots in rows for dot in dots)
    most = amounts[min(len(amounts) - 1, int(len(amounts) * 0.97))]
    return max(*cheapest, min(most * 1.05, 4 * sorted(cheapest)[len(cheapest) // 2]), amounts[0] * 1.5, 0.01)


def _nice_end(value: float) -> float:
    step = _step(value)
    return math.ceil(value / step - 1e-9) * step


def _step(value: float) -> float:
    rough = max(value, 1e-6) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= rough - 1e-12)


def _steps(end: float) -> list[float]:
    step = _step(end)
    return [round(step * number, 6) for number in range(int(end / step + 1e-6) + 1)]


def _days(since: datetime, until: datetime) -> list[datetime]:
    days = max(1, math.ceil((until - since).days / 6))
    first = since.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return [day for number in range(60) if (day := first + timedelta(days=days * number)) <= until]
