"""SSH servers that keep to no rule: whatever they are told to send is sent."""

from __future__ import annotations

import contextlib
import io
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import paramiko

from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.models import SshEndpoint

CLIENT, HOST = derive(b"tests", "bounds", "client"), derive(b"tests", "bounds", "host")
GREETING = b"SSH-2.0-OpenSSH_9.2p1\r\n"


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[SshEndpoint]:
    """A server that does this with each connection, until the test ends."""
    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while not is_over.is_set():
                    client, _ = listener.accept()
                    threading.Thread(target=handle, args=(client,), daemon=True).start()

        def handle(client: socket.socket) -> None:
            with client, contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                answer(client)

        server = threading.Thread(target=serve)
        server.start()
        try:
            yield SshEndpoint(host="127.0.0.1", port=listener.getsockname()[1])
        finally:
            is_over.set()
            # A thread that waits in accept would take the connections of whoever gets the number of the socket next.
            listener.shutdown(socket.SHUT_RDWR)
            server.join()


class Lawless(paramiko.ServerInterface):
    """Lets everybody in; `on_exec` gets each channel."""

    def __init__(self, on_exec: Callable[[Any], None], *, second_factor: str = "") -> None:
        self.on_exec = on_exec
        self.second_factor = second_factor

    def get_allowed_auths(self, username: str) -> str:
        return self.second_factor or "publickey"

    def check_auth_publickey(self, username: str, key: Any) -> int:
        return paramiko.AUTH_PARTIALLY_SUCCESSFUL if self.second_factor else paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
        self.on_exec(channel)
        return True


@contextlib.contextmanager
def lawless(on_exec: Callable[[Any], None], *, second_factor: str = "") -> Iterator[SshEndpoint]:
    def serve(client: socket.socket) -> None:
        transport = paramiko.Transport(client)
        transport.set_log_channel("prefect_gpu.tests.lawless")
        transport.add_server_key(paramiko.Ed25519Key.from_private_key(io.StringIO(HOST.private.get_secret_value())))
        transport.start_server(server=Lawless(on_exec, second_factor=second_factor))
        while transport.is_active():
            time.sleep(0.1)
        transport.close()

    with listening(serve) as endpoint:
        yield endpoint


def send_without_end(channel: Any, sent: list[int]) -> None:
    """Data on a channel, whatever the window says; `sent[0]` counts its bytes."""

    def send() -> None:
        data = b"y" * 32_000
        with contextlib.suppress(Exception):
            for _ in itertools.count():
                message = paramiko.Message()
                message.add_byte(b"\x5e")  # SSH_MSG_CHANNEL_DATA
                message.add_int(channel.remote_chanid)
                message.add_string(data)
                channel.transport._send_message(message)
                sent[0] += len(data)

    threading.Timer(0.2, send).start()
