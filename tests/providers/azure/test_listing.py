"""What is seen of machines on Azure: states, leftovers, what could not be read, and whose they are."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from prefect_gpu.blocks.network import JumpHost, Network
from prefect_gpu.providers.core.errors import InvalidRequest, NotFound, ProviderError, Transient
from prefect_gpu.providers.core.models import InstanceState
from prefect_gpu.providers.core.renting.give_back import give_back
from tests.conformance import lease_name
from tests.fakes.azure import facts
from tests.fakes.azure.cloud import FakeAzure
from tests.providers.azure.ordering import H100, SPOT, azure, order, run
from tests.providers.azure.test_order import CloudClock


@pytest.mark.parametrize(
    ("state", "power", "seen"),
    [
        ("Creating", None, InstanceState.PROVISIONING),
        ("Creating", "starting", InstanceState.PROVISIONING),
        ("Creating", "running", InstanceState.RUNNING),
        ("Updating", "running", InstanceState.RUNNING),
        ("Succeeded", "running", InstanceState.RUNNING),
        ("Succeeded", "starting", InstanceState.PROVISIONING),
        ("Succeeded", "stopping", InstanceState.FAILED),
        ("Succeeded", "stopped", InstanceState.FAILED),
        ("Succeeded", "deallocating", InstanceState.FAILED),
        ("Succeeded", "deallocated", InstanceState.FAILED),
        ("Succeeded", "hibernated", InstanceState.UNKNOWN),
        ("Failed", "running", InstanceState.RUNNING),  # an extension that a policy put on it
        ("Failed", "stopped", InstanceState.FAILED),
        ("Failed", "odd", InstanceState.FAILED),
        ("Deleting", "running", InstanceState.TERMINATING),
        ("Canceled", "running", InstanceState.UNKNOWN),
        ("", "running", InstanceState.UNKNOWN),
    ],
)
def test_each_state_is_what_it_means(cloud: FakeAzure, state: str, power: str | None, seen: InstanceState) -> None:
    driver = azure(cloud)
    made = order(driver, H100)
    if power is not None:
        cloud.advance(10)
    cloud.say(made.id, state=state or "odd", power=power)
    found = driver.get_instance(made.id)
    (listed,) = driver.list_instances(made.name).instances
    assert found.state is seen
    by_list = {
        "Creating": InstanceState.PROVISIONING,
        "Updating": InstanceState.PROVISIONING,
        "Succeeded": InstanceState.RUNNING,
    }
    by_list |= {"Failed": InstanceState.FAILED, "Deleting": InstanceState.TERMINATING}
    is_there = power is not None  # long enough to have an address
    expected = by_list.get(state, InstanceState.UNKNOWN)
    assert listed.state is (expected if is_there or state != "Succeeded" else InstanceState.PROVISIONING)
    assert ("goes on costing money" in found.reason) == (
        power in ("stopping", "stopped", "deallocating", "deallocated")
    )
    cloud.say(made.id)


def test_a_machine_without_an_address_does_not_run_yet(cloud: FakeAzure) -> None:
    driver = azure(cloud)
    made = run(cloud, driver, order(driver, H100))
    cloud.things["networkInterfaces"].pop(made.name)
    seen = driver.get_instance(made.id)
    assert (seen.state, seen.ssh) == (InstanceState.PROVISIONING, None)


@pytest.mark.parametrize(
    "row",
    [
        {"properties": None}, {"properties": [], "tags": 7, "zones": "x", "location": None},
        {"properties": {"provisioningState": 7, "instanceView": {"statuses": [None, 3, {"code": 4}]}, "networkProfile": "none"}},
        {"tags": {"prefect-gpu-login": "root@public:99999"}},
        {"properties": {"timeCreated": "yesterday", "networkProfile": {"networkInterfaces": [{"id": "../../x"}, {"id": 7}]}}},
    ],
)  # fmt: skip
def test_an_odd_row_raises_nothing_and_is_not_running(cloud: FakeAzure, row: dict[str, Any]) -> None:
    driver = azure(cloud)
    made = run(cloud, driver, order(driver, H100))
    cloud.say(made.id, row=row)
    seen = driver.get_instance(made.id)
    assert seen.name == made.name
    if "properties" in row:
        assert seen.state is not InstanceState.RUNNING
    (listed,) = driver.list_instances(made.name).instances
    assert listed.name == made.name
    cloud.say(made.id)


def test_a_private_machine_is_reached_by_its_private_address_and_the_jump_host(cloud: FakeAzure) -> None:
    subnet = own_subnet(cloud, "eastus")
    jump = JumpHost(address="jump.example", private_key="a key")  # type: ignore[arg-type]
    driver = azure(cloud, subnets=[subnet], network=Network(private=True, jump=jump))
    made = order(driver, H100)
    seen = run(cloud, driver, made)
    assert seen.ssh is not None
    assert (seen.ssh.host, seen.ssh.jump.host) == (cloud.machine(made.id)["address"], "jump.example")  # type: ignore[union-attr]
    assert cloud.things["publicIPAddresses"] == {}
    (listed,) = driver.list_instances(made.name).instances
    assert listed.ssh == seen.ssh


def own_subnet(cloud: FakeAzure, region: str, name: str = "team") -> str:
    """A network that somebody made, in a group of their own."""
    driver = azure(cloud)
    group = f"/subscriptions/{facts.SUBSCRIPTION}/resourceGroups/network"
    driver.arm.put(group, {"location": region}, what="make it")
    path = f"{group}/providers/Microsoft.Network/virtualNetworks/{name}-{region}"
    driver.arm.put(path, {"location": region, "properties": {"subnets": [{"name": "gpu"}]}}, what="make it")
    return f"{path}/subnets/gpu"


def test_names_that_azure_adds_to_are_known_and_all_of_it_goes(cloud: FakeAzure) -> None:
    cloud.name_suffix = "-1a2b3c4d"
    driver = azure(cloud)
    made = run(cloud, driver, order(driver, H100))
    assert driver.list_instances(made.name).leftovers == ()
    driver.terminate_instance(made.id)
    for kind in ("networkInterfaces", "publicIPAddresses"):
        cloud.machine(made.id)["brought"].remove((kind, f"{made.name}-1a2b3c4d"))  # as if they stayed
    cloud.advance(10)
    left = driver.list_instances(made.name).leftovers
    assert {(one.kind, one.name) for one in left} == {("network interface", made.name), ("address", made.name)}
    absence = give_back(driver, made.name, known_ids=(made.id,), within_s=300, clock=CloudClock(cloud))
    assert (absence.is_gone, cloud.left()) == (True, [])


def test_nothing_is_left_over_while_machines_could_not_be_read(cloud: FakeAzure) -> None:
    driver = azure(cloud)
    order(driver, H100)
    cloud.unreadable = "virtualMachines"
    listing = driver.list_instances("pg-")
    assert ([one.scope for one in listing.incomplete], listing.leftovers) == (["virtualMachines"], ())


def test_a_group_that_the_subscription_does_not_list_holds_nothing_and_one_it_lists_is_unread(cloud: FakeAzure) -> None:
    driver = azure(cloud)
    assert driver.list_instances("pg-").is_complete
    driver.arm.put(driver.arm.group, {"location": "eastus"}, what="make it")
    gone = facts.error(404, "ResourceGroupNotFound", "Resource group 'prefect-gpu' could not be found.")
    cloud.refusals["GET virtualMachines"] = gone  # one of Azure's places does not know the new group yet
    listing = driver.list_instances("pg-")
    assert [one.scope for one in listing.incomplete] == ["virtualMachines"]
    with pytest.raises(Transient, match="could not be found"):
        driver.get_instance(f"prefect-gpu/{lease_name()}")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, "SubscriptionNotFound"),
        (403, "AuthorizationFailed"),
        (404, "ParentResourceNotFound"),
        (500, "InternalServerError"),
    ],
)
def test_only_the_machine_itself_missing_is_its_absence(cloud: FakeAzure, status: int, code: str) -> None:
    driver = azure(cloud)
    made = order(driver, H100)
    cloud.refusals["GET virtualMachines"] = facts.error(status, code, "could not be found")
    with pytest.raises(ProviderError) as told:
        driver.get_instance(made.id)
    assert not isinstance(told.value, NotFound)


@pytest.mark.parametrize("where", ["https://elsewhere.example/page", "http://management.azure.com/page"])
def test_a_next_page_is_asked_for_at_azure_only(cloud: FakeAzure, where: str) -> None:
    driver = azure(cloud)
    order(driver, H100)
    cloud.refusals["GET disks"] = httpx.Response(200, json={"value": [], "nextLink": where})
    listing = driver.list_instances("pg-")
    (unread,) = listing.incomplete
    assert (unread.scope, "another address" in unread.reason) == ("disks", True)


@pytest.mark.parametrize("page", [{"value": None}, {"value": [3]}, {}, {"value": [], "nextLink": 7}])
def test_a_page_that_is_none_is_unread_and_not_empty(cloud: FakeAzure, page: dict[str, Any]) -> None:
    driver = azure(cloud)
    order(driver, H100)
    cloud.refusals["GET virtualMachines"] = httpx.Response(200, json=page)
    listing = driver.list_instances("pg-")
    assert [one.scope for one in listing.incomplete] == ["virtualMachines"]


def test_a_listing_that_has_no_end_is_unread(cloud: FakeAzure) -> None:
    driver = azure(cloud)
    order(driver, H100)
    disks = f"https://management.azure.com{driver.arm.group}/providers/Microsoft.Compute/disks?api-version=2024-03-02"
    cloud.refusals["GET disks"] = httpx.Response(200, json={"value": [], "nextLink": disks})
    (unread,) = driver.list_instances("pg-").incomplete
    assert (unread.scope, "end" in unread.reason) == ("disks", True)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "x",
        "prefect-gpu/",
        "prefect-gpu/../x",
        "../prefect-gpu/x",
        "a/b/c/d",
        "prefect-gpu/scripts/x",
        "a b/c",
        "./x",
        "a/disks/..",
    ],
)
def test_an_id_that_is_none_is_asked_for_nowhere(cloud: FakeAzure, wrong: str) -> None:
    driver = azure(cloud)
    with pytest.raises(NotFound):
        driver.get_instance(wrong)
    driver.terminate_instance(wrong)
    assert cloud.requests == []


@pytest.mark.parametrize(
    "stranger", ["prefect-gpu/web", "prefect-gpu/disks/web", f"prefect-gpu/{'pg-conf' + 'x' * 20}"]
)
def test_what_bears_no_whole_name_of_ours_is_left_alone_unasked(cloud: FakeAzure, stranger: str) -> None:
    driver = azure(cloud)
    with pytest.raises(InvalidRequest, match="left alone"):
        driver.terminate_instance(stranger)
    assert cloud.requests == []


def test_a_name_that_only_begins_as_ours_is_not_ours(cloud: FakeAzure) -> None:
    driver = azure(cloud)
    made = order(driver, H100)
    machine = cloud.things["virtualMachines"].pop(made.name)
    cloud.things["virtualMachines"][f"{made.name}-copy"] = {**machine, "name": f"{made.name}-copy"}
    assert driver.get_instance(f"prefect-gpu/{made.name}-copy").name == ""
    assert driver.list_instances("pg-").instances == ()
    with pytest.raises(InvalidRequest, match="left alone"):
        driver.terminate_instance(f"prefect-gpu/{made.name}-copy")


def test_a_delete_does_not_wait_for_the_machine_to_shut_down(cloud: FakeAzure) -> None:
    driver = azure(cloud)
    made = order(driver, H100)
    sent: list[httpx.Request] = []
    answer = cloud.answer
    cloud.transport.handler = lambda request: (sent.append(request), answer(request))[1]  # type: ignore[method-assign]
    driver.terminate_instance(made.id)
    (delete,) = [one for one in sent if one.method == "DELETE"]
    assert delete.url.params["forceDeletion"] == "true"


def test_a_spot_machine_that_is_taken_back_says_so_and_leaves_nothing(cloud: FakeAzure) -> None:
    driver = azure(cloud)
    made = run(cloud, driver, order(driver, SPOT))
    assert made.spot
    assert driver.interruption_reason(made) is None
    cloud.take_back(made.id)
    gone = driver.get_instance(made.id)
    assert (gone.state, gone.name, gone.spot) == (InstanceState.TERMINATED, made.name, True)
    assert (driver.interruption_reason(gone) or "").startswith("Azure took this spot machine back at 20")
    assert cloud.left() == []
    assert give_back(driver, made.name, known_ids=(made.id,), within_s=300, clock=CloudClock(cloud)).is_gone


def test_a_machine_that_is_gone_for_another_reason_is_not_found_also_where_the_log_cannot_be_read(
    cloud: FakeAzure,
) -> None:
    driver = azure(cloud)
    made, other = order(driver, SPOT), order(driver, SPOT)
    cloud.advance(10)
    cloud.take_back(other.id)
    driver.terminate_instance(made.id)
    cloud.advance(10)
    with pytest.raises(NotFound, match="was not found"):
        driver.get_instance(made.id)
    assert driver.get_instance(other.id).state is InstanceState.TERMINATED
    cloud.events += [{"operationName": {"value": "evictSpotVM"}}, {"operationName": 7}]  # of no machine
    with pytest.raises(NotFound, match="was not found"):
        driver.get_instance(made.id)
    cloud.log_refused = facts.error(403, "AuthorizationFailed", "The client does not have authorization.")
    with pytest.raises(NotFound, match="was not found"):
        driver.get_instance(other.id)


def test_azure_s_own_clock_is_told_to_who_judges_leases(cloud: FakeAzure) -> None:
    from datetime import UTC, datetime

    driver = azure(cloud)
    cloud.advance(7200)
    driver.list_instances("pg-")
    now = driver.provider_time()
    assert now is not None
    assert 7100 < (now - datetime.now(UTC)).total_seconds() < 7300
