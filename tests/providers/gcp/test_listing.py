"""What a listing finds, and what it must not take for nothing."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_gpu.providers.core.errors import InvalidRequest, NotFound, Transient
from prefect_gpu.providers.core.models import Instance, InstanceState
from prefect_gpu.providers.core.renting.give_back import give_back
from tests.conformance import launch_spec, lease_name
from tests.fakes.gcp import FakeGcp
from tests.fakes.gcp.project import error
from tests.providers.gcp.conftest import gcp, offer_of
from tests.providers.gcp.test_order import CloudClock


def made(cloud: FakeGcp, zone: str = "us-central1-a") -> Instance:
    driver = gcp(cloud)
    return driver.create_instance(offer_of("e2-standard-4", zone), launch_spec(driver, lease_name()))


@pytest.mark.parametrize(
    ("status", "state"),
    [
        *((word, InstanceState.PROVISIONING) for word in ("PENDING", "PROVISIONING", "STAGING")),
        ("RUNNING", InstanceState.RUNNING),
        *((word, InstanceState.TERMINATING) for word in ("PENDING_STOP", "STOPPING", "SUSPENDING", "DEPROVISIONING")),
        *((word, InstanceState.FAILED) for word in ("STOPPED", "TERMINATED", "SUSPENDED")),
        ("REPAIRING", InstanceState.UNKNOWN),
        ("FLYING", InstanceState.UNKNOWN),
    ],
)
def test_each_status_is_what_it_means(cloud: FakeGcp, status: str, state: InstanceState) -> None:
    one = made(cloud)
    cloud.advance(5)
    cloud.vm(one.id).said = {"status": status}
    seen = gcp(cloud).get_instance(one.id)
    assert seen.state is state
    assert ("goes on costing money" in seen.reason) == (state is InstanceState.FAILED)


@pytest.mark.parametrize(
    "odd",
    [
        {"networkInterfaces": []}, {"networkInterfaces": "x"}, {"networkInterfaces": [7]}, {"networkInterfaces": [{"accessConfigs": [{"natIP": "x"}]}]},
        {"networkInterfaces": [{"networkIP": None}]},
    ],
)  # fmt: skip
def test_a_machine_that_runs_without_an_address_does_not_run(cloud: FakeGcp, odd: dict[str, Any]) -> None:
    one = made(cloud)
    cloud.advance(5)
    cloud.vm(one.id).said = odd
    seen = gcp(cloud).get_instance(one.id)
    assert (seen.state, seen.ssh) == (InstanceState.PROVISIONING, None)


@pytest.mark.parametrize("value", ["root", "root:0", "root:99999", "-o:22", "a b:22", 7, None])
def test_an_odd_way_in_is_the_usual_one(cloud: FakeGcp, value: Any) -> None:
    one = made(cloud)
    cloud.advance(5)
    cloud.vm(one.id).said = {"metadata": {"items": [{"key": "prefect-gpu-login", "value": value}, "odd"]}}
    ssh = gcp(cloud).get_instance(one.id).ssh
    assert ssh is not None
    assert (ssh.user, ssh.port) == ("ubuntu", 22)


def test_an_odd_row_raises_nothing_and_hides_no_other(cloud: FakeGcp) -> None:
    here, there = made(cloud), made(cloud, "us-central1-b")
    odd = {
        "creationTimestamp": 7,
        "scheduling": "x",
        "labels": None,
        "machineType": None,
        "metadata": 7,
        "statusMessage": ["x"],
    }
    cloud.vm(here.id).said = odd
    listing = gcp(cloud).list_instances("pg-")
    assert ({one.id for one in listing.instances}, listing.is_complete) == ({here.id, there.id}, True)
    cloud.vm(here.id).said = {"name": f"{here.name}/../x"}
    listing = gcp(cloud).list_instances("pg-")
    assert {one.id for one in listing.instances} == {there.id}


def test_every_way_of_saying_that_a_zone_was_not_read_is_heard(cloud: FakeGcp) -> None:
    one = made(cloud)
    driver = gcp(cloud)
    row = cloud.vm(one.id).row(cloud.now)
    empty = {"warning": {"code": "NO_RESULTS_ON_PAGE", "message": "none"}}

    def listed(page: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
        cloud.next["list"] = (200, page)
        listing = driver.list_instances("pg-")
        return [found.id for found in listing.instances], {at.scope: at.reason for at in listing.incomplete}

    items = {"zones/us-central1-a": {"instances": [row]}, "zones/us-central1-b": empty}
    assert listed({"items": items}) == ([one.id], {})
    down = {**items, "zones/us-central1-b": {"warning": {"code": "UNREACHABLE", "message": "down"}}}
    assert listed({"items": down}) == ([one.id], {"us-central1-b": "Google Cloud says UNREACHABLE: down"})
    found, unread = listed({"items": items, "unreachables": ["https://x/projects/p/zones/us-central1-b"]})
    assert (found, unread) == ([one.id], {"us-central1-b": "Google Cloud calls it unreachable"})
    found, unread = listed({"items": items, "warning": {"code": "PARTIAL_SUCCESS"}})
    assert (found, unread) == ([one.id], {"instances": "Google Cloud says PARTIAL_SUCCESS: no reason is given"})
    partly = {**items, "zones/us-central1-a": {"instances": [row], "warning": {"code": "LIST_OVERHEAD_QUOTA_EXCEED"}}}
    assert listed({"items": partly})[1].keys() == {"us-central1-a"}


@pytest.mark.parametrize("page", [[], {"error": {"code": 500}}, {}, b"", b"null"])
def test_a_list_that_is_none_is_no_empty_list(cloud: FakeGcp, page: Any) -> None:
    made(cloud)
    cloud.next["list"] = page if isinstance(page, bytes) else (200, page)
    with pytest.raises(Transient):
        gcp(cloud).list_instances("pg-")


def test_disks_that_cannot_be_listed_hide_no_machine(cloud: FakeGcp) -> None:
    one = made(cloud)
    cloud.unreadable = {"disks"}
    listing = gcp(cloud).list_instances("pg-")
    assert ([found.id for found in listing.instances], [at.scope for at in listing.incomplete]) == ([one.id], ["disks"])
    cloud.unreadable = {"instances"}
    with pytest.raises(Transient):
        gcp(cloud).list_instances("pg-")


def test_a_disk_that_is_in_use_or_bears_no_whole_name_is_no_leftover(cloud: FakeGcp) -> None:
    one = made(cloud)
    cloud.order_by_hand("pg-conf-web")
    by_hand = cloud.vm("us-central1-a/pg-conf-web")
    by_hand.ends_at = cloud.now
    cloud.keeps_next_disk = True
    cloud.advance(5)
    assert [disk.name for disk in cloud.lost_disks] == ["pg-conf-web"]
    listing = gcp(cloud).list_instances("pg-conf")
    assert ([found.id for found in listing.instances], listing.leftovers) == ([one.id], ())
    for stranger in ("us-central1-a/pg-conf-web", "us-central1-a/disk/pg-conf-web", "us-central1-a/web"):
        with pytest.raises(InvalidRequest, match="left alone"):
            gcp(cloud).terminate_instance(stranger)
    assert gcp(cloud).list_instances("x").instances == ()


def test_a_regional_disk_of_our_name_is_reported_and_left_alone(cloud: FakeGcp) -> None:
    name = lease_name()
    items = {"regions/us-central1": {"disks": [{"name": name}]}, "zones/us-central1-a": {"disks": []}}
    empty = (200, {"items": {}})
    cloud.next["list"] = empty
    served = cloud._served
    cloud._served = lambda verb, path, *more: (
        (200, {"items": items}) if path.endswith("/disks") else served(verb, path, *more)
    )  # type: ignore[method-assign]
    listing = gcp(cloud).list_instances("pg-")
    (one,) = listing.unproved
    assert (one.id, one.kind, one.name, listing.leftovers) == (f"us-central1/{name}", "disk", name, ())
    assert "no order of ours makes a regional disk" in one.reason


def test_a_disk_of_a_machine_is_removed_with_its_lease(cloud: FakeGcp) -> None:
    one = made(cloud)
    cloud.keeps_next_disk = True
    absence = give_back(gcp(cloud), one.name, known_ids=(one.id,), within_s=300, clock=CloudClock(cloud))
    assert (absence.is_gone, cloud.disks()) == (True, []), absence


def test_machines_are_asked_for_by_name_and_looked_at_again_here(cloud: FakeGcp) -> None:
    one, other = made(cloud), made(cloud)
    driver = gcp(cloud)
    assert [found.id for found in driver.list_instances(one.name).instances] == [one.id]
    assert [asked["filter"] for asked in cloud.queries[-2:]] == [f'name eq "{one.name}.*"'] * 2
    rows = [cloud.vm(found.id).row(cloud.now) for found in (one, other)]
    cloud.next["list"] = (200, {"items": {"zones/us-central1-a": {"instances": rows}}})  # a filter that is not read
    assert [found.id for found in driver.list_instances(one.name).instances] == [one.id]
    assert driver.list_instances('pg-".*').instances == ()
    assert "filter" not in cloud.queries[-1]


@pytest.mark.parametrize(
    "wrong", ["", "x", "us-central1-a/", "us-central1-a/../x", "us-central1/x", "us-central1-a/X", "us-central1-a/x/y"]
)
def test_an_id_that_is_none_is_asked_for_nowhere(cloud: FakeGcp, wrong: str) -> None:
    driver = gcp(cloud)
    with pytest.raises(NotFound, match="is not an id of Google Cloud"):
        driver.get_instance(wrong)
    driver.terminate_instance(wrong)
    assert cloud.requests == []


def test_google_s_own_clock_is_told_to_who_judges_leases(cloud: FakeGcp) -> None:
    driver = gcp(cloud)
    cloud.advance(7200)
    driver.list_instances("pg-")
    now = driver.provider_time()
    assert now is not None
    assert abs(now.timestamp() - cloud.now) < 120


def test_the_first_login_takes_the_host_key_out_of_the_metadata_and_nothing_else(cloud: FakeGcp) -> None:
    driver = gcp(cloud)
    one = made(cloud)
    driver.settle_in(one)
    keys = [item["key"] for item in cloud.vm(one.id).metadata]
    assert keys == ["prefect-gpu-login", "block-project-ssh-keys", "enable-oslogin"]
    cloud.next["setMetadata"] = error(412, "conditionNotMet", "Supplied fingerprint does not match")
    with pytest.raises(Exception, match="fingerprint"):
        driver.settle_in(made(cloud))
