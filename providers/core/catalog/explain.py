"""Why there is no such offer, and the nearest thing that there is: `No H100:8 under $20/h. Cheapest $23.12 lambdalabs. Also A100:8 $11.20.`"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from prefect_gpu.providers.core.catalog import facts, query, store
from prefect_gpu.providers.core.catalog.filters import Filters
from prefect_gpu.providers.core.gpu import matching
from prefect_gpu.providers.core.models import Availability, Offer
from prefect_gpu.providers.core.requests import GpuRequest, Requirements, Spot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_REASONS: Final = 3  # of one provider
_SIZES: Final = {
    "cpu": ("cores", "an unknown number of cores"),
    "memory_gb": ("GB of memory", "an unknown amount of memory"),
    "disk_gb": ("GB of disk", "an unknown amount of disk"),
}
_PLACES: Final = {
    "regions": (),
    "exclude_regions": (),
    "zones": (),
    "exclude_zones": (),
    "countries": (),
    "exclude_countries": (),
}


def explain(requirements: Requirements, providers: Sequence[str], seen: Sequence[Offer] = ()) -> str:
    """Say what is missing and what is nearest, from the price lists of these providers and from offers that were seen.

    `seen` may hold offers that do not fit: that they are too dear, or elsewhere, is what this says.
    """
    return " ".join([_missing(requirements), *_nearest(requirements, providers, seen), *unseen(requirements, seen)])


def unseen(requirements: Requirements, seen: Sequence[Offer]) -> list[str]:
    """What could not be looked at, which may be what was asked for, and why: a sentence for each provider, alarms first."""
    doubtful = [offer for offer in seen if offer.is_unseen and matching.fits(offer, requirements)]
    return _reasons(sorted(doubtful, key=lambda offer: not offer.is_alarm))


def wanted(requirements: Requirements) -> str:
    """What was asked for, as a person says it: `H100:8 spot under $20/h in eu-west-1`."""
    gpu = " or ".join(request.text or _text(request) for request in requirements.gpu) or "machine"
    spot = " spot" if requirements.spot is Spot.SPOT else ""
    price = f" under {dollars(requirements.max_price)}/h" if requirements.max_price is not None else ""
    where = " or ".join((*requirements.zones, *requirements.regions, *requirements.countries)[:3])
    host = {"any": "", "verified": " on verified hosts", "secure": " on secure hosts"}[requirements.trust]
    return f"{gpu}{spot}{price}{f' in {where}' if where else ''}{host}"


def dollars(price: float) -> str:
    """`$20`, `$23.12`, `$0.0045`."""
    if price == int(price):
        return f"${price:.0f}"
    return f"${price:.4f}" if price < 0.1 else f"${price:.2f}"


def _missing(requirements: Requirements) -> str:
    return f"No {wanted(requirements)}."


def _nearest(requirements: Requirements, providers: Sequence[str], seen: Sequence[Offer]) -> list[str]:
    known = [name for name in providers if store.opened(name)]

    def cheapest(looser: Requirements) -> Offer | None:
        listed = [
            offer
            for request in looser.gpu or (None,)
            for offer in query.query(query.filters(looser, request), _trusted(known, looser), limit=1)
        ]
        return min([*listed, *live(looser)], key=lambda offer: offer.price, default=None)

    def live(looser: Requirements) -> list[Offer]:
        return [offer for offer in seen if not offer.is_unseen and matching.fits(offer, looser)]

    sentences = _why_unavailable(requirements, seen)
    no_limit = requirements.model_copy(update={"max_price": None})
    if sentences:
        return sentences
    if requirements.max_price is not None and (offer := cheapest(no_limit)):
        sentences.append(f"Cheapest {dollars(offer.price)} {_where(offer)}.")
    elif offer := cheapest(requirements):
        # Priced, and still not offered: the price list does not know stock.
        what = f"The price list has it for {dollars(offer.price)} at {_where(offer)}, where it is not available now."
        sentences.append(what)
    else:
        sentences += _without_one_bound(requirements, cheapest, live)
    if not sentences:
        sentences += _counts(requirements, providers, known, seen)
    return sentences + _also(requirements, known)


def _without_one_bound(
    requirements: Requirements,
    cheapest: Callable[[Requirements], Offer | None],
    live: Callable[[Requirements], list[Offer]],
) -> list[str]:
    """The bound that alone stands in the way, if it is one."""
    bounds: list[tuple[str, bool, dict[str, object]]] = [
        ("As spot", requirements.spot is Spot.ON_DEMAND, {"spot": Spot.SPOT}),
        ("On-demand", requirements.spot is Spot.SPOT, {"spot": Spot.ON_DEMAND}),
        ("On any host", requirements.trust != "any", {"trust": "any"}),
        ("Elsewhere", any(getattr(requirements, name) for name in _PLACES), dict(_PLACES)),
        (f"With fewer than {requirements.cpu} cores", requirements.cpu is not None, {"cpu": None}),
        (
            f"With less than {requirements.memory_gb or 0:g} GB of memory",
            requirements.memory_gb is not None,
            {"memory_gb": None},
        ),
        (
            f"With less than {requirements.disk_gb or 0:g} GB of disk",
            requirements.disk_gb is not None,
            {"disk_gb": None},
        ),
        ("With another CPU architecture", requirements.arch is not None, {"arch": None}),
        (f"Not from {requirements.gpu_vendor}", requirements.gpu_vendor is not None, {"gpu_vendor": None}),
        (
            f"Below compute capability {requirements.min_compute_capability or 0:g}",
            requirements.min_compute_capability is not None,
            {"min_compute_capability": None},
        ),
        (
            f"With a driver below CUDA {requirements.min_cuda or 0:g}",
            requirements.min_cuda is not None,
            {"min_cuda": None},
        ),
    ]
    no_limit = requirements.model_copy(update={"max_price": None})
    for without_it, is_set, without in bounds:
        looser = no_limit.model_copy(update=without)
        if is_set and (offer := cheapest(looser)):
            what, size = without_it, next((name for name in without if name in _SIZES), None)
            if size and (seen := live(looser)):  # of what there is the largest is nearest
                offer = max(seen, key=lambda one: getattr(one, size) or 0.0)
                has = getattr(offer, size)
                what = f"With at most {has:g} {_SIZES[size][0]}" if has is not None else f"With {_SIZES[size][1]}"
            gpu = offer.gpu if offer.gpu_count else offer.instance_type
            return [f"{what}: {gpu} {dollars(offer.price)} {_where(offer)}."]
    return []


def _why_unavailable(requirements: Requirements, seen: Sequence[Offer]) -> list[str]:
    """What providers say of offers that would fit, where none of them is available."""
    fitting = [offer for offer in seen if not offer.is_unseen and matching.fits(offer, requirements)]
    if any(offer.availability is not Availability.UNAVAILABLE for offer in fitting):
        return []
    return _reasons(fitting)


def _reasons(offers: Sequence[Offer]) -> list[str]:
    """Why these are not to be had, a sentence for each provider."""
    reasons: dict[str, dict[str, None]] = {}
    for offer in offers:
        reasons.setdefault(offer.provider, {})[offer.unavailable_because or "not available now"] = None
    return [
        f"{provider}: {'; '.join([*said][:_REASONS])}{f'; and {len(said) - _REASONS} more' if len(said) > _REASONS else ''}."
        for provider, said in reasons.items()
    ]


def _counts(
    requirements: Requirements, providers: Sequence[str], known: Sequence[str], seen: Sequence[Offer]
) -> list[str]:
    """What numbers and sizes of these GPUs one machine has, in price lists and live, where that is what stands in the way."""
    unknown = {offer.provider for offer in seen if offer.is_unseen}  # what those have is not known
    providers = [name for name in providers if name not in unknown]
    for request in requirements.gpu:
        if not request.names:
            continue
        having = Filters(gpu_name=request.names, min_gpu_count=1, spot=None)
        live = [
            offer
            for offer in seen
            if offer.gpu_name and any(matching.same_gpu(name, offer.gpu_name) for name in request.names)
        ]
        counts_of: dict[str, set[int]] = {
            name: set(snapshot.gpu_counts(having)) for name in known if (snapshot := store.opened(name))
        }
        for offer in live:
            counts_of.setdefault(offer.provider, set()).add(offer.gpu_count)
        counts = sorted(set[int]().union(*counts_of.values()) - {0})
        gpu = " or ".join(request.names)
        if not counts:
            several = f"None of {', '.join(providers)} has {gpu}."
            return [several if len(providers) > 1 else f"{providers[0]} has no {gpu}."] if providers else []
        sizes = sorted({offer.gpu_memory_gb for offer in live if offer.gpu_memory_gb})
        if sizes and not any((request.memory_min_gb or 0) <= size <= (request.memory_max_gb or size) for size in sizes):
            return [f"{gpu} comes with {_or([f'{size:g}' for size in sizes])} GB here."]
        if request.count_min > counts[-1]:
            most = [
                f"{name} has {gpu}, at most {max(has)} in one machine" for name, has in counts_of.items() if any(has)
            ]
            return [f"{'; '.join(most[:_REASONS])}."]
        if not any(request.count_min <= count <= (request.count_max or count) for count in counts):
            return [f"{gpu} comes with {_or(counts)} in one machine."]
    return []


def _also(requirements: Requirements, known: Sequence[str]) -> list[str]:
    """Another GPU, as many, with at least three quarters of the memory, for the same requirements."""
    first = requirements.gpu[0] if requirements.gpu else None
    if first is None or not first.names:
        return []
    snapshots = [snapshot for name in _trusted(known, requirements) if (snapshot := store.opened(name))]
    asked = Filters(gpu_name=first.names, min_gpu_count=1)
    memory = max((snapshot.largest_gpu_memory(asked) for snapshot in snapshots), default=0.0)
    other = query.filters(requirements.model_copy(update={"gpu": ()}), None)
    other = replace(
        other,
        min_gpu_count=first.count_min,
        max_gpu_count=first.count_max,
        min_gpu_memory=0.75 * memory,
    )
    asked_names = {name.lower() for request in requirements.gpu for name in request.names}
    cheapest: dict[str, Offer] = {}
    for offer in query.query(other, _trusted(known, requirements), limit=200):
        if offer.gpu_name and offer.gpu_name.lower() not in asked_names:
            cheapest.setdefault(offer.gpu_name, offer)
    named = [f"{offer.gpu} {dollars(offer.price)}" for offer in list(cheapest.values())[:2]]
    return [f"Also {' and '.join(named)}."] if named else []


def _trusted(providers: Sequence[str], requirements: Requirements) -> list[str]:
    """Those whose price lists hold hosts that are trusted enough."""
    return [name for name in providers if matching.is_trusted(facts.of(name).trust, requirements)]


def _where(offer: Offer) -> str:
    return offer.provider if offer.provider == "local" else f"{offer.provider} {offer.scope}".strip()


def _or(numbers: Sequence[object]) -> str:
    texts = [str(number) for number in numbers]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def _text(request: GpuRequest) -> str:
    names = ",".join(request.names) or "any GPU"
    return names if request.count_min == request.count_max == 1 else f"{names}:{request.count_min}"
