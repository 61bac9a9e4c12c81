"""TensorDock's driver against a stateful fake of its API, in all the shapes of its answers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from prefect_gpu.blocks.tensordock import TensordockCredentials, TensordockOptions
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    HostKeyMismatch,
    InstanceFailed,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Transient,
    Unconfirmed,
    Unsupported,
)
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.models import Availability, Instance, InstanceState, Offer
from prefect_gpu.providers.core.renting.give_back import give_back
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.core.requests import GpuRequest, Requirements
from prefect_gpu.providers.tensordock.driver import KEYS, Tensordock
from tests.conformance import MASTER_SECRET, ProviderConformance, Subject, launch_spec, lease_name
from tests.fakes import tensordock as fakes
from tests.fakes.rented import ssh_is_possible
from tests.fakes.tensordock import FakeTensordock
from tests.providers.renting import CloudClock, VendorFaults, without_waiting

TOKEN = "TENSORDOCKTOKEN0123456789"
H100 = Requirements(gpu=parse_gpu("H100"))
SOME = Requirements(gpu=(GpuRequest(names=("H100",)),))  # one or more


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        without_waiting(patch)
        yield


@pytest.fixture
def cloud() -> Iterator[FakeTensordock]:
    with FakeTensordock(TOKEN) as fake:
        yield fake


def tensordock(cloud: FakeTensordock, **block: Any) -> Tensordock:
    return Tensordock(TensordockCredentials(api_token=SecretStr(TOKEN), **block), transport=cloud.transport)


def order(driver: Tensordock, requirements: Requirements | None = None, **more: Any) -> Instance:
    offer = driver.fetch_offers(requirements or H100)[0]
    return driver.create_instance(offer, launch_spec(driver, lease_name(), **more))


class TensordockFaults(VendorFaults):
    cloud: FakeTensordock

    def refusal(self, what: str) -> tuple[httpx.Response, str]:
        status, words = {
            "sold out": (400, "The requested GPUs are not available on this hostnode"),
            "quota": (400, "You have reached the maximum number of instances"),
            "funds": (400, "You need at least $1.00 to deploy"),
            "request": (400, "cloud_init is not valid"),
            "credentials": (401, "Invalid API token"),
            "down": (503, "Service temporarily down"),
        }[what]
        return fakes.error(status, words), words

    def make_unreadable(self) -> str:
        self.cloud.unreadable = "instances"
        return "instances"

    def shrink_pages(self) -> None:
        pytest.skip("TensorDock's lists have one page")

    def leave_something(self) -> None:
        pytest.skip("a machine's disk and port go with it: nothing else is made")

    def borrow_the_name(self, instance: Instance) -> str:
        pytest.skip(f"nothing else can be called {instance.name}: only an order sets the name")


@pytest.mark.parametrize(
    ("listing_lag_s", "lists_as"),
    [(0, "attributes"), (55, "flat")],
    ids=["listed at once, in attributes", "listed late and flat"],
)
class TestTensordock(ProviderConformance):
    @pytest.fixture
    def subject(self, cloud: FakeTensordock, listing_lag_s: float, lists_as: Any) -> Subject:
        cloud.listing_lag_s, cloud.lists_as = listing_lag_s, lists_as
        for one in cloud.hosts:
            one["available_resources"]["available_ports"] = list(range(20000, 20100))
        return Subject(
            provider=tensordock(cloud),
            secrets=(TOKEN,),
            unknown_id=f"instances/{'0' * 8}-0000-4000-8000-{'0' * 12}",
            pass_time=cloud.advance,
            requirements=H100,
            faults=TensordockFaults(cloud),
        )


def offers(cloud: FakeTensordock, asked: Requirements = SOME, **block: Any) -> dict[tuple[str, str], Offer]:
    return {(one.instance_type, str(one.zone)): one for one in tensordock(cloud, **block).fetch_offers(asked)}


def test_an_offer_is_a_share_of_one_host_priced_with_all_that_it_comes_with(cloud: FakeTensordock) -> None:
    found = offers(cloud)
    assert set(found) == {
        ("1x-h100-sxm5-80gb", "host-1"),
        ("2x-h100-sxm5-80gb", "host-1"),
        ("1x-h100-sxm5-80gb", "host-2"),
    }
    two = found["2x-h100-sxm5-80gb", "host-1"]
    assert two.price == pytest.approx(2 * 2.2 + 16 * 0.003 + 64 * 0.002 + 100 * 0.00005)
    assert (two.cpu, two.memory_gb, two.disk_gb, two.gpu_count, two.gpu_memory_gb) == (16, 64, 100, 2, 80)
    assert (two.gpu_name, two.gpu_vendor, two.region, two.country) == ("H100", "nvidia", "austin-texas", "US")
    oslo = found["1x-h100-sxm5-80gb", "host-2"]
    assert (oslo.region, oslo.country, oslo.availability, oslo.priced_at) == (
        "oslo",
        "NO",
        Availability.AVAILABLE,
        None,
    )
    assert offers(cloud, Requirements()) == {}, "machines without GPUs are not rented here"
    assert (
        offers(cloud, Requirements(gpu=parse_gpu("RTX4090")))[("1x-geforcertx4090-pcie-24gb", "host-1")].gpu_memory_gb
        == 24
    )


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({}, (8, 32, 100)),
        ({"cpu": 3}, (8, 32, 100)),
        ({"cpu": 11, "memory_gb": 50, "disk_gb": 210}, (12, 64, 250)),
        ({"memory_gb": 200}, (8, 208, 100)),
        ({"cpu": 65}, None),
        ({"memory_gb": 257}, None),
        ({"disk_gb": 2001}, None),
    ],
)
def test_a_share_is_as_large_as_the_job_needs_in_the_steps_that_are_sold(
    cloud: FakeTensordock, asked: dict[str, Any], size: tuple[int, ...] | None
) -> None:
    one = offers(cloud, SOME.model_copy(update=asked)).get(("1x-h100-sxm5-80gb", "host-1"))
    assert (one and (one.cpu, one.memory_gb, one.disk_gb)) == size


def test_a_share_takes_no_more_than_its_host_has_or_gives_for_a_gpu(cloud: FakeTensordock) -> None:
    cloud.hosts[0]["available_resources"] |= {"vcpu_count": 7, "max_ram_per_gpu": 24}
    one = offers(cloud)["1x-h100-sxm5-80gb", "host-1"]
    assert (one.cpu, one.memory_gb) == (6, 16)
    two = offers(cloud)["2x-h100-sxm5-80gb", "host-1"]
    assert (two.cpu, two.memory_gb) == (6, 48)
    cloud.hosts[0]["available_resources"] |= {"vcpu_count": 1}
    assert [zone for _, zone in offers(cloud)] == ["host-2"]
    more = {"options": TensordockOptions(vcpus_per_gpu=4, ram_gb_per_gpu=64, disk_gb=120)}
    dear = offers(cloud, **more)["1x-h100-sxm5-80gb", "host-2"]
    assert (dear.cpu, dear.memory_gb, dear.disk_gb) == (4, 64, 150)


@pytest.mark.parametrize(
    "odd",
    [
        {"pricing": {"per_vcpu_hr": 0.003, "per_gb_ram_hr": 0.002}},
        {"pricing": None},
        {"pricing": {"per_vcpu_hr": -1, "per_gb_ram_hr": 0.002, "per_gb_storage_hr": 0.1}},
        {"available_resources": None},
        {"available_resources": {"gpus": "many"}},
        {"available_resources": {"gpus": [{"v0Name": "abacus-9gb", "availableCount": 3, "price_per_hr": 1}]}},
        {"available_resources": {"gpus": [{"v0Name": "h100-sxm5-80gb", "availableCount": "3", "price_per_hr": 1}]}},
        {
            "available_resources": {
                "gpus": [{"v0Name": "h100-sxm5-80gb", "availableCount": 1e300, "price_per_hr": None}]
            }
        },
        {"location": "here"},
        {"id": None},
    ],
)
def test_a_host_whose_price_or_size_is_not_known_is_not_offered_and_hides_no_other(
    cloud: FakeTensordock, odd: dict[str, Any]
) -> None:
    strange = copy.deepcopy(cloud.hosts[0]) | odd
    cloud.hosts.insert(0, strange | ({} if "id" in odd else {"id": "strange"}))
    assert {zone for _, zone in offers(cloud)} == {"host-1", "host-2"}


def test_a_host_without_a_way_for_ssh_is_shown_with_the_reason(cloud: FakeTensordock) -> None:
    cloud.hosts[0]["available_resources"]["available_ports"] = []
    said = {zone: one.unavailable_because for (_, zone), one in offers(cloud).items()}
    assert said == {"host-1": "no port is free for SSH on host host-1", "host-2": None}
    own = {"options": TensordockOptions(dedicated_ip=True)}
    said = {zone: one.unavailable_because for (_, zone), one in offers(cloud, **own).items()}
    assert said == {"host-1": "no address of its own is free for SSH on host host-1", "host-2": None}
    driver = tensordock(cloud)
    with pytest.raises(NoCapacity, match="no port is free"):
        driver.create_instance(offers(cloud)["1x-h100-sxm5-80gb", "host-1"], launch_spec(driver, lease_name()))
    assert cloud.creates == 0


def test_the_body_of_an_order(cloud: FakeTensordock) -> None:
    driver = tensordock(cloud)
    spec = launch_spec(driver, lease_name())
    made = driver.create_instance(offers(cloud)["2x-h100-sxm5-80gb", "host-1"], spec)
    body = dict(cloud.body(spec.name))
    files = body.pop("cloud_init")
    (forward,) = body.pop("port_forwards")
    assert body == {
        "name": spec.name, "type": "virtualmachine", "image": "ubuntu2404_ml_pytorch", "hostnode_id": "host-1",
        "resources": {"vcpu_count": 16, "ram_gb": 64, "storage_gb": 100, "gpus": {"h100-sxm5-80gb": {"count": 2}}},
        "ssh_key": spec.client_public_key,
    }  # fmt: skip
    assert forward["internal_port"] == 22
    assert forward["external_port"] in (20001, 20002, 20003)
    assert [(one["path"], one["permissions"], one["owner"]) for one in files["write_files"]] == [
        (f"{KEYS}/root", "0700", "root:root"),
        (f"{KEYS}/host", "0700", "root:root"),
    ]
    assert not KEYS.startswith("/etc/ssh"), "cloud-init deletes host keys there between the two"
    assert files["runcmd"] == [f"sh {KEYS}/root", f"sh {KEYS}/host", f"rm -rf {KEYS}"]
    assert (made.region, made.state, made.ssh) == ("austin-texas", InstanceState.PROVISIONING, None)


def test_what_an_order_may_ask_and_what_not(cloud: FakeTensordock) -> None:
    driver = tensordock(cloud, options=TensordockOptions(image="ubuntu2404"))
    assert "port_forwards" in cloud.body(order(driver).name)
    spec = launch_spec(driver, lease_name(), options={"dedicated_ip": True, "image": "ubuntu2204"})
    driver.create_instance(offers(cloud)["1x-h100-sxm5-80gb", "host-2"], spec)
    body = cloud.body(spec.name)
    assert (body["useDedicatedIp"], body["image"], "port_forwards" in body) == (True, "ubuntu2204", False)
    with pytest.raises(InvalidRequest, match="tensordock has no option 'img'"):
        order(driver, options={"img": "x"})
    before = cloud.creates
    with pytest.raises(Unsupported, match="leave out network=private"):
        order(driver, network="private")
    assert cloud.creates == before


def test_two_orders_on_one_host_ask_for_different_ports(cloud: FakeTensordock) -> None:
    for one in cloud.hosts:
        one["available_resources"] |= {"available_ports": list(range(20000, 20050))}
    driver = tensordock(cloud)
    names = [order(driver).name for _ in range(6)]
    assert len({cloud.body(name)["port_forwards"][0]["external_port"] for name in names}) > 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.Response(200, json={"error": "The requested GPUs are not available on this hostnode"}), NoCapacity),
        (httpx.Response(200, json={"error": "Insufficient resources", "status": 400}), NoCapacity),
        (httpx.Response(200, json={"error": {"message": "Out of stock"}}), NoCapacity),
        (httpx.Response(200, json={"status": 400, "message": "You need at least $1.00"}), InsufficientFunds),
        (httpx.Response(200, json={"success": False, "error": "Insufficient balance"}), InsufficientFunds),
        (httpx.Response(200, json={"error": "Instance limit reached"}), QuotaExceeded),
        (httpx.Response(200, json={"error": "cloud_init must be an object"}), InvalidRequest),
        (httpx.Response(200, json={"status": 500, "error": "Something went wrong"}), Unconfirmed),
        (httpx.Response(200, json={"status": "502", "message": "Bad gateway"}), Unconfirmed),
        (httpx.Response(200, json={"status": 404, "error": "Hostnode not found"}), NoCapacity),
        (httpx.Response(200, json={"status": 401, "error": "Unauthorized"}), AuthFailed),
        (httpx.Response(200, json={"status": 429, "error": "Too many requests"}), RateLimited),
        (httpx.Response(200, json={"errors": [{"title": "Not available"}]}), NoCapacity),
        (httpx.Response(200, json={"data": {"type": "virtualmachine"}}), Unconfirmed),
        (httpx.Response(200, json={"status": 400}), InvalidRequest),
        (fakes.error(400, "No available IP addresses"), NoCapacity),
        (fakes.error(409, "Port 20001 is already in use"), NoCapacity),
        (fakes.error(404, "Hostnode not found"), NoCapacity),
        (fakes.error(402, "Payment required"), InsufficientFunds),
        (fakes.error(422, "vcpu_count must be even"), InvalidRequest),
        (fakes.error(403, "This key may not deploy"), AuthFailed),
        (fakes.error(500, "Insufficient patience"), Unconfirmed),
        (httpx.Response(503, text="<h1>load balancer: not available</h1>"), Unconfirmed),
    ],
)
def test_an_order_s_refusal_is_told_apart_inside_a_200_too(
    cloud: FakeTensordock, answer: httpx.Response, kind: type[ProviderError]
) -> None:
    cloud.next["create"] = answer
    with pytest.raises(kind) as refused:
        order(tensordock(cloud))
    assert type(refused.value) is kind
    assert cloud.machines == {}


def test_the_fake_itself_refuses_as_it_is_documented(cloud: FakeTensordock) -> None:
    cloud.balance = 0.5
    with pytest.raises(InsufficientFunds, match=r"need at least \$1\.00"):
        order(tensordock(cloud))
    cloud.balance = 50
    driver = tensordock(cloud)
    offer = offers(cloud)["2x-h100-sxm5-80gb", "host-1"]
    cloud.hosts[0]["available_resources"]["gpus"][0]["availableCount"] = 1
    with pytest.raises(NoCapacity, match="not available on this hostnode"):
        driver.create_instance(offer, launch_spec(driver, lease_name()))
    del cloud.hosts[0]
    with pytest.raises(NoCapacity, match="Hostnode not found"):
        driver.create_instance(offer, launch_spec(driver, lease_name()))


@pytest.mark.parametrize(
    "answer", [{"error": "Server is busy", "status": 503}, {"status": 409, "message": "It is locked"}]
)
def test_an_error_inside_a_200_is_no_success_of_a_delete(cloud: FakeTensordock, answer: dict[str, Any]) -> None:
    driver = tensordock(cloud)
    made = order(driver)
    cloud.next["delete"] = httpx.Response(200, json=answer)
    with pytest.raises((Transient, InvalidRequest)):
        driver.terminate_instance(made.id)
    assert cloud.alive() == [made.name]
    cloud.next["delete"] = httpx.Response(200, json={"error": "Instance not found"})
    driver.terminate_instance(made.id)  # gone already is success


@pytest.mark.parametrize(
    ("said", "state", "why"),
    [
        *(({"status": one}, InstanceState.PROVISIONING, "") for one in ("starting", "pending", "Creating")),
        ({"status": "running"}, InstanceState.RUNNING, ""),
        ({"status": "RUNNING"}, InstanceState.RUNNING, ""),
        ({"status": "running", "ipAddress": ""}, InstanceState.PROVISIONING, ""),
        ({"status": "running", "portForwards": [{"internal_port": 80, "external_port": 20001}]}, InstanceState.PROVISIONING, ""),
        ({"status": "running", "portForwards": [{"internal_port": 22}]}, InstanceState.PROVISIONING, ""),
        ({"status": "running", "portForwards": "none"}, InstanceState.RUNNING, ""),
        ({"status": "stopping"}, InstanceState.UNKNOWN, "goes on costing money"),
        ({"status": "Stopped"}, InstanceState.UNKNOWN, "its disk goes on costing money"),
        ({"status": "StoppedDisassociated"}, InstanceState.INTERRUPTED, "its host took the GPU back"),
        ({"status": "stopped_disassociated"}, InstanceState.INTERRUPTED, "its host took the GPU back"),
        ({"status": "deleting"}, InstanceState.TERMINATING, ""),
        ({"status": "deleted"}, InstanceState.TERMINATED, ""),
        ({"status": "error"}, InstanceState.FAILED, "TensorDock says that it failed"),
        ({"status": None}, InstanceState.UNKNOWN, ""),
    ],
)  # fmt: skip
def test_each_status_is_what_it_means(
    cloud: FakeTensordock, said: dict[str, Any], state: InstanceState, why: str
) -> None:
    driver = tensordock(cloud)
    made = order(driver)
    cloud.advance(60)
    cloud.say(made.id, **said)
    seen = driver.get_instance(made.id)
    assert seen.state is state
    assert why in seen.reason
    assert driver.interruption_reason(seen) == (seen.reason if state is InstanceState.INTERRUPTED else None)


def test_a_gpu_that_its_host_took_back_ends_the_wait_and_the_machine(cloud: FakeTensordock) -> None:
    tasks: TaskLibrary[Any] = TaskLibrary(Tensordock, TensordockCredentials)
    tasks.connections.drivers["default"] = driver = tensordock(cloud)
    made = order(driver)
    cloud.take_back(made.id)
    with pytest.raises(InstanceFailed, match="interrupted while it booted: its host took the GPU back") as failed:
        tasks.wait_until_ready.fn(made, driver.fetch_offers(H100)[0])
    assert failed.value.category == "interrupted"
    absence = give_back(driver, made.name, known_ids=(made.id,), within_s=300, clock=CloudClock(cloud))
    assert (absence.is_gone, cloud.alive()) == (True, [])


@pytest.mark.parametrize("wrapped", [True, False], ids=["in data", "bare"])
def test_a_machine_is_read_in_every_shape(cloud: FakeTensordock, wrapped: bool) -> None:
    driver = tensordock(cloud)
    made = order(driver)
    row = {"id": made.id.partition("/")[2], "type": "instance", "attributes": {"name": made.name, "status": "running"}}
    row["attributes"] |= {"ip_address": "192.0.2.9", "port_forwards": [{"internal_port": 22, "external_port": 2201}]}
    cloud.next["get"] = httpx.Response(200, json={"data": row} if wrapped else row)
    seen = driver.get_instance(made.id)
    assert seen.ssh is not None
    assert (seen.name, seen.state, seen.ssh.host, seen.ssh.port) == (
        made.name,
        InstanceState.RUNNING,
        "192.0.2.9",
        2201,
    )


@pytest.mark.parametrize("odd", [{"data": {}}, {"data": {"instances": [7]}}, {"data": None}, [], {"instances": []}])
def test_a_list_that_is_none_is_not_an_empty_one(cloud: FakeTensordock, odd: Any) -> None:
    driver = tensordock(cloud)
    cloud.next["get"] = httpx.Response(200, json=odd)
    assert [one.scope for one in driver.list_instances("pg-").incomplete] == ["instances"]
    cloud.next["get"] = httpx.Response(200, json=odd)
    with pytest.raises(Transient, match="has no list of hostnodes"):
        driver.fetch_offers(H100)


def test_an_odd_row_raises_nothing(cloud: FakeTensordock) -> None:
    driver = tensordock(cloud)
    made = order(driver)
    cloud.say(made.id, name=None, ipAddress=7, portForwards={"22": 7}, rateHourly="dear", resources=None, status=9)
    seen = driver.get_instance(made.id)
    assert (seen.name, seen.price, seen.state, seen.id) == ("", None, InstanceState.UNKNOWN, made.id)


def test_the_account_is_told_by_its_token_and_tells_nothing_of_it(cloud: FakeTensordock) -> None:
    told = tensordock(cloud).account_id()
    assert told.startswith("token-")
    assert TOKEN not in told
    assert cloud.requests == [("GET", "/api/v2/instances")]


@pytest.mark.parametrize("wrong", ["../secrets", "instances/../secrets", "secrets", "instances/", "secrets/7", ""])
def test_an_id_that_is_none_is_asked_for_nowhere(cloud: FakeTensordock, wrong: str) -> None:
    driver = tensordock(cloud)
    with pytest.raises(NotFound):
        driver.get_instance(wrong)
    driver.terminate_instance(wrong)
    assert cloud.requests == []


def test_the_block_gives_a_client_with_its_token(cloud: FakeTensordock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("httpx.Client", partial(httpx.Client, transport=cloud.transport))
    assert tensordock(cloud).credentials.get_client().get("/instances").json() == {"data": {"instances": []}}


@pytest.mark.root
@pytest.mark.skipif(ssh_is_possible() is not None, reason=str(ssh_is_possible()))
def test_until_its_scripts_ran_a_machine_shows_another_host_key_and_is_not_ready() -> None:
    with FakeTensordock(TOKEN, has_ssh=True) as cloud:
        tasks: TaskLibrary[Any] = TaskLibrary(Tensordock, TensordockCredentials)
        tasks.connections.drivers["default"] = driver = tensordock(cloud)
        tasks.connections._secret = MASTER_SECRET
        spec = launch_spec(driver, lease_name())
        offer = driver.fetch_offers(H100)[0]
        made = driver.create_instance(offer, spec)
        cloud.advance(6)  # it runs, and its commands do not yet
        with pytest.raises(HostKeyMismatch):
            tasks.connections.connect(driver.get_instance(made.id))
        cloud.advance(6)
        ready = tasks.wait_until_ready.fn(made, offer)
        assert ready.ssh is not None
        assert (ready.ssh.user, ready.ssh.port) == ("root", cloud.body(spec.name)["port_forwards"][0]["external_port"])
        folder = cloud.machines[made.id.partition("/")[2]]["rented"].home.parent
        assert list((folder / "var/lib").iterdir()) == [], "the host key lies nowhere else"
        placed = folder / "etc/ssh/ssh_host_ed25519_key"
        assert placed.read_text() == derive(MASTER_SECRET, spec.name, "host").private.get_secret_value()
        assert placed.stat().st_mode & 0o777 == 0o600
        driver.terminate_instance(made.id)
        assert cloud.alive() == []


def test_a_list_with_a_row_that_has_no_id_is_unread_and_not_the_end_of_the_listing(
    cloud: FakeTensordock, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tensordock(cloud)
    served = cloud.serve

    def odd(request: httpx.Request) -> httpx.Response:
        is_list = request.url.path.endswith("/instances")
        return httpx.Response(200, json={"data": [{"status": "running"}]}) if is_list else served(request)

    monkeypatch.setattr(cloud, "serve", odd)
    monkeypatch.setattr(cloud, "hold_to_the_document", lambda *_: None)
    listing = driver.list_instances("pg-")
    assert [one.scope for one in listing.incomplete] == ["instances"]
    assert listing.instances == listing.leftovers == ()
