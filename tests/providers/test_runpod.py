"""RunPod's driver against a stateful fake of its API, which is held to RunPod's own document where that is at hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from prefect_gpu.blocks.runpod import RunpodCredentials, RunpodOptions
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InstanceFailed,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Unconfirmed,
    Unsupported,
)
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import Instance, InstanceState, Offer, RegistryAuth
from prefect_gpu.providers.core.renting import launch
from prefect_gpu.providers.core.renting.give_back import give_back
from prefect_gpu.providers.core.renting.library import TaskLibrary
from prefect_gpu.providers.core.requests import Job, Requirements, Spot
from prefect_gpu.providers.core.toolkit import container_boot
from prefect_gpu.providers.runpod.driver import Runpod
from tests.conformance import MASTER_SECRET, ProviderConformance, Subject, launch_spec, lease_name
from tests.core.test_container_boot import has_image
from tests.fakes import runpod as fakes
from tests.fakes.runpod import FakeRunpod
from tests.providers.renting import CloudClock, VendorFaults, without_waiting

KEY = "rpa_RUNPODKEY0123456789"
PASSWORD = "a-registry-s-password"
H100 = Requirements(gpu=parse_gpu("H100"))
AUTH = RegistryAuth(server="ghcr.io", username="me", password=SecretStr(PASSWORD))


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        without_waiting(patch)
        yield


@pytest.fixture
def cloud() -> Iterator[FakeRunpod]:
    with FakeRunpod(KEY) as fake:
        yield fake


def runpod(cloud: FakeRunpod, **block: Any) -> Runpod:
    return Runpod(RunpodCredentials(api_key=SecretStr(KEY), **block), transport=cloud.transport)


def order(driver: Runpod, requirements: Requirements | None = None, **more: Any) -> Instance:
    offer = driver.fetch_offers(requirements or H100)[0]
    return driver.create_instance(offer, launch_spec(driver, lease_name(), **more))


class RunpodFaults(VendorFaults):
    cloud: FakeRunpod

    def refusal(self, what: str) -> tuple[httpx.Response, str]:
        status, words = {
            "sold out": (400, "There are no longer any instances available with the requested specifications."),
            "quota": (400, "You have reached your spend limit"),
            "funds": (402, "Payment required"),
            "request": (400, "mounts.persistent and mounts.network exclude each other"),
            "credentials": (401, "invalid API key"),
            "down": (503, "service temporarily unavailable"),
        }[what]
        return fakes.error(status, words), words

    def make_unreadable(self) -> str:
        self.cloud.unreadable = "pods"
        return "pods"

    def shrink_pages(self) -> None:
        self.cloud.page_size = 1

    def leave_something(self) -> None:
        self.cloud.leaves = True

    def borrow_the_name(self, instance: Instance) -> str:
        return f"pods/{self.cloud.order_by_hand(instance.name)}"


@pytest.mark.parametrize("listing_lag_s", [0, 55], ids=["listed at once", "listed late"])
class TestRunpod(ProviderConformance):
    @pytest.fixture
    def subject(self, cloud: FakeRunpod, listing_lag_s: float) -> Subject:
        cloud.listing_lag_s = listing_lag_s
        return Subject(
            provider=runpod(cloud),
            secrets=(KEY, PASSWORD),
            unknown_id="pods/0000000000",
            pass_time=cloud.advance,
            requirements=H100,
            faults=RunpodFaults(cloud),
        )


def offers(cloud: FakeRunpod, asked: Requirements = H100, **block: Any) -> dict[tuple[str, str], Offer]:
    return {(one.instance_type, one.region): one for one in runpod(cloud, **block).fetch_offers(asked)}


@pytest.mark.skipif(fakes.spec() is None, reason="RunPod's OpenAPI document is not at hand: ../shared/specs")
@pytest.mark.parametrize(
    ("request_", "trouble"),
    [
        (httpx.Request("GET", "https://api.runpod.io/v2/pods?nonsense=1"), "takes"),
        (httpx.Request("GET", "https://api.runpod.io/v2/pod"), "there is no"),
        (httpx.Request("POST", "https://api.runpod.io/v2/pods", json={"name": "x", "image": "y", "gpuCount": 8}), "gpuCount"),
        (httpx.Request("POST", "https://api.runpod.io/v2/pods", json={"image": "y"}), "'name' is a required"),
        (httpx.Request("POST", "https://api.runpod.io/v2/pods", json={"name": "x", "image": "y", "gpu": {"id": "z", "n": 1}}), "'n'"),
        (httpx.Request("PUT", "https://api.runpod.io/v2/account/ssh-keys", json={"sshKeys": []}), "replaces all keys"),
    ],
)  # fmt: skip
def test_the_fake_is_held_to_runpod_s_own_document(cloud: FakeRunpod, request_: httpx.Request, trouble: str) -> None:
    with pytest.raises(AssertionError, match=trouble):
        cloud.transport.handle_request(request_)


@pytest.mark.skipif(fakes.spec() is None, reason="RunPod's OpenAPI document is not at hand: ../shared/specs")
def test_the_program_in_runpod_s_own_document_takes_the_fake_for_runpod(
    cloud: FakeRunpod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RunPod's SDK on PyPI speaks no version 2; its document has a program that does: it looks for a data center and orders there."""
    document = fakes.spec()
    assert document is not None
    program = document.found["paths"]["/v2/pods"]["post"]["x-codeSamples"][0]["source"]
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    monkeypatch.setattr("requests.Session", partial(httpx.Client, transport=cloud.transport))
    monkeypatch.setattr("requests.get", None)
    cloud.catalog[fakes.RTX4090]["stock"] |= {"EUR-IS-1": 1}
    cloud.catalog["NVIDIA H100 PCIe"]["stock"] |= {"EUR-IS-1": 1}
    cloud.next["create"] = fakes.error(400, "no room")  # the first candidate; it goes on to the next
    does: dict[str, Any] = {"__name__": "a program"}
    exec(compile(program, "RunPod's program", "exec"), does)
    pod = does["deploy"]("EUROPE")
    assert (pod["dataCenterId"], pod["gpu"]["id"]) == ("EUR-IS-1", "NVIDIA H100 PCIe")
    assert cloud.alive() == ["inference-worker"]
    cloud.balance = 0
    with pytest.raises(SystemExit, match="Cannot deploy"):
        does["deploy"]("EUROPE")


def test_only_version_2_is_asked_and_the_account_s_ssh_keys_are_left_alone(
    cloud: FakeRunpod, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    agents: set[str] = set()
    served = cloud.answer

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        agents.add(request.headers["user-agent"])
        return served(request)

    monkeypatch.setattr(cloud, "transport", httpx.MockTransport(answer))
    driver = runpod(cloud)
    made = order(driver, image="ghcr.io/me/app", registry=AUTH, options={"volume_gb": 10})
    cloud.advance(60)
    driver.account_id()
    driver.read_log(driver.get_instance(made.id))
    driver.list_instances("pg-")
    driver.terminate_instance(made.id)
    assert {one.split("/v2/")[0] for one in asked} == {"https://api.runpod.io"}
    assert agents == {"prefect-gpu"}
    assert not any("ssh-keys" in one or "account" in one for one in asked)
    source = "".join(path.read_text() for path in (Path(__file__).parents[2] / "providers" / "runpod").glob("*.py"))
    for retired in ("ssh-keys", "graphql", "rest.runpod.io"):
        assert retired not in source


# --- what RunPod had once ------------------------------------------------------------------------------------------------


def test_spot_is_unsupported_and_says_why(cloud: FakeRunpod) -> None:
    driver = runpod(cloud)
    with pytest.raises(Unsupported, match="RunPod took spot machines out of its API in 2026"):
        driver.fetch_offers(H100.model_copy(update={"spot": Spot.SPOT}))
    assert not any(one.spot for one in driver.fetch_offers(H100.model_copy(update={"spot": Spot.EITHER})))


@pytest.mark.parametrize(
    ("option", "why"),
    [
        (
            "terminateAfter",
            "took terminateAfter and stopAfter, which never ended a pod, out of its API: the lease ends",
        ),
        ("stop_after", "took terminateAfter and stopAfter"),
        ("interruptible", "took spot machines out of its API"),
        ("bidPerGpu", "took spot machines out of its API"),
    ],
)
def test_an_option_that_runpod_had_once_is_unsupported_and_says_why(cloud: FakeRunpod, option: str, why: str) -> None:
    driver = runpod(cloud)
    offer = driver.fetch_offers(H100)[0]
    with pytest.raises(Unsupported, match=why):
        launch.refuse_undeclared(Runpod, offer, Job(), {option: "2026-12-01T00:00:00Z"})
    with pytest.raises(Unsupported, match=why):
        order(driver, options={option: 1})
    with pytest.raises(
        InvalidRequest, match="runpod has no option 'nonsense': it takes cloud, disk_gb, image, volume_gb"
    ):
        order(driver, options={"nonsense": 1})
    with pytest.raises(Unsupported, match="leave out network=private"):
        order(driver, network="private")
    assert cloud.creates == 0


# --- orders --------------------------------------------------------------------------------------------------------------


def test_the_body_of_an_order(cloud: FakeRunpod) -> None:
    driver = runpod(cloud)
    spec = launch_spec(driver, lease_name(), image="ghcr.io/me/app:1")
    made = driver.create_instance(offers(cloud)[fakes.H100, "EUR-IS-1"], spec)
    body = dict(cloud.pod(spec.name)["body"])
    env, args = body.pop("env"), json.loads(body.pop("args"))
    assert body == {
        "name": spec.name, "image": "ghcr.io/me/app:1", "cloud": "SECURE", "gpu": {"id": fakes.H100, "count": 1},
        "disk": 50, "ports": ["10022/tcp"], "dataCenterIds": ["EUR-IS-1"],
    }  # fmt: skip
    assert args == {"entrypoint": ["sh", "-c"], "cmd": [container_boot.SCRIPT]}, (
        "it takes the image's entrypoint's place"
    )
    assert env["PREFECT_GPU_KEY"] == spec.client_public_key
    assert env["PREFECT_GPU_LEASE"] == spec.name
    assert "RUNPOD_API_KEY" in env["PREFECT_GPU_GIVE_BACK"]
    assert len(env) <= 50
    assert KEY not in json.dumps([body, env, args])
    assert (made.region, made.state, made.ssh) == ("EUR-IS-1", InstanceState.PROVISIONING, None)
    assert env["PREFECT_GPU_NONCE"] not in made.model_dump_json()


def test_the_image_that_is_not_named_by_the_job_gets_a_host_that_it_starts_on(cloud: FakeRunpod) -> None:
    driver = runpod(cloud)

    def asked(requirements: Requirements, **more: Any) -> dict[str, Any]:
        return cloud.pod(order(driver, requirements, **more).name)["body"]["gpu"]

    amd = Requirements(gpu=parse_gpu("MI300X"))
    assert asked(H100)["minCudaVersion"] == "12.8"
    assert asked(H100.model_copy(update={"min_cuda": 12.9}))["minCudaVersion"] == "12.9"
    assert asked(H100.model_copy(update={"min_cuda": 12.4}))["minCudaVersion"] == "12.8"
    assert "minCudaVersion" not in asked(H100, image="me/app")
    assert "minCudaVersion" not in asked(amd)


def test_an_order_in_the_community_names_no_data_center_and_an_image_of_its_own_is_the_block_s(
    cloud: FakeRunpod,
) -> None:
    driver = runpod(cloud, options=RunpodOptions(image="debian:13", disk_gb=80))
    offer = offers(cloud, options=driver.credentials.options)["NVIDIA H100 PCIe", "community"]
    made = driver.create_instance(offer, launch_spec(driver, lease_name()))
    body = cloud.pod(made.name)["body"]
    assert (body["cloud"], body["image"], body["disk"], "dataCenterIds" in body) == (
        "COMMUNITY",
        "debian:13",
        80,
        False,
    )
    assert made.region == "community"


@pytest.mark.parametrize(
    ("status", "words", "kind", "reach"),
    [
        (400, "There are no longer any instances available with the requested specifications.", NoCapacity, "offer"),
        (400, "This machine does not have the resources to deploy your pod.", NoCapacity, "offer"),
        (400, "this GPU and data center combination could not be placed", NoCapacity, "offer"),
        (400, "You have reached your spend limit", QuotaExceeded, "family"),
        (400, "insufficient balance", InsufficientFunds, "provider"),
        (400, "mounts.persistent and mounts.network exclude each other", InvalidRequest, "offer"),
        (402, "Payment required", InsufficientFunds, "provider"),
        (401, "invalid API key", AuthFailed, "provider"),
        (403, "access denied", AuthFailed, "provider"),  # the library makes it this type's, for an order
        (404, "registry not found", InvalidRequest, "offer"),
        (409, "action not valid now", InvalidRequest, "provider"),
        (422, "Request validation failed.", InvalidRequest, "provider"),
        (429, "rate limit exceeded for the minute window", RateLimited, "nothing"),
        (500, "upstream", Unconfirmed, "offer"),
        (503, "no capacity", NoCapacity, "offer"),
    ],
)
def test_an_order_s_refusal_rules_out_what_it_speaks_of(
    cloud: FakeRunpod, status: int, words: str, kind: type[ProviderError], reach: str
) -> None:
    cloud.next["create"] = fakes.error(status, words, **{"retry-after": "12"})
    with pytest.raises(kind) as refused:
        order(runpod(cloud))
    assert type(refused.value) is kind
    assert refused.value.reach == reach
    assert words in refused.value.message
    assert cloud.pods == {}
    if isinstance(refused.value, RateLimited):
        assert refused.value.retry_after_s == 12


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"title": "Unprocessable Entity", "status": 422, "detail": "It failed.", "errors": ["$: 'bogus'", "$.name"]}, "It failed.; $: 'bogus'; $.name"),
        ({"title": "Unprocessable Entity", "status": 422}, "Unprocessable Entity"),
        ({"type": "about:blank", "title": "No", "status": 422, "detail": "no capacity"}, "no capacity"),
        ({"error": "old"}, "(422)"),
        (["odd"], "(422)"),
    ],
)  # fmt: skip
def test_a_problem_is_told_whole(cloud: FakeRunpod, body: Any, said: str) -> None:
    cloud.next["create"] = httpx.Response(422, json=body)
    with pytest.raises((InvalidRequest, NoCapacity)) as refused:
        order(runpod(cloud))
    assert refused.value.message.endswith(said)


# --- pods ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "state", "why"),
    [
        *(({"status": one}, InstanceState.PROVISIONING, "") for one in ("PROVISIONING", "STARTING")),
        ({}, InstanceState.RUNNING, ""),
        ({"runtime": None}, InstanceState.PROVISIONING, ""),
        ({"runtime": {"uptime": 3}}, InstanceState.PROVISIONING, ""),
        ({"runtime": {"ports": [{"private": 22, "public": 1, "type": "tcp", "ip": "192.0.2.1"}]}}, InstanceState.PROVISIONING, ""),
        ({"runtime": {"ports": [{"private": 10022, "public": None, "type": "tcp", "ip": "192.0.2.1"}]}}, InstanceState.PROVISIONING, ""),
        ({"runtime": {"ports": [{"private": 10022, "public": 30022, "type": "tcp", "ip": None}]}}, InstanceState.PROVISIONING, ""),
        ({"runtime": {"ports": [{"private": 10022, "public": 70000, "type": "tcp", "ip": "192.0.2.1"}]}}, InstanceState.PROVISIONING, ""),
        ({"status": "EXITED"}, InstanceState.FAILED, "its container ended"),
        ({"status": "ERROR"}, InstanceState.FAILED, "its container cannot run"),
        ({"status": "TERMINATED"}, InstanceState.TERMINATED, ""),
        ({"status": "MIGRATING"}, InstanceState.UNKNOWN, ""),
        ({"status": None}, InstanceState.UNKNOWN, ""),
    ],
)  # fmt: skip
def test_each_status_is_what_it_means(cloud: FakeRunpod, said: dict[str, Any], state: InstanceState, why: str) -> None:
    driver = runpod(cloud)
    made = order(driver)
    cloud.advance(60)
    cloud.say(made.id, **said)
    seen = driver.get_instance(made.id)
    assert seen.state is state
    assert why in seen.reason


@pytest.mark.parametrize("word", ["EXITED", "ERROR"])
def test_a_pod_that_ended_is_noticed_at_once_with_the_sentence_in_its_log(cloud: FakeRunpod, word: str) -> None:
    tasks: TaskLibrary[Any] = TaskLibrary(Runpod, RunpodCredentials)
    tasks.connections.drivers["default"] = driver = runpod(cloud)
    made = order(driver)
    cloud.advance(10)
    cloud.say(made.id, status=word)
    failed = "prefect-gpu failed: the image has no OpenSSH server, and none can be installed"
    cloud.pod(made.name)["machine"].lines = ("E: no network", failed)
    with pytest.raises(InstanceFailed, match=r"^the image has no OpenSSH server, and none can be installed$"):
        tasks.wait_until_ready.fn(made, driver.fetch_offers(H100)[0])
    assert tasks._why_gone(driver, made) == "the image has no OpenSSH server, and none can be installed"
    cloud.pod(made.name)["machine"].lines = ()
    assert "container" in (tasks._why_gone(driver, made) or "")
    driver.terminate_instance(made.id)
    assert cloud.alive() == []
    assert tasks._why_gone(driver, made) == "its provider does not know it any more"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("error pulling image: manifest for me/app:typo not found", "manifest for me/app:typo not found"),
        ("pull access denied for me/app, repository does not exist", "pull access denied for me/app"),
        (
            'OCI runtime create failed: exec: "sh": executable file not found in $PATH\x1b[0m',
            '"sh": executable file not found',
        ),
    ],
)
def test_an_image_that_never_runs_is_told_by_its_host_s_log_long_before_the_boot_deadline(
    cloud: FakeRunpod, line: str, why: str
) -> None:
    driver = runpod(cloud)
    made = order(driver)
    cloud.say(made.id, status="STARTING", runtime=None)
    cloud.host_says = line
    assert driver.get_instance(made.id).state is InstanceState.PROVISIONING
    assert not any(path.endswith("/logs") for _, path in cloud.requests)
    cloud.advance(61)
    seen = driver.get_instance(made.id)
    assert (seen.state, seen.reason.startswith("its image does not run: ")) == (InstanceState.FAILED, True)
    assert why in seen.reason
    assert seen.reason.isprintable()
    for status in ("EXITED", "ERROR"):
        cloud.say(made.id, status=status)
        assert why in driver.get_instance(made.id).reason
    cloud.host_says = "still fetching image, 40 %"
    cloud.say(made.id, status="STARTING")
    assert driver.get_instance(made.id).state is InstanceState.PROVISIONING
    cloud.broken.add("log")
    cloud.say(made.id, status="ERROR")
    assert driver.get_instance(made.id).reason == "RunPod says that its container cannot run"


@pytest.mark.parametrize("ip", [None, "100.65.0.101", "10.1.2.3", "192.168.7.7"])
def test_a_pod_that_no_public_address_leads_to_is_not_waited_for(cloud: FakeRunpod, ip: str | None) -> None:
    driver = runpod(cloud)
    made = order(driver)
    cloud.advance(30)
    ports = [{"private": 10022, "public": 30022, "type": "tcp", "ip": ip}]
    cloud.say(made.id, runtime={"uptime": 100, "ports": ports})
    assert driver.get_instance(made.id).state is InstanceState.PROVISIONING
    cloud.say(made.id, runtime={"uptime": 181, "ports": ports})
    seen = driver.get_instance(made.id)
    assert (seen.state, seen.ssh) == (InstanceState.FAILED, None)
    assert seen.reason == "it runs, and RunPod leads no public address to it"


def test_a_key_that_may_not_read_all_that_is_listed_is_told_what(
    cloud: FakeRunpod, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = runpod(cloud)
    served = cloud.serve
    monkeypatch.setattr(
        cloud, "serve", lambda it: fakes.error(403, "access denied") if "registries" in it.url.path else served(it)
    )
    assert driver.missing_rights() == ["read registries"]


def test_a_pod_is_ours_though_an_answer_leaves_out_its_environment(cloud: FakeRunpod) -> None:
    driver = runpod(cloud)
    made = order(driver)
    cloud.say(made.id, env={})
    assert driver.get_instance(made.id).name == made.name
    cloud.next["create"] = httpx.Response(201, json={"id": "podx", "name": "", "env": {"A": "masked"}})
    offer = driver.fetch_offers(H100)[0]
    name = lease_name()
    assert driver.create_instance(offer, launch_spec(driver, name)).name == name


def test_an_id_that_is_not_known_yet_is_no_absence_and_what_it_is_of_is_ended(cloud: FakeRunpod) -> None:
    cloud.propagates_s = cloud.listing_lag_s = 45
    driver = runpod(cloud)
    made = order(driver)
    with pytest.raises(NotFound):
        driver.get_instance(made.id)
    driver.terminate_instance(made.id)  # nothing is known of it, and nothing is ended
    assert cloud.alive() == [made.name]
    for are_seen in (True, False):
        absence = give_back(
            driver, made.name, known_ids=(made.id,), ordered_at=made.created_at, are_seen=are_seen, within_s=600,
            clock=CloudClock(cloud),
        )  # fmt: skip
        assert (absence.is_gone, cloud.alive()) == (True, []), absence


def test_a_member_of_a_cluster_is_seen_and_never_ended(cloud: FakeRunpod) -> None:
    driver = runpod(cloud)
    name = lease_name()
    number = cloud.order_by_hand(name)
    cloud.say(number, cluster={"id": "cluster-1", "rank": 0}, env={})
    listing = driver.list_instances("pg-")
    assert listing.instances == ()
    assert [(one.id, one.name) for one in listing.unproved] == [(f"pods/{number}", name)]
    with pytest.raises(InvalidRequest, match="not ours"):
        driver.terminate_instance(f"pods/{number}")
    assert cloud.alive() == [name]


def test_the_log_is_read_from_the_pod_s_beginning_and_only_what_its_container_said(cloud: FakeRunpod) -> None:
    driver = runpod(cloud)
    spec = launch_spec(driver, lease_name())
    made = driver.create_instance(driver.fetch_offers(H100)[0], spec)
    of_nonce = container_boot.nonce(spec.client_public_key)
    assert container_boot.host_key_in(driver.read_log(made), of_nonce) is None
    cloud.advance(20)
    cloud.pod(spec.name)["machine"].lines += tuple(f"noise {n}" for n in range(6000))
    log = driver.read_log(made)
    assert container_boot.host_key_in(log, of_nonce) == f"ssh-ed25519 {'A' * 68}"
    assert "pulled the image" not in log, "what the host says of the pod is no word of the pod's"
    assert driver.read_log(made.model_copy(update={"created_at": None})).splitlines()[-1] == "noise 5999"
    odd = 'data: 7\n\ndata: {"line": null}\n\ndata: [1]\n\ndata: {"line": "x"}\n\n'
    cloud.next["log"] = httpx.Response(200, text=odd)
    assert driver.read_log(made).splitlines()[-1] == "x"


def test_an_odd_row_raises_nothing(cloud: FakeRunpod) -> None:
    driver = runpod(cloud)
    made = order(driver)
    cloud.advance(60)
    cloud.say(
        made.id,
        name=None,
        env=None,
        runtime={"ports": [7, None, {"private": 10022}]},
        cost="dear",
        createdAt="soon",
        dataCenterId=9,
    )
    seen = driver.get_instance(made.id)
    assert (seen.id, seen.name, seen.price, seen.created_at, seen.region) == (made.id, "", None, None, "9")
    cloud.say(made.id, cloud=None, dataCenterId=None, runtime="up", env=["odd"])
    assert driver.get_instance(made.id).region == "runpod"


@pytest.mark.parametrize("odd", [{"pods": None}, {"pods": [7]}, [], {"items": []}, {"pods": [{"status": "RUNNING"}]}])
def test_a_list_that_is_none_is_not_an_empty_one(cloud: FakeRunpod, odd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = cloud.serve
    monkeypatch.setattr(cloud, "hold_to_the_document", lambda *_: None)
    monkeypatch.setattr(
        cloud, "serve", lambda it: httpx.Response(200, json=odd) if it.url.path == "/v2/pods" else served(it)
    )
    cloud._add("registries", {"name": lease_name(), "username": "x", "password": "y"})
    listing = runpod(cloud).list_instances("pg-")
    assert [one.scope for one in listing.incomplete] == ["pods"]
    assert listing.leftovers == (), "nothing is left over while the pods could not be read"


def test_the_account_is_told_by_its_key_and_tells_nothing_of_it(cloud: FakeRunpod) -> None:
    told = runpod(cloud).account_id()
    assert told.startswith("key-")
    assert KEY not in told
    assert cloud.requests == [("GET", "/v2/pods")]


@pytest.mark.parametrize("wrong", ["../account", "pods/../account", "account/ssh-keys", "pods/", "clusters/7", ""])
def test_an_id_that_is_none_is_asked_for_nowhere(cloud: FakeRunpod, wrong: str) -> None:
    driver = runpod(cloud)
    with pytest.raises(NotFound):
        driver.get_instance(wrong)
    driver.terminate_instance(wrong)
    assert cloud.requests == []


def test_the_block_gives_a_client_with_its_key(cloud: FakeRunpod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("httpx.Client", partial(httpx.Client, transport=cloud.transport))
    assert runpod(cloud).credentials.get_client().get("/pods").json() == {"pods": []}


# --- machines ------------------------------------------------------------------------------------------------------------


def connected(cloud: FakeRunpod) -> tuple[TaskLibrary[Any], Runpod]:
    tasks: TaskLibrary[Any] = TaskLibrary(Runpod, RunpodCredentials)
    tasks.connections.drivers["default"] = driver = runpod(cloud)
    tasks.connections._secret = MASTER_SECRET
    return tasks, driver


@pytest.mark.docker
@pytest.mark.skipif(not has_image("sshd:local"), reason="needs a Docker Engine with the image sshd:local")
def test_a_pod_boots_what_its_order_says_is_logged_in_to_by_the_key_in_its_log_and_a_kill_is_seen(
    tmp_path: Path,
) -> None:
    with FakeRunpod(KEY, machines=fakes.Container, folder=tmp_path) as cloud:
        tasks, driver = connected(cloud)
        offer = driver.fetch_offers(H100)[0]
        made = driver.create_instance(offer, launch_spec(driver, lease_name(), image="sshd:local"))
        cloud.advance(30)
        ready = tasks.wait_until_ready.fn(made, offer)
        channel = tasks.connections.connect(ready).open("id -un; nvidia-smi --query-gpu=name; exit 3")
        assert channel.recv(4).startswith(b"root")
        assert channel.exit_status(10) == 3
        cloud.pod(made.name)["machine"].kill()
        assert tasks._why_gone(driver, ready) == "its container ended"
        driver.terminate_instance(made.id)
        assert cloud.alive() == []
