"""Vultr's driver against a stateful fake of its API, which is held to Vultr's own document where that is at hand."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pydantic import SecretStr

from prefect_gpu.blocks.vultr import VultrCredentials, VultrOptions
from prefect_gpu.providers.core.catalog import collect, store
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    QuotaExceeded,
    Transient,
    Unsupported,
)
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import Availability, Instance, InstanceState, Offer
from prefect_gpu.providers.core.renting.give_back import give_back
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.core.renting.order import Clock
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.vultr import Vultr
from tests.conformance import MASTER_SECRET, Faults, ProviderConformance, Subject, launch_spec, lease_name
from tests.fakes import vultr as fakes
from tests.fakes.sshd import SSHD
from tests.fakes.vultr import FakeVultr

KEY = "VULTRKEY0123456789ABCDEF"
H100 = Requirements(gpu=parse_gpu("H100:8"))


def price(plan: str, region: str, hourly: float, gpu: str | None = None, count: int = 0, memory: float = 80) -> Offer:
    has_gpu = {"gpu_name": gpu, "gpu_count": count, "gpu_memory_gb": memory, "gpu_vendor": "nvidia"} if gpu else {}
    return Offer(
        provider="vultr", instance_type=plan, region=region, country=fakes.REGIONS[region], price=hourly,
        cpu=16, memory_gb=120, disk_gb=300, arch="x86_64", **has_gpu,
    )  # fmt: skip


PRICES = [
    offer
    for region in fakes.REGIONS
    for offer in (
        price("vc2-1c-1gb", region, 0.007),
        price("vcg-l40s-16c-180g-48vram", region, 1.67, "L40S", 1, 48),
        price("vbm-256c-2048gb-8-h100-gpu", region, 23.9, "H100", 8),
    )
]


@pytest.fixture(scope="module", autouse=True)
def prices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A price list of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("home")))
        collected = collect.from_offers(PRICES, "these tests")
        store.publish("vultr", collected.prices, collected_at=datetime.now(UTC), source="these tests")
        yield


@pytest.fixture
def cloud() -> Iterator[FakeVultr]:
    with FakeVultr(KEY) as fake:
        yield fake


def vultr(cloud: FakeVultr, **block: Any) -> Vultr:
    return Vultr(VultrCredentials(api_key=SecretStr(KEY), **block), transport=cloud.transport)


def order(driver: Vultr, requirements: Requirements | None = None, **more: Any) -> Instance:
    offer = driver.fetch_offers(requirements or Requirements())[0]
    return driver.create_instance(offer, launch_spec(driver, lease_name(), **more))


class VultrFaults(Faults):
    def __init__(self, cloud: FakeVultr) -> None:
        self.cloud = cloud

    def _refuse(self, status: int, words: str, call: str = "create") -> str:
        self.cloud.next[call] = httpx.Response(status, json={"error": words, "status": status})
        return words

    def sell_out(self) -> str:
        return self._refuse(400, "Plan is not available in the selected region.")

    def refuse_quota(self) -> str:
        return self._refuse(400, "You have reached the maximum number of active virtual machines for this account.")

    def empty_the_balance(self) -> str:
        return self._refuse(400, "Your account balance is too low for this server.")

    def refuse_the_request(self) -> str:
        return self._refuse(400, "Invalid os_id chosen.")

    def refuse_credentials(self) -> str:
        words = "Invalid API token."
        self.cloud.refused = httpx.Response(401, json={"error": words, "status": 401})
        return words

    def limit_rate(self) -> float:
        self.cloud.next["get"] = httpx.Response(
            429, headers={"retry-after": "2"}, json={"error": "slow", "status": 429}
        )
        return 2

    def limit_creates(self) -> None:
        self._refuse(429, "Rate limit exceeded", "create")

    def break_creates(self) -> str:
        return self._refuse(503, "Server error, try again later")

    def break_reads(self) -> str:
        self.cloud.broken.add("get")
        return "Server error, try again later"

    def break_terminates(self) -> str:
        return self._refuse(500, "Unable to remove VM: Server is currently locked", "delete")

    def lose_the_answer(self) -> None:
        self.cloud.next["create"] = "lost"

    def garble_the_answer(self) -> None:
        self.cloud.next["create"] = b'{"instance": {"os": "Ubuntu'

    def refuse_connections(self) -> None:
        self.cloud.next["create"] = "unreachable"

    def make_unreadable(self) -> str:
        self.cloud.unreadable = "bare-metals"
        return "bare-metals"

    def restore(self) -> None:
        self.cloud.unreadable = self.cloud.refused = None
        self.cloud.broken.clear()

    def show_status(self, instance: Instance, status: str) -> None:
        self.cloud.set(instance.id.partition("/")[2], status=status)

    def shrink_pages(self) -> None:
        self.cloud.page_size = 1

    def create_requests(self) -> int:
        return self.cloud.creates

    def borrow_the_name(self, instance: Instance) -> str:
        stranger = self.cloud.order_by_hand(instance.name)
        self.cloud.set(stranger, hostname="somebody-s-database")
        return f"instances/{stranger}"

    def someone_elses(self) -> str:
        self.cloud.order_by_hand("x-pg-conf-web")
        return "x-pg-conf-web"


@pytest.mark.parametrize("listing_lag_s", [0, 55], ids=["listed at once", "listed late"])
class TestVultr(ProviderConformance):
    @pytest.fixture
    def subject(self, cloud: FakeVultr, listing_lag_s: float) -> Subject:
        cloud.listing_lag_s = listing_lag_s
        return Subject(
            provider=vultr(cloud),
            secrets=(KEY, fakes.PASSWORD),
            unknown_id=f"instances/{'0' * 8}-0000-4000-8000-{'0' * 12}",
            pass_time=cloud.advance,
            faults=VultrFaults(cloud),
        )


@pytest.mark.skipif(fakes.document() is None, reason="Vultr's OpenAPI document is not at hand: ../shared/specs")
def test_the_fake_is_held_to_vultr_s_own_document(cloud: FakeVultr) -> None:
    with pytest.raises(AssertionError, match="takes"):
        cloud.transport.handle_request(httpx.Request("GET", "https://api.vultr.com/v2/instances?nonsense=1"))
    strange = httpx.Request(
        "POST", "https://api.vultr.com/v2/instances", json={"plan": "x", "region": "ewr", "gpus": 8}
    )
    with pytest.raises(AssertionError, match="gpus"):
        cloud.transport.handle_request(strange)


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ({"status": "pending", "server_status": "none"}, InstanceState.PROVISIONING),
        ({"status": "pending", "server_status": "ok"}, InstanceState.PROVISIONING),
        ({"server_status": "none"}, InstanceState.PROVISIONING),
        ({"server_status": "locked"}, InstanceState.PROVISIONING),
        ({"server_status": "installingbooting"}, InstanceState.PROVISIONING),
        ({}, InstanceState.RUNNING),
        ({"main_ip": "0.0.0.0"}, InstanceState.PROVISIONING),
        ({"main_ip": ""}, InstanceState.PROVISIONING),
        ({"power_status": "stopped"}, InstanceState.UNKNOWN),
        ({"status": "suspended"}, InstanceState.UNKNOWN),
        ({"status": "resizing"}, InstanceState.UNKNOWN),
        ({"server_status": "melting"}, InstanceState.UNKNOWN),
    ],
)
def test_each_status_is_what_it_means(cloud: FakeVultr, said: dict[str, str], state: InstanceState) -> None:
    driver = vultr(cloud)
    made = order(driver)
    cloud.advance(60)
    cloud.set(made.id.partition("/")[2], **said)
    assert driver.get_instance(made.id).state is state


@pytest.mark.parametrize("said", [{"power_status": "stopped"}, {"status": "suspended"}])
def test_a_machine_that_is_off_or_suspended_says_that_it_goes_on_costing_money(
    cloud: FakeVultr, said: dict[str, str]
) -> None:
    driver = vultr(cloud)
    made = order(driver)
    cloud.advance(60)
    cloud.set(made.id.partition("/")[2], **said)
    assert "goes on costing money" in driver.get_instance(made.id).reason


@pytest.mark.parametrize(
    ("status", "words", "kind"),
    [
        (400, "Plan is not available in the selected region.", NoCapacity),
        (400, "This plan is out of stock", NoCapacity),
        (400, "You have reached the maximum number of active virtual machines for this account.", QuotaExceeded),
        (400, "The monthly fee limit has been reached.", QuotaExceeded),
        (400, "Insufficient funds.", InsufficientFunds),
        (400, "Please add a payment method first.", InsufficientFunds),
        (400, "Invalid hostname.", InvalidRequest),
        (401, "Invalid API token.", AuthFailed),
        (403, "Unauthorized IP address: 203.0.113.7", AuthFailed),
    ],
)
def test_an_order_s_refusal_is_told_apart_by_vultr_s_words(
    cloud: FakeVultr, status: int, words: str, kind: type[ProviderError]
) -> None:
    cloud.next["create"] = httpx.Response(status, json={"error": words, "status": status})
    with pytest.raises(kind) as refused:
        order(vultr(cloud))
    assert type(refused.value) is kind
    assert words.rstrip(".") in refused.value.message


def test_bare_metal_is_ordered_and_found_in_a_list_of_its_own_and_gets_time_to_boot(cloud: FakeVultr) -> None:
    driver = vultr(cloud)
    offer = driver.fetch_offers(H100)[0]
    assert (offer.availability, offer.boot_deadline_s) == (Availability.AVAILABLE, 3300)
    made = driver.create_instance(offer, launch_spec(driver, lease_name()))
    assert made.id.startswith("bare-metals/")
    cloud.advance(60)
    (listed,) = driver.list_instances(made.name).instances
    assert (listed.id, listed.state) == (made.id, InstanceState.RUNNING)
    driver.terminate_instance(made.id)
    with pytest.raises(NotFound):
        driver.get_instance(made.id)
    assert not cloud.alive()


def test_what_is_sold_out_is_shown_with_the_reason_and_a_region_that_cannot_be_read_hides_no_other(
    cloud: FakeVultr,
) -> None:
    cloud.sold_out = {("vbm-256c-2048gb-8-h100-gpu", "ewr")}
    by_region = {offer.region: offer for offer in vultr(cloud).fetch_offers(H100)}
    assert by_region["ewr"].unavailable_because == "sold out in ewr"
    assert by_region["ams"].availability is Availability.AVAILABLE
    cloud.next["get"] = httpx.Response(404, json={"error": "gone", "status": 404})
    states = sorted(offer.availability for offer in vultr(cloud).fetch_offers(H100))
    assert Availability.UNAVAILABLE in states


def test_the_machine_boots_with_its_host_key_and_ours_and_nothing_else_secret(cloud: FakeVultr) -> None:
    driver = vultr(cloud)
    spec = launch_spec(driver, lease_name())
    made = driver.create_instance(driver.fetch_offers(Requirements())[0], spec)
    config = yaml.safe_load(base64.b64decode(cloud.body(spec.name)["user_data"]))
    assert spec.host_key is not None
    assert config == {
        "disable_root": False,
        "ssh_authorized_keys": [spec.client_public_key],
        "ssh_deletekeys": True,
        "ssh_keys": {
            "ed25519_private": spec.host_key.private.get_secret_value(),
            "ed25519_public": spec.host_key.public,
        },
    }
    assert fakes.PASSWORD not in made.model_dump_json()


def test_a_gpu_boots_ubuntu_and_the_rest_docker_unless_the_run_or_the_block_says_otherwise(cloud: FakeVultr) -> None:
    def image(requirements: Requirements, given: dict[str, Any] | None = None, **block: Any) -> dict[str, Any]:
        made = order(vultr(cloud, **block), requirements, options=given or {})
        return {key: cloud.body(made.name).get(key) for key in ("os_id", "image_id")}

    gpu, cpu = Requirements(gpu=parse_gpu("L40S")), Requirements()
    assert image(gpu) == {"os_id": 1743, "image_id": None}
    assert image(cpu) == image(H100) == {"os_id": None, "image_id": "docker"}
    saved = {"options": VultrOptions(os_id=2284)}
    assert image(gpu, **saved) == {"os_id": 2284, "image_id": None}
    assert image(gpu, {"os_id": 2136}, **saved) == {"os_id": 2136, "image_id": None}
    with pytest.raises(InvalidRequest, match="vultr has no option 'osid': it takes firewall_group_id, image_id, os_id"):
        image(gpu, {"osid": 1})


def test_a_private_network_is_refused_before_anything_is_ordered(cloud: FakeVultr) -> None:
    with pytest.raises(Unsupported, match="leave out network=private"):
        order(vultr(cloud), network="private")
    assert cloud.creates == 0


def test_a_key_without_the_rights_is_told_which_it_lacks(cloud: FakeVultr) -> None:
    cloud.acls = ["billing", "subscriptions_view"]
    assert vultr(cloud).missing_rights() == ["provisioning", "subscriptions"]


@pytest.mark.parametrize("wrong", ["../account", "instances/../account", "account", "instances/", "volumes/7", ""])
def test_an_id_that_is_none_is_asked_for_nowhere(cloud: FakeVultr, wrong: str) -> None:
    driver = vultr(cloud)
    with pytest.raises(NotFound):
        driver.get_instance(wrong)
    driver.terminate_instance(wrong)
    assert cloud.requests == []


class CloudClock(Clock):
    def __init__(self, cloud: FakeVultr) -> None:
        self.cloud = cloud

    def now(self) -> float:
        return self.cloud._now

    def sleep(self, seconds: float) -> None:
        self.cloud.advance(seconds)


def test_a_machine_that_cannot_be_destroyed_while_it_is_made_is_destroyed_as_soon_as_it_can(cloud: FakeVultr) -> None:
    cloud.locks_while_pending = True
    driver = vultr(cloud)
    made = order(driver, H100)
    with pytest.raises(Transient, match="not currently active"):
        driver.terminate_instance(made.id)
    absence = give_back(driver, made.name, known_ids=(made.id,), within_s=300, clock=CloudClock(cloud))
    assert absence.is_gone, absence
    assert not cloud.alive()


@pytest.mark.skipif(shutil.which("cloud-init") is None, reason="cloud-init is not installed")
def test_cloud_init_itself_accepts_what_a_machine_boots_with(cloud: FakeVultr, tmp_path: Path) -> None:
    made = order(vultr(cloud))
    (tmp_path / "user-data").write_bytes(base64.b64decode(cloud.body(made.name)["user_data"]))
    checked = subprocess.run(
        ["cloud-init", "schema", "--config-file", tmp_path / "user-data"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.openssh
@pytest.mark.root
@pytest.mark.skipif(
    os.getuid() != 0 or not Path(SSHD).exists(), reason="needs root and OpenSSH: port 22 of a loopback address"
)
def test_what_was_ordered_is_logged_in_to_by_its_derived_keys_and_given_back() -> None:
    with FakeVultr(KEY, has_ssh=True) as cloud:
        tasks: TaskLibrary[Any] = TaskLibrary(Vultr, VultrCredentials)
        tasks.connections.drivers["default"] = driver = vultr(cloud)
        tasks.connections._secret = MASTER_SECRET
        made = order(driver)
        cloud.advance(60)
        ready = tasks.wait_until_ready.fn(made, driver.fetch_offers(Requirements())[0])
        channel = tasks.connections.connect(ready).open("id -un; exit 3")
        assert channel.recv(100) == b"root\n"
        assert channel.exit_status(10) == 3
        cloud.listing_lag_s = 0
        tasks.capabilities = tasks.capabilities.model_copy(update={"listing_lag_s": 0})
        driver.capabilities = tasks.capabilities  # type: ignore[misc]
        assert tasks.terminate_instance.fn(ready.id).is_gone
        assert not cloud.alive()
