"""Lambda's driver against a stateful fake of its API, which is held to Lambda's own document where that is at hand."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pydantic import SecretStr

from prefect_gpu.blocks.lambdalabs import LambdalabsCredentials, LambdalabsOptions
from prefect_gpu.providers import ProviderName
from prefect_gpu.providers.core.catalog import collect, store
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    RegionClosed,
    Transient,
    Unconfirmed,
    Unsupported,
)
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import Availability, Instance, InstanceState, Offer
from prefect_gpu.providers.core.renting.give_back import give_back
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.lambdalabs import driver as driver_module
from prefect_gpu.providers.lambdalabs.driver import Lambdalabs
from tests.conformance import ProviderConformance, Subject, launch_spec, lease_name
from tests.fakes import lambdalabs as fakes
from tests.fakes.lambdalabs import FakeLambda
from tests.providers.renting import CloudClock, VendorFaults, without_waiting

EVERY_S = driver_module.EVERY_S
KEY = "secret_team_0123456789abcdef.LAMBDAKEY"
H100 = Requirements(gpu=parse_gpu("H100"))
COUNTRIES = {"us-west-1": "US", "us-south-2": "US", "europe-central-1": "DE"}


def price(name: str, region: str, gpu: str, memory: float) -> Offer:
    cents, count, _ = fakes.TYPES[name]
    return Offer(
        provider="lambdalabs", instance_type=name, region=region, country=COUNTRIES[region], price=cents / 100,
        cpu=26 * count, memory_gb=200 * count, disk_gb=1024, arch="x86_64", gpu_name=gpu, gpu_count=count,
        gpu_memory_gb=memory, gpu_vendor="nvidia",
    )  # fmt: skip


PRICES = [
    offer
    for region in fakes.REGIONS
    for offer in (
        price("gpu_1x_a10", region, "A10", 24),
        price("gpu_1x_h100_pcie", region, "H100", 80),
        price("gpu_8x_h100_sxm5", region, "H100", 80),
    )
]


@pytest.fixture(scope="module", autouse=True)
def prices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A price list of this module's own, and no second between two requests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("home")))
        without_waiting(patch)
        patch.setattr(driver_module, "EVERY_S", 0.0)
        collected = collect.from_offers(PRICES, "these tests")
        store.publish("lambdalabs", collected.prices, collected_at=datetime.now(UTC), source="these tests")
        yield


@pytest.fixture
def cloud() -> Iterator[FakeLambda]:
    with FakeLambda(KEY) as fake:
        yield fake


def lambdalabs(cloud: FakeLambda, **block: Any) -> Lambdalabs:
    return Lambdalabs(LambdalabsCredentials(api_key=SecretStr(KEY), **block), transport=cloud.transport)


def order(driver: Lambdalabs, requirements: Requirements | None = None, **more: Any) -> Instance:
    offer = driver.fetch_offers(requirements or H100)[0]
    return driver.create_instance(offer, launch_spec(driver, lease_name(), **more))


class LambdaFaults(VendorFaults):
    cloud: FakeLambda

    def refusal(self, what: str) -> tuple[httpx.Response, str]:
        status, code = {
            "sold out": (400, "instance-operations/launch/insufficient-capacity"),
            "quota": (400, "global/quota-exceeded"),
            "funds": (403, "global/account-inactive"),
            "request": (400, "global/invalid-parameters"),
            "credentials": (401, "global/invalid-api-key"),
            "down": (500, "global/internal-error"),
        }[what]
        return fakes.error(status, code), fakes.WORDS[code][0]

    def make_unreadable(self) -> str:
        self.cloud.unreadable = "ssh-keys"
        return "ssh-keys"

    def leave_something(self) -> None:
        self.cloud.keeps_keys = True

    def shrink_pages(self) -> None:
        pytest.skip("Lambda's lists have one page")

    def borrow_the_name(self, instance: Instance) -> str:
        return f"instances/{self.cloud.order_by_hand(instance.name)}"


@pytest.mark.parametrize("listing_lag_s", [0, 55], ids=["listed at once", "listed late"])
class TestLambdalabs(ProviderConformance):
    @pytest.fixture
    def subject(self, cloud: FakeLambda, listing_lag_s: float) -> Subject:
        cloud.listing_lag_s = listing_lag_s
        return Subject(
            provider=lambdalabs(cloud),
            secrets=(KEY, fakes.JUPYTER_TOKEN),
            unknown_id=f"instances/{'0' * 32}",
            pass_time=cloud.advance,
            requirements=H100,
            faults=LambdaFaults(cloud),
        )

    def test_a_leftover_is_listed_and_removed_by_its_id(self, subject: Subject, cloud: FakeLambda) -> None:
        subject.faults.leave_something()
        created = self.create_running(subject, lease_name())
        subject.provider.terminate_instance(created.id)
        self.wait_absent(subject, created)
        cloud.keeps_keys = False
        (left,) = subject.provider.list_instances(created.name).leftovers
        assert (left.kind, left.name) == ("ssh-keys", created.name)
        subject.provider.terminate_instance(left.id)
        assert subject.provider.list_instances(created.name).leftovers == ()


@pytest.mark.skipif(fakes.spec() is None, reason="Lambda's OpenAPI document is not at hand: ../shared/specs")
@pytest.mark.parametrize(
    ("method", "path", "body", "why"),
    [
        ("GET", "/instances?name=x", None, "takes"),
        ("GET", "/machines", None, "there is no /api/v1/machines"),
        ("POST", "/ssh-keys", {"name": "x", "kind": "rsa"}, "kind"),
        ("POST", "/instance-operations/launch", {"region_name": "us-west-1", "ssh_key_names": ["x"]}, "required"),
    ],
)
def test_the_fake_is_held_to_lambda_s_own_document(
    cloud: FakeLambda, method: str, path: str, body: Any, why: str
) -> None:
    asked = httpx.Request(method, f"https://cloud.lambda.ai/api/v1{path}", json=body)
    with pytest.raises(AssertionError, match=why):
        cloud.hold_to_the_document(asked, None)


def test_a_client_made_of_lambda_s_document_takes_the_fake_for_lambda(cloud: FakeLambda) -> None:
    why = "a client generated from Lambda's document is not installed: pip install lambda-ai-cloud-api-client"
    made = pytest.importorskip("lambda_ai_cloud_api_client.client", reason=why)
    from lambda_ai_cloud_api_client import models
    from lambda_ai_cloud_api_client.api import instances, ssh_keys  # noqa: F401 - the packages of the calls
    from lambda_ai_cloud_api_client.api.instances import (
        get_instance,
        launch_instance,
        list_instance_types,
        list_instances,
        terminate_instance,
    )
    from lambda_ai_cloud_api_client.api.ssh_keys import add_ssh_key, delete_ssh_key, list_ssh_keys

    url = "https://cloud.lambda.ai"
    client = made.AuthenticatedClient(base_url=url, token=KEY, httpx_args={"transport": cloud.transport})
    types = list_instance_types.sync(client=client).data
    assert types["gpu_1x_a10"].instance_type.price_cents_per_hour == 75
    key = add_ssh_key.sync(client=client, body=models.AddSSHKeyRequest(name="k", public_key="ssh-ed25519 AAAA")).data
    assert [one.name for one in list_ssh_keys.sync(client=client).data] == ["k"]
    asked = models.InstanceLaunchRequest(
        region_name=models.PublicRegionCode("us-west-1"),
        instance_type_name="gpu_1x_a10",
        ssh_key_names=["k"],
        name="by-client",
    )
    (number,) = launch_instance.sync(client=client, body=asked).data.instance_ids
    assert get_instance.sync(client=client, id=number).data.status == "booting"
    cloud.advance(20)
    assert [(one.id, one.status, one.name) for one in list_instances.sync(client=client).data] == [
        (number, "active", "by-client")
    ]
    ended = terminate_instance.sync(client=client, body=models.InstanceTerminateRequest(instance_ids=[number])).data
    assert [one.status for one in ended.terminated_instances] == ["terminating"]
    cloud.advance(300)
    assert get_instance.sync(client=client, id=number).error.code == "global/object-does-not-exist"
    delete_ssh_key.sync(client=client, id=key.id)
    assert cloud.keys == {}


@pytest.mark.parametrize("name", ["lambdalabs", "lambda"])
def test_people_find_it_by_both_of_its_names(name: str) -> None:
    assert ProviderName(name) is ProviderName.LAMBDALABS


@pytest.mark.parametrize(
    ("said", "state", "why"),
    [
        ({"status": "booting"}, InstanceState.PROVISIONING, ""),
        ({"status": "active"}, InstanceState.RUNNING, ""),
        ({"status": "active", "ip": None}, InstanceState.PROVISIONING, ""),
        ({"status": "active", "ip": ""}, InstanceState.PROVISIONING, ""),
        ({"status": "unhealthy"}, InstanceState.UNKNOWN, "unhealthy, and it goes on costing money"),
        ({"status": "terminating"}, InstanceState.TERMINATING, ""),
        ({"status": "terminated"}, InstanceState.TERMINATED, ""),
        ({"status": "preempted"}, InstanceState.INTERRUPTED, "Lambda preempted it"),
        ({"status": None}, InstanceState.UNKNOWN, ""),
        ({"status": "stopped"}, InstanceState.UNKNOWN, ""),
    ],
)
def test_each_status_is_what_it_means(cloud: FakeLambda, said: dict[str, Any], state: InstanceState, why: str) -> None:
    driver = lambdalabs(cloud)
    made = order(driver)
    cloud.advance(60)
    cloud.say(made.id, **said)
    seen = driver.get_instance(made.id)
    assert seen.state is state
    assert why in seen.reason
    assert driver.interruption_reason(seen) == (seen.reason if state is InstanceState.INTERRUPTED else None)
    cloud.say(made.id)


def test_a_machine_that_was_preempted_is_ended_with_its_key(cloud: FakeLambda) -> None:
    driver = lambdalabs(cloud)
    made = order(driver)
    cloud.advance(60)
    cloud.say(made.id, status="preempted")
    driver.terminate_instance(made.id)
    assert (cloud.alive(), cloud.keys) == ([], {})


@pytest.mark.parametrize(
    ("status", "code", "kind", "reach"),
    [
        (400, "instance-operations/launch/insufficient-capacity", NoCapacity, "offer"),
        (400, "instance-operations/launch/file-system-in-wrong-region", RegionClosed, "region"),
        (400, "global/quota-exceeded", QuotaExceeded, "family"),
        (400, "global/object-does-not-exist", RegionClosed, "region"),
        (404, "global/object-does-not-exist", RegionClosed, "region"),
        (400, "global/invalid-parameters", InvalidRequest, "provider"),
        (403, "global/account-inactive", InsufficientFunds, "provider"),
        (403, "global/invalid-address", InsufficientFunds, "provider"),
        (401, "global/invalid-api-key", AuthFailed, "provider"),
        (500, "global/internal-error", Unconfirmed, "offer"),
        (400, "global/internal-error", Unconfirmed, "offer"),
        (400, "provider/internal-unavailable", Unconfirmed, "offer"),
        (503, "provider/quota", Unconfirmed, "offer"),
        (400, "global/unknown", Unconfirmed, "offer"),
    ],
)
def test_an_order_s_refusal_is_told_apart_by_lambda_s_codes(
    cloud: FakeLambda, status: int, code: str, kind: type[ProviderError], reach: str
) -> None:
    driver = lambdalabs(cloud)
    cloud.next["create"] = fakes.error(status, code, "Not now.")
    with pytest.raises(kind, match="Not now") as refused:
        order(driver)
    assert (type(refused.value), refused.value.reach) == (kind, reach)
    assert len(cloud.keys) == (1 if kind is Unconfirmed else 0), "the machine may be booting with it"


def test_what_lambda_suggests_is_said_with_the_refusal(cloud: FakeLambda) -> None:
    cloud.quota = 0
    with pytest.raises(QuotaExceeded, match=r"Quota exceeded\. Contact Support to increase your quota\."):
        order(lambdalabs(cloud))
    cloud.next["delete"] = fakes.error(400, "provider/internal-unavailable")
    with pytest.raises(Transient, match=r"Try again shortly \(provider/internal-unavailable\)"):
        lambdalabs(cloud)._api.post("/instance-operations/terminate", {"instance_ids": ["0"]})


def test_offers_have_today_s_price_and_what_is_free_and_obey_a_limit(
    cloud: FakeLambda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fakes.TYPES, "gpu_1x_h100_pcie", (329, 1, "H100 (80 GB PCIe)"))
    cloud.sold_out = {("gpu_1x_h100_pcie", "us-west-1")}
    offers = [one for one in lambdalabs(cloud).fetch_offers(H100) if one.gpu_count == 1]
    assert {(one.price, one.priced_at) for one in offers} == {(3.29, None)}
    said = {one.region: (one.availability, one.unavailable_because) for one in offers}
    assert said["us-west-1"] == (Availability.UNAVAILABLE, "sold out in us-west-1")
    assert said["us-south-2"] == said["europe-central-1"] == (Availability.AVAILABLE, None)
    cheap = H100.model_copy(update={"max_price": 3.0})
    assert lambdalabs(cloud).fetch_offers(cheap) == [], "the price list's 2.49 is no more"
    assert len(cloud.requests) == 2, "one request tells of all types and regions"


def test_the_body_of_an_order(cloud: FakeLambda) -> None:
    driver = lambdalabs(cloud, options=LambdalabsOptions(image_family="lambda-stack-24-04"))
    spec = launch_spec(driver, lease_name(), tags={"prefect-gpu-realm": "conf"})
    offer = next(one for one in driver.fetch_offers(H100) if one.region == "us-west-1")
    chosen = {"file_system_names": ["data"], "firewall_ruleset_id": "c4d291f4"}
    made = driver.create_instance(offer, spec.model_copy(update={"options": chosen}))
    body = dict(cloud.body(spec.name))
    config = yaml.safe_load(body.pop("user_data"))
    assert spec.host_key is not None
    assert config == {
        "ssh_authorized_keys": [spec.client_public_key],
        "ssh_deletekeys": True,
        "ssh_keys": {
            "ed25519_private": spec.host_key.private.get_secret_value(),
            "ed25519_public": spec.host_key.public,
        },
    }
    assert body == {
        "region_name": "us-west-1", "instance_type_name": "gpu_1x_h100_pcie", "ssh_key_names": [spec.name], "name": spec.name,
        "hostname": spec.name, "tags": [{"key": "prefect-gpu-realm", "value": "conf"}], "file_system_names": ["data"],
        "image": {"family": "lambda-stack-24-04"}, "firewall_rulesets": [{"id": "c4d291f4"}],
    }  # fmt: skip
    assert [(one["name"], one["public_key"]) for one in cloud.keys.values()] == [(spec.name, spec.client_public_key)]
    assert (made.region, made.state) == ("us-west-1", InstanceState.PROVISIONING)
    assert cloud.requests[-2:] == [("POST", "/api/v1/ssh-keys"), ("POST", "/api/v1/instance-operations/launch")]


def test_an_image_that_a_region_lacks_closes_that_region_and_an_id_goes_before_a_family(cloud: FakeLambda) -> None:
    driver = lambdalabs(cloud, options=LambdalabsOptions(image_family="gpu-base-24-04"))
    elsewhere = next(one for one in driver.fetch_offers(H100) if one.region == "us-south-2")
    with pytest.raises(RegionClosed, match="Specified image does not exist"):
        driver.create_instance(elsewhere, launch_spec(driver, lease_name()))
    assert (cloud.alive(), cloud.keys) == ([], {})
    assert LambdalabsOptions(image_family="x", image_id="7").of_an_order() == {"image": {"id": "7"}}
    assert LambdalabsOptions().of_an_order() == {}
    with pytest.raises(InvalidRequest, match="lambdalabs has no option 'img'"):
        order(driver, options={"img": "x"})


def test_a_key_whose_upload_s_answer_is_lost_is_found_by_its_name(cloud: FakeLambda) -> None:
    cloud.next["ssh-keys"] = "lost"
    made = order(lambdalabs(cloud))
    assert [one["name"] for one in cloud.keys.values()] == [made.name]


def test_a_private_network_is_refused_before_anything_is_made(cloud: FakeLambda) -> None:
    driver = lambdalabs(cloud)
    with pytest.raises(Unsupported, match="leave out network=private"):
        order(driver, network="private")
    assert (cloud.creates, cloud.keys) == (0, {})


def test_many_are_ended_by_one_request_with_their_keys_and_nobody_else_s(cloud: FakeLambda) -> None:
    driver = lambdalabs(cloud)
    made = [order(driver) for _ in range(3)]
    cloud.order_by_hand("somebody-s")
    cloud.advance(60)
    before = len(cloud.requests)
    driver.terminate_instances([one.id for one in made])
    asked = [path.rpartition("/")[2] for method, path in cloud.requests[before:] if method != "DELETE"]
    assert asked == ["instances", "terminate", "ssh-keys"]
    assert cloud.alive() == ["somebody-s"]
    assert [one["name"] for one in cloud.keys.values()] == ["laptop-3"]


def test_what_a_listing_does_not_show_yet_is_ended_all_the_same(cloud: FakeLambda) -> None:
    cloud.listing_lag_s = 50
    driver = lambdalabs(cloud)
    made = [order(driver), order(driver)]
    driver.terminate_instances([made[0].id, made[1].id, f"instances/{'0' * 32}"])
    assert (cloud.alive(), cloud.keys) == ([], {})


def test_among_many_one_that_is_not_ours_ends_nothing(cloud: FakeLambda) -> None:
    driver = lambdalabs(cloud)
    made = order(driver)
    stranger = cloud.order_by_hand(made.name)
    with pytest.raises(InvalidRequest, match="its SSH key is 'laptop-1'"):
        driver.terminate_instances([made.id, f"instances/{stranger}"])
    assert len(cloud.alive()) == 2
    absence = give_back(driver, made.name, known_ids=(made.id,), within_s=300, clock=CloudClock(cloud))
    assert (absence.is_gone, cloud.alive()) == (True, [made.name]), "the stranger's stands"


def test_a_terminate_that_does_not_name_the_machine_is_no_success(cloud: FakeLambda) -> None:
    driver = lambdalabs(cloud)
    made = order(driver)
    cloud.next["delete"] = httpx.Response(200, json={"data": {"terminated_instances": []}})
    with pytest.raises(Transient, match="does not say that it terminates"):
        driver.terminate_instance(made.id)
    assert len(cloud.keys) == 1
    driver.terminate_instance(made.id)
    assert (cloud.alive(), cloud.keys) == ([], {})


def test_what_terminates_already_is_not_asked_for_again(cloud: FakeLambda) -> None:
    driver = lambdalabs(cloud)
    made = order(driver)
    for _ in range(2):  # Lambda answers the second with an error
        driver.terminate_instance(made.id)
    assert sum(path.endswith("terminate") for _, path in cloud.requests) == 1


def test_a_key_is_listed_as_left_over_only_when_all_machines_were_read(cloud: FakeLambda) -> None:
    driver = lambdalabs(cloud)
    made = order(driver)
    assert driver.list_instances("pg-").leftovers == ()
    cloud.unreadable = "instances"
    listing = driver.list_instances("pg-")
    assert ([one.scope for one in listing.incomplete], listing.leftovers) == (["instances"], ())
    cloud.unreadable = None
    cloud.machines[made.id.partition("/")[2]]["gone_at"] = cloud.now - 3600
    (left,) = driver.list_instances("pg-").leftovers
    assert left.name == made.name


def test_requests_keep_the_distance_that_lambda_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeLambda(KEY, every_s=0.1) as cloud:
        hasty = lambdalabs(cloud)
        with pytest.raises(ProviderError, match="Slow down"):
            order(hasty)
        monkeypatch.setattr(driver_module, "EVERY_S", 0.11)
        time.sleep(0.11)
        driver = lambdalabs(cloud)
        made = order(driver)
        cloud.advance(60)
        driver.list_instances("pg-")
        driver.terminate_instance(made.id)
        assert cloud.alive() == []


def test_a_launch_that_came_too_soon_is_worth_another_try_after_twelve_seconds_and_leaves_no_key(
    cloud: FakeLambda,
) -> None:
    driver = lambdalabs(cloud)
    for said, wait_s in ((None, 12.0), ("30", 30.0)):
        headers = {"retry-after": said} if said else {}
        cloud.next["create"] = httpx.Response(429, headers=headers, json={"error": {"code": "x", "message": "soon"}})
        with pytest.raises(RateLimited) as limited:
            order(driver)
        assert limited.value.retry_after_s == wait_s
    assert (cloud.alive(), cloud.keys) == ([], {})


def test_a_second_lies_between_two_requests_and_twelve_between_two_launches() -> None:
    limits = Lambdalabs.capabilities.rate_limits
    assert EVERY_S == 1
    assert {name: (one.calls, one.per_s) for name, one in limits.items()} == {"*": (1, 1), "create_instance": (1, 12)}


def test_the_account_is_told_by_its_key_and_tells_nothing_of_it(cloud: FakeLambda) -> None:
    told = lambdalabs(cloud).account_id()
    assert told == f"key-{hashlib.sha256(KEY.encode()).hexdigest()[:16]}"
    assert cloud.requests == [("GET", "/api/v1/ssh-keys")]


def test_an_odd_row_raises_nothing_and_nothing_secret_of_it_is_kept(cloud: FakeLambda) -> None:
    driver = lambdalabs(cloud)
    made = order(driver)
    cloud.say(made.id, region=7, ip=7, name=None, ssh_key_names="none", hostname=[], instance_type=None)
    seen = driver.get_instance(made.id)
    assert (seen.name, seen.region, seen.id) == ("", "", made.id)
    assert fakes.JUPYTER_TOKEN not in seen.model_dump_json()
    cloud.say(made.id)


@pytest.mark.parametrize(
    "wrong", ["../ssh-keys", "instances/../ssh-keys", "ssh-keys", "instances/", "file-systems/7", ""]
)
def test_an_id_that_is_none_is_asked_for_nowhere(cloud: FakeLambda, wrong: str) -> None:
    driver = lambdalabs(cloud)
    with pytest.raises(NotFound):
        driver.get_instance(wrong)
    driver.terminate_instance(wrong)
    assert cloud.requests == []


def test_the_block_gives_a_client_with_its_key(cloud: FakeLambda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("httpx.Client", partial(httpx.Client, transport=cloud.transport))
    assert lambdalabs(cloud).credentials.get_client().get("/instances").json() == {"data": []}


@pytest.mark.skipif(shutil.which("cloud-init") is None, reason="cloud-init is not installed")
def test_cloud_init_itself_accepts_what_a_machine_boots_with(cloud: FakeLambda, tmp_path: Path) -> None:
    made = order(lambdalabs(cloud))
    (tmp_path / "user-data").write_text(cloud.body(made.name)["user_data"])
    checked = subprocess.run(
        ["cloud-init", "schema", "--config-file", tmp_path / "user-data"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_list_with_a_row_that_has_no_id_is_unread_and_not_the_end_of_the_listing(
    cloud: FakeLambda, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = lambdalabs(cloud)
    served = cloud.serve

    def odd(request: httpx.Request) -> httpx.Response:
        is_list = request.url.path.endswith("/instances")
        return httpx.Response(200, json={"data": [{"status": "running"}]}) if is_list else served(request)

    monkeypatch.setattr(cloud, "serve", odd)
    monkeypatch.setattr(cloud, "hold_to_the_document", lambda *_: None)
    listing = driver.list_instances("pg-")
    assert [one.scope for one in listing.incomplete] == ["instances"]
    assert listing.instances == listing.leftovers == ()
