"""Azure behind a company's proxy, for flows in processes of their own: login and Resource Manager by HTTPS, with the company's CA.

What the block needs to get there is what it has for companies: a proxy and a CA. So the login is azure-identity's own.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
from pydantic import SecretStr

from prefect_gpu.blocks.api import ApiAccess
from prefect_gpu.blocks.azure import AzureCredentials, AzureImage
from tests.fakes.authority import Authority
from tests.fakes.azure import facts
from tests.fakes.azure.cloud import FakeAzure

LOGIN, MANAGER = "login.microsoftonline.com", "management.azure.com"
PACE = 10.0  # seconds of Azure's in one of ours


class AzureServer:
    """The fake, served; its clock runs."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.ssh_port = probe.getsockname()[1]
        self.cloud = FakeAzure(ssh_folder=folder / "machines", ssh_port=self.ssh_port)
        self.logins: list[dict[str, list[str]]] = []
        self.authority = Authority(folder)
        self.contexts = {host: self.authority.server(host) for host in (LOGIN, MANAGER)}
        self._is_over = threading.Event()

    def block(self, **fields: Any) -> AzureCredentials:
        image = AzureImage(reference="Canonical:ubuntu-24_04-lts:server:latest", port=self.ssh_port)
        return AzureCredentials(
            **{
                "subscription_id": facts.SUBSCRIPTION,
                "tenant_id": facts.TENANT,
                "client_id": facts.CLIENT,
                "client_secret": SecretStr(facts.SECRET),
                "cpu_image": image,
                "gpu_image": image,
                "api": ApiAccess(proxy=SecretStr(f"http://127.0.0.1:{self.port}"), ca=str(self.authority.ca)),
                **fields,
            }
        )

    @contextlib.contextmanager
    def running(self) -> Iterator[AzureServer]:
        outer = self

        class Handler(_Handler):
            azure = outer

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.port = server.server_address[1]
        threads = [threading.Thread(target=work, daemon=True) for work in (server.serve_forever, self._tick)]
        for thread in threads:
            thread.start()
        try:
            with self.cloud:
                yield self
        finally:
            self._is_over.set()
            server.shutdown()
            server.server_close()
            for thread in threads:
                thread.join(10)

    def reset(self) -> None:
        """An empty subscription."""
        cloud = self.cloud
        with cloud._lock:
            cloud.machines.stop_all()
            cloud.groups.clear()
            cloud.next.clear()
            cloud.requests.clear()
            cloud.bodies.clear()
            for things in cloud.things.values():
                things.clear()
            cloud.creates = 0

    def _tick(self) -> None:
        before = time.monotonic()
        while not self._is_over.wait(0.1):
            now = time.monotonic()
            self.cloud.advance((now - before) * PACE)
            before = now


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    azure: AzureServer
    host = ""

    def do_CONNECT(self) -> None:
        self.host = self.path.partition(":")[0]
        context = self.azure.contexts.get(self.host)
        if context is None:  # nothing else is asked for
            self.send_error(502)
            return
        self.send_response(200)
        self.end_headers()
        try:
            self.connection = context.wrap_socket(self.connection, server_side=True)
        except (OSError, ssl.SSLError):
            self.close_connection = True
            return
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)  # type: ignore[assignment]
        self.close_connection = False

    def _answer(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = httpx.Request(
            self.command, f"https://{self.host}{self.path}", headers=dict(self.headers), content=content
        )
        try:
            response = self._login(request) if self.host == LOGIN else self.azure.cloud.answer(request)
        except httpx.TransportError:
            self.close_connection = True  # the answer is lost
            return
        self.send_response(response.status_code)
        for key in ("date", "retry-after", "azure-asyncoperation"):
            if key in response.headers and key != "date":
                self.send_header(key, response.headers[key])
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(response.content)))
        self.end_headers()
        self.wfile.write(response.content)

    do_GET = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815 - as the standard library calls them

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()
        if isinstance(self.connection, ssl.SSLSocket):  # it took the place of the one that the server closes
            self.connection.close()

    def _login(self, request: httpx.Request) -> httpx.Response:
        base = f"https://{LOGIN}/{facts.TENANT}"
        if request.url.path.endswith("/.well-known/openid-configuration"):
            told = {
                "issuer": f"{base}/v2.0",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
            }
            return httpx.Response(200, json=told)
        if request.url.path.endswith("/discovery/instance"):
            metadata = {"preferred_network": LOGIN, "preferred_cache": LOGIN, "aliases": [LOGIN]}
            endpoint = f"{base}/v2.0/.well-known/openid-configuration"
            return httpx.Response(200, json={"tenant_discovery_endpoint": endpoint, "metadata": [metadata]})
        asked = parse_qs(request.content.decode())
        self.azure.logins.append(asked)
        if asked.get("client_secret") != [facts.SECRET]:
            words = "AADSTS7000215: Invalid client secret provided."
            return httpx.Response(401, json={"error": "invalid_client", "error_description": words})
        token = facts.token_of(len(self.azure.logins))
        return httpx.Response(200, json={"token_type": "Bearer", "expires_in": 3599, "access_token": token})

    def log_message(self, *_: object) -> None:
        pass


def publish_prices() -> None:
    """The fake's prices as this machine's snapshot (under PREFECT_HOME), for flows in processes of their own."""
    from prefect_gpu.providers.core.catalog import collect, store
    from prefect_gpu.providers.core.models import utc_now

    found = collect.from_offers(facts.offers_of(), "the tests")
    store.publish("azure", found.prices, collected_at=utc_now(), source="the tests")
