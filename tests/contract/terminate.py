"""Given back, all of it and nothing else."""

from __future__ import annotations

import time
import uuid

import pytest

from prefect_gpu.providers.core.models import InstanceState, Leftover
from tests.contract.driving import Driving
from tests.contract.subject import (
    Subject,
    is_empty,
    lease_name,
)


class Terminate(Driving):
    def test_terminate_returns_at_once_and_makes_it_absent(self, subject: Subject) -> None:
        created = self.create_running(subject, lease_name())
        started = time.monotonic()
        subject.provider.terminate_instance(created.id)
        assert time.monotonic() - started < subject.at_once_s
        self.wait_absent(subject, created)

    def test_terminate_of_what_has_just_been_ordered_works(self, subject: Subject) -> None:
        created = self.create(subject, lease_name())
        subject.provider.terminate_instance(created.id)
        self.wait_absent(subject, created)

    def test_terminate_can_be_repeated_and_already_gone_is_success(self, subject: Subject) -> None:
        created = self.create_running(subject, lease_name())
        subject.provider.terminate_instance(created.id)
        subject.provider.terminate_instance(created.id)
        self.wait_absent(subject, created)
        subject.provider.terminate_instance(created.id)

    def test_terminate_of_an_unknown_id_is_success(self, subject: Subject) -> None:
        subject.provider.terminate_instance(subject.unknown_id)

    def test_terminate_ends_only_what_it_was_told(self, subject: Subject) -> None:
        run = uuid.uuid4()
        goes = self.create_running(subject, lease_name(run=run, attempt=0))
        stays = self.create_running(subject, lease_name(run=run, attempt=1))
        subject.provider.terminate_instance(goes.id)
        self.wait_absent(subject, goes)
        assert subject.provider.get_instance(stays.id).state is InstanceState.RUNNING

    def test_many_can_be_terminated_at_once(self, subject: Subject) -> None:
        run = uuid.uuid4()
        created = [self.create(subject, lease_name(run=run, attempt=attempt)) for attempt in range(3)]
        subject.provider.terminate_instances([instance.id for instance in created])
        for instance in created:
            self.wait_absent(subject, instance)

    def test_nothing_is_left_behind(self, subject: Subject) -> None:
        created = self.create_running(subject, lease_name())
        subject.provider.terminate_instance(created.id)
        self.wait_absent(subject, created)
        assert self.wait_for(subject, lambda: is_empty(subject.provider.list_instances(created.name)))

    def test_a_leftover_is_listed_and_removed_by_its_id(self, subject: Subject) -> None:
        subject.faults.leave_something()
        created = self.create_running(subject, lease_name())
        subject.provider.terminate_instance(created.id)
        self.wait_absent(subject, created)

        def leftovers() -> tuple[Leftover, ...]:
            return subject.provider.list_instances(created.name).leftovers

        assert self.wait_for(subject, lambda: bool(leftovers())), "what stayed was not listed"
        for leftover in leftovers():
            assert leftover.kind
            assert leftover.name == created.name
            subject.provider.terminate_instance(leftover.id)
        assert self.wait_for(subject, lambda: not leftovers()), "what stayed was not removed"

    def test_the_lease_ends_it_where_that_is_declared(self, subject: Subject) -> None:
        if subject.provider.capabilities.self_ends == "none":
            pytest.skip("this provider's machines do not end by themselves")
        created = self.create_running(subject, lease_name())
        subject.faults.pass_deadline(created)
        self.wait_absent(subject, created, terminated=False)
