"""The page `costs`: what runs cost by day, provider, account, flow, deployment and tag, in two numbers, with a chart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date, timedelta
from typing import Final, NamedTuple

from prefect_gpu.flows.report import charts, text

MOST_ROWS: Final = 20  # of each table, the dearest
MOST_LAYERS: Final = 7  # of the chart; the others are one more
OTHERS: Final = "others"
NOTES: Final = (
    "At most: from each order until its absence was seen, rounded up as the provider bills. Probably: from when the provider begins to bill"
    " until it was asked to end the machine. Days are those of UTC. Data that left machines, taxes and discounts are not counted; nor is what"
    " was rented without a run of `provision`, or what runs whose artifacts were deleted."
)


class Share(NamedTuple):
    """What one order cost on one day."""

    day: date
    run: str  # its name, and where it is
    provider: str
    account: str
    flow: str
    deployment: str
    tags: tuple[str, ...]
    machine: str
    bound: float  # USD at most
    estimate: float  # USD probably


class Total(NamedTuple):
    """A sum in two numbers, and of how many runs."""

    name: str
    bound: float
    estimate: float
    runs: int


QUESTIONS: Final[list[tuple[str, Callable[[Share], Iterable[str]]]]] = [
    ("Provider", lambda one: (one.provider,)),
    ("Account", lambda one: (f"{one.provider} ({one.account})",)),
    ("Flow and deployment", lambda one: (f"{one.flow}/{one.deployment}" if one.deployment else one.flow,)),
    ("Tag", lambda one: one.tags or ("(none)",)),
    ("Machine", lambda one: (f"{one.provider} {one.machine}",)),
    ("Run", lambda one: (one.run,)),
]


def totals(shares: Iterable[Share], of: Callable[[Share], Iterable[str]]) -> list[Total]:
    """By each name that `of` gives a share, the dearest first; a share with two tags counts for both."""
    sums: dict[str, tuple[float, float, set[str]]] = {}
    for share in shares:
        for name in of(share):
            bound, estimate, runs = sums.get(name, (0.0, 0.0, set[str]()))
            sums[name] = bound + share.bound, estimate + share.estimate, runs | {share.run}
    found = [Total(name, bound, estimate, len(runs)) for name, (bound, estimate, runs) in sums.items()]
    return sorted(found, key=lambda one: (-one.bound, one.name))


def whole(shares: Sequence[Share]) -> Total:
    """Of everything."""
    return next(iter(totals(shares, lambda _: ("all",))), Total("all", 0.0, 0.0, 0))


def sentence(shares: Sequence[Share], since: date, today: date) -> str:
    """`$123.40 at most in 30 days (probably $118.02), $5.10 of it today: aws $100.00, vultr $23.40`."""
    everything, of_today = whole(shares), whole([one for one in shares if one.day == today])
    days = text.counted((today - since).days + 1, "day")
    said = f"{text.dollars(everything.bound)} at most in {days} (probably {text.dollars(everything.estimate)})"
    if not everything.runs:
        return f"nothing was rented in {days}"
    dearest = totals(shares, lambda one: (one.provider,))[:3]
    return f"{said}, {text.dollars(of_today.bound)} of it today: " + ", ".join(
        f"{one.name} {text.dollars(one.bound)}" for one in dearest
    )


def markdown(shares: Sequence[Share], since: date, today: date) -> str:
    """The page: the sum, a chart by day and provider, and a table for each question."""
    lines = ["# What did it all cost?", "", f"**{sentence(shares, since, today)}**.", ""]
    if chart := _chart(shares, since, today):
        lines += [chart, ""]
    for title, of in QUESTIONS:
        lines += _table(title, totals(shares, of))
    by_day = sorted(totals(shares, lambda one: (one.day.isoformat(),)), key=lambda one: one.name, reverse=True)
    lines += _table("Day", by_day)
    return "\n".join([*lines, NOTES])


def _table(title: str, found: Sequence[Total]) -> list[str]:
    if not found:
        return []
    rows = [
        text.row(one.name, text.dollars(one.bound), text.dollars(one.estimate), one.runs) for one in found[:MOST_ROWS]
    ]
    if left := found[MOST_ROWS:]:
        bound, estimate = sum(one.bound for one in left), sum(one.estimate for one in left)
        rows.append(text.row(f"and {len(left)} more", text.dollars(bound), text.dollars(estimate), ""))
    return [f"## {title}", "", f"| {title.lower()} | at most | probably | runs |", "|---|--:|--:|--:|", *rows, ""]


def _chart(shares: Sequence[Share], since: date, today: date) -> str:
    days = [since + timedelta(days=number) for number in range((today - since).days + 1)]
    names = [one.name for one in totals(shares, lambda one: (one.provider,))]
    shown = names[:MOST_LAYERS] + ([OTHERS] if len(names) > MOST_LAYERS else [])
    amounts = {name: dict.fromkeys(days, 0.0) for name in shown}
    for one in shares:
        if since <= one.day <= today:
            amounts[one.provider if one.provider in names[:MOST_LAYERS] else OTHERS][one.day] += one.bound
    layers = [(name, list(of_day.values())) for name, of_day in amounts.items()]
    svg = charts.stacked("USD at most, by day and provider", [f"{day:%b} {day.day}" for day in days], layers)
    return charts.image(svg, sentence(shares, since, today)) if svg else ""
