"""How contract tests do what they do: order, wait, look, and clean up after themselves."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest

from prefect_gpu.providers.core.errors import (
    NotFound,
    ProviderError,
    RateLimited,
    Transient,
    Unconfirmed,
)
from prefect_gpu.providers.core.lease import realm_prefix
from prefect_gpu.providers.core.models import Instance, InstanceState, Offer
from tests.contract.subject import (
    OTHER_REALM,
    REALM,
    Subject,
    launch_spec,
    lease_name,
    refuse_secrets,
    same_error,
)


class Driving:
    """What the concerns of the contract have in common."""

    rounds: ClassVar[int] = (
        600  # how often a transition is looked at, a second of the vendor's time apart, before it fails
    )

    @pytest.fixture
    def subject(self) -> Subject:
        raise NotImplementedError("give the driver under test by a fixture `subject`")

    @pytest.fixture(autouse=True)
    def _nothing_stays(self, subject: Subject) -> Iterator[None]:
        yield
        for realm in (REALM, OTHER_REALM):
            try:
                listing = subject.provider.list_instances(realm_prefix(realm))
            except ProviderError:
                continue  # this test took the vendor down; its fixture ends with it
            for found in (*listing.instances, *listing.leftovers):
                subject.provider.terminate_instance(found.id)

    def offer(self, subject: Subject) -> Offer:
        offers = subject.provider.fetch_offers(subject.requirements)
        assert offers, "give requirements that an offer meets"
        return min(offers, key=lambda offer: offer.price)

    def create(self, subject: Subject, name: str) -> Instance:
        spec = launch_spec(subject.provider, name, options=subject.options)
        return subject.provider.create_instance(self.offer(subject), spec)

    def create_running(self, subject: Subject, name: str) -> Instance:
        created = self.create(subject, name)
        for _ in range(self.rounds):
            instance = subject.provider.get_instance(created.id)
            if instance.state is InstanceState.RUNNING:
                return instance
            assert instance.state is InstanceState.PROVISIONING, f"{instance.state}: {instance.reason}"
            subject.pass_time(1)
        pytest.fail(f"{name} never began to run")

    def names(self, subject: Subject, prefix: str) -> set[str]:
        listing = subject.provider.list_instances(prefix)
        assert listing.is_complete, listing.incomplete
        names = [instance.name for instance in listing.instances]
        assert len(names) == len(set(names)), "an instance is listed twice"
        return set(names)

    def let_listings_catch_up(self, subject: Subject) -> None:
        """Let the declared lag pass; a listing that is later than declared fails the test."""
        if subject.provider.capabilities.listing_lag_s:
            subject.pass_time(subject.provider.capabilities.listing_lag_s + 1)

    def wait_for(self, subject: Subject, done: Callable[[], bool]) -> bool:
        for _ in range(self.rounds):
            if done():
                return True
            subject.pass_time(1)
        return False

    def wait_absent(self, subject: Subject, instance: Instance, *, terminated: bool = True) -> None:
        """By the driver's declared rule: final by id, NotFound where that proves it, or two listings `listing_lag_s` apart."""
        capabilities = subject.provider.capabilities

        def is_absent() -> bool:
            try:
                state = subject.provider.get_instance(instance.id).state
            except NotFound:
                if capabilities.not_found_proves_absence:
                    return True
                first = subject.provider.list_instances(instance.name)
                self.let_listings_catch_up(subject)
                second = subject.provider.list_instances(instance.name)
                return all(seen.is_complete and not seen.named(instance.name) for seen in (first, second))
            assert not (terminated and state is InstanceState.PROVISIONING), "terminate had no effect"
            return state.is_final

        assert self.wait_for(subject, is_absent), f"{instance.name} never went away"
        self.let_listings_catch_up(subject)
        assert self.wait_for(subject, lambda: not self.live(subject, instance.name)), "absent by id, listed as alive"

    def live(self, subject: Subject, name: str) -> list[Instance]:
        listing = subject.provider.list_instances(name)
        return [found for found in listing.instances if not found.state.is_final]

    @contextmanager
    def one_error(self, subject: Subject, kind: type[ProviderError], words: str | None) -> Iterator[list[Any]]:
        """This very class (or a subclass that is as good), the vendor's words in it, no secret, and it survives pickling."""
        caught: list[ProviderError] = []
        with pytest.raises(ProviderError) as raised:
            yield caught
        error = raised.value
        caught.append(error)
        assert isinstance(error, kind), f"{type(error).__name__}: {error}"
        if kind is Transient:
            assert not isinstance(error, RateLimited)
        assert error.message.strip()
        assert "\n" not in error.message.strip(), "an error is one sentence"
        if words is not None:
            assert words in error.message or words == error.code
        chain: BaseException | None = error
        while chain is not None:
            refuse_secrets(f"{chain} {chain!r} {getattr(chain, '__notes__', '')}", subject)
            chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)
        assert same_error(pickle.loads(pickle.dumps(error)), error)

    def refused_create(self, subject: Subject, kind: type[ProviderError], words: str | None) -> None:
        name = lease_name()
        with self.one_error(subject, kind, words):
            self.create(subject, name)
        self.let_listings_catch_up(subject)
        assert subject.provider.list_instances(name).instances == (), "it was refused and is there"

    def unconfirmed_create_is_found(self, subject: Subject) -> None:
        name = lease_name()
        with self.one_error(subject, Unconfirmed, None):
            self.create(subject, name)
        self.let_listings_catch_up(subject)
        (found,) = subject.provider.list_instances(name).instances
        subject.provider.terminate_instance(found.id)
        self.wait_absent(subject, found)
