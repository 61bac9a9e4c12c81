"""What get and list show, and what they may not hide."""

from __future__ import annotations

import uuid

import pytest

from prefect_gpu.providers.core.errors import (
    InvalidRequest,
    NotFound,
)
from prefect_gpu.providers.core.lease import realm_prefix, run_prefix
from prefect_gpu.providers.core.models import InstanceState
from tests.contract.driving import Driving
from tests.contract.subject import (
    OTHER_REALM,
    REALM,
    Subject,
    launch_spec,
    lease_name,
    refuse_secrets,
)


class Read(Driving):
    def test_an_unknown_id_is_not_found(self, subject: Subject) -> None:
        with pytest.raises(NotFound):
            subject.provider.get_instance(subject.unknown_id)

    def test_a_status_never_seen_before_is_unknown(self, subject: Subject) -> None:
        created = self.create_running(subject, lease_name())
        subject.faults.show_status(created, "TRANSMOGRIFYING")
        self.let_listings_catch_up(subject)
        assert subject.provider.get_instance(created.id).state is InstanceState.UNKNOWN
        (listed,) = subject.provider.list_instances(created.name).instances
        assert listed.state is InstanceState.UNKNOWN

    def test_a_prefix_finds_its_own_and_nothing_else(self, subject: Subject) -> None:
        run, other_run = uuid.uuid4(), uuid.uuid4()
        mine = {lease_name(run=run, attempt=attempt) for attempt in range(2)}
        others = lease_name(run=other_run)
        foreign = lease_name(realm=OTHER_REALM)
        for name in (*mine, others, foreign):
            self.create(subject, name)
        self.let_listings_catch_up(subject)
        assert self.names(subject, run_prefix(REALM, run)) == mine
        assert self.names(subject, run_prefix(REALM, other_run)) == {others}
        assert self.names(subject, realm_prefix(REALM)) >= mine | {others}
        assert foreign not in self.names(subject, realm_prefix(REALM))
        assert self.names(subject, foreign) == {foreign}

    def test_a_prefix_that_nothing_has_finds_nothing(self, subject: Subject) -> None:
        self.create(subject, lease_name())
        self.let_listings_catch_up(subject)
        listing = subject.provider.list_instances(run_prefix(REALM, uuid.uuid4()))
        assert (listing.instances, listing.leftovers) == ((), ())
        assert listing.is_complete

    def test_a_strangers_instance_is_not_listed(self, subject: Subject) -> None:
        name = subject.faults.someone_elses()
        self.let_listings_catch_up(subject)
        listing = subject.provider.list_instances(realm_prefix(REALM))
        assert name not in {one.name for one in (*listing.instances, *listing.leftovers, *listing.unproved)}

    def test_what_only_bears_a_name_of_ours_is_reported_and_never_ended(self, subject: Subject) -> None:
        ours = self.create_running(subject, lease_name())
        stranger = subject.faults.borrow_the_name(ours)
        self.let_listings_catch_up(subject)
        listing = subject.provider.list_instances(ours.name)
        assert [one.id for one in listing.instances] == [ours.id]
        (reported,) = [one for one in listing.unproved if one.id == stranger]
        assert reported.name == ours.name
        assert reported.reason
        assert subject.provider.get_instance(stranger).name != ours.name
        with pytest.raises(InvalidRequest):
            subject.provider.terminate_instance(stranger)
        assert not subject.provider.get_instance(stranger).state.is_final

    def test_all_pages_are_read(self, subject: Subject) -> None:
        subject.faults.shrink_pages()
        run = uuid.uuid4()
        names = {lease_name(run=run, attempt=attempt) for attempt in range(5)}
        for name in names:
            self.create(subject, name)
        self.let_listings_catch_up(subject)
        assert self.names(subject, run_prefix(REALM, run)) == names

    def test_all_scopes_are_read(self, subject: Subject) -> None:
        offers = subject.provider.fetch_offers(subject.requirements)
        by_region = {offer.region: offer for offer in offers}
        if len(by_region) == 1:
            pytest.skip("this vendor has one region")
        run = uuid.uuid4()
        names = set[str]()
        for attempt, offer in enumerate(list(by_region.values())[:4]):
            name = lease_name(run=run, attempt=attempt)
            spec = launch_spec(subject.provider, name, options=subject.options)
            subject.provider.create_instance(offer, spec)
            names.add(name)
        self.let_listings_catch_up(subject)
        assert self.names(subject, run_prefix(REALM, run)) == names

    def test_a_scope_that_cannot_be_read_is_said_and_hides_nothing_else(self, subject: Subject) -> None:
        self.create(subject, lease_name())
        self.let_listings_catch_up(subject)
        before = self.names(subject, realm_prefix(REALM))
        scope = subject.faults.make_unreadable()
        listing = subject.provider.list_instances(realm_prefix(REALM))
        assert not listing.is_complete
        assert scope in {unread.scope for unread in listing.incomplete}
        assert all(unread.reason for unread in listing.incomplete)
        for unread in listing.incomplete:
            refuse_secrets(unread.reason, subject)
        subject.faults.restore()
        assert self.names(subject, realm_prefix(REALM)) == before
