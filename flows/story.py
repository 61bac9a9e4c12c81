"""How a run tells its story: the lines of its six steps, the artifacts that a person reads, the message of its final state."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta

from flows.ranking import Ranked
from flows.record import GONE, OWED, Attempt
from providers.core import explain
from providers.core.errors import ProviderError
from providers.core.models import Instance, JobResult, Offer, Requirements, utc_now
from providers.core.orders import Absence

WIDTH = 78  # a line with its seconds at the right edge
INDENT = " " * 13
SHOWN_OFFERS = 8
OLD_PRICES = timedelta(hours=24)  # refresh-catalog runs every hour


def step(number: int, name: str, text: str, seconds: float | None = None) -> str:
    """`3 create     pg-..., lease until 10:17    0.2 s`."""
    return timed(f"{number} {name:<10} {text}", seconds)


def more(text: str, seconds: float | None = None) -> str:
    """A further line of the same step."""
    return timed(INDENT + text, seconds)


def timed(line: str, seconds: float | None) -> str:
    """The line with its seconds at the right edge."""
    if seconds is None:
        return line
    return f"{line:<{WIDTH - 9}} {duration(seconds):>8}"


def duration(seconds: float) -> str:
    """`0.4 s`, `41 min`, `2 h 05 min`, `3 days`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 48 * 60 else f"{minutes / 60 / 24:.0f} days"


def clock_time(moment: datetime) -> str:
    """The time of day where the worker is, with the day where it is not today."""
    local = moment.astimezone()
    far = local - datetime.now().astimezone() > timedelta(hours=18)
    return local.strftime("%a %H:%M" if far else "%H:%M")


def dollars(amount: float) -> str:
    """`$13.61`; four places below ten cents, where two would say nothing."""
    return f"${amount:.4f}" if 0.00005 <= amount < 0.1 else f"${amount:.2f}"


def counted(number: int, noun: str) -> str:
    """`1 offer`, `3 offers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def asked(providers: int, silent: int) -> str:
    """Who was asked for offers, and how many answered."""
    return f"{counted(providers, 'provider')} asked, {providers - silent} answered (make providers: all)"


def priced(offer: Offer) -> str:
    """When the offer's price was collected: `now` where it is the provider's own word, `2 h 05 min ago`."""
    return "now" if offer.priced_at is None else f"{duration((utc_now() - offer.priced_at).total_seconds())} ago"


def old_prices(offers: list[Offer]) -> str:
    """`the prices of aws are 3 days old: make refresh`, where refreshes fail or never ran; else an empty string."""
    oldest: dict[str, datetime] = {}
    for offer in offers:
        if offer.priced_at is not None and utc_now() - offer.priced_at > OLD_PRICES:
            oldest[offer.provider] = min(offer.priced_at, oldest.get(offer.provider, offer.priced_at))
    if not oldest:
        return ""
    age = duration((utc_now() - min(oldest.values())).total_seconds())
    return f"the prices of {', '.join(sorted(oldest))} are {age} old: `make refresh` collects them anew"


def offers_table(offers: list[Offer]) -> list[str]:
    """The first offers in the order they are tried, in columns."""
    rows = [("#", "provider", "machine", "gpu", "spot", "$/h")]
    for rank, offer in enumerate(offers[:SHOWN_OFFERS], start=1):
        place = "" if offer.provider == "local" else f" {offer.scope}"
        rows.append(
            (
                str(rank),
                offer.provider,
                offer.instance_type + place,
                offer.gpu,
                "yes" if offer.spot else "no",
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
    return lines


def offers_markdown(
    requirements: Requirements,
    ranked: list[Ranked],
    attempts: list[Attempt],
    failed: list[tuple[Offer, ProviderError]],
    troubles: dict[str, ProviderError],
) -> str:
    """The artifact `offers`: in the order they are tried, what came of each, and why the others were not tried."""
    tried = {(attempt.provider, attempt.machine, attempt.scope, attempt.spot): attempt for attempt in attempts}
    lines = [
        f"# Offers for {explain.wanted(requirements)}",
        "",
        "| # | provider | machine | where | GPU | spot | $/h | priced | what came of it |",
        "|--:|---|---|---|---|---|--:|---|---|",
    ]
    buyable = [one for one in ranked if one.is_buyable]
    for one in buyable[:50]:
        offer = one.offer
        attempt = tried.get((offer.provider, offer.instance_type, offer.scope, offer.spot))
        ruled_out = next((error.short for other, error in failed if error.rules_out(other, offer)), None)
        if attempt is not None:
            came_of_it = _came_of_it(attempt)
        elif ruled_out is not None:
            came_of_it = f"passed over: {ruled_out}"
        else:
            came_of_it = f"not tried: {one.why}"
        lines.append(_offer_row(str(one.rank), offer, came_of_it))
    if len(buyable) > 50:
        lines.append(f"| | | and {len(buyable) - 50} more | | | | | | |")
    lines += [_offer_row("-", one.offer, one.why) for one in ranked if not one.is_buyable][:20]
    lines += [f"| - | {name} | | | | | | | did not answer: {_cell(why.message)} |" for name, why in troubles.items()]
    return "\n".join(lines)


def _offer_row(rank: str, offer: Offer, came_of_it: str) -> str:
    spot = "yes" if offer.spot else "no"
    return f"| {rank} | {offer.provider} | {_cell(offer.instance_type)} | {_cell(offer.scope)} | {offer.gpu} | {spot} | {offer.price:.2f} | {priced(offer)} | {_cell(came_of_it)} |"


def _came_of_it(attempt: Attempt) -> str:
    if attempt.outcome == GONE:
        return "used, and given back"
    return f"{attempt.outcome}: {attempt.why}" if attempt.why else attempt.outcome


def result_markdown(message: str, result: JobResult | None, attempts: list[Attempt]) -> str:
    """The artifact `result-<run id>`: how it ended, where it ran, how long, what it cost."""
    lines = [f"# {message}", ""]
    if result is not None:
        lines += [
            "| | |",
            "|---|---|",
            f"| exit code | {result.exit_code if result.exit_code is not None else result.outcome} |",
            f"| job | {duration(result.duration_s)} |",
            f"| output | {result.log_bytes:,} bytes |",
        ]
        if result.trouble:
            lines.append(f"| trouble | {_cell(result.trouble)} |")
        if result.stored_under:
            lines.append(f"| log and results | `{result.stored_under}`: `job.log`, `outputs/` |")
        lines += [f"| file | `{name}` |" for name in result.outputs[:50]]
        lines.append("")
    lines += ["| # | provider | machine | where | $/h | cost | what came of it |", "|--:|---|---|---|--:|--:|---|"]
    lines += [
        f"| {number} | {one.provider} | {_cell(one.machine)} | {_cell(one.scope)} | {one.price:.2f} | {dollars(one.cost or 0.0)} | {_cell(_came_of_it(one))} |"
        for number, one in enumerate(attempts, start=1)
    ]
    return "\n".join(lines)


def final_message(result: JobResult, attempts: list[Attempt], failed: list[tuple[Offer, ProviderError]]) -> str:
    """`exit 0 in 41 min, $13.61, 3 offers tried (runpod sold out, vastai boot failed)`."""
    ended = f"exit {result.exit_code}" if result.outcome == "exited" else result.outcome
    trouble = f" ({result.trouble})" if result.trouble else ""
    cost = dollars(sum(one.cost or 0.0 for one in attempts))
    tried = counted(len(attempts), "offer") + " tried"
    left = "; NOT seen gone yet, reap goes on" if any(one.outcome == OWED for one in attempts) else ""
    return (
        f"{ended} in {duration(result.duration_s)}{trouble}, {cost}"
        + (f", {tried} ({failures(failed)})" if failed else "")
        + left
    )


def failures(failed: list[tuple[Offer, ProviderError]]) -> str:
    """`runpod sold out, vastai boot failed`; equal ones are counted."""
    count = Counter(f"{offer.provider} {error.short}" for offer, error in failed)
    return ", ".join(what if times == 1 else f"{what} {times} times" for what, times in count.items())


def none_served(requirements: Requirements, failed: list[tuple[Offer, ProviderError]], attempts: list[Attempt]) -> str:
    """`No H100:8: 3 offers tried (aws sold out 3 times).`, and the words of a provider that refused for good."""
    text = f"No {explain.wanted(requirements)}: {counted(len(failed), 'offer')} tried ({failures(failed)})."
    # What a person must mend.
    for_good = {offer.provider: error for offer, error in failed if error.reach == "provider"}
    text += "".join(f" {provider}: {error.message.rstrip('.')}." for provider, error in for_good.items())
    if owed := sum(one.outcome == OWED for one in attempts):
        text += (
            f" {counted(owed, 'order')} owed: not seen gone yet, or never answered; reap watches until the lease ends."
        )
    return text


def absence(seen: Absence) -> str:
    """How it is known that nothing is left, or that it is not known yet."""
    if seen.is_gone:
        return f"gone: {seen.evidence}"
    return f"NOT seen gone yet ({seen.evidence}): reap goes on"


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


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
