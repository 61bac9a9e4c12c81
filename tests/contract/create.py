"""One order, under one name."""

from __future__ import annotations

import copy
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from prefect_gpu.providers.core.lease import Lease, run_prefix
from prefect_gpu.providers.core.models import Instance, InstanceState
from tests.contract.driving import Driving
from tests.contract.subject import (
    REALM,
    Subject,
    launch_spec,
    lease_name,
)


class Create(Driving):
    def test_create_returns_at_once_with_an_id_and_the_name_it_was_given(self, subject: Subject) -> None:
        name = lease_name()
        started = time.monotonic()
        created = self.create(subject, name)
        assert time.monotonic() - started < subject.at_once_s
        assert created.id
        assert created.name == name
        assert created.provider == subject.provider.name
        assert created.state in {InstanceState.PROVISIONING, InstanceState.RUNNING}

    def test_create_is_one_order(self, subject: Subject) -> None:
        run = uuid.uuid4()
        self.create(subject, lease_name(run=run))
        self.let_listings_catch_up(subject)
        assert len(subject.provider.list_instances(run_prefix(REALM, run)).instances) == 1

    def test_the_name_comes_back_whole_from_get_and_list(self, subject: Subject) -> None:
        name = lease_name()
        created = self.create(subject, name)
        self.let_listings_catch_up(subject)
        assert subject.provider.get_instance(created.id).name == name
        (listed,) = subject.provider.list_instances(name).instances
        assert (listed.name, listed.id) == (name, created.id)
        assert Lease.parse(listed.name) is not None

    def test_what_was_created_begins_to_run_and_is_reachable(self, subject: Subject) -> None:
        running = self.create_running(subject, lease_name())
        assert running.state is InstanceState.RUNNING
        if subject.provider.capabilities.host_key == "channel":
            return
        assert running.ssh is not None, "running needs an endpoint, not just the vendor's word"
        assert running.ssh.host
        assert 0 < running.ssh.port < 65536
        assert running.ssh.user

    def test_nothing_is_running_before_it_can_be_reached(self, subject: Subject) -> None:
        created = self.create(subject, lease_name())
        for _ in range(self.rounds):
            if created.state is InstanceState.RUNNING:
                assert created.ssh is not None or subject.provider.capabilities.host_key == "channel"
                return
            subject.pass_time(1)
            created = subject.provider.get_instance(created.id)
        pytest.fail("it never began to run")

    def test_times_are_aware_and_the_instance_says_where_it_is(self, subject: Subject) -> None:
        created = self.create_running(subject, lease_name())
        assert created.region
        if created.created_at is not None:
            assert created.created_at.tzinfo is not None

    def test_the_same_order_twice_is_one_instance_where_create_is_repeatable(self, subject: Subject) -> None:
        if subject.provider.capabilities.create_repeatable is None:
            pytest.skip("this provider has no key for an order")
        name = lease_name()
        offer = self.offer(subject)
        spec = launch_spec(subject.provider, name, options=subject.options)
        first = subject.provider.create_instance(offer, spec)
        second = subject.provider.create_instance(offer, copy.deepcopy(spec))
        assert second.id == first.id
        self.let_listings_catch_up(subject)
        assert [found.id for found in subject.provider.list_instances(name).instances] == [first.id]

    def test_the_same_order_from_many_threads_is_one_instance_where_create_is_repeatable(
        self, subject: Subject
    ) -> None:
        if subject.provider.capabilities.create_repeatable is None:
            pytest.skip("this provider has no key for an order")
        name = lease_name()
        offer = self.offer(subject)
        spec = launch_spec(subject.provider, name, options=subject.options)
        together = threading.Barrier(4)

        def order() -> str:
            together.wait()
            return subject.provider.create_instance(offer, spec).id

        with ThreadPoolExecutor(4) as pool:
            ids = {future.result() for future in [pool.submit(order) for _ in range(4)]}
        assert len(ids) == 1
        self.let_listings_catch_up(subject)
        assert len(subject.provider.list_instances(name).instances) == 1

    def test_different_names_are_different_instances(self, subject: Subject) -> None:
        run = uuid.uuid4()
        ids = {self.create(subject, lease_name(run=run, attempt=attempt)).id for attempt in range(2)}
        assert len(ids) == 2

    def test_one_driver_serves_many_threads(self, subject: Subject) -> None:
        run = uuid.uuid4()
        offers = [self.offer(subject)] * 6
        if subject.one_each:
            offers = subject.provider.fetch_offers(subject.requirements)
            assert len(offers) >= 6, "give this test six machines"

        def whole_life(attempt: int) -> Instance:
            name, offer = lease_name(run=run, attempt=attempt), offers[attempt]
            spec = launch_spec(subject.provider, name, options=subject.options)
            created = subject.provider.create_instance(offer, spec)
            assert subject.provider.get_instance(created.id).name == name
            subject.provider.list_instances(name)
            subject.provider.terminate_instance(created.id)
            return created

        with ThreadPoolExecutor(6) as pool:
            created = list(pool.map(whole_life, range(6)))
        assert len({instance.id for instance in created}) == 6
        for instance in created:
            self.wait_absent(subject, instance)
