"""Vast.ai's driver against a stateful fake of its API, which is held to the vendor's document and to the vendor's own client."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from prefect_gpu.blocks.vastai import VastaiCredentials, VastaiOptions
from prefect_gpu.providers.core.errors import (
    NotFound,
    ProviderError,
    RateLimited,
    Transient,
)
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import Instance, InstanceState
from prefect_gpu.providers.core.renting.give_back import give_back
from prefect_gpu.providers.core.requests import Requirements, Spot
from prefect_gpu.providers.vastai import driver as driver_module
from prefect_gpu.providers.vastai import order as order_module
from prefect_gpu.providers.vastai.driver import Vastai
from prefect_gpu.providers.vastai.offers import CAP, found
from tests.conformance import ProviderConformance, Subject, launch_spec, lease_name
from tests.fakes import vastai as fakes
from tests.fakes.openapi import document
from tests.fakes.vastai import FakeVastai
from tests.providers.renting import CloudClock, VendorFaults, without_waiting

KEY = "VASTAIKEY0123456789ABCDEF"
H100 = Requirements(gpu=parse_gpu("H100"))
SPOT = H100.model_copy(update={"spot": Spot.SPOT})


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        without_waiting(patch)
        patch.setattr(driver_module, "PAGE_S", 0.0)
        patch.setattr(driver_module, "END_S", 0.0)
        yield


@pytest.fixture
def cloud() -> Iterator[FakeVastai]:
    with FakeVastai(KEY) as fake:
        yield fake


def vastai(cloud: FakeVastai, **options: Any) -> Vastai:
    block = VastaiCredentials(api_key=SecretStr(KEY), options=VastaiOptions(**options))
    return Vastai(block, transport=cloud.transport)


def order(driver: Vastai, requirements: Requirements = H100, **more: Any) -> Instance:
    return driver.create_instance(driver.fetch_offers(requirements)[0], launch_spec(driver, lease_name(), **more))


class VastaiFaults(VendorFaults):
    cloud: FakeVastai

    def refusal(self, what: str) -> tuple[httpx.Response, str]:
        status, code, said = {
            "sold out": (410, "no_such_ask", "error 410/3907: no_such_ask Instance type 101 is no longer available."),
            "funds": (400, "insufficient_credit", "Your account lacks credit; see the billing page."),
            "request": (400, "invalid_args", "error 400/3467: Invalid args: disk"),
            "credentials": (401, "auth_error", "Invalid user key"),
            "down": (503, "unavailable", "Service temporarily down"),
        }[what]
        return fakes.error(status, code, said), said

    def refuse_quota(self) -> str:
        pytest.skip("Vast.ai has no quotas")

    def limit_rate(self) -> float:
        said = {"detail": "API requests too frequent endpoint threshold=2.0"}
        self.cloud.next["get"] = httpx.Response(429, headers={"retry-after": "3"}, json=said)
        return 3

    def make_unreadable(self) -> str:
        self.cloud.unreadable = "instances"
        return "instances"

    def shrink_pages(self) -> None:
        self.cloud.pages_of = 1

    def leave_something(self) -> None:
        pytest.skip("a container's disk goes with it: nothing else is made")

    def borrow_the_name(self, instance: Instance) -> str:
        return self.cloud.order_by_hand(instance.name)

    def show_status(self, instance: Instance, status: str) -> None:
        self.cloud.say(instance.id, actual_status=status)


@pytest.mark.parametrize("listing_lag_s", [0, 55], ids=["listed at once", "listed late"])
class TestVastai(ProviderConformance):
    @pytest.fixture
    def subject(self, cloud: FakeVastai, listing_lag_s: float) -> Subject:
        cloud.listing_lag_s = listing_lag_s
        return subject(cloud)


def subject(cloud: FakeVastai) -> Subject:
    cloud.is_taken = False  # the suite rents one offer many times
    return Subject(
        provider=vastai(cloud),
        secrets=(KEY,),
        unknown_id="instances/999999",
        pass_time=cloud.advance,
        requirements=H100,
        faults=VastaiFaults(cloud),
    )


@pytest.mark.skipif(
    document("vastai.yaml") is None, reason="Vast.ai's OpenAPI document is not at hand: ../shared/specs"
)
@pytest.mark.parametrize(
    ("method", "path", "body", "trouble"),
    [
        ("GET", "v0/instance/1/", None, "there is no"),
        ("GET", "v1/instances/?prefix=pg", None, "takes"),
        ("PUT", "v0/asks/1/", {"image": "x", "gpus": 8}, "gpus"),
        ("PUT", "v0/asks/1/", {"disk": 8}, "'image' is a required"),
        ("PUT", "v0/instances/request_logs/1/", {"tail": 1000}, "1000 is not of type"),
        ("POST", "v0/instances/1/", {}, "there is no POST"),
    ],
)
def test_the_fake_is_held_to_vast_ai_s_own_document(
    cloud: FakeVastai, method: str, path: str, body: Any, trouble: str
) -> None:
    with pytest.raises(AssertionError, match=trouble):
        cloud.transport.handle_request(httpx.Request(method, f"https://console.vast.ai/api/{path}", json=body))


# --- contracts -----------------------------------------------------------------------------------------------------------


def ready(cloud: FakeVastai, driver: Vastai, requirements: Requirements = H100, **more: Any) -> Instance:
    made = order(driver, requirements, **more)
    cloud.advance(10)
    return driver.get_instance(made.id)


ALL_STOPPED = {"actual_status": "stopped", "cur_state": "stopped", "intended_status": "stopped"}
P, R, F, I = (InstanceState.PROVISIONING, InstanceState.RUNNING, InstanceState.FAILED, InstanceState.INTERRUPTED)  # noqa: E741
PORT = "10022/tcp"


@pytest.mark.parametrize(
    ("said", "state", "why"),
    [
        *(({"actual_status": one}, P, "") for one in (None, "created", "loading", "scheduling", "creating")),
        ({}, R, ""),
        ({"public_ipaddr": None}, P, ""),
        ({"public_ipaddr": " \n"}, P, ""),
        ({"ports": None}, P, ""),
        ({"ports": {"22/tcp": [{"HostPort": "41000"}]}}, P, ""),
        ({"ports": {PORT: []}}, P, ""),
        ({"ports": {PORT: [{"HostPort": "70000"}]}}, P, ""),
        ({"ports": {PORT: [{"HostPort": "-1"}]}}, P, ""),
        ({"ports": {PORT: [{"HostPort": "٣"}]}}, P, ""),
        ({"actual_status": "exited"}, F, "its container ended, and its disk goes on costing money"),
        ({"actual_status": "offline"}, F, "its host is offline"),
        ({"actual_status": "unknown"}, F, "does not know what became of it"),
        ({"actual_status": "loading", "status_msg": "Error: OCI runtime create failed: exec: sh"}, F, "OCI runtime create failed"),
        ({"actual_status": "loading", "status_msg": "manifest unknown"}, F, "manifest unknown"),
        ({"actual_status": "created", "status_msg": "pull access denied for x"}, F, "pull access denied"),
        ({"actual_status": "loading", "status_msg": "4f4fb700ef54: Pulling\x1b[0m"}, P, "4f4fb700ef54: Pulling"),
        ({"status_msg": "pull access denied for x"}, R, ""),
        (ALL_STOPPED, I, "its host or Vast.ai stopped it"),
        ({"actual_status": "exited", "cur_state": "stopped"}, I, "its host or Vast.ai stopped it"),
        ({"actual_status": "exited", "intended_status": "stopped"}, I, "goes on costing money"),
        ({**ALL_STOPPED, "is_bid": True}, I, "it was stopped for a higher bid, and would start again by itself"),
        ({"actual_status": "transmogrifying"}, InstanceState.UNKNOWN, ""),
    ],
)  # fmt: skip
def test_each_status_is_what_it_means(cloud: FakeVastai, said: dict[str, Any], state: InstanceState, why: str) -> None:
    driver = vastai(cloud)
    made = ready(cloud, driver)
    cloud.say(made.id, **said)
    seen = driver.get_instance(made.id)
    assert seen.state is state
    assert why in seen.reason
    assert seen.reason.isprintable()
    assert bool(why) or state is InstanceState.UNKNOWN or not seen.reason


def test_a_contract_is_seen_with_its_place_its_price_and_its_market(cloud: FakeVastai) -> None:
    driver = vastai(cloud)
    seen = ready(cloud, driver, SPOT)
    contract = cloud.named(seen.name)
    assert seen.ssh is not None
    assert (seen.ssh.host, seen.ssh.port, seen.ssh.user) == ("192.0.2.45", 41_000, "root")
    assert (seen.region, seen.zone, seen.spot) == (
        contract["ask"]["geolocation"],
        str(contract["ask"]["machine_id"]),
        True,
    )
    assert seen.price == pytest.approx(contract["body"]["price"] + 0.15 * 32 / 720)
    assert seen.created_at is not None
    assert abs(seen.created_at.timestamp() - contract["at"]) < 1
    assert contract["key"] not in seen.model_dump_json()


def test_an_odd_row_raises_nothing(cloud: FakeVastai) -> None:
    driver = vastai(cloud)
    made = ready(cloud, driver)
    odd = {
        "label": None, "public_ipaddr": 7, "ports": "all", "start_date": "soon", "dph_total": "dear", "geolocation": None,
        "machine_id": None, "extra_env": [7, ["a"], "PREFECT_GPU=1=2"], "status_msg": {"x": 1}, "is_bid": "yes",
    }  # fmt: skip
    for said in (
        odd,
        {**odd, "extra_env": "none", "dph_total": -1, "start_date": 1e300},
        {"dph_total": True, "ports": [7]},
    ):
        cloud.say(made.id, **said)
        cloud.contracts[int(made.id.partition("/")[2])]["said"].pop("extra_env", None)
        seen = driver.get_instance(made.id)
        assert (seen.id, seen.price, seen.state, seen.spot) == (made.id, None, P, False)
        assert [one.id for one in driver.list_instances("").instances if one.name] in ([], [made.id])
    cloud.say(made.id, extra_env=[7, ["a"], "PREFECT_GPU_NAME=x=y"])
    assert driver.get_instance(made.id).name == ""
    cloud.say(made.id, extra_env={order_module.NAME: made.name})
    assert driver.get_instance(made.id).name == made.name


@pytest.mark.parametrize(
    "wrong", ["instances/abc", "instances/../users", "volumes/7", "instances/", "7", "", "instances/٣"]
)
def test_an_id_that_is_none_is_asked_for_nowhere(cloud: FakeVastai, wrong: str) -> None:
    driver = vastai(cloud)
    with pytest.raises(NotFound):
        driver.get_instance(wrong)
    driver.terminate_instance(wrong)
    assert cloud.requests == []


def test_null_alone_proves_nothing_and_a_list_that_is_late_says_the_contract_is_there(
    cloud: FakeVastai, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = vastai(cloud)
    made = ready(cloud, driver)
    served_ = cloud.serve

    def null(request: httpx.Request) -> httpx.Response:
        is_get = request.method == "GET" and request.url.path.startswith("/api/v0/instances/")
        return httpx.Response(200, json={"instances": None}) if is_get else served_(request)

    monkeypatch.setattr(cloud, "serve", null)
    assert driver.get_instance(made.id).name == made.name
    driver.terminate_instance(made.id)
    assert cloud.alive() == [], "null did not pass for gone"
    with pytest.raises(NotFound, match="knows no contract"):
        driver.get_instance(made.id)
    other = ready(cloud, driver)
    listed = FakeVastai._list
    unfiltered = {"select_filters": "{}"}
    cloud._list = lambda it: listed(cloud, httpx.Request("GET", it.url.copy_merge_params(unfiltered)))  # type: ignore[method-assign]
    with pytest.raises(NotFound, match="knows no contract"):
        driver.get_instance(made.id)
    assert driver.get_instance(other.id).name == other.name
    cloud.unreadable = "instances"
    with pytest.raises(Transient):
        driver.get_instance(made.id)


@pytest.mark.parametrize(
    ("answer", "is_gone"),
    [
        (fakes.error(404, "no_such_instance", "Instance 7 not found."), True),
        (fakes.error(404, "not_found", "gone"), True),
        (httpx.Response(404, json={"detail": "Not Found"}), False),
        (httpx.Response(404, text="<html>not found</html>"), False),
        (httpx.Response(404), False),
        (httpx.Response(200, json={"success": False, "error": "no_such_instance"}), True),
        (httpx.Response(200, json={"success": False}), False),
        (fakes.error(401, "auth_error"), False),
        (fakes.error(404, "auth_error"), False),
        (fakes.error(403, "not_authorized"), False),
    ],
)
def test_gone_is_said_by_vast_ai_s_own_codes_and_by_no_status(
    cloud: FakeVastai, answer: httpx.Response, is_gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud, "hold_to_the_document", lambda *_: None)
    driver = vastai(cloud)
    made = ready(cloud, driver)
    served_ = cloud.serve
    for method, call in (("GET", driver.get_instance), ("DELETE", driver.terminate_instance)):

        def serve(request: httpx.Request, method: str = method) -> httpx.Response:
            return answer if request.method == method and "/v0/instances" in request.url.path else served_(request)

        cloud.serve = serve  # type: ignore[method-assign]
        if is_gone and method == "DELETE":
            driver.terminate_instance(made.id)
            continue
        with pytest.raises(ProviderError) as refused:
            call(made.id)
        assert isinstance(refused.value, NotFound) is is_gone
    assert cloud.alive() == [made.name]


def test_each_endpoint_is_asked_no_more_often_than_vast_ai_wants(
    cloud: FakeVastai, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Vastai.__init__.__globals__, "PAGE_S", 0.05)
    monkeypatch.setitem(Vastai.__init__.__globals__, "END_S", 0.1)
    cloud.pages_of = 1
    cloud.is_taken = False
    driver = vastai(cloud)
    ids = [order(driver).id for _ in range(4)]
    began = time.monotonic()
    driver.list_instances("pg-")
    assert time.monotonic() - began >= 3 * 0.05
    began = time.monotonic()
    driver.terminate_instances(ids)
    assert time.monotonic() - began >= 3 * 0.1
    limits = Vastai.capabilities.rate_limits
    assert {name: one.per_s / one.calls for name, one in limits.items()} == {
        "fetch_offers": 15, "create_instance": 4.5, "get_instance": 2, "list_instances": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(429, text="API requests too frequent", headers={"content-type": "text/plain"}),
        httpx.Response(429, json={"detail": "API requests too frequent endpoint threshold=3.0"}),
        fakes.error(429, "rate_limit_exceeded", "API requests too frequent endpoint threshold=3.0"),
        fakes.error(200, "rate_limit_exceeded"),
    ],
)
@pytest.mark.parametrize("call", ["get", "delete", "create", "search", "other"])
def test_too_many_requests_are_that_at_each_endpoint_and_nothing_was_done(
    cloud: FakeVastai, call: str, answer: httpx.Response
) -> None:
    driver = vastai(cloud)
    made = ready(cloud, driver)
    cloud.next[call] = answer
    with pytest.raises(RateLimited):
        {
            "get": lambda: driver.get_instance(made.id),
            "delete": lambda: driver.terminate_instance(made.id),
            "create": lambda: order(driver),
            "search": lambda: driver.fetch_offers(H100),
            "other": lambda: driver.read_log(made),
        }[call]()
    assert cloud.alive() == [made.name]


def test_lists_are_read_in_pages_of_25_with_the_prefix_as_a_filter_that_is_checked_again(cloud: FakeVastai) -> None:
    cloud.is_taken = False
    driver = vastai(cloud)
    ours = [lease_name(attempt=number) for number in range(60)]
    numbers = dict(zip(ours, map(cloud.order_by_hand, ours), strict=True))
    for name, number in numbers.items():
        cloud.contracts[int(number.partition("/")[2])]["body"]["env"][order_module.NAME] = name
    for name in ("pg-cone", "pg-cong", "a", "x-pg-conf-web", "zz"):
        cloud.order_by_hand(name)
    asked: list[str] = []
    answered = cloud.answer
    driver._lists._transport = httpx.MockTransport(lambda it: (asked.append(str(it.url)), answered(it))[1])
    listing = driver.list_instances("pg-conf")
    assert sorted(one.name for one in listing.instances) == sorted(ours)
    pages = [httpx.URL(one).params for one in asked]
    assert [page["limit"] for page in pages] == ["25"] * 3
    assert [page.get("after_token") is not None for page in pages] == [False, True, True]
    assert json.loads(pages[0]["select_filters"])["label"]["gte"] == "pg-conf"
    whole = FakeVastai._list
    cloud._list = lambda it: whole(  # type: ignore[method-assign]  # a server that orders labels in a way of its own
        cloud, httpx.Request("GET", it.url.copy_set_param("select_filters", "{}"))
    )
    again = driver.list_instances("pg-conf")
    assert sorted(one.name for one in again.instances) == sorted(ours)
    assert len(cloud.alive()) == 65


@pytest.mark.parametrize(
    "odd", [{"instances": None}, {"instances": [7]}, [], {"success": True}, {"instances": [{"label": "pg-"}]}]
)
def test_a_list_that_is_none_is_not_an_empty_one(cloud: FakeVastai, odd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "hold_to_the_document", lambda *_: None)
    monkeypatch.setattr(cloud, "_list", lambda _: httpx.Response(200, json=odd))
    assert [one.scope for one in vastai(cloud).list_instances("pg-").incomplete] == ["instances"]


def test_stopped_and_ended_contracts_are_listed_and_destroyed_and_seen_gone(cloud: FakeVastai) -> None:
    driver = vastai(cloud)
    made = ready(cloud, driver, SPOT)
    cloud.outbid(made.id)
    (listed,) = driver.list_instances(made.name).instances
    assert (listed.state, driver.interruption_reason(listed)) == (
        I,
        "it was stopped for a higher bid, and would start again by itself",
    )
    before = cloud.bill(cloud.of(made.id))
    cloud.advance(3600)
    assert cloud.bill(cloud.of(made.id)) == pytest.approx(before + 0.15 * 32 / 720), "its disk costs on"
    absence = give_back(driver, made.name, known_ids=(made.id,), within_s=300, clock=CloudClock(cloud))
    assert (absence.is_gone, cloud.alive()) == (True, [])


def test_the_account_is_its_user_and_tells_nothing_of_the_key(cloud: FakeVastai) -> None:
    assert vastai(cloud).account_id() == "4711"
    assert cloud.requests == [("GET", "/api/v0/users/current/")]


def test_the_block_gives_a_client_with_its_key(cloud: FakeVastai, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("httpx.Client", partial(httpx.Client, transport=cloud.transport))
    assert vastai(cloud).credentials.get_client().get("/v0/users/current/").json()["balance"] == 100.0


# --- the bill ------------------------------------------------------------------------------------------------------------


def test_bytes_in_both_directions_are_what_vast_ai_has_booked_for_this_contract(cloud: FakeVastai) -> None:
    cloud.is_taken = False
    driver = vastai(cloud)
    one, other = ready(cloud, driver), ready(cloud, driver)
    since = one.created_at
    assert since is not None
    cloud.moved(one.id, up_gb=3, down_gb=100)
    cloud.moved(other.id, up_gb=1000, down_gb=1000)
    driver.terminate_instance(one.id)
    assert driver.traffic_cost(one.id, since) == pytest.approx(3 * 0.004 + 100 * 0.002)
    assert driver.traffic_cost("instances/999999", since) is None, "nothing is booked yet"
    assert cloud.bill(cloud.of(one.id)) == pytest.approx(
        cloud.traffic(cloud.of(one.id)) + 4 / 3600 * 2.0 + 10 / 3600 * 0.15 * 32 / 720, rel=0.7
    )


def test_the_nearest_costs_one_page_of_each_search_and_begins_with_the_most_gpus() -> None:
    searched: list[dict[str, Any]] = []

    def search(body: dict[str, Any]) -> dict[str, Any]:
        searched.append(body)
        first = len(searched) * 1000
        return {"offers": [fakes.ask(first + number, count=4, dph_total=2.0) for number in range(CAP)]}  # as if cut

    asked = Requirements(gpu=parse_gpu("H100:9"), cpu=200, countries=("DE",), disk_gb=70)
    nearest = found(search, asked.to_nearest(), VastaiOptions())
    assert {one.gpu for one in nearest} == {"H100:4"}
    assert len(searched) == 2, "on demand and by bid"
    for body in searched:
        assert body["order"][0] == ["num_gpus", "desc"]
        assert body["num_gpus"] == {"gte": 1}
        assert body["allocated_storage"] == 70
        assert not body.keys() & {"cpu_cores_effective", "geolocation", "dph_total"}
