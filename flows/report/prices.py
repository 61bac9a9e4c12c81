"""What a refresh of the catalog says: a line for the log, the artifact `prices`, the event of a price that fell."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Any, Final

from prefect_gpu.flows.report import charts, text
from prefect_gpu.flows.report.artifacts import Card
from prefect_gpu.providers.core.catalog import history
from prefect_gpu.providers.core.catalog.findings import DOUBTS, RULES
from prefect_gpu.providers.core.catalog.refresh import Drop, Refreshed
from prefect_gpu.providers.core.models import utc_now

CARD: Final = Card("prices", "What does a GPU cost now, and what changed since the refresh before?")
HISTORY_OF: Final = ("H100", "A100")
HISTORY_DAYS: Final = 30
_MOVERS: Final = 8
_DROPS: Final = 12
_MOST_THRESHOLDS: Final = 80


def line(result: Refreshed) -> str:
    """`aws: 32,000 offers, 12 new, 3 gone, 40 up, 55 down`, or why its last snapshot stays."""
    if result.outcome == "kept":
        stays = f"the snapshot of {_age(result)} stays" if result.collected_at else "there is no snapshot yet"
        return f"{result.provider}: {stays}: {result.trouble}"
    said = f"{result.provider}: {result.offers:,} offers"
    if result.outcome == "unchanged":
        return f"{said}, nothing newer than {_age(result)}"
    change = result.changes
    if change is not None:
        said += f", {change.new:,} new, {change.gone:,} gone, {change.up:,} up, {change.down:,} down"
    if doubted := [finding for finding in result.findings if finding.rule in DOUBTS]:
        said += f", {sum(finding.count for finding in doubted):,} held back ({'; '.join(map(str, doubted))})"
    return f"{said}; {result.trouble}" if result.trouble else said


def lines(results: list[Refreshed]) -> list[str]:
    """A line for each; those that stand as they did for the same reason share one: without network that is all of them."""
    alike: dict[tuple[str, bool], list[Refreshed]] = {}
    for result in results:
        reason = (
            re.sub(rf"\b{result.provider}\b", "each", result.trouble or "")
            if result.outcome == "kept"
            else result.provider
        )
        alike.setdefault((reason, result.collected_at is not None), []).append(result)
    return [line(same[0]) if len(same) == 1 else _shared(same, reason) for (reason, _), same in alike.items()]


def _shared(same: list[Refreshed], reason: str) -> str:
    stays = "the last snapshots stay" if same[0].collected_at else "there is no snapshot yet"
    return f"{', '.join(result.provider for result in same)}: {stays}: {reason}"


def markdown(results: list[Refreshed]) -> str:
    """The artifact `prices`: per provider rows, age and changes; prices that fell; what the rules found, and why they are there."""
    lines = [
        "# Prices",
        "",
        "| provider | | offers | age | new | gone | up | down | |",
        "|---|---|--:|---|--:|--:|--:|--:|---|",
        *(_row(result) for result in results),
        "",
    ]
    for gpu in HISTORY_OF:
        if chart := price_history(gpu):
            lines += [chart, ""]
    drops = sorted(
        (drop for result in results for drop in result.drops), key=lambda drop: drop.now / (drop.was or math.inf)
    )
    told = [drop for drop in drops if drop.was is not None][:_DROPS]
    if told:
        lines += ["## Cheaper now", "", "| GPU | provider | | was | $/GPU-h | |", "|---|---|---|--:|--:|---|"]
        lines += [
            f"| {text.cell(drop.gpu_name)} | {drop.provider} | {'spot' if drop.spot else ''} | {drop.was or 0:.2f} | **{drop.now:.2f}** | {text.cell(drop.instance_type)} in {text.cell(drop.region)} |"
            for drop in told
        ]
        lines.append("")
    lines += _held_back(results)
    lines += _movers(results)
    lines += _findings(results)
    return "\n".join(lines)


def drop_event(drop: Drop) -> dict[str, Any]:
    """The event `prefect-gpu.price.dropped`: one resource for the price, one related for each threshold it fell below.

    Triggers compare texts, not numbers: `prefect-gpu.price-below.H100.2.00` is related when the price crossed $2.00. Thresholds are
    multiples of 5 cents, of 50 from $10 on.
    """
    return {
        "resource": {
            "prefect.resource.id": f"prefect-gpu.price.{drop.provider}.{drop.gpu_name}",
            "prefect.resource.name": f"{drop.gpu_name} at {drop.provider}",
            "provider": drop.provider,
            "gpu": drop.gpu_name,
            "spot": str(drop.spot).lower(),
            "region": drop.region,
        },
        "related": [
            {
                "prefect.resource.id": f"prefect-gpu.price-below.{drop.gpu_name}.{threshold:.2f}",
                "prefect.resource.role": "threshold",
            }
            for threshold in crossed(drop.was, drop.now)
        ],
        "payload": {
            "provider": drop.provider,
            "gpu": drop.gpu_name,
            "spot": drop.spot,
            "price_per_gpu_hour": round(drop.now, 5),
            "was": None if drop.was is None else round(drop.was, 5),
            "machine": drop.instance_type,
            "region": drop.region,
        },
    }


def crossed(was: float | None, now: float) -> list[float]:
    """The thresholds that a price fell below: `now < threshold <= was`; nearest to `now` first. New on offer, it came from above."""
    thresholds: list[float] = []
    cents = math.floor(now * 100 + 1e-9) + 1
    highest = math.inf if was is None else was * 100 + 1e-9
    while len(thresholds) < _MOST_THRESHOLDS:
        step = 5 if cents <= 1000 else 50
        cents = math.ceil(cents / step) * step
        if cents > highest:
            break
        thresholds.append(cents / 100)
        cents += 1
    return thresholds


def _row(result: Refreshed) -> str:
    change = result.changes
    numbers = (
        ["", "", "", ""] if change is None else [f"{n:,}" for n in (change.new, change.gone, change.up, change.down)]
    )
    outcome = {"published": "new", "unchanged": "unchanged", "kept": "**kept**"}[result.outcome]
    age = _age(result) if result.collected_at else "none"
    cells = [result.provider, outcome, f"{result.offers:,}", age, *numbers, text.cell(result.trouble or "")]
    return "| " + " | ".join(cells) + " |"


def _movers(results: list[Refreshed]) -> list[str]:
    lines: list[str] = []
    for result in results:
        moves = result.changes.biggest(_MOVERS) if result.changes else []
        lines += [
            f"| {result.provider} | {text.cell(move.instance_type)} | {text.cell(move.where)} | {move.gpu} | {'spot' if move.spot else ''} | {move.was:.3f} | {move.now:.3f} | {(move.ratio - 1) * 100:+.0f} % |"
            for move in moves
        ]
    if not lines:
        return []
    head = [
        "## Biggest moves",
        "",
        "| provider | machine | where | GPU | | was | $/h | |",
        "|---|---|---|---|---|--:|--:|--:|",
    ]
    return [*head, *lines, ""]


def _held_back(results: list[Refreshed]) -> list[str]:
    """What was collected and is not offered: the rest of that provider is."""
    rows = [
        text.row(result.provider, f"{finding.count:,}", "; ".join(finding.examples), finding.rule.reason)
        for result in results
        for finding in result.findings
        if finding.rule.action == "leaves out"
    ]
    if not rows:
        return []
    named = sorted({result.provider for result in results for finding in result.findings if finding.rule in DOUBTS})
    hint = f"If they are right, run `refresh-catalog` with `accept={named}`." if named else ""
    return ["## Held back", "", "| provider | offers | which | why |", "|---|--:|---|---|", *rows, "", hint, ""]


def _findings(results: list[Refreshed]) -> list[str]:
    rows = [
        f"| {result.provider} | {finding.rule.name} | {finding.rule.action} | {finding.count:,} | {text.cell('; '.join(finding.examples))} |"
        for result in results
        for finding in result.findings
    ]
    if not rows:
        return []
    names = {finding.rule.name for result in results for finding in result.findings}
    reasons = [f"* **{rule.name}** {rule.action}: {rule.reason}." for rule in RULES if rule.name in names]
    head = ["## What the rules found", "", "| provider | rule | | times | for example |", "|---|---|---|--:|---|"]
    return [*head, *rows, "", *reasons]


def _age(result: Refreshed) -> str:
    if result.collected_at is None:
        return "no date"
    return text.ago(result.collected_at)


def price_history(gpu: str, providers: set[str] | None = None, days: float = HISTORY_DAYS) -> str:
    """Markdown: what a GPU cost over the last days at these providers (None: all), as a chart; empty with less than a day of it."""
    now = utc_now()
    since = now - timedelta(days=days)
    series = history.of(gpu, days=days, providers=None if providers is None else sorted(providers), now=now)
    lines = [
        charts.Line(f"{provider} spot" if spot else provider, points, dashed=spot)
        for (provider, spot), points in sorted(history.cheapest_anywhere(series).items())
    ]
    oldest = min((line.points[0][0] for line in lines), default=now)
    if now - oldest < timedelta(days=1):
        return ""
    svg = charts.over_time(f"{gpu}: USD per GPU-hour in the cheapest region, {days:.0f} days", lines, since, now)
    return charts.image(svg, f"What an {gpu} cost over {days:.0f} days")
