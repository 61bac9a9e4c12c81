"""The exec websocket of an API server, in this process: a shell of this machine behind it, or whatever a test lets it say."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from prefect_gpu.providers.core.toolkit.login import Login
from prefect_gpu.providers.kubernetes.channel import PodChannel
from prefect_gpu.providers.kubernetes.connection import PodConnection
from prefect_gpu.providers.kubernetes.login import Endpoint
from prefect_gpu.providers.kubernetes.websocket import MOST_FRAME, Link

Behaviour = Callable[[ServerConnection], object]
SUCCESS = b'\x03{"status": "Success"}'


def exit_status(code: int) -> bytes:
    """The last message of a command."""
    cause = {"reason": "ExitCode", "message": str(code)}
    return b"\3" + json.dumps({"status": "Failure", "details": {"causes": [cause]}}).encode() if code else SUCCESS


def shell(peer: ServerConnection) -> None:
    """What a kubelet does: run the words of the URL, and carry its three streams."""
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(peer.request.path if peer.request else "").query)
    process = subprocess.Popen(
        query["command"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr

    def pass_on(stream: int, source: IO[bytes]) -> None:
        with contextlib.suppress(ConnectionClosed):
            while data := source.read1(32768):  # type: ignore[attr-defined]
                peer.send(bytes([stream]) + data)

    carriers = [
        threading.Thread(target=pass_on, args=(number, source), daemon=True)
        for number, source in ((1, process.stdout), (2, process.stderr))
    ]

    def finish() -> None:
        for carrier in carriers:
            carrier.join()
        with contextlib.suppress(ConnectionClosed):
            peer.send(exit_status(process.wait()))
            peer.close()

    ender = threading.Thread(target=finish, daemon=True)
    for thread in (*carriers, ender):
        thread.start()
    try:
        for message in peer:
            assert isinstance(message, bytes)
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(message[1:])
                process.stdin.flush()
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        ender.join(10)
        if process.poll() is None:
            process.kill()
        process.stdout.close()
        process.stderr.close()


@contextmanager
def pod(behaviour: Behaviour = shell, **more: Any) -> Iterator[PodConnection]:
    """A way onto a pod that behaves so."""

    def handle(peer: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed, OSError):
            behaviour(peer)

    server = serve(
        handle,
        "127.0.0.1",
        0,
        subprotocols=[Subprotocol("v4.channel.k8s.io")],
        compression=None,
        max_size=None,
        ping_interval=None,
        close_timeout=0.2,
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = Endpoint(f"http://127.0.0.1:{server.socket.getsockname()[1]}", Login())
    try:
        yield PodConnection(lambda: endpoint, "ns", "p", "job", more.pop("is_running", lambda: True), **more)
    finally:
        server.shutdown()
        thread.join(5)


def wired(*, with_answer: bytes = b"") -> tuple[Link, socket.socket]:
    """A link without a server, and its other end; `with_answer` came together with the answer to the upgrade."""
    client = ClientProtocol(
        parse_uri("ws://pod/"), subprotocols=[Subprotocol("v4.channel.k8s.io")], max_size=(None, MOST_FRAME)
    )
    client.send_request(client.connect())
    server = ServerProtocol(subprotocols=[Subprotocol("v4.channel.k8s.io")])
    server.receive_data(b"".join(client.data_to_send()))
    (request,) = server.events_received()
    assert isinstance(request, Request)
    server.send_response(server.accept(request))
    client.receive_data(b"".join(server.data_to_send()) + with_answer)
    _, *early = client.events_received()
    near, far = socket.socketpair()
    near.settimeout(0)
    return Link(near, client, [one for one in early if isinstance(one, Frame)]), far


def opened(link: PodConnection, command: str) -> PodChannel:
    """A channel whose inner state a test looks at."""
    channel = link.open(command)
    assert isinstance(channel, PodChannel)
    return channel


def read_all(channel: PodChannel) -> bytes:
    """All of its stdout."""
    output = bytearray()
    while data := channel.recv(1 << 16):
        output += data
    return bytes(output)
