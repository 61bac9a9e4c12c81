"""A vendor's JSON API: what each answer means, for calls that may be repeated and for orders that may not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
import respx
from pydantic import SecretStr

from providers.core.errors import (
    AuthFailed,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    RateLimited,
    Transient,
    Unconfirmed,
)
from providers.core.http import JsonApi, Problem

KEY = "k-0f9d8c7b6a/+"
URL = "https://api.vendor.test/v1"


def api(**more: Any) -> JsonApi:
    headers = {"authorization": f"Bearer {KEY}"}
    return JsonApi("Vendor", URL, headers=headers, secrets=(SecretStr(KEY),), retry_wait_s=0.001, **more)


@pytest.fixture
def vendor() -> Iterator[respx.MockRouter]:
    with respx.mock(base_url=URL, assert_all_called=False) as router:
        yield router


def test_an_answer_is_its_json_and_an_empty_one_is_none(vendor: respx.MockRouter) -> None:
    vendor.get("/machines", params={"page": 1}).respond(json={"machines": []})
    vendor.delete("/machines/7").respond(204)
    vendor.put("/machines/7").respond(json=[1])
    client = api()
    assert client.get("/machines", {"page": 1}) == {"machines": []}
    assert client.delete("/machines/7") is None
    assert client.put("/machines/7", {"name": "x"}) == [1]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (401, AuthFailed),
        (402, InsufficientFunds),
        (403, AuthFailed),
        (404, NotFound),
        (409, InvalidRequest),
        (422, InvalidRequest),
        (429, RateLimited),
        (301, InvalidRequest),
        (500, Transient),
        (503, Transient),
    ],
)
def test_a_status_is_its_error_with_the_vendor_s_own_words(
    vendor: respx.MockRouter, status: int, kind: type[ProviderError]
) -> None:
    vendor.post("/machines").respond(status, json={"error": {"message": "no plan of that name"}})
    with pytest.raises(kind, match=rf"^Vendor refused POST /machines \({status}\): no plan of that name$") as caught:
        api().post("/machines", {})
    assert type(caught.value) is kind
    assert caught.value.code == str(status)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"code": "sold_out", "message": "words"}},
        {"errors": [{"code": "sold_out", "detail": "words"}]},
        {"code": "sold_out", "msg": "words"},
    ],
)
def test_a_code_that_is_mapped_goes_before_its_status(vendor: respx.MockRouter, body: Any) -> None:
    vendor.post("/machines").respond(400, json=body)
    with pytest.raises(NoCapacity, match="words") as caught:
        api(codes={"sold_out": NoCapacity}).order("/machines", {})
    assert caught.value.code == "sold_out"


def test_an_error_inside_a_200_is_an_error_where_the_driver_says_how_it_looks(vendor: respx.MockRouter) -> None:
    vendor.post("/machines").respond(json={"success": False, "error": "no_such_ask", "msg": "ask 7 is taken"})
    find = lambda body: None if body.get("success") else Problem(body["error"], body["msg"])  # noqa: E731
    client = api(codes={"no_such_ask": NoCapacity}, problem_in_success=find)
    with pytest.raises(NoCapacity, match="ask 7 is taken"):
        client.order("/machines", {})
    vendor.post("/machines").respond(json={"success": True, "id": 7})
    assert client.order("/machines", {}) == {"success": True, "id": 7}


def test_a_get_is_asked_again_until_it_answers_and_given_up_after_three_times(vendor: respx.MockRouter) -> None:
    route = vendor.get("/machines")
    route.side_effect = [httpx.Response(502), httpx.ReadTimeout("slow"), httpx.Response(200, json=1)]
    assert api().get("/machines") == 1
    route.side_effect = httpx.ConnectError("refused")
    with pytest.raises(Transient, match="cannot be reached for GET /machines: ConnectError"):
        api().get("/machines")
    assert route.call_count == 6


@pytest.mark.parametrize("method", ["post", "put", "patch", "delete", "order"])
def test_what_may_have_effects_is_sent_once(vendor: respx.MockRouter, method: str) -> None:
    route = vendor.route(path="/machines").respond(503)
    body = () if method == "delete" else ({},)
    with pytest.raises((Transient, Unconfirmed)):
        getattr(api(), method)("/machines", *body)
    assert route.call_count == 1


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(500),
        httpx.Response(504, text="<html>gateway</html>"),
        httpx.Response(408),
        httpx.Response(200, text="{half"),
        httpx.Response(201),
        httpx.ReadTimeout("slow"),
        httpx.ReadError("reset"),
        httpx.WriteError("reset"),
        httpx.RemoteProtocolError("closed"),
    ],
)
def test_an_order_without_a_definite_answer_is_unconfirmed(vendor: respx.MockRouter, answer: Any) -> None:
    route = vendor.post("/machines")
    route.side_effect = [answer]
    with pytest.raises(Unconfirmed):
        api().order("/machines", {})
    assert route.call_count == 1


def test_an_order_is_not_sent_again_though_the_vendor_s_code_is_mapped_to_transient(vendor: respx.MockRouter) -> None:
    vendor.post("/machines").respond(500, json={"code": "busy", "message": "try again"})
    with pytest.raises(Unconfirmed):
        api(codes={"busy": Transient}).order("/machines", {})


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow"), httpx.PoolTimeout("")])
def test_an_order_that_was_never_sent_is_transient(vendor: respx.MockRouter, error: Exception) -> None:
    vendor.post("/machines").side_effect = error
    with pytest.raises(Transient):
        api().order("/machines", {})


def test_a_rate_limit_says_how_long_to_wait_in_seconds_or_by_a_date(vendor: respx.MockRouter) -> None:
    route = vendor.get("/machines")
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    for text, low, high in (("17", 17, 17), (date, 55, 60), ("Thu, 01 Jan 1970 00:00:00 GMT", 0, 0)):
        route.respond(429, headers={"retry-after": text})
        with pytest.raises(RateLimited) as caught:
            api().get("/machines")
        assert caught.value.retry_after_s is not None
        assert low <= caught.value.retry_after_s <= high
    for text in ("", "soon"):
        route.respond(429, headers={"retry-after": text})
        with pytest.raises(RateLimited) as caught:
            api().get("/machines")
        assert caught.value.retry_after_s is None
    assert route.call_count == 5


@pytest.mark.parametrize("words", [f"bad key {KEY}", "bad key k-0f9d8c7b6a%2F%2B", "x" * 5000])
def test_no_message_holds_a_credential_a_query_string_or_a_page_of_text(vendor: respx.MockRouter, words: str) -> None:
    vendor.get("/machines").respond(403, text=words)
    with pytest.raises(AuthFailed) as caught:
        api().get("/machines?api_key=hidden", {"token": "hidden-too"})
    said = str(caught.value) + repr(caught.value)
    assert "k-0f9d8c7b6a" not in said
    assert "hidden" not in said
    assert len(caught.value.message) < 400
    vendor.get("/machines").side_effect = httpx.ReadTimeout(f"{URL}/machines?token=hidden")
    with pytest.raises(Transient) as lost:
        api().get("/machines", {"token": "hidden"})
    assert "hidden" not in str(lost.value)


def test_all_pages_come_and_half_a_listing_passes_for_none() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        after = request.url.params.get("after")
        return httpx.Response(200, json={"items": [after], "next": {None: "a", "a": "b", "b": None}[after]})

    def pages(respond: Any) -> list[Any]:
        client = api(transport=httpx.MockTransport(respond))
        return list(client.pages("/machines", {"size": 1}, cursor="after", next_cursor=lambda page: page["next"]))

    assert [page["items"] for page in pages(answer)] == [[None], ["a"], ["b"]]
    with pytest.raises(Transient, match="does not come to an end of /machines"):
        pages(lambda _: httpx.Response(200, json={"next": "same"}))


def test_one_client_serves_many_threads_and_each_call_has_a_timeout() -> None:
    seen: list[dict[str, float]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.extensions["timeout"])
        return httpx.Response(200, json=request.url.path)

    client = api(transport=httpx.MockTransport(answer), timeout_s=7)
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda number=number: answers.append(client.get(f"/{number}"))) for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [f"/v1/{number}" for number in range(8)]
    assert all(timeout == {"connect": 10.0, "read": 7, "write": 7, "pool": 10.0} for timeout in seen)
    client.close()
