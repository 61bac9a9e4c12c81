"""What a vendor refuses, told as our errors."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest

from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    NotFound,
    QuotaExceeded,
    RateLimited,
    Transient,
    Unconfirmed,
)
from prefect_gpu.providers.core.models import InstanceState
from tests.contract.driving import Driving
from tests.contract.subject import (
    REALM,
    Subject,
    launch_spec,
    lease_name,
    refuse_secrets,
    same_error,
)


class Refusals(Driving):
    def test_sold_out_is_no_capacity(self, subject: Subject) -> None:
        self.refused_create(subject, NoCapacity, subject.faults.sell_out())

    def test_over_quota_is_quota_exceeded(self, subject: Subject) -> None:
        self.refused_create(subject, QuotaExceeded, subject.faults.refuse_quota())

    def test_no_money_is_insufficient_funds(self, subject: Subject) -> None:
        self.refused_create(subject, InsufficientFunds, subject.faults.empty_the_balance())

    def test_a_code_nobody_mapped_is_an_invalid_request_in_the_vendors_words(self, subject: Subject) -> None:
        self.refused_create(subject, InvalidRequest, subject.faults.refuse_the_request())

    def test_wrong_credentials_are_auth_failed_from_every_call(self, subject: Subject) -> None:
        created = self.create(subject, lease_name())
        offer = self.offer(subject)
        words = subject.faults.refuse_credentials()
        spec = launch_spec(subject.provider, lease_name(), options=subject.options)
        calls: list[Callable[[], object]] = [
            subject.provider.account_id,
            lambda: subject.provider.create_instance(offer, spec),
            lambda: subject.provider.get_instance(created.id),
            lambda: subject.provider.terminate_instance(created.id),
        ]
        for call in calls:
            with self.one_error(subject, AuthFailed, words):
                call()
        # A listing may refuse as a whole or call all its scopes unread, but it is never a complete, empty one.
        try:
            listing = subject.provider.list_instances(REALM)
        except AuthFailed as error:
            refuse_secrets(error.message, subject)
        else:
            assert not listing.is_complete
            for unread in listing.incomplete:
                refuse_secrets(unread.reason, subject)

    def test_a_429_is_rate_limited_and_says_how_long(self, subject: Subject) -> None:
        created = self.create(subject, lease_name())
        wait_s = subject.faults.limit_rate()
        with self.one_error(subject, RateLimited, None) as raised:
            subject.provider.get_instance(created.id)
        if wait_s is not None:
            assert raised[0].retry_after_s == pytest.approx(wait_s, abs=1)

    def test_a_create_that_was_rate_limited_is_sent_once_and_not_carried_out(self, subject: Subject) -> None:
        offer, name = self.offer(subject), lease_name()
        before = subject.faults.create_requests()
        subject.faults.limit_creates()
        with self.one_error(subject, RateLimited, None):
            subject.provider.create_instance(offer, launch_spec(subject.provider, name, options=subject.options))
        assert subject.faults.create_requests() == before + 1
        self.let_listings_catch_up(subject)
        assert subject.provider.list_instances(name).instances == ()

    def test_a_5xx_at_create_is_unconfirmed(self, subject: Subject) -> None:
        words = subject.faults.break_creates()
        with self.one_error(subject, Unconfirmed, words):
            self.create(subject, lease_name())

    def test_a_5xx_at_get_is_transient(self, subject: Subject) -> None:
        created = self.create(subject, lease_name())
        words = subject.faults.break_reads()
        with self.one_error(subject, Transient, words):
            subject.provider.get_instance(created.id)
        subject.faults.restore()
        assert subject.provider.get_instance(created.id).id == created.id

    def test_a_5xx_at_terminate_is_an_error_and_never_a_success(self, subject: Subject) -> None:
        created = self.create_running(subject, lease_name())
        words = subject.faults.break_terminates()
        with self.one_error(subject, Transient, words):
            subject.provider.terminate_instance(created.id)
        assert subject.provider.get_instance(created.id).state is InstanceState.RUNNING
        subject.provider.terminate_instance(created.id)
        self.wait_absent(subject, created)

    def test_a_lost_answer_is_unconfirmed_and_the_listing_finds_what_it_bought(self, subject: Subject) -> None:
        subject.faults.lose_the_answer()
        self.unconfirmed_create_is_found(subject)

    def test_an_unreadable_answer_is_unconfirmed_and_the_listing_finds_what_it_bought(self, subject: Subject) -> None:
        subject.faults.garble_the_answer()
        self.unconfirmed_create_is_found(subject)

    def test_an_order_that_was_never_sent_is_transient_and_buys_nothing(self, subject: Subject) -> None:
        subject.faults.refuse_connections()
        name = lease_name()
        with self.one_error(subject, Transient, None):
            self.create(subject, name)
        self.let_listings_catch_up(subject)
        assert subject.provider.list_instances(name).instances == ()

    def test_a_create_is_never_repeated_by_the_driver(self, subject: Subject) -> None:
        subject.faults.lose_the_answer()
        before = subject.faults.create_requests()
        with pytest.raises(Unconfirmed):
            self.create(subject, lease_name())
        assert subject.faults.create_requests() == before + 1

    def test_errors_of_the_driver_travel_between_processes(self, subject: Subject) -> None:
        with pytest.raises(NotFound) as raised:
            subject.provider.get_instance(subject.unknown_id)
        assert same_error(pickle.loads(pickle.dumps(raised.value)), raised.value)
