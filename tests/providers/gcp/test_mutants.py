"""Drivers of Google Cloud that are each wrong in one way, and the test that says so."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InvalidRequest,
    NotFound,
    ProviderError,
    Transient,
    Unconfirmed,
)
from prefect_gpu.providers.core.models import Instance, InstanceState, LaunchSpec, Listing, Offer
from prefect_gpu.providers.gcp import api, errors, firewall, give_back, instances, listing, operations, order
from prefect_gpu.providers.gcp.driver import Gcp
from tests.conformance import ProviderConformance, Subject
from tests.fakes.gcp import FakeGcp
from tests.providers.gcp import test_errors, test_listing, test_network, test_order
from tests.providers.gcp.conftest import gcp
from tests.providers.gcp.test_conformance import KEY_LINE, GcpFaults

Mutant = Callable[[pytest.MonkeyPatch], None]


def without(body: dict[str, Any], *path: str) -> dict[str, Any]:
    inner = body
    for step in path[:-1]:
        inner = inner[step]
    inner.pop(path[-1], None)
    return body


def another_request_id_each_time(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(order, "request_id", lambda *_: str(uuid.uuid4()))
    patch.setattr(errors, "EXISTS", ())


def takes_a_taken_name_for_a_refusal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(errors, "EXISTS", ())


def repeats_the_order_after_a_lost_answer(patch: pytest.MonkeyPatch) -> None:
    real = Gcp.create_instance

    def create(self: Gcp, offer: Offer, spec: LaunchSpec) -> Instance:
        try:
            return real(self, offer, spec)
        except Unconfirmed:
            return real(self, offer, spec)

    patch.setattr(Gcp, "create_instance", create)


def takes_an_accepted_order_for_a_success(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(operations, "waited", lambda *_, **__: {"status": "DONE"})


def takes_a_wait_that_is_over_for_a_refusal(patch: pytest.MonkeyPatch) -> None:
    real = operations.waited

    def waited(*given: Any, **how: Any) -> dict[str, Any]:
        done = real(*given, **how)
        return done if done.get("status") == "DONE" else {"status": "DONE", "error": {"errors": [{"code": "STOCKOUT"}]}}

    patch.setattr(operations, "waited", waited)


def does_not_know_what_a_zone_without_machines_says(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(errors, "IN_OPERATIONS", {})
    patch.setattr(errors, "MEANINGS", errors.answers.Meanings(problem=errors.problem_in))


def drops_the_second_page(patch: pytest.MonkeyPatch) -> None:
    real = api.JsonApi.pages

    def first(self: Any, *given: Any, **how: Any) -> Iterator[Any]:
        yield next(real(self, *given, **how))

    patch.setattr(api.JsonApi, "pages", first)


def takes_a_zone_that_is_down_for_empty(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(api, "_EMPTY", "UNREACHABLE")
    real = Gcp.list_instances
    patch.setattr(Gcp, "list_instances", lambda self, prefix: real(self, prefix).model_copy(update={"incomplete": ()}))


def is_deaf_to_unreachables(patch: pytest.MonkeyPatch) -> None:
    real = api._fields
    patch.setattr(api, "_fields", lambda page, what: {k: v for k, v in real(page, what).items() if k != "unreachables"})


def believes_the_filter(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(listing, "is_name", lambda name, _prefix="": instances.is_name(name))


def ignores_the_prefix(patch: pytest.MonkeyPatch) -> None:
    real = Gcp.list_instances
    patch.setattr(Gcp, "list_instances", lambda self, _: real(self, ""))


def lists_one_zone(patch: pytest.MonkeyPatch) -> None:
    real = Gcp.list_instances

    def listed(self: Gcp, prefix: str) -> Listing:
        found = real(self, prefix)
        return found.model_copy(
            update={"instances": tuple(one for one in found.instances if one.zone == "us-central1-a")}
        )

    patch.setattr(Gcp, "list_instances", listed)


def takes_wrong_credentials_for_an_empty_project(patch: pytest.MonkeyPatch) -> None:
    real = Gcp.list_instances

    def listed(self: Gcp, prefix: str) -> Listing:
        try:
            return real(self, prefix)
        except AuthFailed:
            return Listing()

    patch.setattr(Gcp, "list_instances", listed)


def raises_when_it_is_gone(patch: pytest.MonkeyPatch) -> None:
    real = Gcp.terminate_instance

    def terminate(self: Gcp, instance_id: str) -> None:
        self.get_instance(instance_id)
        real(self, instance_id)

    patch.setattr(Gcp, "terminate_instance", terminate)


def calls_a_failed_delete_done(patch: pytest.MonkeyPatch) -> None:
    real = Gcp.terminate_instance

    def terminate(self: Gcp, instance_id: str) -> None:
        try:
            real(self, instance_id)
        except Transient:
            return

    patch.setattr(Gcp, "terminate_instance", terminate)


def ends_whatever_it_is_told(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(give_back, "is_name", lambda _: True)


def ends_its_siblings(patch: pytest.MonkeyPatch) -> None:
    real = Gcp.terminate_instance

    def terminate(self: Gcp, instance_id: str) -> None:
        real(self, instance_id)
        for one in self.list_instances("pg-").instances:
            real(self, one.id)

    patch.setattr(Gcp, "terminate_instance", terminate)


def keeps_the_disk(patch: pytest.MonkeyPatch) -> None:
    real = order.request
    patch.setattr(order, "request", lambda *given, **how: keep(real(*given, **how)))


def keep(body: dict[str, Any]) -> dict[str, Any]:
    body["disks"][0]["autoDelete"] = False
    return body


def lists_no_disks(patch: pytest.MonkeyPatch) -> None:
    real = listing._called
    patch.setattr(listing, "_called", lambda one, kind, *more: iter(()) if kind == "disks" else real(one, kind, *more))


def sets_no_end(patch: pytest.MonkeyPatch) -> None:
    real = order.request
    patch.setattr(order, "request", lambda *given, **how: without(real(*given, **how), "scheduling", "terminationTime"))


def stops_instead_of_deleting(patch: pytest.MonkeyPatch) -> None:
    real = order._scheduling
    patch.setattr(order, "_scheduling", lambda *given: {**real(*given), "instanceTerminationAction": "STOP"})


def takes_new_words_for_running(patch: pytest.MonkeyPatch) -> None:
    real = instances.state_of

    def state_of(word: str, states: Any, ssh: Any) -> InstanceState:
        return InstanceState.RUNNING if word not in states and ssh else real(word, states, ssh)

    patch.setattr(instances, "state_of", state_of)


def believes_the_word_running(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(instances, "state_of", lambda word, states, _ssh: states.get(word, InstanceState.UNKNOWN))


def takes_stopped_for_gone(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(instances.STATES, "TERMINATED", InstanceState.TERMINATED)  # type: ignore[arg-type]


def does_not_ask_what_became_of_it(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(operations, "ended", lambda *_: None)


def takes_a_delete_that_goes_on_for_done(patch: pytest.MonkeyPatch) -> None:
    real = operations.told
    patch.setattr(operations, "told", lambda *given: [{**one, "status": "DONE"} for one in real(*given)])


def leaves_the_host_key_in_the_metadata(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(give_back, "without_user_data", lambda *_: None)


def uses_a_rule_that_somebody_changed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(firewall, "_COMPARED", ())


def leaves_the_network_s_own_rules_open(patch: pytest.MonkeyPatch) -> None:
    real = firewall._rules
    patch.setattr(firewall, "_rules", lambda *given: real(*given)[:1])


def one_denial_rules_out_everything(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(errors, "_denied", lambda _: "provider")


def a_missing_machine_type_is_not_found(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(errors, "_TYPES", ())


SUITE: dict[str, Callable[..., None]] = dict(inspect.getmembers(ProviderConformance, inspect.isfunction))
BY_THE_SUITE: dict[Mutant, str] = {
    another_request_id_each_time: "test_the_same_order_twice_is_one_instance_where_create_is_repeatable",
    repeats_the_order_after_a_lost_answer: "test_a_create_is_never_repeated_by_the_driver",
    takes_an_accepted_order_for_a_success: "test_sold_out_is_no_capacity",
    does_not_know_what_a_zone_without_machines_says: "test_sold_out_is_no_capacity",
    drops_the_second_page: "test_all_pages_are_read",
    takes_a_zone_that_is_down_for_empty: "test_a_scope_that_cannot_be_read_is_said_and_hides_nothing_else",
    ignores_the_prefix: "test_a_prefix_finds_its_own_and_nothing_else",
    lists_one_zone: "test_all_scopes_are_read",
    takes_wrong_credentials_for_an_empty_project: "test_wrong_credentials_are_auth_failed_from_every_call",
    raises_when_it_is_gone: "test_terminate_of_an_unknown_id_is_success",
    calls_a_failed_delete_done: "test_a_5xx_at_terminate_is_an_error_and_never_a_success",
    ends_its_siblings: "test_terminate_ends_only_what_it_was_told",
    keeps_the_disk: "test_nothing_is_left_behind",
    lists_no_disks: "test_a_leftover_is_listed_and_removed_by_its_id",
    sets_no_end: "test_the_lease_ends_it_where_that_is_declared",
    stops_instead_of_deleting: "test_the_lease_ends_it_where_that_is_declared",
    takes_new_words_for_running: "test_a_status_never_seen_before_is_unknown",
}
# By the driver's own tests: what the fake is told there, the suite cannot know of.
BY_ITS_OWN: dict[Mutant, tuple[Callable[..., None], tuple[Any, ...]]] = {
    takes_a_taken_name_for_a_refusal: (test_order.test_a_name_that_is_taken_is_the_machine_that_was_ordered_under_it, ()),
    takes_a_wait_that_is_over_for_a_refusal: (
        test_order.test_an_order_that_is_not_decided_in_time_is_no_success_and_its_refusal_is_told_later, (),
    ),
    is_deaf_to_unreachables: (test_listing.test_every_way_of_saying_that_a_zone_was_not_read_is_heard, ()),
    believes_the_filter: (test_listing.test_machines_are_asked_for_by_name_and_looked_at_again_here, ()),
    ends_whatever_it_is_told: (test_listing.test_a_disk_that_is_in_use_or_bears_no_whole_name_is_no_leftover, ()),
    believes_the_word_running: (test_listing.test_a_machine_that_runs_without_an_address_does_not_run, ({"networkInterfaces": []},)),
    takes_stopped_for_gone: (test_listing.test_each_status_is_what_it_means, ("TERMINATED", InstanceState.FAILED)),
    does_not_ask_what_became_of_it: (
        test_order.test_what_was_given_back_is_gone_by_google_s_own_word_and_nobody_took_it_back, (),
    ),
    takes_a_delete_that_goes_on_for_done: (test_order.test_a_delete_that_failed_or_is_not_done_proves_nothing, ()),
    leaves_the_host_key_in_the_metadata: (
        test_listing.test_the_first_login_takes_the_host_key_out_of_the_metadata_and_nothing_else, (),
    ),
    uses_a_rule_that_somebody_changed: (
        test_network.test_a_rule_that_somebody_changed_or_made_first_is_not_used, ({"sourceRanges": ["0.0.0.0/0", "10.0.0.0/8"]},),
    ),
    leaves_the_network_s_own_rules_open: (
        test_network.test_one_rule_admits_ssh_and_the_next_denies_the_rest_before_those_of_the_network, (),
    ),
    one_denial_rules_out_everything: (
        test_errors.test_an_order_that_is_accepted_and_then_refused, ("PERMISSIONS_ERROR", AuthFailed, None),
    ),
    a_missing_machine_type_is_not_found: (test_order.test_a_zone_without_the_machine_type_is_the_next_offer_s_turn, ()),
}  # fmt: skip


class Quick(ProviderConformance):
    rounds = 20


def subject_of(cloud: FakeGcp) -> Subject:
    return Subject(
        provider=gcp(cloud),
        secrets=(KEY_LINE, "ya29."),
        unknown_id=f"us-central1-a/pg-conf{'0' * 33}",
        pass_time=cloud.advance,
        faults=GcpFaults(cloud),
    )


FAILURES = (AssertionError, InvalidRequest, NotFound, ProviderError, ValueError, pytest.fail.Exception)


@pytest.mark.parametrize(
    ("mutant", "test"), BY_THE_SUITE.items(), ids=lambda value: value.__name__ if callable(value) else ""
)
def test_the_suite_catches_a_driver_that(
    cloud: FakeGcp, monkeypatch: pytest.MonkeyPatch, mutant: Mutant, test: str
) -> None:
    SUITE[test](Quick(), subject_of(FakeGcp()))  # the driver as it is
    mutant(monkeypatch)
    with pytest.raises(FAILURES):
        SUITE[test](Quick(), subject_of(cloud))


@pytest.mark.parametrize("mutant", BY_ITS_OWN, ids=lambda value: value.__name__)
def test_its_own_tests_catch_a_driver_that(cloud: FakeGcp, monkeypatch: pytest.MonkeyPatch, mutant: Mutant) -> None:
    test, given = BY_ITS_OWN[mutant]
    test(FakeGcp(), *given)
    mutant(monkeypatch)
    with pytest.raises(FAILURES):
        test(cloud, *given)
