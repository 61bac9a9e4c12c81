"""Whether an offer is what the job needs: each field of Requirements, and that none is forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_gpu.providers.core.gpu.matching import alternative, fits, normalised, same_gpu, why_not
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import Offer
from prefect_gpu.providers.core.requests import GpuRequest, Requirements, Spot


def offer(**changed: object) -> Offer:
    whole = {
        "provider": "vultr", "instance_type": "h100.8", "region": "ewr", "zone": "ewr-1", "country": "US", "price": 20.0, "spot": False,
        "cpu": 96, "memory_gb": 960, "disk_gb": 500, "arch": "x86_64", "gpu_name": "H100", "gpu_count": 8, "gpu_memory_gb": 80,
        "gpu_vendor": "nvidia",
    }  # fmt: skip
    return Offer.model_validate(whole | changed)


NO_GPU = {"gpu_name": None, "gpu_count": 0, "gpu_memory_gb": None, "gpu_vendor": None}

# field of Requirements -> (value, an offer that meets it, one that does not), as changes of the offer above
CASES: dict[str, list[tuple[object, dict[str, object], dict[str, object]]]] = {
    "gpu": [
        (parse_gpu("H100:8"), {}, {"gpu_count": 4}),
        (parse_gpu("H100:8"), {}, {"gpu_count": 16}),
        (parse_gpu("H100:8"), {}, NO_GPU),
        (parse_gpu("H100:8"), {}, {"gpu_name": "H100NVL"}),
        (
            parse_gpu("A100:80GB"),
            {"gpu_name": "A100", "gpu_count": 1},
            {"gpu_name": "A100", "gpu_count": 1, "gpu_memory_gb": 40},
        ),
        (parse_gpu("24GB.."), {"gpu_count": 1}, {"gpu_count": 1, "gpu_memory_gb": 16}),
        (parse_gpu("640GB.. total"), {}, {"gpu_count": 4}),
        (parse_gpu("H100:8|A100:8"), {"gpu_name": "A100"}, {"gpu_name": "L4"}),
        (parse_gpu(".."), {"gpu_name": "Anything", "gpu_count": 1, "gpu_memory_gb": None}, NO_GPU),
        ((GpuRequest(count_min=2, count_max=4),), {"gpu_count": 3}, {"gpu_count": 5}),
        ((GpuRequest(memory_min_gb=80),), {"gpu_memory_gb": 79.65}, {"gpu_memory_gb": None}),
        ((GpuRequest(total_memory_max_gb=100),), {"gpu_count": 1}, {}),
    ],
    "max_price": [(20.0, {}, {"price": 20.01})],
    "spot": [
        (Spot.ON_DEMAND, {}, {"spot": True}),
        (Spot.SPOT, {"spot": True}, {}),
    ],
    "cpu": [(96, {}, {"cpu": 95}), (1, {}, {"cpu": None})],
    "memory_gb": [(960, {}, {"memory_gb": 959}), (1, {}, {"memory_gb": None})],
    "disk_gb": [(500, {}, {"disk_gb": 499}), (500, {"disk_gb": None}, {"disk_gb": 1})],
    "arch": [("arm64", {"arch": "arm64"}, {}), ("arm64", {"arch": None}, {"arch": "x86_64"})],
    "gpu_vendor": [("nvidia", {}, {"gpu_vendor": "amd"}), ("nvidia", {}, NO_GPU), ("nvidia", {}, {"gpu_vendor": None})],
    "min_cuda": [
        (12.4, {"raw": {"cuda": 12.4}}, {"raw": {"cuda": 12.2}}),
        (12.4, {}, NO_GPU),
        (12.4, {}, {"gpu_vendor": "amd"}),
    ],
    "min_compute_capability": [
        (9.0, {}, {"gpu_name": "A100"}),
        (9.0, {"gpu_name": "B200"}, {"gpu_name": "NoSuchGpu"}),
        (8.0, {"gpu_name": "NVIDIA A100 80GB PCIe"}, NO_GPU),
    ],
    "regions": [(("EWR",), {}, {"region": "ams"}), (("ewr", "ams"), {"region": "ams"}, {"region": "fra"})],
    "exclude_regions": [(("ams",), {}, {"region": "AMS"})],
    "zones": [(("ewr-1",), {}, {"zone": None}), (("ewr-1",), {}, {"zone": "ewr-2"})],
    "exclude_zones": [(("ewr-2",), {"zone": None}, {"zone": "ewr-2"})],
    "countries": [(("us",), {}, {"country": None}), (("US", "DE"), {"country": "DE"}, {"country": "FR"})],
    "exclude_countries": [
        (("CN",), {"country": "US"}, {"country": "CN"}),
        (("CN",), {"country": "US"}, {"country": None}),  # it may be there
    ],
    "trust": [
        ("verified", {}, {"trust": "any"}),
        ("verified", {"trust": "verified"}, {"trust": "any"}),
        ("secure", {"trust": "secure"}, {"trust": "verified"}),
        ("secure", {"trust": None}, {"trust": "any"}),
    ],
}
# How the instance is reached is decided at create; `nearest` says which offers are asked for.
NOT_ABOUT_OFFERS = {"network", "nearest"}


def test_every_field_of_requirements_has_a_case():
    assert set(CASES) | NOT_ABOUT_OFFERS == set(Requirements.model_fields)


@pytest.mark.parametrize(
    ("field", "value", "met", "missed"),
    [(field, *case) for field, cases in CASES.items() for case in cases],
)
def test_a_bound_is_met_or_named_with_what_the_offer_has(field, value, met, missed):
    requirements = Requirements.model_validate({"spot": Spot.EITHER, field: value})
    assert why_not(offer(**met), requirements) is None
    reason = why_not(offer(**missed), requirements)
    assert reason
    assert not fits(offer(**missed), requirements)


def test_a_host_that_is_not_trusted_enough_says_why_it_is_not():
    wants_secure = Requirements(trust="secure")
    assert why_not(offer(trust="any"), wants_secure) == (
        "its host is a stranger's, and nobody has checked it: trust=secure is asked for"
    )
    assert why_not(offer(trust="verified"), wants_secure) == (
        "its host is verified, but in no secure data centre: trust=secure is asked for"
    )
    assert fits(offer(trust="any"), Requirements())


UNSEEN = {**NO_GPU, "cpu": None, "memory_gb": None, "disk_gb": None, "arch": None, "is_unseen": True}


@pytest.mark.parametrize("field", sorted(set(CASES) - {"max_price", "spot", "trust"}))
def test_of_a_machine_that_could_not_be_looked_at_only_what_is_known_is_judged(field):
    is_place = field.removeprefix("exclude_") in {"regions", "zones", "countries"}
    for value, met, missed in CASES[field]:
        requirements = Requirements.model_validate({"spot": Spot.EITHER, field: value})
        assert fits(offer(**met | UNSEEN), requirements)
        if is_place:
            assert not fits(offer(**missed | UNSEEN), requirements)
    assert not fits(offer(**UNSEEN, price=3.0), Requirements(max_price=2.0))
    assert not fits(offer(**UNSEEN | {"cpu": 4}), Requirements(cpu=8)), "this much is known"


def test_the_nearest_is_the_same_gpu_whatever_else_was_asked_for():
    asked = Requirements(gpu=parse_gpu("A100:80GB:9"), cpu=200, memory_gb=9000, disk_gb=900, regions=("mars",))
    nearest = asked.to_nearest()
    assert fits(offer(gpu_name="A100", gpu_memory_gb=40, spot=True), nearest)
    assert not fits(offer(gpu_name="H100"), nearest)
    assert nearest.disk_gb == 900, "who sizes a disk by the order sizes it by this"
    assert not fits(offer(**NO_GPU), Requirements(gpu_vendor="nvidia", cpu=200).to_nearest())
    assert fits(offer(**NO_GPU), Requirements(cpu=200).to_nearest())


def test_a_job_without_wishes_takes_any_on_demand_offer():
    assert fits(offer(), Requirements())
    assert fits(
        offer(**NO_GPU, cpu=None, memory_gb=None, disk_gb=None, arch=None, country=None, zone=None), Requirements()
    )


def test_the_alternative_that_an_offer_meets_is_counted_in_the_order_they_were_written():
    requirements = Requirements(gpu=parse_gpu("H100:8|A100:8"))
    assert alternative(offer(), requirements) == 0
    assert alternative(offer(gpu_name="A100"), requirements) == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("RTX 4090", "rtx4090", True),
        ("rtx-4090", "RTX4090", True),
        ("RTXA6000", "A6000", True),
        ("A10", "A100", False),
        ("A10", "A10G", False),
        ("L40", "L40S", False),
        ("RTX6000", "RTX6000Ada", False),
        ("H100", "GH100", False),
    ],
)
def test_gpu_names_are_compared_by_what_they_name_and_not_by_how_they_begin(one, other, same):
    assert same_gpu(one, other) is same
    assert same_gpu(other, one) is same


@given(st.text(max_size=40))
def test_normalising_a_name_twice_is_normalising_it_once_or_removes_rtx(name):
    once = normalised(name)
    assert normalised(once) == once
    assert once == once.lower()


bounds = st.one_of(st.none(), st.floats(1, 1000))


@given(
    low=bounds,
    high=bounds,
    memory=st.one_of(st.none(), st.floats(1, 1000)),
    count=st.integers(1, 16),
    least=st.integers(1, 16),
    most=st.one_of(st.none(), st.integers(1, 16)),
)
def test_a_tighter_request_never_fits_more(low, high, memory, count, least, most):
    """Each bound only takes offers away."""
    some = offer(gpu_memory_gb=memory, gpu_count=count)
    tight = GpuRequest(count_min=least, count_max=most, memory_min_gb=low, memory_max_gb=high)
    if fits(some, Requirements(gpu=(tight,))):
        for looser in ({"count_min": 1}, {"count_max": None}, {"memory_min_gb": None}, {"memory_max_gb": None}):
            assert fits(some, Requirements(gpu=(tight.model_copy(update=looser),)))
    assert fits(some, Requirements(gpu=(tight, GpuRequest())))  # an alternative that takes any
