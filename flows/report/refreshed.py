"""What a refresh of the catalog did, as data: of the flow's final state, and what programs read."""

from __future__ import annotations

from datetime import datetime

from prefect_gpu.flows.report import prices
from prefect_gpu.providers.core.catalog.findings import DOUBTS
from prefect_gpu.providers.core.catalog.refresh import Outcome, Refreshed
from prefect_gpu.providers.core.models import Model


class OfProvider(Model):
    """One provider's prices: `new` and the others are None where there were none to compare with."""

    provider: str
    outcome: Outcome
    offers: int
    collected_at: datetime | None
    new: int | None = None
    gone: int | None = None
    up: int | None = None
    down: int | None = None
    held_back: int = 0  # collected and not offered, because they look wrong
    trouble: str = ""
    line: str


class Catalog(Model):
    """All providers of one refresh."""

    message: str
    providers: tuple[OfProvider, ...]

    def line(self, provider: str) -> str:
        return next(one.line for one in self.providers if one.provider == provider)


def catalog(results: list[Refreshed]) -> Catalog:
    """The sentence, and what came of each provider."""
    kept = [result for result in results if result.outcome == "kept"]
    message = f"{len(results) - len(kept)} of {prices.text.counted(len(results), 'provider')} refreshed"
    if told := prices.lines(kept):
        message += ": " + "; ".join(told[:3]) + ("; ..." if len(told) > 3 else "")
    return Catalog(message=message, providers=tuple(_of(result) for result in results))


def _of(result: Refreshed) -> OfProvider:
    change = result.changes
    counted = {"new": change.new, "gone": change.gone, "up": change.up, "down": change.down} if change else {}
    return OfProvider(
        provider=result.provider,
        outcome=result.outcome,
        offers=result.offers,
        collected_at=result.collected_at,
        **counted,
        held_back=sum(finding.count for finding in result.findings if finding.rule in DOUBTS),
        trouble=result.trouble or "",
        line=prices.line(result),
    )
