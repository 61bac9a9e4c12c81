"""How a run tells its story: the lines of its six steps, and the message of its final state."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import datetime, timedelta

from prefect_gpu.flows.report import text
from prefect_gpu.flows.run.attempt import OWED, Attempt
from prefect_gpu.flows.run.offers import Ranked
from prefect_gpu.providers.core.catalog import explain
from prefect_gpu.providers.core.errors import ProviderError, Unsupported
from prefect_gpu.providers.core.models import Instance, JobResult, Offer, utc_now
from prefect_gpu.providers.core.renting.give_back import Absence
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.typed import typed

WIDTH = 78  # a line with its seconds at the right edge
INDENT = " " * 13
SHOWN_OFFERS = 8
SHOWN_REASONS = 2  # of one provider, in the final message
OLD_PRICES = timedelta(hours=24)  # refresh-catalog runs every hour


def step(number: int, name: str, said: str, seconds: float | None = None) -> str:
    """`3 create     pg-..., lease until 10:17    0.2 s`."""
    return timed(f"{number} {name:<10} {said}", seconds)


def more(said: str, seconds: float | None = None) -> str:
    """A further line of the same step."""
    return timed(INDENT + said, seconds)


def timed(line: str, seconds: float | None) -> str:
    """The line with its seconds at the right edge."""
    if seconds is None:
        return line
    return f"{line:<{WIDTH - 9}} {text.duration(seconds):>8}"


def asked(providers: int, silent: int) -> str:
    """Who was asked for offers, and how many answered."""
    return f"{text.counted(providers, 'provider')} asked, {providers - silent} answered ({typed('providers')}: all)"


def priced(offer: Offer) -> str:
    """When the offer's price was collected: `now` where it is the provider's own word, `2 h 05 min ago`."""
    return "now" if offer.priced_at is None else text.ago(offer.priced_at)


def old_prices(offers: list[Offer]) -> str:
    """`the prices of aws are 3 days old: ...`, where refreshes fail or never ran; else an empty string."""
    oldest: dict[str, datetime] = {}
    for offer in offers:
        if offer.priced_at is not None and utc_now() - offer.priced_at > OLD_PRICES:
            oldest[offer.provider] = min(offer.priced_at, oldest.get(offer.provider, offer.priced_at))
    if not oldest:
        return ""
    age = text.duration((utc_now() - min(oldest.values())).total_seconds())
    return f"the prices of {', '.join(sorted(oldest))} are {age} old: `{typed('refresh')}` collects them anew"


def offers_table(offers: list[Offer]) -> list[str]:
    """The first offers in the order they are tried, in columns."""
    has_hosts = any(offer.trust is not None for offer in offers[:SHOWN_OFFERS])
    rows = [("#", "provider", "machine", "gpu", "spot", *(("host",) if has_hosts else ()), "$/h")]
    for rank, offer in enumerate(offers[:SHOWN_OFFERS], start=1):
        place = "" if offer.provider == "local" else f" {offer.scope}"
        rows.append(
            (
                str(rank),
                offer.provider,
                offer.instance_type + place,
                offer.gpu,
                "yes" if offer.spot else "no",
                *((host(offer),) if has_hosts else ()),
                f"{offer.price:.2f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False))
        + "  "
        + row[-1].rjust(widths[-1])
        for row in rows
    ]
    if len(offers) > SHOWN_OFFERS:
        lines.append(f"and {len(offers) - SHOWN_OFFERS} more")
    return [*lines, *strangers(offers[:SHOWN_OFFERS])]


def host(offer: Offer) -> str:
    """Whose machine it is, as a marketplace tells it: `stranger`, `verified`, `secure`; nothing where it is the provider's own."""
    return "stranger" if offer.trust == "any" else offer.trust or ""


def strangers(offers: Iterable[Offer]) -> list[str]:
    """A line on what a host can read that is not the provider's own, where one is among them."""
    names = sorted({offer.provider for offer in offers if offer.trust is not None})
    if not names:
        return []
    return [
        f"hosts of {' and '.join(names)} are other people's: who has one can read what runs there, the job's",
        "files and secrets too; requirements.trust asks for verified or secure ones",
    ]


def no_answer(why: ProviderError) -> str:
    """What is said of a provider that was asked and offers nothing: that it does not sell such a thing is an answer too."""
    return f"says no: {why.message}" if isinstance(why, Unsupported) else f"did not answer: {why.message}"


def final_message(
    result: JobResult, attempts: list[Attempt], failed: list[tuple[Offer, ProviderError]], budget: str | None = None
) -> str:
    """`exit 0 in 41 min, $13.61, 3 offers tried (runpod sold out, vastai boot failed)`."""
    return f"{how_it_ended(result, budget)}, {_cost_and_offers(attempts, failed)}"


def how_it_ended(result: JobResult, budget: str | None = None) -> str:
    """`exit 0 on try 2 in 41 min`."""
    ended = f"exit {result.exit_code}" if result.outcome == "exited" else result.outcome
    if result.outcome == "over budget":
        ended = f"stopped by its budget ({budget or 'max_cost is reached'})"
    trouble = f" ({result.trouble})" if result.trouble else ""
    again = f" on try {result.tries}" if result.tries > 1 else ""
    return f"{ended}{again} in {text.duration(result.duration_s)}{trouble}"


def stopped_message(budget: str, attempts: list[Attempt], failed: list[tuple[Offer, ProviderError]]) -> str:
    """`stopped by its budget (max_cost of $5.00 is reached) before the job had ended, $4.98`."""
    return f"stopped by its budget ({budget}) before the job had ended, {_cost_and_offers(attempts, failed)}"


def _cost_and_offers(attempts: list[Attempt], failed: list[tuple[Offer, ProviderError]]) -> str:
    cost = text.dollars(sum(one.cost or 0.0 for one in attempts))
    tried = text.counted(len(attempts), "offer") + " tried"
    left = "; NOT confirmed gone yet, reap will keep trying" if any(one.outcome == OWED for one in attempts) else ""
    return cost + (f", {tried} ({failures(failed)})" if failed else "") + left


def failures(failed: list[tuple[Offer, ProviderError]]) -> str:
    """`runpod sold out, vastai boot failed`; equal ones are counted."""
    count = Counter(f"{offer.provider} {error.short}" for offer, error in failed)
    return ", ".join(what if times == 1 else f"{what} {times} times" for what, times in count.items())


def none_served(requirements: Requirements, failed: list[tuple[Offer, ProviderError]], attempts: list[Attempt]) -> str:
    """`No H100:8: 3 offers tried (aws sold out 3 times).`, and what providers said of all that was not just sold out."""
    if all(error.category == "budget" for _, error in failed):
        return f"No {explain.wanted(requirements)} within the budget: {failed[0][1].message}."
    said = f"No {explain.wanted(requirements)}: {text.counted(len(failed), 'offer')} tried ({failures(failed)})."
    reasons: dict[str, list[str]] = defaultdict(list)
    # What a person must mend comes first.
    for offer, error in sorted(failed, key=lambda one: not (one[1].is_loud or one[1].reach == "provider")):
        words = error.message.rstrip(".")
        if error.category != "sold_out" and words not in reasons[offer.provider]:
            reasons[offer.provider].append(words)
    for provider, words in reasons.items():
        more = f"; and {len(words) - SHOWN_REASONS} more" if len(words) > SHOWN_REASONS else ""
        said += f" {provider}: {'; '.join(words[:SHOWN_REASONS])}{more}." if words else ""
    if owed := sum(one.outcome == OWED for one in attempts):
        said += f" {text.counted(owed, 'order')} NOT confirmed gone yet, or never answered: reap will keep trying until the lease ends."
    return said


def all_passed_over(requirements: Requirements, ranked: list[Ranked]) -> str:
    """What is said where all that fits was sold out to some run a moment ago, or failed a run's check; an empty string where that is not why."""
    passed = [one.passed_over_until for one in ranked if one.passed_over_until is not None]
    unfit = [one for one in ranked if one.is_unfit]
    if not passed and unfit:
        hosts = (
            f"the hosts of all {len(unfit)} offers that fit"
            if len(unfit) > 1
            else "the host of the only offer that fits"
        )
        return f"No {explain.wanted(requirements)}: {hosts} failed the machine check of a run of this server within a day: {unfit[0].why}."
    if not passed:
        return ""
    offers = "the only offer was" if len(passed) == 1 else f"all {len(passed)} offers were"
    return (
        f"No {explain.wanted(requirements)}: {offers} sold out to a run of this server a moment ago, and the next is asked for again from"
        f" {text.clock_time(min(passed))} on: max_wait='10m' waits for it."
    )


def absence(seen: Absence) -> str:
    """How it is known that nothing is left, or that it is not known yet."""
    if seen.is_gone:
        return f"gone: {seen.evidence}"
    return f"NOT confirmed gone yet ({seen.evidence}): reap will keep trying"


def ready_at(instance: Instance, host_key: str) -> str:
    """How the machine is reached and why it is trusted."""
    if instance.ssh is None:
        return "by the provider's own channel"
    known = {
        "placed": "host key known beforehand",
        "by_logs": "host key read from the provider's log",
        "first_use": "host key PINNED ON FIRST USE",
    }
    certainty = "host key known beforehand" if instance.ssh.host_key else known.get(host_key, "")
    return f"ssh {instance.ssh.host}:{instance.ssh.port}, {certainty}"
