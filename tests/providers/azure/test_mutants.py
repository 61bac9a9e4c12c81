"""Drivers of Azure that are each wrong in one way, and the test that says so.

.venv/bin/python -m pytest tests/providers/azure/test_mutants.py
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from prefect_gpu.providers.azure import (
    api,
    driver,
    errors,
    give_back,
    images,
    instances,
    listing,
    network,
    offers,
    order,
)
from prefect_gpu.providers.azure.driver import Azure
from prefect_gpu.providers.core.errors import InvalidRequest, NotFound, ProviderError, Transient, Unconfirmed
from prefect_gpu.providers.core.models import Instance, InstanceState, LaunchSpec, Listing, Offer
from tests.conformance import ProviderConformance, Subject
from tests.fakes.azure import facts
from tests.fakes.azure.cloud import FakeAzure
from tests.providers.azure import ordering, test_errors, test_listing, test_network, test_offers, test_order
from tests.providers.azure.test_conformance import AzureFaults

Patch = Callable[[pytest.MonkeyPatch], None]
Killer = Callable[..., None]


def orders_again_after_a_lost_answer(patch: pytest.MonkeyPatch) -> None:
    real = Azure.create_instance

    def create(self: Azure, offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            return real(self, offer, spec)
        except Unconfirmed:
            return real(self, offer, spec)

    patch.setattr(Azure, "create_instance", create)


def changes_what_stands_under_the_name(patch: pytest.MonkeyPatch) -> None:
    def init(self: api.Arm, *given: Any, **how: Any) -> None:
        real(self, *given, **how)
        self._orders = self._api

    real = api.Arm.__init__
    patch.setattr(api.Arm, "__init__", init)


def takes_a_taken_name_for_a_refusal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(driver, "ORDERED_BEFORE", ())


def owes_what_was_never_bought(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(driver, "NOT_THERE_YET", ())


def raises_for_what_is_gone(patch: pytest.MonkeyPatch) -> None:
    real = give_back.terminate

    def terminate(arm: api.Arm, instance_id: str) -> None:
        group, kind, name = instances.split(instance_id)
        if kind is None:
            instances.look(arm, group, name)
        real(arm, instance_id)

    patch.setattr(give_back, "terminate", terminate)


def calls_a_failed_delete_done(patch: pytest.MonkeyPatch) -> None:
    real = api.Arm.delete

    def delete(self: api.Arm, path: str, **how: Any) -> None:
        try:
            real(self, path, **how)
        except Transient:
            return

    patch.setattr(api.Arm, "delete", delete)


def ends_what_bears_no_name_of_ours(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(give_back.Lease, "parse", lambda _: True)


def takes_unread_for_empty(patch: pytest.MonkeyPatch) -> None:
    real = listing.everything

    def everything(arm: api.Arm, prefix: str) -> Listing:
        return real(arm, prefix).model_copy(update={"incomplete": ()})

    patch.setattr(listing, "everything", everything)


def calls_all_left_over_while_machines_are_unread(patch: pytest.MonkeyPatch) -> None:
    real = listing._rows

    def rows(arm: api.Arm, kind: str) -> list[dict[str, Any]]:
        try:
            return real(arm, kind)
        except ProviderError:
            if kind != "virtualMachines":
                raise
            return []

    patch.setattr(listing, "_rows", rows)


def reads_the_first_page(patch: pytest.MonkeyPatch) -> None:
    real = api.Arm.rows

    def rows(self: api.Arm, path: str, **how: Any) -> Any:
        return iter([row for _, row in zip(range(2), real(self, path, **how), strict=False)])

    patch.setattr(api.Arm, "rows", rows)


def follows_a_page_anywhere(patch: pytest.MonkeyPatch) -> None:
    import httpx

    patch.setattr(api.Arm, "_following", lambda _, link: (httpx.URL(link).path, {}))


def ignores_the_prefix(patch: pytest.MonkeyPatch) -> None:
    real = listing.everything
    patch.setattr(listing, "everything", lambda arm, prefix: real(arm, "pg-"))


def takes_a_missing_group_for_an_absent_machine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(api.Arm, "has_group", lambda *_: False)


def takes_a_missing_subscription_for_an_absent_machine(patch: pytest.MonkeyPatch) -> None:
    real = api.Arm.get

    def get(self: api.Arm, path: str, **how: Any) -> dict[str, Any]:
        try:
            return real(self, path, **how)
        except ProviderError as error:
            raise NotFound(error.message) from None

    patch.setattr(api.Arm, "get", get)


def calls_sold_out_our_fault(patch: pytest.MonkeyPatch) -> None:
    patch.delitem(errors.CODES, "SkuNotAvailable")  # type: ignore[arg-type]


def calls_every_refusal_a_quota(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(errors.CODES, "OperationNotAllowed", errors.errors.QuotaExceeded)  # type: ignore[index]


def rules_all_out_by_one_image(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(errors, "REACHES", {})


def takes_new_states_for_running(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(instances, "_PROVISIONING", _Else(instances._PROVISIONING))


class _Else(dict[str, InstanceState]):
    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key, InstanceState.RUNNING)


def believes_a_failed_extension(patch: pytest.MonkeyPatch) -> None:
    real = instances._state
    patch.setattr(
        instances,
        "_state",
        lambda made, power, ssh: InstanceState.FAILED if made == "Failed" else real(made, power, ssh),
    )


def takes_every_end_of_spot_for_its_own(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Azure, "_taken_back", lambda *_: None)


def keeps_the_disk(patch: pytest.MonkeyPatch) -> None:
    changed(patch, lambda body: body["properties"]["storageProfile"]["osDisk"].update(deleteOption="Detach"))


def keeps_the_address(patch: pytest.MonkeyPatch) -> None:
    def detach(body: dict[str, Any]) -> None:
        (interface,) = body["properties"]["networkProfile"]["networkInterfaceConfigurations"]
        (address,) = interface["properties"]["ipConfigurations"]
        address["properties"]["publicIPAddressConfiguration"]["properties"]["deleteOption"] = "Detach"

    changed(patch, detach)


def lets_spot_be_deallocated(patch: pytest.MonkeyPatch) -> None:
    changed(patch, lambda body: body["properties"].update(evictionPolicy="Deallocate"))


def forgets_the_agent(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(order, "FOR_THE_AGENT", "true")


def changed(patch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], object]) -> None:
    real = order.request

    def request(*given: Any, **how: Any) -> dict[str, Any]:
        body = real(*given, **how)
        change(body)
        return body

    patch.setattr(order, "request", request)


def boots_one_image_for_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(images, "_usual", lambda _: images.HPC)


def admits_the_neighbours(patch: pytest.MonkeyPatch) -> None:
    real = network._rules
    patch.setattr(network, "_rules", lambda *given: real(*given)[:1])


def uses_a_group_that_was_opened(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(network, "_opened", lambda *_: [])


def sells_what_is_over_quota(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(offers.Quotas, "problem", lambda *_: None)


def sells_what_is_closed(patch: pytest.MonkeyPatch) -> None:
    real = offers._type
    patch.setattr(offers, "_type", lambda *given: real(*given)._replace(closed=None))


def refuses_as_an_error_of_ours(patch: pytest.MonkeyPatch) -> None:
    real = images.of

    def of(*given: Any) -> images.Image:
        try:
            return real(*given)
        except ProviderError as error:
            raise InvalidRequest(error.message) from None

    patch.setattr(images, "of", of)


def by_contract(name: str) -> Killer:
    """The contract's test of this name."""

    def test(cloud: FakeAzure) -> None:
        subject = Subject(
            provider=ordering.azure(cloud),
            secrets=(facts.SECRET, "TOKENSIGNATURE"),
            unknown_id=f"{facts.GROUP}/pg-conf{'0' * 33}",
            pass_time=cloud.advance,
            faults=AzureFaults(cloud),
        )
        getattr(ProviderConformance(), name)(subject)

    return test


def each(test: Killer, **given: Any) -> Killer:
    """A test of this package, with what its parametrization or its fixtures would give it."""
    return lambda cloud: test(cloud, **given)


SKU = {"status": 409, "code": "OperationNotAllowed", "words": "The operation is not allowed on a generalized disk."}
IMAGE = {"status": 404, "code": "PlatformImageNotFound", "words": "gone"}
RULE = {"sourceAddressPrefix": "*", "destinationPortRange": "22"}
STATE = {"state": "Failed", "power": "running", "seen": InstanceState.RUNNING}

MUTANTS: dict[Patch, Killer] = {
    orders_again_after_a_lost_answer: by_contract("test_a_create_is_never_repeated_by_the_driver"),
    changes_what_stands_under_the_name: each(test_order.test_what_stands_under_a_name_is_never_changed_by_an_order, is_old=False),
    takes_a_taken_name_for_a_refusal: by_contract("test_the_same_order_twice_is_one_instance_where_create_is_repeatable"),
    owes_what_was_never_bought: test_order.test_an_order_that_names_what_is_still_being_made_is_sent_again_and_is_not_owed,
    raises_for_what_is_gone: by_contract("test_terminate_of_an_unknown_id_is_success"),
    calls_a_failed_delete_done: by_contract("test_a_5xx_at_terminate_is_an_error_and_never_a_success"),
    ends_what_bears_no_name_of_ours: each(test_listing.test_what_bears_no_whole_name_of_ours_is_left_alone_unasked, stranger="prefect-gpu/web"),
    takes_unread_for_empty: by_contract("test_a_scope_that_cannot_be_read_is_said_and_hides_nothing_else"),
    calls_all_left_over_while_machines_are_unread: test_listing.test_nothing_is_left_over_while_machines_could_not_be_read,
    reads_the_first_page: by_contract("test_all_pages_are_read"),
    follows_a_page_anywhere: each(test_listing.test_a_next_page_is_asked_for_at_azure_only, where="https://elsewhere.example/page"),
    ignores_the_prefix: by_contract("test_a_prefix_finds_its_own_and_nothing_else"),
    takes_a_missing_group_for_an_absent_machine: test_listing.test_a_group_that_the_subscription_does_not_list_holds_nothing_and_one_it_lists_is_unread,
    takes_a_missing_subscription_for_an_absent_machine: each(
        test_listing.test_only_the_machine_itself_missing_is_its_absence, status=404, code="SubscriptionNotFound"
    ),
    calls_sold_out_our_fault: by_contract("test_sold_out_is_no_capacity"),
    calls_every_refusal_a_quota: each(
        test_errors.test_an_order_s_refusal_is_told_apart_in_azure_s_words, **SKU, kind=InvalidRequest, reach="provider"
    ),
    rules_all_out_by_one_image: each(
        test_errors.test_an_order_s_refusal_is_told_apart_in_azure_s_words, **IMAGE, kind=errors.errors.RegionClosed, reach="type"
    ),
    takes_new_states_for_running: by_contract("test_a_status_never_seen_before_is_unknown"),
    believes_a_failed_extension: each(test_listing.test_each_state_is_what_it_means, **STATE),
    takes_every_end_of_spot_for_its_own: test_listing.test_a_spot_machine_that_is_taken_back_says_so_and_leaves_nothing,
    keeps_the_disk: test_order.test_what_is_refused_after_it_was_accepted_is_told_in_azure_s_words,
    keeps_the_address: test_order.test_what_is_refused_after_it_was_accepted_is_told_in_azure_s_words,
    lets_spot_be_deallocated: test_order.test_a_spot_order_is_deleted_when_it_is_taken_back_and_costs_no_more_than_asked,
    forgets_the_agent: test_order.test_the_agent_gets_its_key_at_the_end_of_the_boot,
    boots_one_image_for_all: each(
        test_order.test_the_image_fits_the_gpu_s_generation_and_the_processor, gpu="V100", image="microsoft-dsvm:ubuntu-hpc:2204-v100:latest"
    ),
    admits_the_neighbours: test_network.test_a_security_group_admits_ssh_from_where_the_block_says_and_nothing_else,
    uses_a_group_that_was_opened: each(test_network.test_a_group_that_somebody_opened_is_not_used, rule=RULE),
    sells_what_is_over_quota: test_offers.test_quotas_are_told_before_an_order,
    sells_what_is_closed: test_offers.test_what_a_region_does_not_sell_to_this_subscription_says_so,
    refuses_as_an_error_of_ours: test_order.test_amd_s_gpus_get_amd_s_driver_and_those_without_an_image_say_so_before_anything_is_made,
}  # fmt: skip


@pytest.mark.parametrize(("mutant", "test"), MUTANTS.items(), ids=[one.__name__ for one in MUTANTS])
def test_a_driver_that_is_wrong_is_found_out(mutant: Patch, test: Killer) -> None:
    with FakeAzure() as sound:
        test(sound)
    with FakeAzure() as cloud, pytest.MonkeyPatch.context() as patch:
        mutant(patch)
        try:
            test(cloud)
        except (Exception, pytest.fail.Exception):  # noqa: BLE001 - however it fails, it fails
            return
    pytest.fail(f"{mutant.__name__} survives {inspect.getsource(test)[:200]}")
