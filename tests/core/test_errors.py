"""Errors say what happened and rule out just what they must; every one travels between processes."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_gpu.providers.core import errors
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    HostKeyMismatch,
    InstanceFailed,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    RegionClosed,
    Transient,
    Unconfirmed,
    Unsupported,
    family,
    offer_key,
)
from prefect_gpu.providers.core.models import Offer

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ProviderError)]


def offer(**changed: object) -> Offer:
    whole = {"provider": "aws", "instance_type": "p5.48xlarge", "region": "us-east-1", "zone": "us-east-1a", "price": 20.0, "gpu_name": "H100", "gpu_count": 8}  # fmt: skip
    return Offer.model_validate(whole | changed)


FAILED = offer()
SAME = offer(price=21.0)
OTHER_ZONE = offer(zone="us-east-1b")
OTHER_SIZE = offer(instance_type="p5.4xlarge", gpu_count=1)
OTHER_FAMILY = offer(instance_type="p4d.24xlarge", gpu_name="A100")
OTHER_MARKET = offer(spot=True)
OTHER_REGION = offer(region="us-west-2", zone="us-west-2a")
OTHER_PROVIDER = offer(provider="gcp")
OTHERS = [SAME, OTHER_ZONE, OTHER_SIZE, OTHER_FAMILY, OTHER_MARKET, OTHER_REGION, OTHER_PROVIDER]


@pytest.mark.parametrize(
    ("kind", "ruled_out"),
    [
        (Transient, OTHERS[:-1]),
        (RateLimited, []),
        (Unconfirmed, [SAME]),
        (NoCapacity, [SAME]),
        (QuotaExceeded, [SAME, OTHER_ZONE, OTHER_SIZE]),
        (RegionClosed, [SAME, OTHER_ZONE, OTHER_SIZE, OTHER_FAMILY, OTHER_MARKET]),
        (InsufficientFunds, OTHERS[:-1]),
        (AuthFailed, OTHERS[:-1]),
        (InvalidRequest, OTHERS[:-1]),
        (Unsupported, OTHERS[:-1]),
        (InstanceFailed, [SAME]),
        (NotFound, []),
    ],
)
def test_an_error_rules_out_as_much_as_the_table_says(kind, ruled_out):
    error = kind("no")
    assert [other for other in OTHERS if error.rules_out(FAILED, other)] == ruled_out


@pytest.mark.parametrize(
    ("reach", "ruled_out"),
    [
        ("nothing", []),
        ("offer", [SAME]),
        ("type", [SAME, OTHER_ZONE]),
        ("family", [SAME, OTHER_ZONE, OTHER_SIZE]),
        ("region", [SAME, OTHER_ZONE, OTHER_SIZE, OTHER_FAMILY, OTHER_MARKET]),
        ("market", [SAME, OTHER_ZONE, OTHER_SIZE, OTHER_FAMILY, OTHER_REGION]),
        ("provider", OTHERS[:-1]),
    ],
)
@pytest.mark.parametrize("kind", [AuthFailed, NoCapacity, RateLimited])
def test_a_code_may_speak_of_more_or_less_than_its_class_and_that_travels_too(kind, reach, ruled_out):
    error = pickle.loads(pickle.dumps(kind("no", reach=reach)))
    assert [other for other in OTHERS if error.rules_out(FAILED, other)] == ruled_out


def test_a_denied_order_closes_its_region_type_and_market_unless_the_credentials_are_no_good():
    denied = AuthFailed("a policy denies it").of_an_order()
    assert [other for other in OTHERS if denied.rules_out(FAILED, other)] == [SAME, OTHER_ZONE]
    assert AuthFailed("wrong key", reach="provider").of_an_order().reach == "provider"


def test_a_quota_without_gpus_is_counted_by_the_family_of_the_type():
    small = offer(instance_type="c5.large", gpu_name=None, gpu_count=0)
    large = offer(instance_type="c5.metal", gpu_name=None, gpu_count=0)
    other = offer(instance_type="m5.large", gpu_name=None, gpu_count=0)
    assert QuotaExceeded("no").rules_out(small, large)
    assert not QuotaExceeded("no").rules_out(small, other)


def test_a_marketplaces_asks_are_machines_of_their_own():
    one, other = offer(raw={"ask_id": 1}), offer(raw={"ask_id": 2})
    assert NoCapacity("taken").rules_out(one, offer(raw={"ask_id": 1}))
    assert not NoCapacity("taken").rules_out(one, other)


def test_what_an_offer_costs_does_not_make_it_another_thing_to_buy():
    assert offer_key(FAILED) == offer_key(SAME)
    assert len({offer_key(each) for each in OTHERS}) == len(OTHERS)


@pytest.mark.parametrize(
    ("instance_type", "expected"),
    [("p5.48xlarge", "p5"), ("a2-highgpu-8g", "a2"), ("H100", "h100"), ("Standard_NC24", "standard_nc24")],
)
def test_the_family_is_the_part_before_the_size(instance_type, expected):
    assert family(instance_type) == expected


@pytest.mark.parametrize("kind", ALL)
def test_every_error_travels_between_processes_and_copies_whole(kind):
    error = kind("it is so", code="E42")
    error.add_note("seen twice")
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is kind
        assert str(other) == "it is so"
        assert other.__dict__ == error.__dict__


def test_the_time_to_wait_travels_too():
    error = pickle.loads(pickle.dumps(RateLimited("slow down", retry_after_s=7.5)))
    assert error.retry_after_s == 7.5


@given(st.text(), st.one_of(st.none(), st.text()))
def test_message_and_code_are_kept_as_they_are(message, code):
    error = pickle.loads(pickle.dumps(NoCapacity(message, code=code)))
    assert (str(error), error.message, error.code) == (message, message, code)


@pytest.mark.parametrize("kind", ALL)
def test_every_error_has_a_short_name_for_the_story_and_a_docstring(kind):
    assert 0 < len(kind.short) <= 20
    assert kind.__doc__


def test_loud_errors_are_those_that_somebody_must_act_on():
    assert {kind for kind in ALL if kind.is_loud} == {AuthFailed, InvalidRequest, RegionClosed}


def test_the_tree_in_the_docstring_is_the_tree():
    tree = [line for line in (errors.__doc__ or "").splitlines() if line.startswith("    ")]
    depth = {words[0]: len(line) - len(line.lstrip(" │├└─")) for line in tree if (words := line.strip(" │├└─").split())}
    assert depth.keys() == {kind.__name__ for kind in ALL}
    for kind in ALL:
        parent = kind.__bases__[0]
        assert parent is Exception or depth[parent.__name__] < depth[kind.__name__]
    assert not issubclass(Unconfirmed, Transient), "what may have been bought is never simply sent again"


@pytest.mark.parametrize(
    ("error", "category"),
    [
        (NoCapacity("none left"), "sold_out"),
        (QuotaExceeded("0 vCPU"), "quota"),
        (AuthFailed("who are you"), "credentials"),
        (AuthFailed("denied").of_an_order(), "policy"),
        (AuthFailed("this login", category="credentials").of_an_order(), "credentials"),
        (InstanceFailed("never up"), "boot"),
        (InstanceFailed("7 of 8 GPUs", category="machine_check"), "machine_check"),
        (HostKeyMismatch("another key"), "host_key"),
        (RateLimited("slow down", retry_after_s=1), "rate_limit"),
        (ProviderError("?"), "request"),
    ],
)
def test_an_automation_can_match_on_what_happened(error: ProviderError, category: str) -> None:
    assert error.category == category
    assert pickle.loads(pickle.dumps(error)).category == category
