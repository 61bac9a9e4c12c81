"""What would I get, and for how much: asks like `provision`, and buys nothing."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed

from prefect_gpu.flows import fields as form
from prefect_gpu.flows.report import charts, text
from prefect_gpu.flows.report.prices import price_history
from prefect_gpu.flows.run import look, market, offers, outliving, story
from prefect_gpu.flows.run.failure import failed
from prefect_gpu.flows.run.look import Plan
from prefect_gpu.flows.run.offers import Ranked
from prefect_gpu.flows.run.request import Refused
from prefect_gpu.providers.core.catalog import explain
from prefect_gpu.providers.core.requests import Requirements

SHOWN: Final = 20  # offers in the order they would be tried
SHOWN_OTHERS: Final = 10


@flow(name="plan", persist_result=True, result_serializer="json")
def plan(
    gpu: form.Gpu = "",
    max_price: form.MaxPrice = None,
    providers: form.Providers = [],  # noqa: B006 - Prefect shows it in the form and nothing changes it
    requirements: form.Requirements = form.ANY_MACHINE,
    hours: form.Hours = 1.0,
    account: form.Account = form.DEFAULT_ACCOUNT,
) -> State[Plan]:
    """Say what `provision` would rent, for how much, and why in this order. Buys nothing.

    Args:
        gpu: `H100:8`, `A100:80GB`, `24GB..`, alternatives in order `H100:8|A100:8`; empty for none.
        max_price: USD per hour for the whole machine; empty for no limit.
        providers: Whom to ask; empty for all with saved credentials, and this machine.
        requirements: What else the machine must have: cores, memory, disk, spot, regions, network, trust.
        hours: The expected stay, which decides where billing has a minimum or steps.
        account: Name of the saved credentials, or a map from provider to name.
    """
    outliving.outlive_worker()
    try:
        looked = look.look(gpu, max_price, providers, requirements, hours, account, offers.ask)
    except Refused as refused:
        return failed(str(refused))
    found = looked.found
    log = get_run_logger()
    for table in looked.tables():
        log.info("\n".join(table))
    for line in [f"{name}: {trouble}" for name, trouble in found.troubles.items()] + looked.unseen():
        log.warning("%s", line)
    log.info(found.message)
    create_markdown_artifact(
        markdown(found, list(looked.ranked), looked.wanted), key="offers", description="What would be tried, in order."
    )
    return Completed(message=found.message, data=found)


# --- the artifact -----------------------------------------------------------------------------------------------------


def markdown(found: Plan, ranked: list[Ranked], wanted: Requirements) -> str:
    """The artifact `offers`: what was found in a sentence, a chart, the table, the history of the GPU that was asked for."""
    lines = [f"# Offers for {found.wanted}", "", found.message, ""]
    if chart := _chart(ranked, wanted):
        lines += [chart, ""]
    rows = look.shown(ranked, SHOWN, SHOWN_OTHERS)
    if rows:
        lines += [
            f"| # | provider | machine | where | GPU | spot | $/h | $/GPU-h | $ for {found.hours:g} h | priced | why here |",
            "|--:|---|---|---|---|---|--:|--:|--:|---|---|",
            *(_row(one) for one in rows),
        ]
        left = len(ranked) - len(rows)
        lines += ["", f"and {left:,} more"] if left > 0 else [""]
        if told := " ".join(story.strangers(one.offer for one in rows)):
            lines += ["", f"{told[0].upper()}{told[1:]}."]
    if found.market:
        lines += ["", market.markdown(list(found.market))]
    lines += [f"* **{name}** did not answer: {text.cell(trouble)}" for name, trouble in found.troubles.items()]
    for name in dict.fromkeys(name for request in wanted.gpu for name in request.names):
        if past := price_history(name, {one.offer.provider for one in ranked} or None):
            lines += ["", past]
    return "\n".join(lines)


def _row(one: Ranked) -> str:
    offer = one.offer
    whose = story.host(offer)
    cells = (
        str(one.rank or "-"),
        offer.provider,
        offer.instance_type,
        "" if offer.provider == "local" else f"{offer.scope} ({whose})" if whose else offer.scope,
        offer.gpu,
        "spot" if offer.spot else "",
        f"{offer.price:.2f}",
        "" if one.price_per_gpu is None else f"{one.price_per_gpu:.2f}",
        f"{one.stay_cost:.2f}",
        story.priced(offer),
        one.why,
    )
    return text.row(*cells)


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
    cheapest = ", ".join(f"{name} from {text.dollars(min(dot.price for dot in row))}" for name, row in dots.items())
    svg = charts.prices(f"USD per {of_what} by provider: {explain.wanted(wanted)}", list(dots.items()))
    return charts.image(svg, f"USD per {of_what}: {cheapest}")
