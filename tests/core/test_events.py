"""Server-sent events: an answer that need not end is listened to in bounds, and only whole events count."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from prefect_gpu.providers.core.errors import AuthFailed, NotFound, RateLimited, Transient
from prefect_gpu.providers.core.toolkit.events import data_in
from prefect_gpu.providers.core.toolkit.wire import Stream
from tests.core.test_http import api, server

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
TWO = b'id: 1\ndata: {"line": "one"}\n\nid: 2\ndata: {"line": "two"}\n\n'
SHORT: Any = {"pause_s": 1, "within_s": 1}
LINES: list[Any] = [{"line": "one"}, {"line": "two"}]


def listened(answer: Callable[[socket.socket], object], **how: Any) -> tuple[list[Any], float]:
    """What was heard, and in how many seconds."""
    with server(answer) as port:
        started = time.monotonic()
        how = {"pause_s": 0.2, "within_s": 10.0, **how}
        heard = api(url=f"http://127.0.0.1:{port}", timeout_s=how.pop("limit_s", 5)).events("/logs", **how)
        return heard, time.monotonic() - started


def test_events_of_an_answer_that_ends_are_heard_at_once() -> None:
    heard, seconds = listened(lambda there: there.sendall(HEAD + TWO), pause_s=60.0)
    assert heard == LINES
    assert seconds < 30


def test_a_stream_that_falls_silent_and_never_ends_is_left_after_a_pause() -> None:
    def silent(there: socket.socket) -> None:
        there.sendall(HEAD + TWO)
        there.recv(1)  # until it is left

    heard, seconds = listened(silent)
    assert heard == LINES
    assert seconds < 4


def test_a_stream_that_trickles_is_left_when_its_time_is_over_and_half_an_event_is_none() -> None:
    def trickle(there: socket.socket) -> None:
        there.sendall(HEAD + TWO + b'data: {"line": "')
        for _ in range(600):
            time.sleep(0.05)
            there.sendall(b"x")

    heard, seconds = listened(trickle, pause_s=10.0, within_s=0.5)
    assert heard == LINES
    assert seconds < 8


def test_a_stream_is_left_as_soon_as_the_whole_line_came_that_is_waited_for() -> None:
    def slow(there: socket.socket) -> None:
        there.sendall(HEAD + TWO[:-20])
        time.sleep(0.3)
        there.sendall(TWO[-20:])
        there.recv(1)

    heard, seconds = listened(slow, pause_s=60.0, within_s=60.0, until=b'"tw')
    assert heard == LINES
    assert seconds < 30


def test_a_line_without_an_end_is_read_no_further_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "__init__", _small(Stream.__init__))
    sent = 0

    def flood(there: socket.socket) -> None:
        nonlocal sent
        there.sendall(HEAD + TWO + b"data: ")
        for _ in range(2000):
            sent += there.send(b"x" * 100_000)

    assert listened(flood, pause_s=10.0, within_s=60.0)[0] == LINES
    assert sent < 50_000_000


def _small(made: Callable[..., None]) -> Callable[..., None]:
    return lambda self, *given: made(self, *given, max_bytes=100_000)


def test_headers_that_never_come_are_an_error_and_not_an_empty_log() -> None:
    with pytest.raises(Transient, match="GET /logs"):
        listened(lambda there: there.recv(1), within_s=0.1, limit_s=0.5)


def test_a_stream_that_breaks_is_an_error_and_not_half_a_log() -> None:
    broken = HEAD.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n") + b"10\r\ndata: "
    with pytest.raises(Transient, match="was lost"):
        listened(lambda there: there.sendall(broken))


@pytest.mark.parametrize(("status", "kind"), [(401, AuthFailed), (404, NotFound), (429, RateLimited), (503, Transient)])
def test_a_refusal_is_the_error_that_it_is_elsewhere(status: int, kind: type[Exception]) -> None:
    refused = httpx.Response(status, json={"title": "No", "status": status, "detail": "not today"})
    with pytest.raises(kind, match="not today"):
        api(transport=httpx.MockTransport(lambda _: refused)).events("/logs", **SHORT)


def test_events_are_asked_for_by_their_type_with_the_account_s_credentials() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, content=TWO)

    assert api(transport=httpx.MockTransport(answer)).events("/logs", {"tail": 5}, **SHORT) == LINES
    (one,) = asked
    assert one.headers["accept"] == "text/event-stream"
    assert one.headers["authorization"].startswith("Bearer ")
    assert one.url.params["tail"] == "5"


@pytest.mark.parametrize(
    ("content", "events"),
    [
        (b"", []),
        (b'data: {"a": 1}', []),  # cut off, perhaps
        (b'data: {"a": 1}\n', [{"a": 1}]),  # no empty line at the end
        (b'data:{"a": 1}\n\n', [{"a": 1}]),
        (b'data: {"a":\ndata: 1}\n\n', [{"a": 1}]),
        (b'data: {"a": 1}\r\n\r\ndata: {"a": 2}\r\n\r\n', [{"a": 1}, {"a": 2}]),
        (b'data: {"a": 1}\rid: 7\rdata: {"a": 2}\r\r', [{"a": 1}, {"a": 2}]),
        (b'id: 1\ndata: {"a": 1}\nid: 2\ndata: {"a": 2}\n', [{"a": 1}, {"a": 2}]),  # as RunPod's example has it
        (b": keep alive\n\nretry: 10\n\n", []),
        (b'data: not json\n\ndata: NaN\n\ndata: {"a": 1}\n\n', [{"a": 1}]),
        (b"data: \xff\xfe\n\ndata: 7\n\n", [7]),
        (b"data: " + b"[" * 100_000 + b"\n\ndata: 7\n\n", [7]),
        (b"<html><h1>data: 7</h1>\n", []),
    ],
)
def test_only_whole_events_count(content: bytes, events: list[Any]) -> None:
    assert data_in(content) == events
