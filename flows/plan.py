"""What would I get, and for how much: asks like `provision`, and buys nothing."""

from __future__ import annotations

import math
from collections import defaultdict
from datetime import timedelta
from typing import Annotated, Final

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from pydantic import Field

import providers as registry
from flows import charts, inputs, story
from flows.asking import ask
from flows.inputs import Refused
from flows.ranking import Ranked, rank
from providers import DEFAULT_ACCOUNT, ProviderName
from providers.core import explain, history
from providers.core.contract import Billing
from providers.core.models import Model, Requirements, utc_now

SHOWN: Final = 20  # offers in the order they would be tried
SHOWN_OTHERS: Final = 10
KEPT: Final = 200  # of the offers, in the data of the run
HISTORY_DAYS: Final = 30


class Plan(Model):
    """What `plan` found: the data of its final state."""

    wanted: str
    hours: float
    message: str
    offers: tuple[Ranked, ...]  # the first of them; in the order they would be tried, then what would not be
    buyable: int  # of all
    seen: int
    troubles: dict[str, str]  # provider -> why it did not answer


@flow(name="plan", persist_result=True, result_serializer="json")
def plan(
    gpu: Annotated[
        str, Field(title="GPU", description="H100:8, A100:80GB, 24GB.., alternatives as H100:8|A100:8; empty: none.")
    ] = "",
    max_price: Annotated[
        float | None, Field(title="Price limit", description="USD per hour for the whole machine; empty: none.")
    ] = None,
    providers: Annotated[
        list[ProviderName], Field(title="Providers", description="Empty: all with saved credentials, and this machine.")
    ] = [],  # noqa: B006 - Prefect shows it in the form and nothing changes it
    requirements: Annotated[Requirements, Field(title="Requirements")] = Requirements(),  # noqa: B008 - frozen
    hours: Annotated[
        float, Field(title="Expected stay in hours", description="Offers are ranked by what such a stay costs.")
    ] = 1.0,
    account: Annotated[
        str | dict[str, str],
        Field(title="Account", description="Name of the saved credentials, or a map from provider to name."),
    ] = DEFAULT_ACCOUNT,
) -> State[Plan]:
    """Say what `provision` would rent, for how much, and why in this order. Buys nothing.

    Args:
        gpu: `H100:8`, `A100:80GB`, `24GB..`, alternatives in order `H100:8|A100:8`; empty for none.
        max_price: USD per hour for the whole machine; empty for no limit.
        providers: Whom to ask; empty for all with saved credentials, and this machine.
        requirements: What else the machine must have: cores, memory, disk, spot, regions, network.
        hours: The expected stay, which decides where billing has a minimum or steps.
        account: Name of the saved credentials, or a map from provider to name.
    """
    try:
        hours = _checked_hours(hours)
        wanted = inputs.checked_requirements(gpu, max_price, requirements)
        names = inputs.checked_providers(providers, registry.enabled(account), account)
    except Refused as refused:
        return Failed(message=str(refused))
    # The price limit is kept back, so that what is just too dear is seen.
    offers, failures = ask(names, wanted.model_copy(update={"max_price": None}), account)
    troubles = {name: failure.message for name, failure in failures.items()}
    ranked = rank(offers, wanted, hours, _billing_of)
    buyable = sum(one.is_buyable for one in ranked)
    message = _message(ranked, wanted, names, hours)
    found = Plan(
        wanted=explain.wanted(wanted),
        hours=hours,
        message=message,
        offers=tuple(shown(ranked, KEPT, KEPT)),
        buyable=buyable,
        seen=len(ranked),
        troubles=troubles,
    )
    log = get_run_logger()
    if buyable:
        log.info("\n".join(story.offers_table([one.offer for one in ranked if one.is_buyable])))
    for name, trouble in troubles.items():
        log.warning("%s: %s", name, trouble)
    log.info(message)
    create_markdown_artifact(
        markdown(found, ranked, wanted), key="offers", description="What would be tried, in order."
    )
    return Completed(message=message, data=found)


def _checked_hours(hours: float) -> float:
    if not (math.isfinite(hours) and 0 < hours <= 24 * 366):
        raise Refused(f"hours is {hours:g}: write how long the job may take, for example 0.5 or 24")
    return hours


def _billing_of(provider: str) -> Billing:
    return registry.library(provider).capabilities.billing


def _message(ranked: list[Ranked], wanted: Requirements, names: list[ProviderName], hours: float) -> str:
    if not ranked or not ranked[0].is_buyable:
        return explain.explain(wanted, [str(name) for name in names], [one.offer for one in ranked])
    best = ranked[0]
    offer = best.offer
    count = sum(one.is_buyable for one in ranked)
    stay = (
        "" if hours == 1 and abs(best.stay_cost - offer.price) < 0.005 else f", ${best.stay_cost:.2f} for {hours:g} h"
    )
    where = offer.instance_type if offer.provider == "local" else f"{offer.instance_type} in {offer.scope}"
    old = story.old_prices([one.offer for one in ranked if one.is_buyable])
    return f"{story.counted(count, 'offer')}; cheapest ${offer.price:.2f}/h: {offer.provider} {where}{stay}" + (
        f"; {old}" if old else ""
    )


def shown(ranked: list[Ranked], most: int, most_others: int) -> list[Ranked]:
    """The first, the best of each provider that is not among them, and the cheapest that would not be tried."""
    buyable = [one for one in ranked if one.is_buyable]
    first = buyable[:most]
    seen = {one.offer.provider for one in first}
    for one in buyable[most:]:
        if one.offer.provider not in seen:
            seen.add(one.offer.provider)
            first.append(one)
    return [*first, *[one for one in ranked if not one.is_buyable][:most_others]]


# --- the artifact -----------------------------------------------------------------------------------------------------


def markdown(found: Plan, ranked: list[Ranked], wanted: Requirements) -> str:
    """The artifact `offers`: what was found in a sentence, a chart, the table, the history of the GPU that was asked for."""
    lines = [f"# Offers for {found.wanted}", "", found.message, ""]
    if chart := _chart(ranked, wanted):
        lines += [chart, ""]
    rows = shown(ranked, SHOWN, SHOWN_OTHERS)
    if rows:
        lines += [
            f"| # | provider | machine | where | GPU | spot | $/h | $/GPU-h | $ for {found.hours:g} h | priced | why here |",
            "|--:|---|---|---|---|---|--:|--:|--:|---|---|",
            *(_row(one) for one in rows),
        ]
        left = len(ranked) - len(rows)
        lines += ["", f"and {left:,} more"] if left > 0 else [""]
    lines += [f"* **{name}** did not answer: {_cell(trouble)}" for name, trouble in found.troubles.items()]
    for name in dict.fromkeys(name for request in wanted.gpu for name in request.names):
        if past := price_history(name, {one.offer.provider for one in ranked} or None):
            lines += ["", past]
    return "\n".join(lines)


def _row(one: Ranked) -> str:
    offer = one.offer
    cells = (
        str(one.rank or "-"),
        offer.provider,
        offer.instance_type,
        "" if offer.provider == "local" else offer.scope,
        offer.gpu,
        "spot" if offer.spot else "",
        f"{offer.price:.2f}",
        "" if one.price_per_gpu is None else f"{one.price_per_gpu:.2f}",
        f"{one.stay_cost:.2f}",
        story.priced(offer),
        one.why,
    )
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _chart(ranked: list[Ranked], wanted: Requirements) -> str:
    """Prices by provider; nothing where there is nothing to compare."""
    dots: dict[str, list[charts.Dot]] = defaultdict(list)
    for one in ranked:
        price = one.price_per_gpu if wanted.wants_gpu else one.offer.price
        if price is not None:
            dots[one.offer.provider].append(charts.Dot(price, one.offer.spot, one.is_buyable))
    if not any(dot.price for of_provider in dots.values() for dot in of_provider):
        return ""
    of_what = "GPU-hour" if wanted.wants_gpu else "hour"
    cheapest = ", ".join(f"{name} from ${min(dot.price for dot in row):.2f}" for name, row in dots.items())
    svg = charts.prices(f"USD per {of_what} by provider: {explain.wanted(wanted)}", list(dots.items()))
    return charts.image(svg, f"USD per {of_what}: {cheapest}")


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


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
