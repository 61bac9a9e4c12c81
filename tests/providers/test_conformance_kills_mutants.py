"""The conformance suite is worth what it catches: drivers that are each wrong in one way, and the test that says so."""

from __future__ import annotations

import contextlib
import inspect
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Transient,
    Unconfirmed,
)
from prefect_gpu.providers.core.models import Instance, InstanceState, LaunchSpec, Listing, Offer
from prefect_gpu.providers.core.requests import Requirements
from tests.conformance import ProviderConformance, Subject
from tests.core.test_reference import ReferenceFaults, reference_subject
from tests.fakes.reference import Reference, ReferenceCloud, Terms


class KeepsNoKey(Reference):
    """Declares that create is repeatable, and orders again each time."""

    terms = Terms(is_repeatable=False)


class IgnoresThePrefix(Reference):
    def list_instances(self, prefix: str) -> Listing:
        return super().list_instances("")


class FindsThePrefixAnywhere(Reference):
    def list_instances(self, prefix: str) -> Listing:
        listing = super().list_instances("")
        found = tuple(instance for instance in listing.instances if prefix in instance.name)
        strangers = tuple(one for one in listing.unproved if prefix in one.name)
        return listing.model_copy(update={"instances": found, "unproved": strangers})


class ReadsTheFirstPage(Reference):
    def _region(self, region: str) -> Any:
        return iter(self.cloud.page(self._key, region, None)["items"])


class ReadsOneRegion(Reference):
    def list_instances(self, prefix: str) -> Listing:
        listing = super().list_instances(prefix)
        kept = tuple(instance for instance in listing.instances if instance.region == "north")
        return listing.model_copy(update={"instances": kept})


class TakesUnreadForEmpty(Reference):
    def list_instances(self, prefix: str) -> Listing:
        return super().list_instances(prefix).model_copy(update={"incomplete": ()})


class FailsAsAWholeForOneScope(Reference):
    def list_instances(self, prefix: str) -> Listing:
        listing = super().list_instances(prefix)
        if listing.incomplete:
            raise Transient(listing.incomplete[0].reason)
        return listing


class ListsNothingWithoutCredentials(Reference):
    def list_instances(self, prefix: str) -> Listing:
        try:
            return super().list_instances(prefix)
        except AuthFailed:
            return Listing()


class RaisesWhenGone(Reference):
    def terminate_instance(self, instance_id: str) -> None:
        super().terminate_instance(instance_id)
        self.get_instance(instance_id)


class CallsAFailedTerminateDone(Reference):
    def terminate_instance(self, instance_id: str) -> None:
        try:
            super().terminate_instance(instance_id)
        except Transient:
            return


class TerminatesNothing(Reference):
    def terminate_instance(self, instance_id: str) -> None:
        self.get_instance(instance_id) if instance_id.startswith("i-0") else None


class TerminatesItsSiblings(Reference):
    def terminate_instance(self, instance_id: str) -> None:
        try:
            name = self.get_instance(instance_id).name
        except NotFound:
            return super().terminate_instance(instance_id)
        for sibling in super().list_instances(name[:32]).instances:
            super().terminate_instance(sibling.id)
        return super().terminate_instance(instance_id)


class TakesNewStatusesForRunning(Reference):
    def _instance(self, row: dict[str, Any]) -> Instance:
        instance = super()._instance(row)
        if instance.state is InstanceState.UNKNOWN:
            return instance.model_copy(update={"state": InstanceState.RUNNING})
        return instance


class TakesBootingForRunning(Reference):
    terms = Terms(boot_s=30)
    states = Reference.states | {"booting": InstanceState.RUNNING, "ordered": InstanceState.RUNNING}


class TakesEndedForFailed(Reference):
    states = Reference.states | {"ended": InstanceState.FAILED}


class CutsNames(Reference):
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        return super().create_instance(offer, spec.model_copy(update={"name": spec.name[:32]}))


class RepeatsALostCreate(Reference):
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            return super().create_instance(offer, spec)
        except Unconfirmed:
            return super().create_instance(offer, spec)


class CallsALostCreateTransient(Reference):
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            return super().create_instance(offer, spec)
        except Unconfirmed as error:
            raise Transient(error.message, code=error.code) from None


class CallsEveryRefusalSoldOut(Reference):
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            return super().create_instance(offer, spec)
        except InvalidRequest as error:
            raise NoCapacity(error.message, code=error.code) from None


class SwallowsTheVendorsWords(Reference):
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            return super().create_instance(offer, spec)
        except NoCapacity:
            raise NoCapacity("no capacity") from None


class SaysTheKey(Reference):
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            return super().create_instance(offer, spec)
        except ProviderError as error:
            raise type(error)(f"{error.message} (key {self._key})", code=error.code) from None


class ChainsTheKey(Reference):
    """The message is clean; the exception it was raised from is not."""

    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            return super().create_instance(offer, spec)
        except NoCapacity as error:
            raise error from RuntimeError(f"POST https://reference/?api_key={self._key}")


class UnpicklableNotFound(NotFound):
    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{what} is not in {where}")

    def __reduce__(self) -> Any:
        return (type(self), (self.message,))


class RaisesWhatCannotTravel(Reference):
    def get_instance(self, instance_id: str) -> Instance:
        try:
            return super().get_instance(instance_id)
        except NotFound:
            raise UnpicklableNotFound("the reference cloud", instance_id) from None


class ForgetsHowLongToWait(Reference):
    def get_instance(self, instance_id: str) -> Instance:
        try:
            return super().get_instance(instance_id)
        except ProviderError as error:
            if hasattr(error, "retry_after_s"):
                error.retry_after_s = None
            raise


class HidesLeftovers(Reference):
    def list_instances(self, prefix: str) -> Listing:
        return super().list_instances(prefix).model_copy(update={"leftovers": ()})


class CannotRemoveLeftovers(Reference):
    def terminate_instance(self, instance_id: str) -> None:
        if not instance_id.startswith("disk-"):
            super().terminate_instance(instance_id)


class OffersSpotUndeclared(Reference):
    capabilities = Reference.capabilities.model_copy(update={"spot": False})

    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        offers = super().fetch_offers(requirements)
        return [*offers, *(offer.model_copy(update={"spot": True}) for offer in offers)]


class OffersEverything(Reference):
    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        return super().fetch_offers(Requirements(spot=requirements.spot))


class RaisesInsteadOfNoOffers(Reference):
    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        offers = super().fetch_offers(requirements)
        if not offers:
            raise NoCapacity("nothing fits")
        return offers


class HidesWhatDoesNotFit(Reference):
    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        return [] if requirements.nearest else super().fetch_offers(requirements)


class ChangesItsAccount(Reference):
    def account_id(self) -> str:
        return f"{super().account_id()}/{uuid.uuid4()}"


class KeepsItsOrderInItself(Reference):
    """Two threads, one attribute."""

    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        self.spec = spec
        time.sleep(0.02)
        return super().create_instance(offer, self.spec)


class OrdersTwice(Reference):
    terms = Terms(is_repeatable=False)
    capabilities = Reference.capabilities.model_copy(update={"create_repeatable": None})

    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        super().create_instance(offer, spec)
        return super().create_instance(offer, spec)


class WaitsForTheMachine(Reference):
    terms = Terms(boot_s=1)

    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        created = super().create_instance(offer, spec)
        time.sleep(1.1)
        return self.get_instance(created.id)


class SaysItEndsAndDoesNot(Reference):
    terms = Terms(ends_at_deadline=False)


class IsLaterThanDeclared(Reference):
    terms = Terms(listing_lag_s=60)


class HasNoName(Reference):
    name = ""


class SaysThatItLacksARight(Reference):
    def missing_rights(self) -> list[str]:
        return ["orders:create"]


class OffersWithoutATypeName(Reference):
    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        return [offer.model_copy(update={"instance_type": ""}) for offer in super().fetch_offers(requirements)]


class ListsAnotherId(Reference):
    def list_instances(self, prefix: str) -> Listing:
        listing = super().list_instances(prefix)
        renamed = tuple(one.model_copy(update={"id": f"{one.id}-x"}) for one in listing.instances)
        return listing.model_copy(update={"instances": renamed})


class NeverSaysWhereItAnswers(Reference):
    def _instance(self, row: dict[str, Any]) -> Instance:
        return super()._instance(row).model_copy(update={"ssh": None})


class SaysNaiveTimes(Reference):
    def _instance(self, row: dict[str, Any]) -> Instance:
        instance = super()._instance(row)
        assert instance.created_at is not None
        return instance.model_copy(update={"created_at": instance.created_at.replace(tzinfo=None)})


class LooksBeforeItOrders(Reference):
    """No key at the vendor: two threads that look at once both find nothing."""

    terms = Terms(is_repeatable=False)

    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        found = super().list_instances(spec.name).instances
        time.sleep(0.2)
        return found[0] if found else super().create_instance(offer, spec)


class OrdersOncePerRun(Reference):
    """Takes the run for the name."""

    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        found = super().list_instances(spec.name[:32]).instances
        return found[0] if found else super().create_instance(offer, spec)


class TakesUnknownForEnded(Reference):
    def get_instance(self, instance_id: str) -> Instance:
        try:
            return super().get_instance(instance_id)
        except NotFound:
            return Instance(id=instance_id, name="", provider=self.name, state=InstanceState.TERMINATED)


class RaisesForNothing(Reference):
    def list_instances(self, prefix: str) -> Listing:
        listing = super().list_instances(prefix)
        if not listing.instances:
            raise NotFound("there is nothing of that name")
        return listing


class BelievesNames(Reference):
    def list_instances(self, prefix: str) -> Listing:
        listing = super().list_instances(prefix)
        strangers = tuple(
            Instance(id=one.id, name=one.name, provider=self.name, state=InstanceState.RUNNING)
            for one in listing.unproved
        )
        return listing.model_copy(update={"instances": listing.instances + strangers, "unproved": ()})


class EndsOnlyWhatRuns(Reference):
    terms = Terms(boot_s=30)

    def terminate_instance(self, instance_id: str) -> None:
        try:
            if self.get_instance(instance_id).state is InstanceState.PROVISIONING:
                raise Transient("it is not up yet")
        except NotFound:
            return
        super().terminate_instance(instance_id)


class EndsThingsOnce(Reference):
    def terminate_instance(self, instance_id: str) -> None:
        try:
            is_final = self.get_instance(instance_id).state.is_final
        except NotFound:
            is_final = False
        if is_final:
            raise InvalidRequest("it has ended already")
        super().terminate_instance(instance_id)


class EndsTheFirstOfMany(Reference):
    def terminate_instances(self, instance_ids: Sequence[str]) -> None:
        self.terminate_instance(instance_ids[0])


class LeavesDisks(Reference):
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        self.cloud.fault("create", "leaves a disk", name=spec.name)
        return super().create_instance(offer, spec)


class CallsQuotaSoldOut(Reference):
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            return super().create_instance(offer, spec)
        except QuotaExceeded as error:
            raise NoCapacity(error.message, code=error.code) from None


class CallsNoMoneySoldOut(Reference):
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            return super().create_instance(offer, spec)
        except InsufficientFunds as error:
            raise NoCapacity(error.message, code=error.code) from None


class OrdersAgainAfterALimit(Reference):
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            return super().create_instance(offer, spec)
        except RateLimited as limited:
            with contextlib.suppress(ProviderError):
                super().create_instance(offer, spec)
            raise limited from None


class CallsABrokenCreateTransient(Reference):
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            return super().create_instance(offer, spec)
        except Unconfirmed as error:
            if error.code == "503":
                raise Transient(error.message, code=error.code) from None
            raise


class TakesABrokenGetForGone(Reference):
    def get_instance(self, instance_id: str) -> Instance:
        try:
            return super().get_instance(instance_id)
        except Transient as error:
            raise NotFound(error.message, code=error.code) from None


class CallsANamelessOrderFailed(Reference):
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            return super().create_instance(offer, spec)
        except Unconfirmed as error:
            if error.code is None and "named no instance" in error.message:
                raise InvalidRequest(error.message) from None
            raise


class CallsWhatWasNeverSentUnconfirmed(Reference):
    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            return super().create_instance(offer, spec)
        except RateLimited:
            raise
        except Transient as error:
            raise Unconfirmed(error.message, code=error.code) from None


MUTANTS: dict[type[Reference], str] = {  # and one of the tests that must fail
    KeepsNoKey: "test_the_same_order_twice_is_one_instance_where_create_is_repeatable",
    IgnoresThePrefix: "test_a_prefix_finds_its_own_and_nothing_else",
    FindsThePrefixAnywhere: "test_a_strangers_instance_is_not_listed",
    ReadsTheFirstPage: "test_all_pages_are_read",
    ReadsOneRegion: "test_all_scopes_are_read",
    TakesUnreadForEmpty: "test_a_scope_that_cannot_be_read_is_said_and_hides_nothing_else",
    FailsAsAWholeForOneScope: "test_a_scope_that_cannot_be_read_is_said_and_hides_nothing_else",
    ListsNothingWithoutCredentials: "test_wrong_credentials_are_auth_failed_from_every_call",
    RaisesWhenGone: "test_terminate_of_an_unknown_id_is_success",
    CallsAFailedTerminateDone: "test_a_5xx_at_terminate_is_an_error_and_never_a_success",
    TerminatesNothing: "test_terminate_returns_at_once_and_makes_it_absent",
    TerminatesItsSiblings: "test_terminate_ends_only_what_it_was_told",
    TakesNewStatusesForRunning: "test_a_status_never_seen_before_is_unknown",
    TakesBootingForRunning: "test_nothing_is_running_before_it_can_be_reached",
    TakesEndedForFailed: "test_terminate_returns_at_once_and_makes_it_absent",
    CutsNames: "test_create_returns_at_once_with_an_id_and_the_name_it_was_given",
    RepeatsALostCreate: "test_a_create_is_never_repeated_by_the_driver",
    CallsALostCreateTransient: "test_a_lost_answer_is_unconfirmed_and_the_listing_finds_what_it_bought",
    CallsEveryRefusalSoldOut: "test_a_code_nobody_mapped_is_an_invalid_request_in_the_vendors_words",
    SwallowsTheVendorsWords: "test_sold_out_is_no_capacity",
    SaysTheKey: "test_sold_out_is_no_capacity",
    ChainsTheKey: "test_sold_out_is_no_capacity",
    RaisesWhatCannotTravel: "test_errors_of_the_driver_travel_between_processes",
    ForgetsHowLongToWait: "test_a_429_is_rate_limited_and_says_how_long",
    HidesLeftovers: "test_a_leftover_is_listed_and_removed_by_its_id",
    CannotRemoveLeftovers: "test_a_leftover_is_listed_and_removed_by_its_id",
    OffersSpotUndeclared: "test_spot_offers_come_only_where_spot_is_declared",
    OffersEverything: "test_a_price_cap_and_a_region_are_obeyed",
    RaisesInsteadOfNoOffers: "test_no_offer_is_an_empty_list_and_not_an_error",
    HidesWhatDoesNotFit: "test_where_nothing_fits_it_tells_what_there_is",
    ChangesItsAccount: "test_the_account_id_is_stable_and_holds_no_secret",
    KeepsItsOrderInItself: "test_one_driver_serves_many_threads",
    OrdersTwice: "test_create_is_one_order",
    WaitsForTheMachine: "test_create_returns_at_once_with_an_id_and_the_name_it_was_given",
    SaysItEndsAndDoesNot: "test_the_lease_ends_it_where_that_is_declared",
    IsLaterThanDeclared: "test_create_is_one_order",
    HasNoName: "test_the_driver_has_a_name_and_declares_capabilities",
    SaysThatItLacksARight: "test_complete_credentials_lack_no_rights",
    OffersWithoutATypeName: "test_offers_fit_what_was_asked_and_have_a_price",
    ListsAnotherId: "test_the_name_comes_back_whole_from_get_and_list",
    NeverSaysWhereItAnswers: "test_what_was_created_begins_to_run_and_is_reachable",
    SaysNaiveTimes: "test_times_are_aware_and_the_instance_says_where_it_is",
    LooksBeforeItOrders: "test_the_same_order_from_many_threads_is_one_instance_where_create_is_repeatable",
    OrdersOncePerRun: "test_different_names_are_different_instances",
    TakesUnknownForEnded: "test_an_unknown_id_is_not_found",
    RaisesForNothing: "test_a_prefix_that_nothing_has_finds_nothing",
    BelievesNames: "test_what_only_bears_a_name_of_ours_is_reported_and_never_ended",
    EndsOnlyWhatRuns: "test_terminate_of_what_has_just_been_ordered_works",
    EndsThingsOnce: "test_terminate_can_be_repeated_and_already_gone_is_success",
    EndsTheFirstOfMany: "test_many_can_be_terminated_at_once",
    LeavesDisks: "test_nothing_is_left_behind",
    CallsQuotaSoldOut: "test_over_quota_is_quota_exceeded",
    CallsNoMoneySoldOut: "test_no_money_is_insufficient_funds",
    OrdersAgainAfterALimit: "test_a_create_that_was_rate_limited_is_sent_once_and_not_carried_out",
    CallsABrokenCreateTransient: "test_a_5xx_at_create_is_unconfirmed",
    TakesABrokenGetForGone: "test_a_5xx_at_get_is_transient",
    CallsANamelessOrderFailed: "test_an_unreadable_answer_is_unconfirmed_and_the_listing_finds_what_it_bought",
    CallsWhatWasNeverSentUnconfirmed: "test_an_order_that_was_never_sent_is_transient_and_buys_nothing",
}

SUITE: dict[str, Callable[..., None]] = {
    name: test for name, test in inspect.getmembers(ProviderConformance, inspect.isfunction) if name.startswith("test_")
}


class Quick(ProviderConformance):
    rounds = 20


def failures(driver: type[Reference], tests: list[str]) -> set[str]:
    """Which of these tests fail for this driver. Skipped is not failed."""
    failed: set[str] = set()
    for name in tests:
        cloud = ReferenceCloud(terms=getattr(driver, "terms", None), is_stopped=True)
        subject: Subject = reference_subject(cloud, driver)
        subject.at_once_s = 1.0
        assert isinstance(subject.faults, ReferenceFaults)
        try:
            SUITE[name](Quick(), subject)
        except pytest.skip.Exception:
            pass
        except (Exception, pytest.fail.Exception):  # noqa: BLE001  # however it fails, it fails
            failed.add(name)
        finally:
            cloud.close()
    return failed


@pytest.mark.parametrize(("mutant", "test"), MUTANTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_the_suite_catches_a_driver_that(mutant: type[Reference], test: str) -> None:
    assert failures(mutant, [test]) == {test}


def test_every_contract_test_is_named_by_a_mutant() -> None:
    assert set(MUTANTS.values()) == set(SUITE)


def test_the_suite_passes_the_driver_that_the_mutants_are_made_of() -> None:
    assert failures(Reference, list(SUITE)) == set()
