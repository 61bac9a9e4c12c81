"""`plan`: what would be rented, for how much, why in this order; nothing is bought."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from prefect.client.orchestration import get_client

from prefect_gpu import providers as registry
from prefect_gpu.flows.plan import Plan, plan
from prefect_gpu.flows.run import cards
from prefect_gpu.flows.run import offers as asking
from prefect_gpu.flows.run.offers import rank
from prefect_gpu.providers import ProviderName
from prefect_gpu.providers.core.catalog import history, query, store
from prefect_gpu.providers.core.catalog.kinds import Kind, Place, Price
from prefect_gpu.providers.core.contract import Billing, Capabilities
from prefect_gpu.providers.core.errors import AuthFailed
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import Availability, Offer
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.core.requests import Requirements
from tests.fakes.reference import Reference

HOURLY = Billing()
BY_SECOND = Billing(step_s=1, minimum_s=60)


def offer(provider: str, price: float, gpu: str = "H100", count: int = 8, **more: object) -> Offer:
    return Offer(
        **{  # type: ignore[arg-type]
            "provider": provider,
            "instance_type": f"{gpu.lower()}.{count}",
            "region": "r-1",
            "country": "US",
            "price": price,
            "cpu": 96,
            "memory_gb": 1000,
            "gpu_name": gpu,
            "gpu_count": count,
            "gpu_memory_gb": 80,
            "gpu_vendor": "nvidia",
            **more,
        }
    )


# --- ranking ----------------------------------------------------------------------------------------------------------


def ranked(
    offers: list[Offer], hours: float = 1.0, billing: dict[str, Billing] | None = None, **asked: object
) -> list[tuple[Any, ...]]:
    gpu = str(asked.pop("gpu", "H100:8"))
    requirements = Requirements(gpu=parse_gpu(gpu), **asked)  # type: ignore[arg-type]
    found = rank(offers, requirements, hours, lambda name: (billing or {}).get(name, HOURLY))
    return [(one.rank, one.offer.provider, round(one.stay_cost, 2), one.why) for one in found]


def test_offers_stand_in_the_order_of_what_the_stay_costs() -> None:
    by = {"minute": Billing(step_s=60, minimum_s=60), "hour": HOURLY}
    offers = [offer("hour", 20.0), offer("minute", 22.0)]
    assert ranked(offers, 1.0, by) == [
        (1, "hour", 20.0, "the cheapest that fits"),
        (2, "minute", 22.0, "+10 % for the stay"),
    ]
    assert ranked(offers, 0.25, by) == [
        (1, "minute", 5.5, "the cheapest that fits"),
        (2, "hour", 20.0, "+264 %: billed for at least 1 h, in steps of 1 h"),
    ]
    assert [name for _, name, *_ in ranked(offers, 1.5, by)] == ["minute", "hour"], "an hour begun is an hour paid"


def test_disk_and_address_count() -> None:
    by = {"bare": BY_SECOND, "extras": Billing(step_s=1, minimum_s=60, hourly_extras=3.0)}
    assert ranked([offer("extras", 20.0), offer("bare", 22.0)], 1.0, by) == [
        (1, "bare", 22.0, "the cheapest that fits"),
        (2, "extras", 23.0, "+5 %: $3.000/h come on top for disk and address"),
    ]


def test_alternatives_stand_as_they_were_written_and_each_says_so() -> None:
    offers = [offer("a", 11.0, "A100"), offer("b", 31.0), offer("c", 12.0, "A100"), offer("d", 31.0)]
    assert ranked(offers, gpu="H100:8|A100:8") == [
        (1, "b", 31.0, "the cheapest that fits"),
        (2, "d", 31.0, "the same price"),
        (3, "a", 11.0, "the cheapest A100:8, which was written after H100:8"),
        (4, "c", 12.0, "+9 % for the stay"),
    ]


def test_what_would_not_be_tried_stands_last_with_its_reason() -> None:
    offers = [
        offer("dear", 25.0),
        offer("gone", 15.0, availability=Availability.UNAVAILABLE, unavailable_because="quota is 0 vCPU in r-1"),
        offer("full", 16.0, availability=Availability.UNAVAILABLE),
        offer("fits", 19.0),
        offer("free", 0.0, count=2),
    ]
    assert ranked(offers, max_price=20.0) == [
        (1, "fits", 19.0, "the cheapest that fits"),
        (None, "free", 0.0, "its GPU is H100:2, not H100:8"),
        (None, "gone", 15.0, "quota is 0 vCPU in r-1"),
        (None, "full", 16.0, "not available now"),
        (None, "dear", 25.0, "$25.00/h is above $20.00"),
    ]


def test_a_free_machine_does_not_divide_by_zero() -> None:
    assert [why for *_, why in ranked([offer("mine", 0.0), offer("paid", 2.0)])] == [
        "the cheapest that fits",
        "$2.00 more for the stay",
    ]


# --- the flow ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def market(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prefect_api: None) -> Callable[..., None]:
    """Makes these the enabled providers; each sells a list, raises, or is called."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))

    def open_market(**sells: object) -> None:
        libraries: dict[str, TaskLibrary[Any]] = {}
        for name, stock in sells.items():
            driver = type(
                name.title(),
                (Reference,),
                {"name": name, "capabilities": Capabilities(), "fetch_offers": _seller(stock)},
            )
            libraries[name] = TaskLibrary(driver)
            libraries[name].connections.drivers["default"] = driver.__new__(driver)
        monkeypatch.setattr(registry, "library", lambda name: libraries[str(name)])
        monkeypatch.setattr(registry, "enabled", lambda _account="default": list(libraries))

    return open_market


def _seller(stock: object) -> Callable[[Any, Requirements], list[Offer]]:
    def fetch_offers(_self: Any, requirements: Requirements) -> list[Offer]:
        assert requirements.max_price is None, "what is just too dear is seen"
        if isinstance(stock, Exception):
            raise stock
        return stock(requirements) if callable(stock) else list(stock)  # type: ignore[call-overload]

    return fetch_offers


def planned(**parameters: Any) -> tuple[Any, Plan]:
    state = plan(return_state=True, **parameters)
    return state, state.result(raise_on_failure=False)


def artifact() -> str:
    question = {"artifacts": {"key": {"any_": ["offers"]}}, "limit": 1}
    with get_client(sync_client=True) as client:
        return client.request("POST", "/artifacts/latest/filter", json=question).json()[0]["data"]


def test_a_plan_says_what_would_be_rented_for_how_much(market: Callable[..., None]) -> None:
    market(
        aws=[offer("aws", 31.0), offer("aws", 30.0, region="r-2")],
        gcp=[offer("gcp", 29.5, zone="r-1-a", priced_at=datetime.now(UTC) - timedelta(hours=2))],
    )
    state, found = planned(gpu="8xH100", hours=2)
    assert state.is_completed()
    assert state.message == "3 offers; cheapest $29.50/h: gcp h100.8 in r-1-a, $59.00 for 2 h"
    assert (found.buyable, found.seen, found.troubles) == (3, 3, {})
    assert [one.offer.price for one in found.offers] == [29.5, 30.0, 31.0]
    text = artifact()
    assert "# Offers for 8xH100" in text
    assert (
        "| 1 | gcp | h100.8 | r-1-a | H100:8 |  | 29.50 | 3.69 | 59.00 | 2 h 00 min ago | the cheapest that fits |"
        in text
    )
    assert "| 3 | aws | h100.8 | r-1 | H100:8 |  | 31.00 | 3.88 | 62.00 | now | +5 % for the stay |" in text
    svg = base64.b64decode(re.search(r"base64,([^)]+)\)", text)[1]).decode()  # type: ignore[index]
    assert ">gcp<" in svg
    assert ">$3.69<" in svg


def test_prices_that_nobody_refreshed_for_days_are_said_to_be_old(market: Callable[..., None]) -> None:
    market(
        aws=[offer("aws", 31.0, priced_at=datetime.now(UTC) - timedelta(days=3))],
        gcp=[offer("gcp", 32.0, priced_at=datetime.now(UTC) - timedelta(hours=23))],
    )
    state, found = planned(gpu="H100:8")
    assert state.message.endswith("; the prices of aws are 3 days old: `prefect-gpu refresh` collects them anew")
    assert "| 3 days ago |" in artifact()
    tried = cards.tried("none", Requirements(), list(found.offers), [], [], {})
    assert "| 31.00 | 3 days ago |" in tried


def test_a_plan_survives_being_stored_as_json(market: Callable[..., None]) -> None:
    market(aws=[offer("aws", 31.0, raw={"ask": 1})])
    _, found = planned(gpu="H100:8")
    assert Plan.model_validate_json(found.model_dump_json()) == found


def test_a_provider_that_is_down_or_slow_or_refuses_is_named_and_holds_up_nobody(
    market: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "PATIENCE_S", 8.0)  # the others have to answer within it, on a busy machine too
    is_over = Event()

    def slow(_: Requirements) -> list[Offer]:
        is_over.wait(15)
        return []

    market(aws=AuthFailed("the key of aws is refused: save another"), gcp=slow, azure=[offer("azure", 9.0)])
    state, found = planned(gpu="H100:8")
    assert state.message == "1 offer; cheapest $9.00/h: azure h100.8 in r-1"
    assert found.troubles == {"aws": "the key of aws is refused: save another", "gcp": "no answer within 8 s"}
    assert "* **aws** did not answer: the key of aws is refused: save another" in artifact()
    is_over.set()


def test_a_price_list_that_is_missing_is_said_and_the_others_are_asked(market: Callable[..., None]) -> None:
    market(aws=lambda asked: query.offers("aws", asked), ssh=[offer("ssh", 0.0, region="here")])
    state, found = planned(gpu="H100:8")
    assert state.message == "1 offer; cheapest $0.00/h: ssh h100.8 in here"
    assert "run `prefect-gpu refresh`" in found.troubles["aws"]
    assert "base64" not in artifact(), "one free machine needs no chart"


def test_without_an_offer_the_message_says_what_is_nearest(market: Callable[..., None]) -> None:
    kind = Kind(
        "p4d.24xlarge", cpu=96, memory_gb=1152, gpu_name="A100", gpu_count=8, gpu_memory_gb=80, gpu_vendor="nvidia"
    )
    store.publish(
        "aws", [Price(kind, Place("us-east-1", None, "US"), 11.2)], collected_at=datetime.now(UTC), source="t"
    )
    market(aws=[], lambdalabs=[offer("lambdalabs", 23.12, region="us-west-1")])
    state, found = planned(gpu="H100:8", max_price=20.0)
    assert state.is_completed()
    assert state.message == "No H100:8 under $20/h. Cheapest $23.12 lambdalabs us-west-1. Also A100:8 $11.20."
    assert found.buyable == 0
    assert "| - | lambdalabs | h100.8 | us-west-1 |" in artifact()


def test_prices_are_seen_without_an_account_and_what_to_type_for_the_cheapest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prefect_api: None
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    state, found = planned(gpu="H100:8")
    assert (
        state.message
        == "No H100:8. local has no H100. No prices were collected here yet: `prefect-gpu refresh` does, and needs no account."
    )
    kind = Kind(
        "p5.48xlarge", cpu=96, memory_gb=1152, gpu_name="H100", gpu_count=8, gpu_memory_gb=80, gpu_vendor="nvidia"
    )
    for provider, price in (("aws", 31.0), ("oci", 20.0)):
        rows = [Price(kind, Place("r-1", None, "US"), price + more) for more in (0, 1, 2, 3)]
        store.publish(provider, rows, collected_at=datetime.now(UTC), source="t")
    state, found = planned(gpu="H100:8")
    assert state.is_completed()
    assert state.message == (
        "No H100:8. local has no H100. Without an account: $31.00/h aws p5.48xlarge in r-1: `prefect-gpu connect aws`."
    )
    assert [(one.offer.provider, one.offer.price) for one in found.market[:4]] == [
        ("oci", 20.0),
        ("oci", 21.0),
        ("oci", 22.0),
        ("aws", 31.0),
    ]
    assert "## Without an account" in artifact()
    assert "| oci | p5.48xlarge | r-1 | H100:8 |  | 20.00 | 2.50 | cannot be rented here yet |" in artifact()
    assert "| aws | p5.48xlarge | r-1 | H100:8 |  | 31.00 | 3.88 | prefect-gpu connect aws |" in artifact()


def test_the_table_is_short_and_has_every_provider(market: Callable[..., None]) -> None:
    market(aws=[offer("aws", 10.0 + n, region=f"r-{n}") for n in range(300)], gcp=[offer("gcp", 400.0)])
    _, found = planned(gpu="H100:8")
    assert (found.buyable, len(found.offers)) == (301, 201)
    rows = [line for line in artifact().splitlines() if re.match(r"\| \d+ \|", line)]
    assert len(rows) == 21
    assert rows[-1].startswith("| 301 | gcp |")
    assert "and 280 more" in artifact()
    assert len(artifact()) < 100_000


def test_the_past_of_the_gpu_is_a_second_chart(market: Callable[..., None]) -> None:
    kind = Kind(
        "p5.48xlarge", cpu=96, memory_gb=1152, gpu_name="H100", gpu_count=8, gpu_memory_gb=80, gpu_vendor="nvidia"
    )
    now = datetime.now(UTC)
    for days in (20, 10, 0):
        rows = [Price(kind, Place("us-east-1", None, "US"), 20.0 + days)]
        history.append("aws", rows, now - timedelta(days=days))
        store.publish("aws", rows, collected_at=now - timedelta(days=days), source="t")
    market(aws=lambda asked: query.offers("aws", asked))
    planned(gpu="H100:8")
    alts = re.findall(r"!\[([^\]]*)\]\(data:image/svg", artifact())
    assert alts == ["USD per GPU-hour: aws from $2.50", "What an H100 cost over 30 days"]


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"gpu": "H1OO:8"}, "there is no GPU called 'H1OO': did you mean H100?"),
        ({"gpu": "H100", "max_price": -1.0}, "max_price is -1"),
        ({"hours": 0}, "hours is 0: write how long the job may take"),
        ({"hours": float("nan")}, "hours is nan"),
        ({"requirements": {"countries": ["Germany"]}}, "write two letters, for example US or DE"),
    ],
)
def test_nonsense_is_refused_before_anybody_is_asked(market: Callable[..., None], parameters: Any, says: str) -> None:
    market(aws=AssertionError("nobody is asked"))
    state = plan(return_state=True, **parameters)
    assert state.is_failed()
    assert says in state.message


def test_an_account_that_one_provider_lacks_is_told_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "enabled", lambda _account: [ProviderName.LOCAL])
    state: Any = plan.fn(providers=[ProviderName.AWS], account={"aws": "x"})
    assert state.message == "no credentials of aws are saved as 'x': run `prefect-gpu connect aws`"


def test_this_machine_alone_needs_no_catalog_and_no_account(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prefect_api: None
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    state, found = planned(providers=[ProviderName.LOCAL])
    assert state.is_completed()
    assert state.message.startswith("1 offer; cheapest $0.00/h: local ")
    assert [one.offer.provider for one in found.offers] == ["local"]
    assert found.troubles == {}
