"""A way onto a pod: commands through the Kubernetes API's exec websocket, each over one of its own.

The websocket's protocol cannot say that stdin has ended (`v5` can, from Kubernetes 1.30 on), and the command's words would stand in
the URL, where audit logs keep them. So a small script (exec.sh, feed.sh) takes all of it from its stdin as counted chunks: first the
command, then the command's stdin, then "0" for the end. It needs `sh`, `dd`, `cat`, and says so where the image lacks one.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Final

from websockets.client import ClientProtocol
from websockets.exceptions import WebSocketException
from websockets.frames import Frame
from websockets.http11 import Response
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from prefect_gpu.providers.core.contract import Channel
from prefect_gpu.providers.core.errors import AuthFailed, InvalidRequest, LinkLost, NotFound, NotReady, ProviderError
from prefect_gpu.providers.core.machine import scripts
from prefect_gpu.providers.kubernetes.channel import PodChannel
from prefect_gpu.providers.kubernetes.login import Endpoint
from prefect_gpu.providers.kubernetes.objects import as_dict, as_text, one_line
from prefect_gpu.providers.kubernetes.websocket import MOST_FRAME, READ, Link

EXEC, FEED = (scripts.text(name, folder=Path(__file__).with_name("sh")) for name in ("exec", "feed"))
_TEXT: Final = 300  # characters of a refusal


class PodConnection:
    """The commands of one pod's container. `endpoint` is asked for each; `is_running` asks the API, within seconds, about the pod."""

    def __init__(
        self,
        endpoint: Callable[[], Endpoint],
        namespace: str,
        pod: str,
        container: str,
        is_running: Callable[[], bool],
        *,
        image: str = "",
        timeout_s: float = 10,
    ) -> None:
        self._endpoint = endpoint
        self._namespace = namespace
        self._pod = pod
        self._container = container
        self._is_running = is_running
        self._image = image
        self._timeout_s = timeout_s
        self._is_closed = False

    def open(self, command: str) -> Channel:
        """Start a command by the pod's `sh`. NotFound: no such pod; NotReady: it does not run; LinkLost."""
        if self._is_closed:
            raise LinkLost(f"the connection to {self._pod} was closed")
        if "\0" in command:
            raise ValueError("a command cannot contain a NUL byte")
        query = urllib.parse.urlencode(
            [
                ("container", self._container),
                *(("command", word) for word in ("sh", "-c", EXEC, "sh", FEED)),
                *((stream, "true") for stream in ("stdin", "stdout", "stderr")),
            ]
        )
        path = f"/api/v1/namespaces/{self._namespace}/pods/{self._pod}/exec?{query}"
        link = _open(self._endpoint(), path, self._pod, self._timeout_s)
        return PodChannel(link, self._pod, command.encode(), self._is_running, self._image)

    def is_alive(self) -> bool:
        if self._is_closed:
            return False
        try:
            return self._is_running()
        except ProviderError:
            return False

    def close(self) -> None:
        self._is_closed = True


def _open(endpoint: Endpoint, path: str, pod: str, timeout_s: float) -> Link:
    """An open exec websocket. NotFound: no such pod; NotReady: it does not run; LinkLost, AuthFailed, InvalidRequest."""
    base = urllib.parse.urlsplit(endpoint.url)
    ws_url = f"{'wss' if base.scheme == 'https' else 'ws'}://{base.netloc}{base.path.rstrip('/')}{path}"
    protocol = ClientProtocol(
        parse_uri(ws_url), subprotocols=[Subprotocol("v4.channel.k8s.io")], max_size=(None, MOST_FRAME)
    )
    try:
        sock = _connect(endpoint, timeout_s)
    except (OSError, http.client.HTTPException) as error:
        raise LinkLost(f"the API server cannot be reached for a command on {pod}: {type(error).__name__}") from error
    try:
        request = protocol.connect()
        for key, value in endpoint.login.headers.items():
            request.headers[key] = value
        protocol.send_request(request)
        for data in protocol.data_to_send():
            sock.sendall(data)
        response, early = _response(sock, protocol, time.monotonic() + timeout_s)
    except (OSError, WebSocketException) as error:
        sock.close()
        raise LinkLost(f"the API server did not open a command on {pod}: {type(error).__name__}") from error
    except BaseException:
        sock.close()
        raise
    if response.status_code != 101 or protocol.handshake_exc is not None:
        sock.close()
        raise _refusal(response, pod)
    sock.settimeout(0)
    return Link(sock, protocol, early)


def _connect(endpoint: Endpoint, timeout_s: float) -> socket.socket:
    base, login = urllib.parse.urlsplit(endpoint.url), endpoint.login
    host, port = base.hostname or "", base.port or (443 if base.scheme == "https" else 80)
    if login.proxy:
        proxy = urllib.parse.urlsplit(login.proxy)
        tunnel = http.client.HTTPConnection(proxy.hostname or "", proxy.port or 80, timeout=timeout_s)
        tunnel.set_tunnel(host, port, headers=_proxy_login(proxy))
        try:
            tunnel.connect()
        except BaseException:
            tunnel.close()
            raise
        sock = tunnel.sock
    else:
        sock = socket.create_connection((host, port), timeout=timeout_s)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if base.scheme == "https" and login.tls is not None:
            return login.tls.wrap_socket(sock, server_hostname=login.server_name or host)
    except BaseException:
        sock.close()
        raise
    return sock


def _proxy_login(proxy: urllib.parse.SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    user, password = (urllib.parse.unquote(part or "") for part in (proxy.username, proxy.password))
    return {"Proxy-Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


def _response(sock: socket.socket, protocol: ClientProtocol, deadline: float) -> tuple[Response, list[Frame]]:
    """The answer to the upgrade, and what came right behind it. The library bounds what it reads of an answer."""
    while True:
        sock.settimeout(max(0.01, deadline - time.monotonic()))
        if time.monotonic() > deadline:
            raise TimeoutError
        data = sock.recv(READ)
        if data:
            protocol.receive_data(data)
        else:
            protocol.receive_eof()
        first, *rest = [*protocol.events_received(), None]
        if isinstance(first, Response):
            return first, [one for one in rest if isinstance(one, Frame)]
        if not data or protocol.handshake_exc is not None:
            raise ConnectionResetError


def _refusal(response: Response, pod: str) -> ProviderError:
    """What a refused upgrade means. The API server answers with a Status object, the kubelet with plain words."""
    body = bytes(response.body or b"").decode(errors="replace")
    try:
        words = as_text(as_dict(json.loads(body)).get("message"), _TEXT)
    except (ValueError, RecursionError):
        words = one_line(body[: 8 * _TEXT], _TEXT)
    code = str(response.status_code)
    if response.status_code == 404 and "not found" in words and "container" not in words:
        return NotFound(f"the pod {pod} is gone", code=code)
    if response.status_code == 401:
        return AuthFailed("the cluster refuses these credentials", code=code)
    if response.status_code == 403:
        return AuthFailed(
            f"the cluster does not let us run commands in pods: grant get and create on pods/exec ({words})", code=code
        )
    if response.status_code in {101, 400} and not words:
        return InvalidRequest("the API server does not speak the exec protocol v4.channel.k8s.io", code=code)
    return NotReady(f"no command can be run on {pod} yet: {words or response.status_code}", code=code)
