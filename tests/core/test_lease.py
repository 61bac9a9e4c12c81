"""The name is the ledger: what it says is what was put in, and nothing else is taken for one of ours."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_gpu.providers.core.lease import MAX_ATTEMPT, MAX_RUN_COUNT, NAME_LENGTH, Lease, realm_prefix, run_prefix
from prefect_gpu.providers.core.models import utc_now

realms = st.from_regex(r"\A[a-z0-9]{4}\Z")
# Five base 36 digits of minutes since 1970 reach the year 2084.
deadlines = st.datetimes(datetime(1970, 1, 2), datetime(2084, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  # the strategy adds it
leases = st.builds(
    Lease,
    realm=realms,
    run_id=st.uuids(),
    deadline=deadlines,
    run_count=st.integers(0, MAX_RUN_COUNT),
    attempt=st.integers(0, MAX_ATTEMPT),
)
# Every provider's name field takes this (provider-facts, rule 1).
VALID = re.compile(r"[a-z][a-z0-9-]{0,38}[a-z0-9]")


@given(leases)
def test_a_name_says_all_of_its_lease(lease):
    assert Lease.parse(lease.name) == lease


@given(leases)
def test_a_name_is_valid_everywhere(lease):
    assert len(lease.name) == NAME_LENGTH
    assert VALID.fullmatch(lease.name)


@given(leases, leases)
def test_different_leases_have_different_names(one, other):
    assert (one == other) == (one.name == other.name)


@given(leases)
def test_prefixes_find_the_lease_and_only_its_run_and_realm(lease):
    assert lease.name.startswith(run_prefix(lease.realm, lease.run_id))
    assert run_prefix(lease.realm, lease.run_id).startswith(realm_prefix(lease.realm))
    other = uuid.UUID(int=lease.run_id.int ^ 1)
    assert not lease.name.startswith(run_prefix(lease.realm, other))
    assert len(run_prefix(lease.realm, lease.run_id)) == NAME_LENGTH - 8


@given(deadlines)
def test_a_deadline_is_rounded_up_to_the_minute_and_never_down(deadline):
    lease = Lease(realm="abcd", run_id=uuid.uuid4(), deadline=deadline, run_count=1, attempt=1)
    assert timedelta(0) <= lease.deadline - deadline < timedelta(minutes=1)


@given(st.text(max_size=60))
def test_any_other_text_is_no_lease_or_the_very_name_it_gives_back(text):
    lease = Lease.parse(text)
    assert lease is None or lease.name == text


@given(st.from_regex(r"\Apg-[a-z0-9]{37}\Z"))
def test_what_looks_like_a_name_is_none_or_the_very_name_it_gives_back(text):
    lease = Lease.parse(text)
    assert lease is None or lease.name == text


@pytest.mark.parametrize(
    "name",
    [
        "",
        "pg-",
        "my-server",
        "PG-" + "a" * 37,
        "pg-" + "a" * 36,
        "pg-" + "a" * 38,
        "pg-" + "a" * 36 + "\n",
        "pg-" + "é" * 37,
        "pg-" + "٣" * 37,
    ],
)
def test_a_strangers_name_is_no_lease(name):
    assert Lease.parse(name) is None


def test_a_run_number_beyond_128_bits_is_no_lease():
    assert Lease.parse("pg-abcd" + "z" * 25 + "00000" + "0" + "00") is None


@pytest.mark.parametrize(
    "changed",
    [
        {"realm": "abc"},
        {"realm": "ABCD"},
        {"realm": "ab-d"},
        {"run_count": 36},
        {"run_count": -1},
        {"attempt": 1296},
        {"attempt": -1},
    ],
)
def test_what_does_not_fit_a_name_is_refused(changed):
    whole = {"realm": "abcd", "run_id": uuid.uuid4(), "deadline": utc_now(), "run_count": 1, "attempt": 1}
    with pytest.raises(ValidationError):
        Lease.model_validate(whole | changed)


def test_a_deadline_without_a_time_zone_is_refused():
    with pytest.raises(ValidationError, match="time zone"):
        Lease(realm="abcd", run_id=uuid.uuid4(), deadline=datetime(2030, 1, 1), run_count=1, attempt=1)  # noqa: DTZ001


def test_a_deadline_in_another_time_zone_is_the_same_name():
    run = uuid.uuid4()
    noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    names = {
        Lease(realm="abcd", run_id=run, deadline=at, run_count=1, attempt=1).name
        for at in (noon, noon.astimezone(timezone(timedelta(hours=5, minutes=30))))
    }
    assert len(names) == 1


def test_a_deadline_that_no_name_can_say_is_refused_when_the_lease_is_made():
    with pytest.raises(ValidationError):
        Lease(realm="abcd", run_id=uuid.uuid4(), deadline=datetime(2300, 1, 1, tzinfo=UTC), run_count=1, attempt=1)


def test_a_lease_is_over_at_its_deadline():
    whole = {"realm": "abcd", "run_id": uuid.uuid4(), "run_count": 1, "attempt": 1}
    assert Lease(**whole, deadline=utc_now() - timedelta(minutes=2)).is_over
    assert not Lease(**whole, deadline=utc_now() + timedelta(minutes=1)).is_over
