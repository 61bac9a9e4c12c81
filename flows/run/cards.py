"""The three cards of a run that a person reads, one for each question: what did it try, what did it cost, where are my files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect_gpu.flows.report import text
from prefect_gpu.flows.report.artifacts import Card, newest, publish
from prefect_gpu.flows.run.attempt import GONE, OWED, Attempt
from prefect_gpu.flows.run.offers import Ranked
from prefect_gpu.flows.run.story import host, no_answer, priced, strangers
from prefect_gpu.providers.core.aside import Aside
from prefect_gpu.providers.core.catalog import explain
from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.models import JobResult, Offer
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.typed import typed

Page = tuple[Card, str]  # a card and its markdown

MOST_OFFERS = 50
MOST_OTHERS = 20
MOST_FILES = 50

# Numbered: both UIs show a run's artifacts in the order of their ids, which are random.
TRIED = Card("1-what-it-tried", "What did it try? The offers in the order they were tried, and what came of each.")
COST = Card(
    "2-what-it-cost", "What did it cost? Every order from the moment it was accepted until its machine was gone."
)
FILES = Card("3-where-the-files-are", "Where are my files? The whole log and what the job left.")


def begin(run_id: UUID, card: Card, page: str, *, is_again: bool) -> Aside[None]:
    """Begin to write a card, over the one that the run has already, where it may have one."""

    def write() -> None:
        before = newest(card.key, run_id) if is_again else None
        over = UUID(before["id"]) if before else None
        publish(card.key, "markdown", page, run_id, card.question, over=over)

    return Aside(write)


def write_all(run_id: UUID, pages: Sequence[Page], log: Any, *, is_again: bool) -> None:
    """Write the cards side by side."""
    writing = [(card, begin(run_id, card, page, is_again=is_again)) for card, page in pages]
    for card, written in writing:
        try:
            written.result()
        except Exception as trouble:  # noqa: BLE001 - a job that ended well has not failed because a page about it is missing
            log.warning("the artifact %s could not be written: %s", card.key, type(trouble).__name__)


def tried(
    message: str,
    requirements: Requirements,
    ranked: list[Ranked],
    attempts: list[Attempt],
    failed: list[tuple[Offer, ProviderError]],
    troubles: dict[str, ProviderError],
) -> str:
    """What did it try? The offers in order, what came of each, and why the others were not tried."""
    by_offer = {(attempt.provider, attempt.machine, attempt.scope, attempt.spot): attempt for attempt in attempts}
    lines = [
        "# What did it try?",
        "",
        f"{message.rstrip('.')}. Asked for: **{'' if requirements.gpu else 'any '}{explain.wanted(requirements)}**.",
        "",
        "| # | provider | machine | where | GPU | spot | $/h | priced | what came of it |",
        "|--:|---|---|---|---|---|--:|---|---|",
    ]
    buyable = [one for one in ranked if one.is_buyable]
    for one in buyable[:MOST_OFFERS]:
        offer = one.offer
        attempt = by_offer.get((offer.provider, offer.instance_type, offer.scope, offer.spot))
        ruled_out = next((error.short for other, error in failed if error.rules_out(other, offer)), None)
        if attempt is not None:
            outcome = came_of_it(attempt)
        elif ruled_out is not None:
            outcome = f"passed over: {ruled_out}"
        else:
            outcome = f"not tried: {one.why}"
        lines.append(_offer_row(str(one.rank), offer, outcome))
    if len(buyable) > MOST_OFFERS:
        lines.append(f"| | | and {len(buyable) - MOST_OFFERS} more | | | | | | |")
    others = sorted((one for one in ranked if not one.is_buyable), key=lambda one: one.passed_over_until is None)
    for one in others[:MOST_OTHERS]:
        offer = one.offer
        attempt = by_offer.get((offer.provider, offer.instance_type, offer.scope, offer.spot))
        # What was sold out to this very run says what its provider said.
        is_own = attempt is not None and one.passed_over_until is not None
        lines.append(_offer_row("-", offer, came_of_it(attempt) if attempt is not None and is_own else one.why))
    lines += [f"| - | {name} | | | | | | | {text.cell(no_answer(why))} |" for name, why in troubles.items()]
    if told := " ".join(strangers(one.offer for one in [*buyable[:MOST_OFFERS], *others[:MOST_OTHERS]])):
        lines += ["", f"{told[0].upper()}{told[1:]}."]
    return "\n".join(lines)


def cost(attempts: list[Attempt], max_cost: float | None = None) -> str:
    """What did it cost? Each order with what it cost, failed ones included."""
    total = text.dollars(sum(one.cost or 0.0 for one in attempts))
    probably = text.dollars(sum((one.cost if one.estimate is None else one.estimate) or 0.0 for one in attempts))
    of_budget = f", of max_cost {text.dollars(max_cost)}," if max_cost is not None else ""
    counted = "from each accepted order until its machine was seen gone, rounded up as the provider bills"
    estimated = "from when the provider begins to bill until it was asked to end the machine"
    lines = [
        "# What did it cost?",
        "",
        f"**At most {total}**{of_budget} for {text.counted(len(attempts), 'order')}: {counted}. **Probably {probably}**: {estimated}.",
        "",
        "| # | provider | machine | where | $/h | ordered | for | at most | probably | what came of it |",
        "|--:|---|---|---|--:|---|---|--:|--:|---|",
    ]
    for number, one in enumerate(attempts, start=1):
        stay = text.duration((one.gone_at - one.ordered_at).total_seconds()) if one.gone_at and one.instance_id else ""
        ordered = f"{one.ordered_at:%Y-%m-%d %H:%M} UTC"
        amounts = (text.dollars(one.cost or 0.0), "" if one.estimate is None else text.dollars(one.estimate))
        where = (one.provider, one.machine, one.scope, f"{one.price:.2f}")
        lines.append(text.row(number, *where, ordered, stay, *amounts, came_of_it(one)))
    if any(one.outcome == OWED for one in attempts):
        lines += [
            "",
            "**Not confirmed gone yet**: `reap` will keep trying, and the cost goes on until it is seen gone.",
        ]
    told = [one.traffic for one in attempts if one.traffic is not None]
    bytes_ = (
        f"Traffic of {text.dollars(sum(told))} is in it, as far as it was booked by then"
        if told
        else "Data that left the machine"
    )
    lines += [
        "",
        f"{bytes_}; taxes and discounts are not counted."
        if told
        else f"{bytes_}, taxes and discounts are not counted.",
    ]
    return "\n".join(lines)


def files(run_id: UUID, ended: str, result: JobResult) -> str:
    """Where are my files? How the job ended, where its log and files lie, and how they are brought."""
    lines = [
        "# Where are my files?",
        "",
        f"{ended.rstrip('.')}.",
        "",
        "| | |",
        "|---|---|",
        text.row("exit code", result.exit_code if result.exit_code is not None else result.outcome),
        text.row("job", text.duration(result.duration_s)),
        text.row("output", f"{result.log_bytes:,} bytes"),
    ]
    if result.tries > 1:
        lines.append(text.row("tries", f"{result.tries}, each with a log of its own beside this one"))
    if result.trouble:
        lines.append(text.row("trouble", result.trouble))
    if result.stored_under:
        lines += [
            text.row("in the result storage", f"`{result.stored_under}`: `job.log`, `outputs/`"),
            text.row("bring them", f"`{typed('fetch', run=str(run_id))}`"),
        ]
    lines += [text.row("file", f"`{name}`") for name in result.outputs[:MOST_FILES]]
    if len(result.outputs) > MOST_FILES:
        lines.append(text.row("", f"and {len(result.outputs) - MOST_FILES} more"))
    if result.stored_under and not result.outputs:
        lines += [
            "",
            "The job was asked for no files, or left none of those: *Files to bring back* in *Job* says which.",
        ]
    return "\n".join(lines)


def came_of_it(attempt: Attempt) -> str:
    """`used, and given back`, or what went wrong in the provider's words."""
    if attempt.outcome == GONE:
        return "used, and given back"
    return f"{attempt.outcome}: {attempt.why}" if attempt.why else attempt.outcome


def _offer_row(rank: str, offer: Offer, outcome: str) -> str:
    spot = "yes" if offer.spot else "no"
    whose = host(offer)
    return text.row(
        rank,
        offer.provider,
        offer.instance_type,
        f"{offer.scope} ({whose})" if whose else offer.scope,
        offer.gpu,
        spot,
        f"{offer.price:.2f}",
        priced(offer),
        outcome,
    )
