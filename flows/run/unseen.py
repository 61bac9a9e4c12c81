"""What a search did not find: what could not be looked at, and what there is instead where nothing fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from prefect_gpu import providers as registry
from prefect_gpu.flows.run import offers as asking
from prefect_gpu.flows.run import story
from prefect_gpu.providers import ProviderName
from prefect_gpu.providers.core.aside import never
from prefect_gpu.providers.core.catalog import explain
from prefect_gpu.providers.core.errors import ProviderError, offer_key
from prefect_gpu.providers.core.gpu import matching
from prefect_gpu.providers.core.models import Offer
from prefect_gpu.providers.core.requests import Requirements

if TYPE_CHECKING:
    from prefect_gpu.flows.run.execution import Run

SHOWN: Final = 8


def with_nearest(
    offers: list[Offer],
    names: Sequence[ProviderName],
    requirements: Requirements,
    account: str | Mapping[str, str],
    troubles: Mapping[str, ProviderError],
    should_stop: Callable[[], str | None] = never,
) -> list[Offer]:
    """The offers; where none fits, also the nearest of those whose machines no price list holds, asked for once: so it is known what there is."""
    if any(not one.is_unseen and matching.fits(one, requirements) for one in offers):
        return offers
    live = [
        name for name in names if str(name) not in troubles and not registry.library(name).capabilities.needs_catalog
    ]
    nearest, _ = asking.ask_again(live, requirements.to_nearest(), account, should_stop)
    known = {offer_key(one) for one in offers}
    return [*offers, *(one for one in nearest if offer_key(one) not in known)]


def lines(offers: Sequence[Offer]) -> list[str]:
    """What could not be looked at and why, alarms first."""
    doubtful = sorted((one for one in offers if one.is_unseen), key=lambda one: not one.is_alarm)
    said = [_line(one) for one in doubtful]
    return [*said[:SHOWN], *([f"and {len(said) - SHOWN} more that could not be looked at"] if said[SHOWN:] else [])]


def alarms(offers: Sequence[Offer]) -> list[str]:
    """What somebody must look at whatever else serves, each once."""
    return list(dict.fromkeys(_line(one) for one in offers if one.is_alarm))


def tell(run: Run, offers: Sequence[Offer], *, is_first: bool = True) -> None:
    """In the run's log; an alarm is a warning, and said once."""
    if is_first:
        for line in lines(offers):
            run.say(story.more(line))
    for line in alarms(offers):
        if line not in run.alarms:
            run.alarms.add(line)
            run.log.warning("%s", line)


def ending(run: Run) -> str:
    """The same for the final message of a run that no offer served, where it is not said already."""
    said = explain.unseen(run.requirements, [one.offer for one in run.ranked])
    return "".join(f" {sentence}" for sentence in said)


def _line(offer: Offer) -> str:
    return f"{offer.provider}: {offer.unavailable_because or 'could not be looked at'}"
