"""An order to Vast.ai: its body, what each refusal means, and what may stand there though it was refused."""

from __future__ import annotations

import json
import shlex
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from prefect_gpu.providers.core.errors import (
    AuthFailed,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    ProviderError,
    RateLimited,
    Unconfirmed,
    Unsupported,
)
from prefect_gpu.providers.core.models import InstanceState, RegistryAuth
from prefect_gpu.providers.core.toolkit import container_boot
from prefect_gpu.providers.vastai import order as order_module
from tests.conformance import launch_spec, lease_name
from tests.fakes import vastai as fakes
from tests.fakes.vastai import FakeVastai
from tests.providers.test_vastai import H100, KEY, SPOT, _quick, cloud, order, vastai

__all__ = ["_quick", "cloud"]

PASSWORD = "a registry's $(password)"
AUTH = RegistryAuth(server="ghcr.io", username="me", password=SecretStr(PASSWORD))


def test_the_body_of_an_order(cloud: FakeVastai) -> None:
    driver = vastai(cloud, image="debian:13")
    offer = next(one for one in driver.fetch_offers(H100) if one.raw["ask_id"] == 101)
    spec = launch_spec(driver, lease_name())
    made = driver.create_instance(offer, spec)
    assert ("PUT", "/api/v0/asks/101/") in cloud.requests
    body = dict(cloud.named(spec.name)["body"])
    env = body.pop("env")
    assert body == {
        "label": spec.name, "image": "debian:13", "disk": 32, "runtype": "args", "target_state": "running", "cancel_unavail": True,
        "user": "root", "onstart": "sh", "args": ["-c", container_boot.SCRIPT],
    }  # fmt: skip
    assert env.pop("-p 10022:10022") == "1"
    assert env[order_module.NAME] == spec.name
    assert env["PREFECT_GPU_KEY"] == spec.client_public_key
    assert all(len(value) <= 256 for value in env.values())
    assert "$CONTAINER_API_KEY" in env["PREFECT_GPU_GIVE_BACK"]
    assert KEY not in json.dumps([body, env])
    assert (made.state, made.ssh, made.spot) == (InstanceState.PROVISIONING, None, False)
    assert env["PREFECT_GPU_NONCE"] not in made.model_dump_json()


def test_a_bid_is_a_share_over_the_lowest_and_leaves_nothing_that_waits(cloud: FakeVastai) -> None:
    for over in (0.1, 0.5):
        cloud.asks = [fakes.ask(7, min_bid=0.8)]
        driver = vastai(cloud, bid_over=over)
        made = order(driver, SPOT)
        body = cloud.named(made.name)["body"]
        assert body["price"] == pytest.approx(0.8 * (1 + over))
        assert body["cancel_unavail"] is True
        assert made.spot


def test_an_image_of_its_own_and_a_bigger_disk_are_the_job_s(cloud: FakeVastai) -> None:
    cloud.is_taken = False
    driver = vastai(cloud)
    big = H100.model_copy(update={"disk_gb": 200.2})
    body = cloud.named(order(driver, big, image="ghcr.io/me/app:1").name)["body"]
    assert (body["image"], body["disk"]) == ("ghcr.io/me/app:1", 201)
    body = cloud.named(order(driver, options={"image": "alpine:3"}).name)["body"]
    assert body["image"] == "alpine:3"
    creates = cloud.creates
    with pytest.raises(InvalidRequest, match="vastai has no option 'nonsense'"):
        order(driver, options={"nonsense": 1})
    with pytest.raises(Unsupported, match="leave out network=private"):
        order(driver, network="private")
    assert cloud.creates == creates


def test_registry_credentials_go_with_the_order_and_into_no_message(cloud: FakeVastai) -> None:
    driver = vastai(cloud)
    made = order(driver, image="ghcr.io/me/app", registry=AUTH)
    login = cloud.named(made.name)["body"]["image_login"]
    assert shlex.split(login) == ["-u", "me", "-p", PASSWORD, "ghcr.io"]
    assert PASSWORD not in made.model_dump_json()
    cloud.next["create"] = fakes.error(400, "invalid_args", f"Invalid args: image_login {login}, {PASSWORD}")
    with pytest.raises(InvalidRequest) as refused:
        order(driver, image="ghcr.io/me/app", registry=AUTH)
    assert "registry" not in f"{refused.value} {refused.value.message}"
    assert "-u me -p *** ghcr.io" in str(refused.value)


@pytest.mark.parametrize(
    ("status", "body", "kind", "reach"),
    [
        (410, {"error": "no_such_ask", "msg": "error 410/3907: no_such_ask Instance type 1 is no longer available."}, NoCapacity, "offer"),
        (404, {"error": "invalid_args", "msg": "error 404/3603: no_such_ask Instance type by id 1 is not available."}, NoCapacity, "offer"),
        (400, {"error": "no_such_ask"}, NoCapacity, "offer"),
        (400, {"error": "invalid_args", "msg": "error 400: no_such_ask"}, NoCapacity, "offer"),
        (410, {}, NoCapacity, "offer"),
        (404, {"error": "not_found", "msg": "gone"}, NoCapacity, "offer"),
        (400, {"error": "invalid_price", "msg": "Your bid is too low"}, NoCapacity, "offer"),
        (400, {"error": "invalid_args", "msg": "error 400/3467: Invalid args: disk"}, InvalidRequest, "provider"),
        (400, {"error": "no_ssh_key_for_vm"}, InvalidRequest, "provider"),
        (400, {"error": "insufficient_credit", "msg": "Your account lacks credit; see the billing page."}, InsufficientFunds, "provider"),
        (400, {"msg": "Insufficient credit: add credit to rent"}, InsufficientFunds, "provider"),
        (401, {"error": "auth_error", "msg": "Invalid user key"}, AuthFailed, "provider"),
        (404, {"error": "auth_error", "msg": "Invalid user key"}, AuthFailed, "provider"),
        (403, {"error": "invalid_args", "msg": "error 403/3586: Offer 1 is not your own."}, AuthFailed, "provider"),
        (404, {"detail": "Not Found"}, Unconfirmed, "offer"),
        (429, {"detail": "API requests too frequent endpoint threshold=4.5"}, RateLimited, "nothing"),
        (500, {"error": "invalid_args"}, Unconfirmed, "offer"),
        (502, None, Unconfirmed, "offer"),
        (503, {"error": "unavailable"}, Unconfirmed, "offer"),
        (200, {"success": False, "error": "insufficient_credit"}, InsufficientFunds, "provider"),
        (200, {"success": False, "error": "invalid_args", "msg": "no_such_ask"}, NoCapacity, "offer"),
        (200, {"success": False}, InvalidRequest, "provider"),
        (200, {"success": True}, Unconfirmed, "offer"),
        (200, {"success": True, "new_contract": None}, Unconfirmed, "offer"),
        (200, {"success": True, "new_contract": True}, Unconfirmed, "offer"),
        (200, None, Unconfirmed, "offer"),
    ],
)  # fmt: skip
def test_an_order_s_refusal_is_what_it_says_and_rules_out_what_it_speaks_of(
    cloud: FakeVastai, status: int, body: dict[str, Any] | None, kind: type[ProviderError], reach: str
) -> None:
    cloud.next["create"] = (
        httpx.Response(status, json=body) if body is not None else httpx.Response(status, text="<html>")
    )
    with pytest.raises(ProviderError) as refused:
        order(vastai(cloud))
    assert (type(refused.value), refused.value.reach) == (kind, reach)
    assert cloud.creates == 1
    assert cloud.alive() == []
    for words in ("error", "msg"):
        if body and words in body:
            assert str(body[words]) in refused.value.message


@pytest.mark.parametrize("status", [200, 400, 410, 500])
@pytest.mark.parametrize("key", ["new_contract", "contract_id"])
def test_a_bid_that_is_refused_and_made_a_contract_all_the_same_is_that_contract(
    cloud: FakeVastai, key: str, status: int
) -> None:
    driver = vastai(cloud)
    standing = cloud.order_by_hand(lease_name())
    number = int(standing.partition("/")[2])
    cloud.next["create"] = httpx.Response(
        status, json={"success": False, "error": "invalid_price", "msg": "low", key: number}
    )
    made = order(driver, SPOT)
    assert (made.id, made.state) == (standing, InstanceState.INTERRUPTED)
    assert driver.interruption_reason(made)


def test_a_low_bid_s_stopped_contract_is_seen_and_ended_by_its_id(cloud: FakeVastai) -> None:
    cloud.leaves_stopped = True
    driver = vastai(cloud)
    offer = driver.fetch_offers(SPOT)[0]
    for one in cloud.asks:
        one["min_bid"] = 5.0  # since the search
    name = lease_name()
    made = driver.create_instance(offer, launch_spec(driver, name))
    assert (cloud.alive(), made.name, made.state) == ([name], name, InstanceState.INTERRUPTED)
    assert driver.get_instance(made.id).state is InstanceState.INTERRUPTED
    driver.terminate_instance(made.id)
    assert cloud.alive() == []


def rented_and_refused(cloud: FakeVastai, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something on the way sends each order twice: the second is refused, for the first took the ask."""
    create = cloud._create

    def twice(number: int, body: dict[str, Any]) -> httpx.Response:
        create(number, body)
        return create(number, body)

    monkeypatch.setattr(cloud, "_create", twice)


def test_an_ask_that_is_gone_may_be_our_own(cloud: FakeVastai, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = vastai(cloud)
    rented_and_refused(cloud, monkeypatch)
    made = order(driver)
    assert cloud.alive() == [made.name]
    assert driver.get_instance(made.id).name == made.name
    cloud.unreadable = "instances"
    with pytest.raises(
        Unconfirmed, match=r"no_such_ask.*; whether we have it is not known: .*Service temporarily down"
    ):
        order(driver)


def test_an_ask_that_is_gone_is_not_known_to_be_our_own_where_the_key_may_not_list(
    cloud: FakeVastai, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = vastai(cloud)
    rented_and_refused(cloud, monkeypatch)
    monkeypatch.setattr(cloud, "_list", lambda _: fakes.error(403, "not_authorized"))
    with pytest.raises(Unconfirmed, match="whether we have it is not known"):
        order(driver)


def test_an_ask_that_somebody_else_took_is_no_capacity_and_costs_one_look(cloud: FakeVastai) -> None:
    driver = vastai(cloud)
    offer = driver.fetch_offers(H100)[0]
    next(one for one in cloud.asks if one["id"] == offer.raw["ask_id"])["rented"] = True
    cloud.order_by_hand("somebody-s")
    cloud.requests.clear()
    with pytest.raises(NoCapacity):
        driver.create_instance(offer, launch_spec(driver, lease_name()))
    assert [method for method, _ in cloud.requests] == ["PUT", "GET"]
