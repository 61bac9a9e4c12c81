"""What a refresh of the catalog says: a line for the log, the artifact `prices`, the event of a price that fell."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any, Final

from flows import story
from flows.plan import price_history
from providers.core.models import utc_now
from providers.core.quality import RULES
from providers.core.refresh import Drop, Refreshed

HISTORY_OF: Final = ("H100", "A100")
_MOVERS: Final = 8
_DROPS: Final = 12
_MOST_THRESHOLDS: Final = 80


def line(result: Refreshed) -> str:
    """`aws: 32,000 offers, 12 new, 3 gone, 40 up, 55 down`, or why its last snapshot stays."""
    if result.outcome == "kept":
        stays = f"the snapshot of {_age(result)} stays" if result.collected_at else "there is no snapshot yet"
        return f"{result.provider}: {stays}: {result.trouble}"
    text = f"{result.provider}: {result.offers:,} offers"
    if result.outcome == "unchanged":
        return f"{text}, nothing newer than {_age(result)}"
    change = result.changes
    if change is not None:
        text += f", {change.new:,} new, {change.gone:,} gone, {change.up:,} up, {change.down:,} down"
    return f"{text}; {result.trouble}" if result.trouble else text


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
            f"| {_cell(drop.gpu_name)} | {drop.provider} | {'spot' if drop.spot else ''} | {drop.was or 0:.2f} | **{drop.now:.2f}** | {_cell(drop.instance_type)} in {_cell(drop.region)} |"
            for drop in told
        ]
        lines.append("")
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
    cells = [result.provider, outcome, f"{result.offers:,}", age, *numbers, _cell(result.trouble or "")]
    return "| " + " | ".join(cells) + " |"


def _movers(results: list[Refreshed]) -> list[str]:
    lines: list[str] = []
    for result in results:
        moves = result.changes.biggest(_MOVERS) if result.changes else []
        lines += [
            f"| {result.provider} | {_cell(move.instance_type)} | {_cell(move.where)} | {move.gpu} | {'spot' if move.spot else ''} | {move.was:.3f} | {move.now:.3f} | {(move.ratio - 1) * 100:+.0f} % |"
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


def _findings(results: list[Refreshed]) -> list[str]:
    rows = [
        f"| {result.provider} | {finding.rule.name} | {finding.rule.action} | {finding.count:,} | {_cell('; '.join(finding.examples))} |"
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
    age = utc_now() - result.collected_at
    if age < timedelta(hours=48):
        return f"{story.duration(max(0.0, age.total_seconds()))} ago"
    return f"{age.days} days ago"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
