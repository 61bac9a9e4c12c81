"""The role of docs/gcp-role.yaml allows what the driver calls, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from prefect_gpu.blocks.gcp import GcpOptions
from prefect_gpu.blocks.network import Network
from prefect_gpu.providers.core.requests import Requirements, Spot
from prefect_gpu.providers.gcp import rights
from tests.conformance import launch_spec, lease_name
from tests.fakes.gcp import FakeGcp, discovery
from tests.fakes.gcp.fake import HOST_PROJECT
from tests.fakes.gcp.project import PROJECT, error
from tests.providers.gcp.conftest import gcp, offer_of
from tests.stack import ROOT

ROLE = yaml.safe_load((ROOT / "docs" / "gcp-role.yaml").read_text())

# What each call needs: the permissions that https://cloud.google.com/compute/docs/reference/rest/v1 names beside it.
_RULES = {"compute.firewalls.create", "compute.networks.updatePolicy"}
NEEDS: dict[str, set[str]] = {
    "compute.projects.get": {"compute.projects.get"},
    "compute.regions.list": {"compute.regions.list"},
    "compute.subnetworks.get": {"compute.subnetworks.get"},
    "compute.subnetworks.aggregatedList": {"compute.subnetworks.list"},
    "compute.firewalls.get": {"compute.firewalls.get"},
    "compute.firewalls.insert": _RULES,
    "compute.globalOperations.wait": {"compute.globalOperations.get"},
    "compute.zoneOperations.wait": {"compute.zoneOperations.get"},
    "compute.zoneOperations.list": {"compute.zoneOperations.list"},
    "compute.instances.get": {"compute.instances.get"},
    "compute.instances.aggregatedList": {"compute.instances.list"},
    "compute.instances.delete": {"compute.instances.delete"},
    "compute.instances.setMetadata": {"compute.instances.setMetadata"},
    "compute.disks.aggregatedList": {"compute.disks.list"},
    "compute.disks.delete": {"compute.disks.delete"},
    "compute.images.getFromFamily": set(),  # of public images: anybody's
}


def of_an_order(body: dict[str, Any]) -> set[str]:
    """What instances.insert needs, by what stands in it."""
    needs = {"compute.instances.create", "compute.disks.create", "compute.subnetworks.use"}
    parts = {
        "labels": "compute.instances.setLabels",
        "metadata": "compute.instances.setMetadata",
        "tags": "compute.instances.setTags",
    }
    needs |= {right for part, right in parts.items() if body.get(part)}
    if body["disks"][0]["initializeParams"].get("labels"):
        needs.add("compute.disks.setLabels")
    if body["networkInterfaces"][0].get("accessConfigs"):
        needs.add("compute.subnetworks.useExternalIp")
    assert not body.get("serviceAccounts"), "that needs iam.serviceAccounts.actAs too"
    return needs


@pytest.mark.skipif(discovery.document() is None, reason="google-api-python-client is not installed")
def test_the_role_allows_every_call_of_a_whole_life_and_no_other(cloud: FakeGcp) -> None:
    driver = gcp(cloud)
    assert driver.account_id() == PROJECT
    assert driver.missing_rights() == []
    assert driver.fetch_offers(Requirements(spot=Spot.EITHER))
    cloud.keeps_next_disk = True
    for spot in (False, True):
        spec = launch_spec(driver, lease_name(), tags={"prefect-gpu-realm": "conf"})
        made = driver.create_instance(offer_of("e2-standard-4", spot=spot), spec)
        cloud.advance(5)
        driver.settle_in(driver.get_instance(made.id))
        driver.terminate_instance(made.id)
        cloud.advance(5)
        driver.get_instance(made.id)
        for left in driver.list_instances(spec.name).leftovers:
            driver.terminate_instance(left.id)
    assert cloud.disks() == []
    needed = set[str]()
    for verb, path, body in cloud.requests:
        if path == "testIamPermissions":
            continue
        method = discovery.check_request(verb, path, {}, body)
        assert method is not None
        needed |= of_an_order(body) if method["id"] == "compute.instances.insert" else NEEDS[method["id"]]
    assert set(ROLE["includedPermissions"]) == needed
    assert ROLE["includedPermissions"] == sorted(rights.NEEDED)


def test_each_right_that_is_missing_is_named(cloud: FakeGcp) -> None:
    cloud.granted = set(rights.NEEDED) - {"compute.disks.delete", "compute.firewalls.create"}
    assert gcp(cloud).missing_rights() == ["compute.disks.delete", "compute.firewalls.create"]
    assert gcp(cloud, network_tags=["lab"]).missing_rights() == ["compute.disks.delete"]
    cloud.granted = set(rights.NEEDED) - {"compute.subnetworks.useExternalIp"}
    assert gcp(cloud, network=Network(private=True)).missing_rights() == []
    shared = [f"projects/{HOST_PROJECT}/regions/us-central1/subnetworks/gpu"]
    assert gcp(cloud, subnets=shared, network_tags=["lab"]).missing_rights() == []
    assert gcp(cloud).missing_rights() == ["compute.subnetworks.useExternalIp"]
    reserved = GcpOptions(reservation="us-central1-a/mine")
    assert gcp(cloud, options=reserved).missing_rights() == [
        "compute.subnetworks.useExternalIp",
        "compute.reservations.get",
    ]


def test_a_project_that_does_not_answer_for_rights_says_so(cloud: FakeGcp) -> None:
    cloud.next["testIamPermissions"] = error(403, "accessNotConfigured", "Cloud Resource Manager API has not been used")
    (told,) = gcp(cloud).missing_rights()
    assert "could not be asked for" in told
    assert "Cloud Resource Manager API has not been used" in told
