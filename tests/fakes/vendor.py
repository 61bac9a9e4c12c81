"""What fakes of vendors' REST APIs have in common: a clock of the test's own, faults that are injected, listings that lag."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any, Self

import httpx


class FakeVendor:
    """One vendor. `transport` is what the driver gets; the clock stands still but for `advance`, unless it has a speed.

    A vendor's fake says what kind a request is, who is admitted, and what is answered.
    """

    def __init__(self, *, listing_lag_s: float = 0.0, speed: float = 0.0) -> None:
        self.transport = httpx.MockTransport(self.answer)
        self.listing_lag_s = listing_lag_s
        self.creates = 0
        self.requests: list[tuple[str, str]] = []
        self.next: dict[
            str, Any
        ] = {}  # what happens to the next call of a kind, once: a Response, bytes, "lost", "unreachable"
        self.refused: httpx.Response | None = None  # every call, from now on
        self.broken: set[str] = set()  # kinds of calls that are answered by `down`
        self.unreadable: str | None = None  # this list
        self.lock = threading.RLock()
        self.numbers = itertools.count(2)
        self.running = contextlib.ExitStack()  # machines that answer SSH
        self._began = time.monotonic()
        self._speed = speed
        self._ahead = 0.0
        self._start = time.time()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.running.close()

    # --- what a vendor's fake says ---------------------------------------------------------------------------------------

    def kind(self, request: httpx.Request) -> str:
        """`create`, `get`, `delete`, or a name of the fake's own."""
        raise NotImplementedError

    def admits(self, request: httpx.Request) -> httpx.Response | None:
        """The refusal of who may not ask; None for the others."""
        raise NotImplementedError

    def serve(self, request: httpx.Request) -> httpx.Response:
        raise NotImplementedError

    def down(self) -> httpx.Response:
        """What it answers when it is down."""
        raise NotImplementedError

    def hold_to_the_document(self, request: httpx.Request, response: httpx.Response | None) -> None:
        """Fails the test where the vendor documents something else. None: an answer that a test put in its place."""

    # --- the clock -------------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self._start + self._ahead + self._speed * (time.monotonic() - self._began)

    def advance(self, seconds: float) -> None:
        with self.lock:
            self._ahead += seconds

    def then(self) -> float:
        """The moment that listings show."""
        return self.now - self.listing_lag_s

    @staticmethod
    def moment(at: float) -> str:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    # --- a request -------------------------------------------------------------------------------------------------------

    def answer(self, request: httpx.Request) -> httpx.Response:
        with self.lock:
            self.requests.append((request.method, request.url.path))
            self.hold_to_the_document(request, None)
            response = self._routed(request)
            response.headers["date"] = formatdate(self.now, usegmt=True)
            return response

    def _routed(self, request: httpx.Request) -> httpx.Response:
        what = self.kind(request)
        if what == "create":
            self.creates += 1
        fault = self.next.pop(what, None)
        if fault == "unreachable":
            raise httpx.ConnectError("[Errno 111] Connection refused")
        if self.refused is not None:
            return self.refused
        if (refusal := self.admits(request)) is not None:
            return refusal
        if isinstance(fault, httpx.Response):
            return fault
        if what in self.broken:
            return self.down()
        response = self.serve(request)
        self.hold_to_the_document(request, response)
        if fault == "lost":
            raise httpx.ReadError("connection reset by peer")
        return httpx.Response(response.status_code, content=fault) if isinstance(fault, bytes) else response
