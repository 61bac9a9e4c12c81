"""The role of docs/azure-role.json allows what the driver calls and no more; and what a role lacks is named."""

from __future__ import annotations

import json
import re

import pytest

from prefect_gpu.providers.azure import rights
from prefect_gpu.providers.core.errors import AuthFailed
from tests.fakes.azure import facts
from tests.fakes.azure.cloud import FakeAzure
from tests.providers.azure.ordering import H100, SPOT, azure, order, run
from tests.providers.azure.test_offers import GROUP, reservation
from tests.stack import ROOT

ROLE = json.loads((ROOT / "docs" / "azure-role.json").read_text())
VERBS = {"GET": "read", "PUT": "write", "DELETE": "delete"}
# Asked by no call: Azure asks for them when an order names or brings along such a thing.
# https://learn.microsoft.com/azure/role-based-access-control/permissions/compute
LINKED = {
    "Microsoft.Compute/capacityReservationGroups/deploy/action",
    "Microsoft.Compute/disks/write",
    "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action",
    "Microsoft.Network/networkInterfaces/join/action",
    "Microsoft.Network/networkInterfaces/write",
    "Microsoft.Network/networkSecurityGroups/join/action",
    "Microsoft.Network/publicIPAddresses/join/action",
    "Microsoft.Network/publicIPAddresses/write",
    "Microsoft.Network/virtualNetworks/subnets/join/action",
}


def action_of(method: str, path: str) -> str:
    """The right that Azure asks for: the path without the names in it."""
    scope, _, resource = path.partition("/providers/")
    if not resource:
        return (
            "Microsoft.Resources/subscriptions/"
            + ("resourceGroups/" if "/resourcegroups" in scope.lower() else "")
            + VERBS[method]
        )
    namespace, *steps = resource.split("/")
    if namespace == "Microsoft.Insights":
        return "Microsoft.Insights/eventtypes/values/read"
    kinds = [steps[0], "usages"] if steps[0] == "locations" else steps[::2]
    return "/".join([namespace, *kinds, VERBS[method]])


def test_the_role_allows_every_call_and_no_other(cloud: FakeAzure) -> None:
    reservation(cloud, "2", 1)
    cloud.requests.clear()
    driver = azure(cloud, capacity_reservation_group=GROUP)
    assert driver.missing_rights() == []
    assert driver.account_id() == facts.SUBSCRIPTION
    for requirements in (H100, SPOT):
        cloud.keeps_next_disk = True
        made = run(cloud, driver, order(driver, requirements))
        if made.spot:
            cloud.take_back(made.id)
            assert driver.get_instance(made.id).state.is_final
        driver.terminate_instance(made.id)
        for kind in ("networkInterfaces", "publicIPAddresses"):
            cloud.things[kind].setdefault(made.name, {"id": kind, "name": made.name, "body": {}, "at": 0})
        cloud.things["virtualMachines"].clear()
        for left in driver.list_instances(made.name).leftovers:
            driver.terminate_instance(left.id)
    called = {action_of(method, path).lower() for method, path in cloud.requests}  # as Azure compares them
    linked = {one.lower() for one in LINKED}
    assert {one.lower() for one in ROLE["Actions"]} == called | linked
    assert not called & linked
    assert ROLE["NotActions"] == []


def test_the_role_is_what_missing_rights_are_told_from() -> None:
    parts = [getattr(rights, name) for name in dir(rights) if re.fullmatch(r"(IN|FOR)_[A-Z_]+", name)]
    assert sorted({rights.ASKING, *(one for part in parts for one in part)}) == ROLE["Actions"]
    assert sorted(ROLE["Actions"]) == ROLE["Actions"]


def test_the_role_of_the_page_lacks_nothing_and_each_right_that_is_taken_from_it_is_named(cloud: FakeAzure) -> None:
    driver = azure(cloud, capacity_reservation_group=GROUP, identity=f"{GROUP}-identity")
    driver.arm.put(driver.arm.group, {"location": "eastus"}, what="make it")
    cloud.actions = ROLE["Actions"]
    assert driver.missing_rights() == []
    optional = {rights.ASKING, *rights.FOR_A_GROUP, *rights.FOR_REASONS}  # the group is there; reasons are a courtesy
    for taken in set(ROLE["Actions"]) - optional:
        cloud.actions = [one for one in ROLE["Actions"] if one != taken]
        assert [one.partition(" ")[0] for one in driver.missing_rights()] == [taken]


@pytest.mark.parametrize(
    ("actions", "lacks"),
    [
        (["*"], False),
        (["*/read"], True),
        (["Microsoft.Compute/*", "Microsoft.Network/*", "Microsoft.Resources/subscriptions/*"], False),
        (["microsoft.compute/*", "MICROSOFT.NETWORK/*", "Microsoft.Resources/*"], False),
        (["Microsoft.Compute/virtualMachines/*"], True),
        ([], True),
    ],
    ids=str,
)
def test_wildcards_are_read_as_azure_does(cloud: FakeAzure, actions: list[str], lacks: bool) -> None:
    cloud.actions = actions
    assert bool(azure(cloud).missing_rights()) is lacks


def test_a_group_that_is_not_there_yet_needs_the_right_to_make_it(cloud: FakeAzure) -> None:
    driver = azure(cloud)
    cloud.actions = [one for one in ROLE["Actions"] if one not in rights.FOR_A_GROUP]
    assert driver.missing_rights() == list(rights.FOR_A_GROUP)


def test_rights_that_cannot_be_asked_for_are_said_and_credentials_that_are_no_good_are_an_error(
    cloud: FakeAzure,
) -> None:
    answer = cloud.answer
    denied = facts.error(403, "AuthorizationFailed", "The client does not have authorization.")
    cloud.transport.handler = lambda one: denied if "Microsoft.Authorization" in one.url.path else answer(one)  # type: ignore[method-assign]
    (said,) = azure(cloud).missing_rights()
    assert said.startswith("Microsoft.Authorization/permissions/read (without it")
    cloud.refused = facts.error(401, "AuthenticationFailed", "Authentication failed.")
    with pytest.raises(AuthFailed):
        azure(cloud).missing_rights()
