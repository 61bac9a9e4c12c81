"""Verda's driver against a stateful fake of its API, which the vendor's own SDK can talk to as well."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from prefect_gpu.blocks.api import ApiAccess
from prefect_gpu.blocks.verda import VerdaCredentials, VerdaOptions
from prefect_gpu.providers import ProviderName
from prefect_gpu.providers.core.catalog import collect, store
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    HostKeyMismatch,
    InstanceFailed,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    Transient,
    Unconfirmed,
    Unsupported,
)
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.models import Availability, Instance, InstanceState, Offer
from prefect_gpu.providers.core.renting.give_back import give_back
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.core.renting.order import place_order
from prefect_gpu.providers.core.requests import Requirements, Spot
from prefect_gpu.providers.verda import Verda
from tests.conformance import MASTER_SECRET, ProviderConformance, Subject, launch_spec, lease_name
from tests.fakes import verda as fakes
from tests.fakes.rented import OWN, apart, ssh_is_possible
from tests.fakes.verda import FakeVerda
from tests.providers.renting import CloudClock, VendorFaults, without_waiting

CLIENT, SECRET = "Ibk5bdxV64lKAWOqYnvSi", "VERDASECRET0123456789abcdef"
H100 = Requirements(gpu=parse_gpu("H100"))
SPOT = Requirements(gpu=parse_gpu("H100"), spot=Spot.SPOT)


def price(
    kind: str, region: str, hourly: float, gpu: str | None = None, count: int = 0, *, spot: bool = False
) -> Offer:
    has_gpu = {"gpu_name": gpu, "gpu_count": count, "gpu_memory_gb": 80, "gpu_vendor": "nvidia"} if gpu else {}
    return Offer(
        provider="verda", instance_type=kind, region=region, country=fakes.LOCATIONS[region], price=hourly, spot=spot,
        cpu=30, memory_gb=120, arch="x86_64", **has_gpu,
    )  # fmt: skip


PRICES = [
    offer
    for region in fakes.LOCATIONS
    for offer in (
        price("CPU.4V.16G", region, 0.03),
        price("1V100.6V", region, 0.14, "V100", 1),
        price("1H100.80S.30V", region, 2.3, "H100", 1),
        price("1H100.80S.30V", region, 0.8, "H100", 1, spot=True),
        price("8H100.80S.240V", region, 18.4, "H100", 8),
    )
]


@pytest.fixture(scope="module", autouse=True)
def prices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A price list of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("home")))
        without_waiting(patch)
        collected = collect.from_offers(PRICES, "these tests")
        store.publish("verda", collected.prices, collected_at=datetime.now(UTC), source="these tests")
        yield


@pytest.fixture
def cloud() -> Iterator[FakeVerda]:
    with FakeVerda(CLIENT, SECRET) as fake:
        yield fake


def verda(cloud: FakeVerda, **block: Any) -> Verda:
    credentials = VerdaCredentials(client_id=CLIENT, client_secret=SecretStr(SECRET), **block)
    return Verda(credentials, transport=cloud.transport)


def order(driver: Verda, requirements: Requirements | None = None, **more: Any) -> Instance:
    offer = driver.fetch_offers(requirements or Requirements())[0]
    return driver.create_instance(offer, launch_spec(driver, lease_name(), **more))


class VerdaFaults(VendorFaults):
    cloud: FakeVerda

    def refusal(self, what: str) -> tuple[httpx.Response, str]:
        status, code, words = {
            "sold out": (503, "service_unavailable", "Not enough resources at the moment"),
            "funds": (402, "insufficient_funds", "Not enough balance"),
            "request": (400, "invalid_request", "hostname is not valid"),
            "credentials": (401, "unauthorized_request", "Invalid client id or client secret"),
            "down": (503, "service_unavailable", "Try again later"),
        }[what]
        return fakes.error(status, code, words), words

    def make_unreadable(self) -> str:
        self.cloud.unreadable = "volumes"
        return "volumes"

    def leave_something(self) -> None:
        self.cloud.keeps_next_disk = True

    def refuse_quota(self) -> str:
        pytest.skip("no refusal of Verda's is known that means a quota")

    def shrink_pages(self) -> None:
        pytest.skip("Verda's lists have one page")

    def borrow_the_name(self, instance: Instance) -> str:
        pytest.skip(f"nothing else can be called {instance.name}: only an order sets the host name")


@pytest.mark.parametrize("listing_lag_s", [0, 55], ids=["listed at once", "listed late"])
class TestVerda(ProviderConformance):
    @pytest.fixture
    def subject(self, cloud: FakeVerda, listing_lag_s: float) -> Subject:
        cloud.listing_lag_s = listing_lag_s
        return Subject(
            provider=verda(cloud),
            secrets=(SECRET, fakes.JUPYTER_TOKEN, "token-1-"),
            unknown_id=f"instances/{'0' * 8}-0000-4000-8000-{'0' * 12}",
            pass_time=cloud.advance,
            faults=VerdaFaults(cloud),
        )


@pytest.mark.parametrize("name", ["verda", "datacrunch"])
def test_people_find_it_by_its_old_name_too(name: str) -> None:
    assert ProviderName(name) is ProviderName.VERDA


def sdk_client(cloud: FakeVerda, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The vendor's own client, whose requests the fake answers."""
    sdk = pytest.importorskip("verda", reason="the vendor's SDK is not installed: pip install verda")
    requests = pytest.importorskip("requests")

    def sent(method: str, url: str, *, params: Any = None, json: Any = None, headers: Any = None, **_: Any) -> Any:
        asked = {key: value for key, value in (params or {}).items() if value is not None}
        answer = cloud.answer(httpx.Request(method, url, params=asked, json=json, headers=headers))
        response = requests.Response()
        response.status_code, response._content = answer.status_code, answer.content
        response.headers.update(answer.headers)
        return response

    monkeypatch.setattr(requests, "request", sent)
    monkeypatch.setattr(requests, "post", lambda url, **how: sent("POST", url, **how))
    return sdk.VerdaClient(CLIENT, SECRET)


def test_the_vendor_s_own_sdk_takes_the_fake_for_verda(cloud: FakeVerda, monkeypatch: pytest.MonkeyPatch) -> None:
    client = sdk_client(cloud, monkeypatch)
    key = client.ssh_keys.create("laptop", "ssh-ed25519 AAAA somebody")
    script = client.startup_scripts.create("boot", "#!/bin/sh")
    assert client.balance.get().currency == "usd"
    assert client.images.get("1V100.6V")
    cloud.advance(1)
    made = client.instances.create(
        "1H100.80S.30V", "ubuntu-24.04-cuda-13.0-open-docker", "by-sdk", "a test", [key.id], "FIN-01", script.id,
        wait_for_status=None,
    )  # fmt: skip
    assert (made.hostname, made.status, made.ip, made.location) == ("by-sdk", "ordered", None, "FIN-01")
    cloud.advance(20)
    assert [(one.id, one.status) for one in client.instances.get()] == [(made.id, "running")]
    (disk,) = client.volumes.get()
    assert (disk.is_os_volume, disk.instance_id) == (True, made.id)
    client.instances.action(made.id, "delete", volume_ids=[disk.id], delete_permanently=True)
    assert (client.instances.get(), client.volumes.get(), client.volumes.get_in_trash()) == ([], [], [])
    client.startup_scripts.delete_by_id(script.id)
    client.ssh_keys.delete_by_id(key.id)
    with pytest.raises(Exception, match="Invalid instance id"):
        client.instances.get_by_id("0")


def test_the_block_gives_a_client_that_is_logged_in(cloud: FakeVerda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("httpx.Client", partial(httpx.Client, transport=cloud.transport))
    assert verda(cloud).credentials.get_client().get("/balance").json()["currency"] == "usd"


@pytest.mark.parametrize(
    ("said", "state"),
    [
        *(({"status": word}, InstanceState.PROVISIONING) for word in ("new", "ordered", "provisioning", "validating")),
        ({"status": "pending"}, InstanceState.PROVISIONING),
        ({"status": "running"}, InstanceState.RUNNING),
        ({"status": "running", "ip": None}, InstanceState.PROVISIONING),
        ({"status": "running", "ip": ""}, InstanceState.PROVISIONING),
        ({"status": "no_capacity"}, InstanceState.FAILED),
        ({"status": "error"}, InstanceState.FAILED),
        ({"status": "deleting"}, InstanceState.TERMINATING),
        ({"status": "discontinued"}, InstanceState.TERMINATED),
        ({"status": "notfound"}, InstanceState.TERMINATED),
        *(({"status": word}, InstanceState.UNKNOWN) for word in ("offline", "unknown", "restoring", "hibernating")),
        ({"status": "starting_hibernation"}, InstanceState.UNKNOWN),
        ({"status": None}, InstanceState.UNKNOWN),
    ],
)
def test_each_status_is_what_it_means(cloud: FakeVerda, said: dict[str, Any], state: InstanceState) -> None:
    driver = verda(cloud)
    made = order(driver)
    cloud.advance(60)
    cloud.say(made.id, **said)
    seen = driver.get_instance(made.id)
    assert seen.state is state
    assert ("goes on costing money" in seen.reason) == (said["status"] == "offline")


def test_an_odd_row_raises_nothing_and_nothing_secret_of_it_is_kept(cloud: FakeVerda) -> None:
    driver = verda(cloud)
    made = order(driver)
    cloud.say(made.id, created_at=17, location=None, ip=7, hostname=None, os_volume_id=None, price_per_hour="dear")
    seen = driver.get_instance(made.id)
    assert (seen.name, seen.created_at, seen.id) == ("", None, made.id)
    assert fakes.JUPYTER_TOKEN not in seen.model_dump_json()
    cloud.say(made.id)


@pytest.mark.parametrize(
    ("status", "code", "words", "kind"),
    [
        (503, "service_unavailable", "Not enough resources at the moment", NoCapacity),
        (503, "service_unavailable", "Maintenance", Unconfirmed),
        (500, "server_error", "Something went wrong", Unconfirmed),
        (402, "insufficient_funds", "Not enough balance", InsufficientFunds),
        (400, "insufficient_funds", "Not enough resources in your account: top it up", InsufficientFunds),
        (400, "invalid_request", "hostname is not valid", InvalidRequest),
        (403, "forbidden_action", "Your account may not deploy here", AuthFailed),
    ],
)
def test_an_order_s_refusal_is_told_apart_by_verda_s_codes_and_words(
    cloud: FakeVerda, status: int, code: str, words: str, kind: type[ProviderError]
) -> None:
    driver = verda(cloud)
    cloud.next["create"] = fakes.error(status, code, words)
    with pytest.raises(kind) as refused:
        order(driver)
    assert type(refused.value) is kind
    assert words in refused.value.message


def test_a_refused_order_leaves_no_script_and_no_key_and_a_lost_one_keeps_them(cloud: FakeVerda) -> None:
    driver = verda(cloud)
    cloud.next["create"] = fakes.error(503, "service_unavailable", "Not enough resources at the moment")
    with pytest.raises(NoCapacity):
        order(driver)
    assert (cloud.scripts, cloud.sshkeys) == ({}, {})
    cloud.next["create"] = "lost"
    with pytest.raises(Unconfirmed):
        order(driver)
    assert (len(cloud.scripts), len(cloud.sshkeys), len(cloud.machines)) == (1, 1, 1)


@pytest.mark.parametrize("ids_as", ["text/plain", "text/html", "application/json"])
def test_an_id_is_found_however_verda_sends_it_and_nothing_is_bought_twice(cloud: FakeVerda, ids_as: str) -> None:
    cloud.ids_as = ids_as
    driver = verda(cloud)
    spec = launch_spec(driver, lease_name())
    made = place_order(driver, driver.fetch_offers(H100)[0], spec, clock=CloudClock(cloud))
    assert cloud.creates == len(cloud.machines) == len(cloud.scripts) == len(cloud.sshkeys) == 1
    assert made.id == f"instances/{next(iter(cloud.machines))}"
    body = cloud.body(spec.name)
    assert (body["startup_script_id"], body["ssh_key_ids"]) == (next(iter(cloud.scripts)), list(cloud.sshkeys))


def test_a_start_up_script_whose_answer_is_lost_is_found_by_its_name(cloud: FakeVerda) -> None:
    cloud.next["scripts"] = "lost"
    made = order(verda(cloud))
    assert cloud.body(made.name)["startup_script_id"] == next(iter(cloud.scripts))


def test_capacity_that_is_refused_after_the_order_was_taken_ends_the_wait_at_once(cloud: FakeVerda) -> None:
    tasks: TaskLibrary[Any] = TaskLibrary(Verda, VerdaCredentials)
    tasks.connections.drivers["default"] = driver = verda(cloud)
    made = order(driver, H100)
    cloud.say(made.id, status="no_capacity", ip=None)
    with pytest.raises(InstanceFailed, match="sold out: Verda took the order"):
        tasks.wait_until_ready.fn(made, driver.fetch_offers(H100)[0])
    absence = give_back(driver, made.name, known_ids=(made.id,), within_s=300, clock=CloudClock(cloud))
    assert (absence.is_gone, cloud.left(made.name)) == (True, []), absence


def test_the_body_of_an_order_on_demand_and_on_spot(cloud: FakeVerda) -> None:
    driver = verda(cloud, options=VerdaOptions(disk_gb=250))
    made = order(driver, SPOT, disk_gb=60.5, tags={"prefect-gpu-realm": "conf"})
    body = dict(cloud.body(made.name))
    assert body.pop("startup_script_id") in cloud.scripts
    assert set(body.pop("ssh_key_ids")) <= set(cloud.sshkeys)
    assert body == {
        "instance_type": "1H100.80S.30V", "image": "ubuntu-24.04-cuda-13.0-open-docker", "hostname": made.name,
        "description": made.name, "location_code": made.region, "is_spot": True, "contract": "SPOT", "pricing": "FIXED_PRICE",
        "os_volume": {"name": made.name, "size": 250, "on_spot_discontinue": "delete_permanently"},
        "tags": [{"key": "prefect-gpu-realm", "value": "conf"}],
    }  # fmt: skip
    body = cloud.body(order(driver, H100, disk_gb=300.5).name)
    assert (body["is_spot"], body["contract"], body["os_volume"]["size"]) == (False, "PAY_AS_YOU_GO", 301)


def test_an_old_gpu_boots_an_image_without_open_kernel_modules_unless_another_is_named(cloud: FakeVerda) -> None:
    def image(gpu: str, **more: Any) -> str:
        driver = verda(cloud)
        return cloud.body(order(driver, Requirements(gpu=parse_gpu(gpu)), **more).name)["image"]

    assert image("V100") == "ubuntu-24.04-cuda-12.8-docker"
    assert image("H100") == "ubuntu-24.04-cuda-13.0-open-docker"
    assert image("H100", options={"image": "ubuntu-22.04"}) == "ubuntu-22.04"
    with pytest.raises(InvalidRequest, match="verda has no option 'img': it takes disk_gb, image"):
        image("H100", options={"img": "x"})
    offer = verda(cloud).fetch_offers(H100)[0].model_copy(update={"instance_type": "1B200.30V"})
    with pytest.raises(Unsupported, match=r"no Ubuntu with Docker for 1B200\.30V") as refused:
        verda(cloud).create_instance(offer, launch_spec(verda(cloud), lease_name()))
    assert (refused.value.reach, refused.value.category) == ("type", "image")


def test_a_private_network_is_refused_before_anything_is_made(cloud: FakeVerda) -> None:
    driver = verda(cloud)
    with pytest.raises(Unsupported, match="leave out network=private"):
        order(driver, network="private")
    assert (cloud.creates, cloud.scripts, cloud.sshkeys) == (0, {}, {})


def test_what_is_in_stock_is_told_by_place_and_market(cloud: FakeVerda) -> None:
    cloud.sold_out = {("1H100.80S.30V", "FIN-01", True), ("1H100.80S.30V", "ICE-01", False)}
    found = verda(cloud).fetch_offers(Requirements(gpu=parse_gpu("H100"), spot=Spot.EITHER))
    said = {(offer.region, offer.spot): offer.unavailable_because for offer in found if offer.gpu_count == 1}
    assert said == {
        ("FIN-01", False): None,
        ("FIN-01", True): "sold out in FIN-01",
        ("ICE-01", False): "sold out in ICE-01",
        ("ICE-01", True): None,
    }
    cloud.sold_out.clear()
    cloud.next["get"] = fakes.error(403, "forbidden_action", "This location is closed to you")
    found = verda(cloud).fetch_offers(H100)
    assert {offer.availability for offer in found} == {Availability.AVAILABLE, Availability.UNAVAILABLE}


def test_a_machine_goes_with_its_disk_for_good_and_takes_no_other_disk_along(cloud: FakeVerda) -> None:
    driver = verda(cloud)
    made = order(driver)
    data = {"id": "data", "name": made.name, "is_os_volume": False, "status": "attached", "size": 50}
    cloud.disks["data"] = data
    cloud.advance(60)
    driver.terminate_instance(made.id)
    (action,) = cloud.actions
    number = made.id.partition("/")[2]
    assert action == {
        "id": [number], "action": "delete", "volume_ids": [cloud.machines[number]["disk"]], "delete_permanently": True,
    }  # fmt: skip
    assert (cloud.disks, cloud.trash) == ({"data": data}, {})
    cloud.advance(60)
    assert driver.list_instances(made.name).leftovers == ()


def test_a_disk_that_the_machine_does_not_name_yet_goes_for_good_too(cloud: FakeVerda) -> None:
    driver = verda(cloud)
    driver.terminate_instance(order(driver).id)
    assert (cloud.disks, cloud.trash) == ({}, {})


def test_a_machine_whose_disk_is_not_known_is_ended_without_a_list_of_disks(cloud: FakeVerda) -> None:
    driver = verda(cloud)
    made = order(driver)
    cloud.unreadable = "volumes"
    driver.terminate_instance(made.id)
    assert [one.keys() for one in cloud.actions] == [{"id", "action"}]


def test_a_machine_that_cannot_be_ended_while_it_is_made_is_ended_as_soon_as_it_can(cloud: FakeVerda) -> None:
    cloud.locks_while_provisioning = True
    driver = verda(cloud)
    made = order(driver, H100)
    with pytest.raises(Transient, match=r"\(207\): Can't discontinue a provisioning instance"):
        driver.terminate_instance(made.id)
    assert len(cloud.scripts) == 1, "the machine may be booting with it"
    absence = give_back(driver, made.name, known_ids=(made.id,), within_s=300, clock=CloudClock(cloud))
    assert (absence.is_gone, cloud.left(made.name)) == (True, []), absence


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ({"error": "Something went wrong", "statusCode": 500}, Transient),
        ({"error": "Not while it is moved", "statusCode": 409}, InvalidRequest),
        ({"statusCode": 403}, InvalidRequest),
        ({"error": "No"}, InvalidRequest),
    ],
)
@pytest.mark.parametrize("status", [202, 207])
def test_a_refusal_inside_a_success_is_never_a_success(
    cloud: FakeVerda, entry: dict[str, Any], kind: type[ProviderError], status: int
) -> None:
    driver = verda(cloud)
    made = order(driver)
    said = [{"action": "delete", "instanceId": made.id, "status": "error", **entry}]
    cloud.next["delete"] = httpx.Response(status, json=said)
    with pytest.raises(kind) as refused:
        driver.terminate_instance(made.id)
    assert type(refused.value) is kind
    assert len(cloud.scripts) == 1


def test_a_disk_that_stayed_is_listed_only_when_all_machines_were_read(cloud: FakeVerda) -> None:
    driver = verda(cloud)
    made = order(driver)
    cloud.unreadable = "instances"
    listing = driver.list_instances("pg-")
    assert ([one.scope for one in listing.incomplete], listing.leftovers) == (["instances"], ())
    assert made.name in {one["name"] for one in cloud.disks.values()}


def test_a_spot_machine_that_is_taken_back_says_so_and_leaves_no_disk(cloud: FakeVerda) -> None:
    driver = verda(cloud)
    made = order(driver, SPOT)
    cloud.advance(60)
    assert driver.interruption_reason(driver.get_instance(made.id)) is None
    cloud.take_back(made.id)
    cloud.advance(60)
    gone = driver.get_instance(made.id)
    assert gone.state is InstanceState.TERMINATED
    assert driver.interruption_reason(gone) == "Verda took this spot machine back"
    assert (cloud.disks, cloud.trash) == ({}, {})
    assert give_back(driver, made.name, known_ids=(made.id,), within_s=300, clock=CloudClock(cloud)).is_gone
    assert cloud.left(made.name) == []


def test_a_token_is_kept_while_it_is_good_and_renewed_before_and_after_it_ends(cloud: FakeVerda) -> None:
    driver = verda(cloud)
    for _ in range(3):
        driver.account_id()
    assert cloud.logins == 1
    cloud.advance(3601)  # at Verda; this machine's clock stands
    made = order(driver)
    assert cloud.logins == 2
    assert driver.get_instance(made.id).name == made.name
    cloud.token_good_for_s = 60  # so short that it is renewed at once
    cloud.advance(3601)
    driver.account_id()
    assert cloud.logins == 3


def test_verda_s_own_clock_is_told_to_who_judges_leases(cloud: FakeVerda) -> None:
    driver = verda(cloud)
    cloud.advance(7200)
    driver.list_instances("pg-")
    now = driver.provider_time()
    assert now is not None
    assert 7100 < (now - datetime.now(UTC)).total_seconds() < 7300


def test_a_token_that_ends_as_the_order_is_sent_costs_no_order_and_buys_one(cloud: FakeVerda) -> None:
    driver = verda(cloud)
    spec, offer = launch_spec(driver, lease_name()), driver.fetch_offers(H100)[0]
    cloud.next["create"] = fakes.error(401, "unauthorized_request", "Access token is expired")
    assert driver.create_instance(offer, spec).name == spec.name
    assert (len(cloud.machines), cloud.logins) == (1, 2)


def test_a_login_that_fails_buys_nothing_and_repeats_no_secret(cloud: FakeVerda) -> None:
    cloud.refused = fakes.error(400, "invalid_request", f"no client with {SECRET}")
    with pytest.raises(InvalidRequest, match=r"refused to log in \(400\): no client with \*\*\*"):
        verda(cloud).account_id()
    cloud.refused = httpx.Response(200, json={"token_type": "Bearer"})
    with pytest.raises(Transient, match="the login has no token"):
        verda(cloud).account_id()


def test_the_login_too_goes_by_way_of_the_company_s_proxy(cloud: FakeVerda) -> None:
    driver = verda(cloud, api=ApiAccess(proxy=SecretStr("http://me:pass-word@proxy.example:3128")))
    for api in (driver._tokens, driver._api):
        login = api._logins.current()
        assert (login.proxy, "pass-word" in login.secrets) == ("http://me:pass-word@proxy.example:3128", True)


@pytest.mark.parametrize("wrong", ["../balance", "instances/../balance", "balance", "instances/", "locations/7", ""])
def test_an_id_that_is_none_is_asked_for_nowhere(cloud: FakeVerda, wrong: str) -> None:
    driver = verda(cloud)
    with pytest.raises(NotFound):
        driver.get_instance(wrong)
    driver.terminate_instance(wrong)
    assert cloud.requests == []


@pytest.mark.root
@pytest.mark.skipif(ssh_is_possible() is not None, reason=str(ssh_is_possible()))
def test_the_start_up_script_is_posix_sh_and_places_the_host_key(cloud: FakeVerda, tmp_path: Path) -> None:
    made = order(verda(cloud))
    (script,) = (one["script"] for one in cloud.scripts.values())
    for folder in OWN:
        (tmp_path / folder).mkdir(parents=True)
    ssh = tmp_path / "etc/ssh"
    for kind in ("ed25519_key", "ecdsa_key", "ecdsa_key.pub"):
        (ssh / f"ssh_host_{kind}").touch()
    (tmp_path / "systemctl").symlink_to("/bin/true")
    apart(script, tmp_path, {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    placed, key = ssh / "ssh_host_ed25519_key", derive(MASTER_SECRET, made.name, "host")
    assert placed.read_text() == key.private.get_secret_value()
    assert placed.stat().st_mode & 0o777 == 0o600
    assert (ssh / "ssh_host_ed25519_key.pub").read_text() == f"{key.public}\n"
    assert [one.name for one in ssh.glob("ssh_host_*_key")] == ["ssh_host_ed25519_key"]


@pytest.mark.root
@pytest.mark.skipif(ssh_is_possible() is not None, reason=str(ssh_is_possible()))
def test_what_was_ordered_is_logged_in_to_by_its_derived_keys_only_and_given_back() -> None:
    with FakeVerda(CLIENT, SECRET, has_ssh=True) as cloud:
        tasks: TaskLibrary[Any] = TaskLibrary(Verda, VerdaCredentials)
        tasks.connections.drivers["default"] = driver = verda(cloud)
        tasks.connections._secret = MASTER_SECRET
        made = order(driver)
        cloud.advance(7)  # it runs, and the start-up script does not yet
        with pytest.raises(HostKeyMismatch):
            tasks.connections.connect(driver.get_instance(made.id))
        assert len(cloud.scripts) == 1
        cloud.advance(7)
        ready = tasks.wait_until_ready.fn(made, driver.fetch_offers(Requirements())[0])
        assert cloud.scripts == {}, "the host key can be read by every key of the account"
        channel = tasks.connections.connect(ready).open("id -un; exit 3")
        assert channel.recv(100) == f"{pwd.getpwuid(os.getuid()).pw_name}\n".encode()
        assert channel.exit_status(10) == 3
        tasks.capabilities = tasks.capabilities.model_copy(update={"listing_lag_s": 0})
        driver.capabilities = tasks.capabilities  # type: ignore[misc]
        cloud.advance(1)
        assert tasks.terminate_instance.fn(ready.id).is_gone
        assert cloud.left(made.name) == []


def test_a_list_with_a_row_that_has_no_id_is_unread_and_not_the_end_of_the_listing(
    cloud: FakeVerda, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = verda(cloud)
    served = cloud.serve

    def odd(request: httpx.Request) -> httpx.Response:
        is_list = request.url.path.endswith("/instances")
        return httpx.Response(200, json=[{"status": "running"}]) if is_list else served(request)

    monkeypatch.setattr(cloud, "serve", odd)
    monkeypatch.setattr(cloud, "hold_to_the_document", lambda *_: None)
    listing = driver.list_instances("pg-")
    assert [one.scope for one in listing.incomplete] == ["instances"]
    assert listing.instances == listing.leftovers == ()
