"""What people write for gpu=, read or refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import gpuhunt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prefect_gpu.providers.core.catalog import query, store
from prefect_gpu.providers.core.catalog.kinds import Kind, Place, Price
from prefect_gpu.providers.core.gpu import accelerators, matching
from prefect_gpu.providers.core.gpu.names import gpu_memory_gb, gpu_name
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import Offer
from prefect_gpu.providers.core.requests import GpuRequest, Requirements


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))


def one(text: str) -> GpuRequest:
    (request,) = parse_gpu(text)
    return request


@pytest.mark.parametrize(
    "text",
    [
        "H100:8",
        "8xH100",
        "8x H100",
        "8 x H100",
        "8 H100",
        "H100x8",
        "H100 x 8",
        "h100:8",
        "nvidia h100:8",
        "8*H100",
        " H100 : 8 ",
    ],
)
def test_eight_h100_may_be_written_in_many_ways(text: str) -> None:
    request = one(text)
    assert (request.names, request.count_min, request.count_max) == (("H100",), 8, 8)
    assert request.text == text.strip()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("h100", "H100"),
        ("4090", "RTX4090"),
        ("RTX 4090", "RTX4090"),
        ("rtx-4090", "RTX4090"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("3090 Ti", "RTX3090Ti"),
        ("RTX A6000", "A6000"),
        ("RTX 6000 Ada Generation", "RTX6000Ada"),
        ("RTX PRO 6000 Blackwell Server Edition", "RTXPRO6000"),
        ("Tesla T4", "T4"),
        ("H100 SXM5", "H100"),
        ("H100 PCIe", "H100"),
        ("H100 NVL", "H100NVL"),
        ("l40s", "L40S"),
        ("AMD Instinct MI300X OAM", "MI300X"),
        ("Gaudi 2", "Gaudi2"),
        ("v5e", "v5litepod"),
        ("TPU v5p", "v5p"),
        ("tpu-v6e", "v6e"),
        ("v5litepod-8", "v5litepod-8"),
        ("v5e-8", "v5litepod-8"),
        ("NVIDIA H20", "H20"),
    ],
)
def test_a_gpu_is_known_by_the_names_people_give_it(text: str, name: str) -> None:
    assert one(text).names == (name,)
    assert (one(text).count_min, one(text).count_max) == (1, 1)
    assert gpu_name(text) == name


def test_a_count_that_is_not_said_is_one() -> None:
    assert (one("24GB..").count_min, one("24GB..").count_max) == (1, 1)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("24GB..", 24.0, None),
        ("24GB..80GB", 24.0, 80.0),
        ("24..80GB", 24.0, 80.0),
        ("..80GB", None, 80.0),
        ("..", None, None),
        ("A100:80GB..", 80.0, None),
        ("0.5TB..", 500.0, None),
    ],
)
def test_memory_bounds_are_understood(text: str, low: float | None, high: float | None) -> None:
    assert (one(text).memory_min_gb, one(text).memory_max_gb) == (low, high)


@pytest.mark.parametrize(
    "text",
    [
        *("A100:80GB", "A100-80GB", "A100 80GB", "A100 80 GB", "a100_80g", "A100-SXM4-80GB", "A100 80GiB"),
        *("A100-80GB-SXM", "NVIDIA A100 80GB SXM", "A100 80GB PCIe", "a100_80gb_sxm4"),
    ],
)
def test_one_size_takes_what_providers_round_it_to_and_not_the_other_size(text: str) -> None:
    request = one(text)
    assert request.names == ("A100",)
    assert request.memory_min_gb is not None
    assert request.memory_max_gb is not None
    assert request.memory_min_gb < 79.6 < 80 < 81.6 < request.memory_max_gb
    assert not request.memory_min_gb < 40 < request.memory_max_gb


@pytest.mark.parametrize(
    "text", ["A100-80GB:4", "A100:80GB:4", "A100:4:80GB", "4x A100 80GB", "A100-80GB-SXM:4", "4x NVIDIA A100 80GB SXM"]
)
def test_memory_and_count_stand_in_any_order(text: str) -> None:
    request = one(text)
    assert (request.names, request.count_min, request.count_max) == (("A100",), 4, 4)
    assert request.memory_min_gb == pytest.approx(74.4)


def test_counts_may_be_a_range() -> None:
    assert (one("H100:4..8").count_min, one("H100:4..8").count_max) == (4, 8)
    assert (one("H100:2..").count_min, one("H100:2..").count_max) == (2, None)
    assert (one("H100:..4").count_min, one("H100:..4").count_max) == (1, 4)


def test_alternatives_keep_their_order() -> None:
    assert [request.names for request in parse_gpu("H100:8|A100:8 | 24GB..")] == [("H100",), ("A100",), ()]


def test_several_names_are_equally_good() -> None:
    assert one("H100,h200:8").names == ("H100", "H200")


def test_total_memory_lets_the_count_be_any() -> None:
    for text in ("640GB.. total", "total 640GB..", "H100:total:640GB..", "H100:640GB.. total"):
        request = one(text)
        assert (request.total_memory_min_gb, request.count_min, request.count_max) == (640.0, 1, None)


@pytest.mark.parametrize("text", ["", "  ", "none", "None"])
def test_nothing_asks_for_no_gpu(text: str) -> None:
    assert parse_gpu(text) == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("H1OO", "there is no GPU called 'H1OO': did you mean H100?"),
        ("H1OO:8", "there is no GPU called 'H1OO': did you mean H100?"),
        ("A1000", "there is no GPU called 'A1000': did you mean A100?"),
        ("A100-80", "there is no GPU called 'A100-80': did you mean A100:80GB?"),
        ("H100-8", "there is no GPU called 'H100-8': did you mean H100:8?"),
        ("!H100", "'!H100' in gpu='!H100' is not the name of a GPU: write for example H100:8"),
        ("H100;id", "is not the name of a GPU"),
        ("80", "'80' in gpu='80' is a number, not a GPU: write for example H100:8, or 80GB.. for memory"),
        ("8:H100", "'8' in gpu='8:H100' is a number, not a GPU: write for example H100:8"),
        ("v6e:4..8", "gpu='v6e:4..8' asks for several sizes of a TPU: write each, for example v6e-4|v6e-8"),
        ("=", "names no GPU"),
        ("MI300", "there is no GPU called 'MI300': did you mean MI300A or MI300X?"),
        ("zzz", "write for example H100, A100:80GB, RTX4090 or 24GB.."),
        ("100", "'100' may be A100, H100, MI100, P100 or V100: write which"),
        ("6000", "'6000' may be A6000, RTX6000 or RTXPRO6000: write which"),
        ("A100:60GB", "no A100 has the memory that gpu='A100:60GB' asks for: it comes with 40 or 80 GB"),
        ("H100:0", "leave gpu empty for a machine without one"),
        ("0xH100", "leave gpu empty for a machine without one"),
        ("H100:8..4", "write the smaller number first, 4..8"),
        ("80GB..24GB", "write the smaller size first"),
        ("H100:8:4", "says the number of GPUs twice"),
        ("8xH100:8", "says the number of GPUs twice"),
        ("A100:80GB:40GB", "says the memory twice"),
        ("640GB.. total:1TB.. total", "says the total memory twice"),
        ("many total", "'many' in gpu='many total' is no memory"),
        ("H100:eight", "'eight' in gpu='H100:eight' is neither a number of GPUs nor memory"),
        ("H100|", "has an empty alternative"),
        ("H100,:8", "names no GPU"),
        (":8", "names no GPU"),
        ("H100:1000000", "no machine has so many"),
        ("x" * 501, "longer than 500 characters"),
    ],
)
def test_what_is_not_clear_is_refused_with_what_to_write(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as refused:
        parse_gpu(text)
    assert "\n" not in str(refused.value)


def test_a_name_that_only_a_snapshot_has_is_known() -> None:
    with pytest.raises(ValueError, match="there is no GPU called 'M70'"):
        parse_gpu("M70", store)
    kind = Kind("g3.4xlarge", cpu=16, memory_gb=122, gpu_name="M70", gpu_count=1, gpu_memory_gb=8, gpu_vendor="nvidia")
    store.publish("aws", [Price(kind, Place("us-east-1"), 1.14)], collected_at=datetime.now(UTC), source="test")
    assert parse_gpu("m70", store)[0].names == ("M70",)
    with pytest.raises(ValueError, match="did you mean M70"):
        parse_gpu("M7O", store)


def test_an_instance_type_of_a_price_list_may_be_asked_for() -> None:
    kind = Kind(
        "p4d.24xlarge", cpu=96, memory_gb=1152, gpu_name="A100", gpu_count=8, gpu_memory_gb=40, gpu_vendor="nvidia"
    )
    plain = Kind("m5.large", cpu=2, memory_gb=8)
    prices = [Price(kind, Place("us-east-1"), 22.0), Price(plain, Place("us-east-1"), 0.1)]
    store.publish("aws", prices, collected_at=datetime.now(UTC), source="test")
    for text, price in (("p4d.24xlarge", 22.0), ("P4D.24XLARGE", 22.0), ("m5.large", 0.1)):
        wanted = Requirements(gpu=parse_gpu(text, store))
        (offer,) = query.offers("aws", wanted)
        assert offer.price == price
        assert matching.fits(offer, wanted)
        assert not matching.fits(offer.model_copy(update={"instance_type": "other"}), wanted)
    assert [request.text for request in parse_gpu("p4d.24xlarge|H100:8", store)] == ["p4d.24xlarge", "H100:8"]
    with pytest.raises(ValueError, match=r"no GPU called 'p4d\.48xlarge'"):
        parse_gpu("p4d.48xlarge", store)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("tpu-v6e", {1.3, 5.2, 10.4}),
        ("v6e", {1.3, 5.2, 10.4}),
        ("v6e-8", {10.4}),
        ("v6e:8", {10.4}),
        ("tpu-v6e-4", {5.2}),
    ],
)
def test_a_tpu_is_found_by_the_names_that_its_users_write(text: str, found: set[float]) -> None:
    prices = [
        Price(
            Kind(
                f"v6e-{size}",
                cpu=44,
                memory_gb=176,
                gpu_name=f"v6e-{size}",
                gpu_count=1,
                gpu_memory_gb=32.0 * size,
                gpu_vendor="google",
            ),
            Place("us-east5", "us-east5-a", "US"),
            1.3 * size,
        )
        for size in (1, 4, 8)
    ]
    store.publish("gcp", prices, collected_at=datetime.now(UTC), source="test")
    wanted = Requirements(gpu=parse_gpu(text, store))
    offers = query.offers("gcp", wanted)
    assert {offer.price for offer in offers} == found
    assert all(matching.fits(offer, wanted) for offer in offers)


@given(name=st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Z"]), min_size=1, max_size=30))
def test_any_name_that_an_offer_has_can_be_asked_for(name: str) -> None:
    """A node of a cluster may carry a GPU that nobody here knows; the artifact shows its name."""
    offer = Offer(
        provider="kubernetes", instance_type="node", region="", price=0.0, spot=False, gpu_name=name, gpu_count=1
    )
    assume(not set(name) & set(":|") and name.strip() == name and name.isprintable())
    assume(matching.normalised(name))
    assert matching.fits(offer, Requirements(gpu=parse_gpu(f"={name}")))


def test_any_is_any_gpu() -> None:
    assert one("any").names == one("..").names == ()


def test_the_known_accelerators_are_those_of_gpuhunt() -> None:
    theirs = {
        (known.name, known.vendor.value, getattr(known, "compute_capability", None))
        for known in gpuhunt.KNOWN_ACCELERATORS
    }
    assert {(ours.name, ours.vendor, ours.compute_capability) for ours in accelerators.KNOWN} == theirs
    for ours in accelerators.KNOWN:
        sizes = {known.memory for known in gpuhunt.KNOWN_ACCELERATORS if known.name == ours.name and known.memory}
        assert set(ours.memory_gb) == sizes


@given(
    mib=st.integers(1, 400_000), name=st.sampled_from([known.name for known in accelerators.KNOWN if known.memory_gb])
)
def test_memory_in_mib_becomes_what_gpuhunt_makes_of_it(mib: int, name: str) -> None:
    assert gpu_memory_gb(name, mib) == gpuhunt.correct_gpu_memory_gib(name, mib)


@given(text=st.text(max_size=40) | st.from_regex(r"[0-9x.:|, GBhHaArtx]{0,20}", fullmatch=True))
def test_any_text_is_read_or_refused_in_a_sentence(text: str) -> None:
    sentence = "."
    try:
        requests = parse_gpu(text)
    except ValueError as refused:
        requests, sentence = (), str(refused)
    assert 0 < len(sentence) < 700
    for request in requests:
        assert request.count_min >= 1
        assert request.count_max is None or request.count_max >= request.count_min


@given(count=st.integers(1, 64), name=st.sampled_from([known.name for known in accelerators.KNOWN]))
def test_what_an_offer_calls_its_gpu_asks_for_that_gpu(count: int, name: str) -> None:
    request = one(f"{name}:{count}")
    if accelerators.find(name).vendor == "google" and count > 1:  # type: ignore[union-attr]
        assert (request.names, request.count_min, request.count_max) == ((f"{name}-{count}",), 1, 1)
    else:
        assert (request.names, request.count_min, request.count_max) == ((name,), count, count)


def test_reading_needs_neither_gpuhunt_nor_rapidfuzz_nor_prefect() -> None:
    program = (
        "import sys; from prefect_gpu.providers.core.gpu.request import parse_gpu; parse_gpu('H100:8');"
        "print([m for m in ('gpuhunt', 'rapidfuzz', 'prefect', 'requests') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ,
    )
    assert done.stdout.strip() == "[]"
