"""A vendor's JSON API: what each answer means, for calls that may be repeated and for orders that may not."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
import respx
from pydantic import SecretStr

from prefect_gpu.blocks.api import ApiAccess
from prefect_gpu.providers.core.errors import (
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
from prefect_gpu.providers.core.toolkit.answers import Meanings, Problem
from prefect_gpu.providers.core.toolkit.http import JsonApi
from prefect_gpu.providers.core.toolkit.login import Login, bearer, tls
from prefect_gpu.providers.core.toolkit.pace import Pace
from tests.fakes.authority import Authority

KEY = "k-0f9d8c7b6a/+"
URL = "https://api.vendor.test/v1"


def api(
    *, url: str = URL, timeout_s: float = 30, transport: Any = None, max_bytes: int = 1_000_000, **meanings: Any
) -> JsonApi:
    return JsonApi(
        "Vendor",
        url,
        token=SecretStr(KEY),
        meanings=Meanings(**meanings),
        timeout_s=timeout_s,
        retry_wait_s=0.001,
        max_bytes=max_bytes,
        transport=transport,
    )


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
        api(codes={"sold_out": NoCapacity}).order("/machines", {}, id_at="id")
    assert caught.value.code == "sold_out"


def test_an_error_inside_a_200_is_an_error_where_the_driver_says_how_it_looks(vendor: respx.MockRouter) -> None:
    vendor.post("/machines").respond(json={"success": False, "error": "no_such_ask", "msg": "ask 7 is taken"})
    find = lambda body: None if body.get("success") else Problem(body["error"], body["msg"])  # noqa: E731
    client = api(codes={"no_such_ask": NoCapacity}, problem_in_success=find)
    with pytest.raises(NoCapacity, match="ask 7 is taken"):
        client.order("/machines", {}, id_at="id")
    vendor.post("/machines").respond(json={"success": True, "id": 7})
    assert client.order("/machines", {}, id_at="id") == {"success": True, "id": 7}


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
    more = {"id_at": "id"} if method == "order" else {}
    with pytest.raises((Transient, Unconfirmed)):
        getattr(api(), method)("/machines", *body, **more)
    assert route.call_count == 1


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(500),
        httpx.Response(504, text="<html>gateway</html>"),
        httpx.Response(408),
        httpx.Response(200, text="{half"),
        httpx.Response(201),
        httpx.Response(201, json={"name": "x"}),
        httpx.Response(201, json={"id": ""}),
        httpx.Response(201, json={"id": True}),
        httpx.Response(201, json={"id": {"uuid": 7}}),
        httpx.Response(201, text="{" * 100_000),
        httpx.Response(201, text='{"id": 7, "price": NaN}'),
        httpx.Response(201, text='{"id": 7, "price": 1e999}'),
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
        api().order("/machines", {}, id_at="id")
    assert route.call_count == 1


def test_an_order_is_not_sent_again_though_the_vendor_s_code_is_mapped_to_transient(vendor: respx.MockRouter) -> None:
    vendor.post("/machines").respond(500, json={"code": "busy", "message": "try again"})
    with pytest.raises(Unconfirmed):
        api(codes={"busy": Transient}).order("/machines", {}, id_at="id")


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow"), httpx.PoolTimeout("")])
def test_an_order_that_was_never_sent_is_transient(vendor: respx.MockRouter, error: Exception) -> None:
    vendor.post("/machines").side_effect = error
    with pytest.raises(Transient):
        api().order("/machines", {}, id_at="id")


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
        return list(client.pages("/machines", {"size": 1}, cursor="after", next_at="next"))

    assert [page["items"] for page in pages(answer)] == [[None], ["a"], ["b"]]
    with pytest.raises(Transient, match="does not come to an end of /machines"):
        pages(lambda _: httpx.Response(200, json={"next": "same"}))


def test_rows_are_those_of_all_pages_and_nothing_that_is_missing_passes_for_empty() -> None:
    def rows(*answers: Any, **more: Any) -> list[Any]:
        left = [httpx.Response(200, json=answer) for answer in answers]
        client = api(transport=httpx.MockTransport(lambda _: left.pop(0)))
        return list(client.rows("/machines", "data.machines", next_at="meta.next", **more))

    one, two = {"id": 1}, {"id": 2}
    assert rows({"data": {"machines": [one]}, "meta": {"next": "b"}}, {"data": {"machines": [two]}}) == [one, two]
    assert rows({"data": {"machines": []}}) == []
    assert rows({"data": {"machines": None}}, is_nullable=True) == []
    for strange in (
        {},
        {"data": {"machines": None}},
        {"data": {"machines": {}}},
        {"data": {"machines": ["x"]}},
        [],
        "x",
    ):
        with pytest.raises(Transient, match=r"has no list of data\.machines"):
            rows(strange)
    same = {"data": {"machines": [one]}, "meta": {"next": "b"}}
    with pytest.raises(Transient, match="a page came twice"):
        rows(same, same | {"meta": {"next": "c"}})
    turning = ({"data": {"machines": [{"id": n}]}, "meta": {"next": "ab"[n % 2]}} for n in range(9))
    with pytest.raises(Transient, match="does not come to an end"):
        rows(*turning)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Plan is not available  in the selected region.", NoCapacity),
        ("PLAN IS NOT AVAILABLE in the selected region", NoCapacity),
        ("Your plan is odd", InvalidRequest),
    ],
)
def test_a_vendor_without_codes_is_understood_by_its_words(
    vendor: respx.MockRouter, words: str, kind: type[ProviderError]
) -> None:
    vendor.post("/machines").respond(400, json={"error": words, "status": 400})
    with pytest.raises(kind, match=r"(?i)plan is") as caught:
        api(words={NoCapacity: ("out of stock", "not available in the selected region")}).order(
            "/machines", {}, id_at="id"
        )
    assert type(caught.value) is kind


def test_a_definite_no_inside_a_500_is_one_and_a_status_may_mean_something_else_here(vendor: respx.MockRouter) -> None:
    vendor.post("/machines").respond(500, json={"message": "failed calling webhook x"})
    with pytest.raises(InvalidRequest, match="failed calling webhook"):
        api(words={InvalidRequest: ("failed calling webhook",)}).order("/machines", {}, id_at="id")
    vendor.post("/machines").respond(503, json={"message": "not enough resources"})
    with pytest.raises(NoCapacity):
        api(statuses={503: NoCapacity}).order("/machines", {}, id_at="id")


@pytest.mark.parametrize("page", ["<h1>502</h1> the load balancer is unavailable", "nothing is available"])
def test_a_page_of_a_gateway_is_not_the_vendor_s_word_however_it_reads(vendor: respx.MockRouter, page: str) -> None:
    vendor.post("/machines").respond(502, text=page)
    words = {NoCapacity: ("available",), InsufficientFunds: ("balance",)}
    with pytest.raises(Unconfirmed):
        api(words=words).order("/machines", {}, id_at="id")


@pytest.mark.parametrize(("answer", "id_at"), [("abc-7", ""), ('"abc-7"', ""), ('{"ids": ["abc-7"]}', "ids.0")])
def test_an_id_may_stand_alone_as_text_or_json_or_deep_in_the_answer(
    vendor: respx.MockRouter, answer: str, id_at: str
) -> None:
    vendor.post("/machines").respond(201, text=answer, headers={"content-type": "text/plain"})
    assert "abc-7" in str(api().order("/machines", {}, id_at=id_at))


def test_the_call_is_named_in_the_user_s_words_and_gone_already_is_as_good_as_deleted(vendor: respx.MockRouter) -> None:
    vendor.delete("/machines/7").respond(404, json={"error": "no such machine"})
    assert api().delete("/machines/7", missing_ok=True) is None
    with pytest.raises(NotFound, match=r"^Vendor refused to give back machine 7 \(404\): no such machine$"):
        api().delete("/machines/7", what="give back machine 7")


def test_the_vendor_s_clock_is_read_from_its_answers(vendor: respx.MockRouter) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=5)
    vendor.get("/machines").respond(200, json=[], headers={"date": format_datetime(ahead, usegmt=True)})
    client = api()
    client.get("/machines")
    assert abs((client.now() - ahead).total_seconds()) < 60


# --- credentials --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "  ", "k\nx-evil: 1", "kéy", "two words"])
def test_a_key_that_cannot_be_one_is_refused_before_anything_is_sent_and_not_shown(key: str) -> None:
    client = JsonApi("Vendor", URL, token=SecretStr(key), transport=httpx.MockTransport(lambda _: httpx.Response(200)))
    with pytest.raises(AuthFailed, match="save it again") as caught:
        client.get("/machines")
    assert not key.strip() or key not in str(caught.value)


def test_a_key_that_was_pasted_with_a_line_end_is_taken_without_it() -> None:
    assert bearer(SecretStr("key\n")).headers == {"authorization": "Bearer key"}


class Vault:
    """Tokens that the vendor forgets: only the newest is good."""

    def __init__(self, good_for_s: float | None = None) -> None:
        self.made = 0
        self.good_for_s = good_for_s
        self.orders = 0

    def login(self) -> Login:
        self.made += 1
        return bearer(f"token-{self.made}", good_for_s=self.good_for_s)

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.headers["authorization"] != f"Bearer token-{max(self.made, 2)}":
            return httpx.Response(401, json={"error": "expired"})
        self.orders += request.method == "POST"
        return httpx.Response(200, json={"id": 7})


def test_a_refused_login_is_renewed_and_the_call_sent_again_once_orders_too() -> None:
    vault = Vault()
    client = JsonApi("Vendor", URL, login=vault.login, transport=httpx.MockTransport(vault.answer))
    assert client.order("/machines", {}, id_at="id") == {"id": 7}
    assert (vault.made, vault.orders) == (2, 1)
    client.get("/machines")
    assert vault.made == 2, "what is good is kept"


def test_a_login_that_stays_refused_is_asked_for_once_more_and_no_more() -> None:
    asked: list[str] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers["authorization"])
        return httpx.Response(401, json={"error": f"bad {asked[-1]}"})

    tokens = iter(["a1", "b2", "c3"])
    client = JsonApi("Vendor", URL, login=lambda: bearer(next(tokens)), transport=httpx.MockTransport(refuse))
    with pytest.raises(AuthFailed) as caught:
        client.get("/machines")
    assert asked == ["Bearer a1", "Bearer b2"]
    assert "b2" not in str(caught.value)
    asked.clear()
    with pytest.raises(AuthFailed):
        api(transport=httpx.MockTransport(refuse)).get("/machines")
    assert len(asked) == 1, "the same login is not tried twice"


def test_a_login_is_renewed_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    vault = Vault(good_for_s=3600)
    vault.made = 1
    client = JsonApi("Vendor", URL, login=vault.login, transport=httpx.MockTransport(vault.answer))
    client.get("/machines")
    assert vault.made == 2
    real = time.monotonic
    monkeypatch.setattr("prefect_gpu.providers.core.toolkit.login.time.monotonic", lambda: real() + 3550)
    client.get("/machines")
    assert vault.made == 3


# --- time, size, the way there ------------------------------------------------------------------------------------------


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
    assert all(timeout == {"connect": 7, "read": 7, "write": 7, "pool": 7} for timeout in seen)
    client.close()


@contextlib.contextmanager
def server(answer: Callable[[socket.socket], object], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server that says to each connection what it likes; its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with contextlib.suppress(OSError), connection, _over(connection, tls) as open_one:
                    open_one.recv(65536)
                    answer(open_one)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def _over(connection: socket.socket, tls: ssl.SSLContext | None) -> socket.socket:
    return tls.wrap_socket(connection, server_side=True) if tls else connection


def drip(before: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.sendall(before)
        for _ in range(30):
            time.sleep(0.05)
            connection.sendall(b"x")

    return answer


@pytest.mark.parametrize(
    "before", [b"HTTP/1.1 200 OK\r\nx-long: ", b"HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\n"]
)
def test_an_answer_that_drips_is_given_up_in_time_though_each_byte_comes_soon(before: bytes) -> None:
    with server(drip(before)) as port:
        client = api(url=f"http://127.0.0.1:{port}", timeout_s=0.3)
        started = time.monotonic()
        with pytest.raises(Unconfirmed, match=r"did not finish its answer to POST /machines in 0.3 s"):
            client.order("/machines", {}, id_at="id")
        assert time.monotonic() - started < 5


def test_an_answer_of_too_many_bytes_is_not_read_to_its_end() -> None:
    sent = 0

    def flood(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(4000):
            sent += connection.send(b"x" * 100_000)

    with server(flood) as port, pytest.raises(Unconfirmed, match="larger than 1,000,000 bytes"):
        api(url=f"http://127.0.0.1:{port}").order("/machines", {}, id_at="id")
    assert sent < 50_000_000


def ok(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n[]")


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def test_a_company_s_ca_is_trusted_as_text_and_as_a_file_and_without_it_the_message_says_what_to_do(
    company: Authority,
) -> None:
    with server(ok, company.server()) as port:
        url = f"https://127.0.0.1:{port}"
        for ca in (company.ca.read_text(), str(company.ca)):
            assert JsonApi("Vendor", url, login=lambda ca=ca: bearer(KEY, ca=ca)).get("/") == []
        with pytest.raises(InvalidRequest, match=r"certificate is not trusted .*name its CA in the account's block"):
            api(url=url).get("/")


def test_a_client_certificate_is_shown_and_a_name_that_is_not_the_host_s_is_checked(company: Authority) -> None:
    def login(server_name: str, *, is_known: bool) -> Login:
        files = {"certificate": str(company.client), "key": str(company.client_key)} if is_known else {}
        return Login(tls=tls(str(company.ca), **files), tls_key=is_known, server_name=server_name)

    with server(ok, company.server("cluster.test", asks_for_client=True)) as port:
        url = f"https://127.0.0.1:{port}"
        known = JsonApi("Vendor", url, login=lambda: login("cluster.test", is_known=True), retry_wait_s=0.001)
        assert known.get("/") == []
        for wrong in (login("other.test", is_known=True), login("cluster.test", is_known=False)):
            with pytest.raises((InvalidRequest, Transient)):
                JsonApi("Vendor", url, login=lambda wrong=wrong: wrong, retry_wait_s=0.001).get("/")


@pytest.mark.parametrize("ca", ["/nowhere/ca.pem", "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----"])
def test_a_ca_that_cannot_be_used_is_named(ca: str) -> None:
    with pytest.raises(InvalidRequest, match="the CA of the account's block cannot be used on this worker"):
        bearer(KEY, ca=ca)


def test_the_account_s_proxy_is_used_and_its_password_said_nowhere() -> None:
    asked: list[bytes] = []

    def proxy(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 407 pass-word please\r\ncontent-length: 0\r\n\r\n")

    def noted(connection: socket.socket) -> None:
        asked.append(connection.recv(65536))
        proxy(connection)

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: _serve_once(listener, noted), daemon=True)
    thread.start()
    way = SecretStr(f"http://someone:pass-word@127.0.0.1:{listener.getsockname()[1]}")
    client = JsonApi("Vendor", URL, login=lambda: bearer(KEY, proxy=way), retry_wait_s=0.001)
    with pytest.raises(Transient, match="cannot be reached") as caught:
        client.order("/machines", {}, id_at="id")
    thread.join(5)
    listener.close()
    assert asked[0].startswith(b"CONNECT api.vendor.test:443 ")
    assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize("login", [None, lambda: Login(headers={"x-key": "k"}, secrets=("k",)), lambda: bearer(KEY)])
def test_the_account_s_proxy_and_ca_are_the_way_of_a_login_of_any_kind_and_of_none(
    login: Any, company: Authority
) -> None:
    access = ApiAccess(proxy=SecretStr("http://someone:pass-word@proxy.example:3128"), ca=str(company.ca))
    used = JsonApi("Vendor", URL, login=login, access=access)._logins.current()
    assert (used.proxy, used.tls_key) == ("http://someone:pass-word@proxy.example:3128", str(company.ca))
    assert used.tls is not None
    assert used.secrets == ((*login().secrets, "pass-word") if login else ("pass-word",))


def test_a_login_that_says_its_own_way_keeps_it() -> None:
    mine = Login(proxy="http://mine.example:1", tls=tls(), tls_key="mine")
    access = ApiAccess(proxy=SecretStr("http://other.example:2"), ca="-----BEGIN nothing")
    used = JsonApi("Vendor", URL, login=lambda: mine, access=access)._logins.current()
    assert (used.proxy, used.tls_key, used.secrets) == ("http://mine.example:1", "mine", ())


def test_requests_keep_the_distance_that_a_vendor_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    vendor = httpx.MockTransport(lambda _: httpx.Response(200, json={"id": 7}))
    JsonApi("Vendor", URL, transport=vendor).get("/machines")
    assert waited == []
    client = JsonApi("Vendor", URL, every_s=1000, transport=vendor)
    client.get("/machines")
    client.order("/machines", {}, id_at="id")
    client.delete("/machines/7")
    assert [round(one, -3) for one in waited] == [1000, 2000], "nobody slept, so the third waits for two turns"


def test_turns_are_apart_for_whoever_asks_at_once_and_after_an_answer_that_came_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, waited = [100.0], list[float]()
    monkeypatch.setattr("prefect_gpu.providers.core.toolkit.pace.time.monotonic", lambda: now[0])
    monkeypatch.setattr("prefect_gpu.providers.core.toolkit.pace.time.sleep", waited.append)
    pace = Pace(1.0)
    with pace.turn(), pace.turn(), pace.turn():  # three at once
        assert waited == [1.0, 2.0]
        now[0] = 110.0  # their answers
    with pace.turn():
        assert waited[2:] == [1.0], "what was on its way until now counts from now"


def _serve_once(listener: socket.socket, answer: Callable[[socket.socket], object]) -> None:
    connection, _ = listener.accept()
    with connection:
        answer(connection)


def test_an_order_that_hung_before_it_was_sent_is_not_sent_after_it_was_given_up() -> None:
    """A name that resolves late, a connection that stands late: the caller has gone on, and so may not the order."""
    received: list[bytes] = []
    backlog = socket.create_server(("127.0.0.1", 0))

    def late(real: httpx.BaseTransport) -> httpx.BaseTransport:
        class Late(httpx.BaseTransport):
            def handle_request(self, request: httpx.Request) -> httpx.Response:
                time.sleep(0.6)
                return real.handle_request(request)

        return Late()

    def listen() -> None:
        with contextlib.suppress(OSError):
            connection, _ = backlog.accept()
            with connection:
                received.append(connection.recv(65536))

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    client = api(url=f"http://127.0.0.1:{backlog.getsockname()[1]}", timeout_s=0.3, transport=late)
    with pytest.raises(Unconfirmed):
        client.order("/machines", {}, id_at="id")
    thread.join(10)
    backlog.close()
    assert received == [b""], "connected, and nothing was said"
