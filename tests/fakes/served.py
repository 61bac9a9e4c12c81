"""A fake vendor on the network: an HTTPS server under the vendor's own name, behind a proxy that a company has.

Whoever uses the proxy and trusts the company's CA reaches the fake at the vendor's address. So drivers in other processes use it as
they are, by nothing but their block's `api`.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from prefect_gpu.blocks.api import ApiAccess
from tests.fakes.authority import Authority
from tests.fakes.vendor import FakeVendor


class _Proxy(BaseHTTPRequestHandler):
    """One connection: CONNECT, TLS under the name that was asked for, then requests that the fake answers."""

    protocol_version = "HTTP/1.1"
    fake: FakeVendor
    host: str
    tls: ssl.SSLContext
    timeout = 60

    def do_CONNECT(self) -> None:
        if self.path != f"{self.host}:443":
            self.send_error(403, f"only {self.host} is here")
            return
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.connection = self.tls.wrap_socket(self.connection, server_side=True)  # it takes the socket over
            self.rfile = self.connection.makefile("rb", -1)
            self.wfile = self.connection.makefile("wb", 0)
            self.close_connection = False

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()
        self.connection.close()

    def _pass_on(self) -> None:
        content = self.rfile.read(int(self.headers.get("content-length") or 0))
        asked = httpx.Request(
            self.command, f"https://{self.host}{self.path}", headers=dict(self.headers), content=content
        )
        try:
            answer = self.fake.answer(asked)
        except httpx.TransportError:  # the answer is lost
            self.close_connection = True
            return
        body = answer.read()
        self.send_response_only(answer.status_code)
        for name in ("content-type", "date", "retry-after"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815 - the names that http.server calls

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextlib.contextmanager
def served(fake: FakeVendor, host: str, folder: Path) -> Iterator[ApiAccess]:
    """The fake at `host`; yields the way there."""
    authority = Authority(folder)
    tls = authority.server(host)
    handler = type("Proxy", (_Proxy,), {"fake": fake, "host": host, "tls": tls})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield ApiAccess.model_validate(
            {"proxy": f"http://127.0.0.1:{server.server_port}", "ca": authority.ca.read_text()}
        )
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
