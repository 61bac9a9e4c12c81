"""Google's own client takes the fake for Compute Engine."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.conformance import launch_spec, lease_name
from tests.fakes.gcp import FakeGcp
from tests.fakes.gcp.orders import pool_exhausted
from tests.fakes.gcp.project import PROJECT
from tests.providers.gcp.conftest import gcp, offer_of


class Sdk:
    """google-cloud-compute over REST, whose requests the fake answers."""

    def __init__(self, cloud: FakeGcp) -> None:
        self.compute = pytest.importorskip("google.cloud.compute_v1", reason="google-cloud-compute is not installed")
        requests = pytest.importorskip("requests")
        credentials = pytest.importorskip("google.oauth2.credentials").Credentials(token="sdk")
        cloud.tokens["sdk"] = cloud.now + 1e9
        adapters = requests.adapters

        class ToFake(adapters.BaseAdapter):  # type: ignore[misc]
            def send(self, request: Any, **_: Any) -> Any:
                answer = cloud.answer(
                    httpx.Request(
                        request.method, request.url, headers=dict(request.headers), content=request.body or b""
                    )
                )
                response = requests.Response()
                response.status_code, response._content = answer.status_code, answer.content
                response.headers.update(answer.headers)
                response.request, response.url = request, request.url
                return response

            def close(self) -> None:
                pass

        self._adapter, self._credentials = ToFake(), credentials

    def client(self, name: str) -> Any:
        made = getattr(self.compute, name)(credentials=self._credentials, transport="rest")
        made.transport._session.mount("https://", self._adapter)
        return made


@pytest.fixture
def sdk(cloud: FakeGcp) -> Sdk:
    return Sdk(cloud)


def test_a_machine_is_made_listed_and_deleted_by_google_s_own_client(cloud: FakeGcp, sdk: Sdk) -> None:
    compute, zone = sdk.compute, "us-central1-b"
    machines = sdk.client("InstancesClient")
    body = compute.Instance(
        name="by-sdk",
        machine_type=f"zones/{zone}/machineTypes/g2-standard-8",
        disks=[
            compute.AttachedDisk(
                boot=True,
                auto_delete=True,
                initialize_params=compute.AttachedDiskInitializeParams(
                    source_image=f"projects/{PROJECT}/global/images/big-1",
                    disk_size_gb=250,
                    disk_type=f"zones/{zone}/diskTypes/pd-balanced",
                ),
            )
        ],
        network_interfaces=[
            compute.NetworkInterface(
                subnetwork=f"projects/{PROJECT}/regions/us-central1/subnetworks/default",
                access_configs=[compute.AccessConfig(type_="ONE_TO_ONE_NAT")],
            )
        ],
        scheduling=compute.Scheduling(on_host_maintenance="TERMINATE", automatic_restart=False),
    )
    order = compute.InsertInstanceRequest(project=PROJECT, zone=zone, instance_resource=body, request_id="0a1b")
    operation = machines.insert(order)
    operation.result(timeout=5)
    assert operation.name == machines.insert(order).name, "the same request is the same operation"
    cloud.advance(5)
    seen = machines.get(project=PROJECT, zone=zone, instance="by-sdk")
    assert (seen.status, seen.name) == ("RUNNING", "by-sdk")
    assert seen.network_interfaces[0].access_configs[0].nat_i_p
    listed = {zone: [one.name for one in found.instances] for zone, found in machines.aggregated_list(project=PROJECT)}
    assert listed == {"zones/us-central1-a": [], "zones/us-central1-b": ["by-sdk"], "zones/europe-west4-b": []}
    disks = sdk.client("DisksClient").aggregated_list(project=PROJECT)
    assert [disk.users for _, found in disks for disk in found.disks] == [[seen.self_link]]
    machines.delete(project=PROJECT, zone=zone, instance="by-sdk")
    cloud.advance(3)
    with pytest.raises(Exception, match=r"404.*was not found"):
        machines.get(project=PROJECT, zone=zone, instance="by-sdk")
    told = sdk.client("ZoneOperationsClient").list(project=PROJECT, zone=zone)
    assert sorted(one.operation_type for one in told) == ["delete", "insert"]


def test_pages_and_a_zone_that_is_down_are_what_google_s_own_client_reads(cloud: FakeGcp, sdk: Sdk) -> None:
    for number in range(3):
        cloud.order_by_hand(f"web-{number}")
    cloud.page_size, cloud.unreachable = 1, {"europe-west4-b"}
    found = list(sdk.client("InstancesClient").aggregated_list(project=PROJECT))
    assert [one.name for _, scope in found for one in scope.instances] == ["web-0", "web-1", "web-2"]
    assert {zone for zone, scope in found if scope.warning.code == "UNREACHABLE"} == {"zones/europe-west4-b"}


def test_a_zone_without_machines_fails_the_operation_of_google_s_own_client(cloud: FakeGcp, sdk: Sdk) -> None:
    driver = gcp(cloud)
    cloud.refuses_inserts = [pool_exhausted("us-central1-a", "e2-standard-4")]
    with pytest.raises(Exception, match="ZONE_RESOURCE_POOL_EXHAUSTED"):
        driver.create_instance(offer_of("e2-standard-4"), launch_spec(driver, lease_name()))
    (told,) = sdk.client("ZoneOperationsClient").list(project=PROJECT, zone="us-central1-a")
    assert [one.code for one in told.error.errors] == ["ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"]
    assert told.http_error_status_code == 503


def test_the_driver_s_firewall_rules_and_network_are_read_by_google_s_own_client(cloud: FakeGcp, sdk: Sdk) -> None:
    driver = gcp(cloud)
    driver.create_instance(offer_of("e2-standard-4"), launch_spec(driver, lease_name()))
    names = sorted(cloud.firewalls)
    rules = [sdk.client("FirewallsClient").get(project=PROJECT, firewall=name) for name in names]
    assert [(one.priority, [port for rule in one.allowed for port in rule.ports]) for one in rules] == [
        (900, ["22"]),
        (901, []),
    ]
