"""SSH servers on loopback for tests: asyncssh in a process of its own, and a real OpenSSH server.

Run as a program it is the asyncssh server: it reads the keys from stdin, prints its port, and ends when stdin closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import asyncssh

from prefect_gpu.providers.core.contract import Connection
from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.machine.ssh import connect
from prefect_gpu.providers.core.models import KeyPair, SshEndpoint

SSHD = "/usr/sbin/sshd"


class Server(NamedTuple):
    """A running server and what it takes to log in."""

    endpoint: SshEndpoint
    client_key: KeyPair
    host_key: KeyPair
    pid: int

    def connect(self, **options: object) -> Connection:
        return connect(self.endpoint, self.client_key, self.host_key.public, **options)  # type: ignore[arg-type]


def has_openssh() -> bool:
    return Path(SSHD).exists() and shutil.which("ssh") is not None


@contextlib.contextmanager
def asyncssh_server(name: str = "asyncssh", *, env: dict[str, str] | None = None) -> Iterator[Server]:
    """An asyncssh server with keys derived from `name`; commands run by /bin/sh as this user."""
    client, host = derive(b"tests", name, "client"), derive(b"tests", name, "host")
    keys = json.dumps({"host": host.private.get_secret_value(), "client": client.public}).encode() + b"\n"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.sshd"],
        cwd=Path(__file__).parents[2],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        process.stdin.write(keys)
        process.stdin.flush()
        port = int(process.stdout.readline())
        yield Server(SshEndpoint(host="127.0.0.1", port=port, user="anyone"), client, host, process.pid)
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def openssh_server(
    name: str = "openssh", *, options: tuple[str, ...] = (), host: str = "127.0.0.1"
) -> Iterator[Server]:
    """OpenSSH's own server with its own configuration and keys; only this user may log in."""
    client, host_pair = derive(b"tests", name, "client"), derive(b"tests", name, "host")
    with tempfile.TemporaryDirectory(prefix="sshd-") as folder_name:
        folder = Path(folder_name)
        _secret(folder / "host", host_pair.private.get_secret_value())
        (folder / "authorized_keys").write_text(client.public + "\n")
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        port = free_port()
        config = folder / "config"
        config.write_text(
            "\n".join(
                [
                    f"ListenAddress {host}:{port}",
                    f"HostKey {folder}/host",
                    f"AuthorizedKeysFile {folder}/authorized_keys",
                    "PidFile none",
                    "UsePAM no",
                    "StrictModes no",
                    "PasswordAuthentication no",
                    "PermitRootLogin prohibit-password",
                    "MaxStartups 100",
                    "UseDNS no",
                    "Subsystem sftp internal-sftp",
                    *options,
                    "",
                ]
            )
        )
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stdin=subprocess.DEVNULL, stderr=log)
        try:
            _await_port(host, port, process, folder / "log")
            user = pwd.getpwuid(os.getuid()).pw_name
            yield Server(SshEndpoint(host=host, port=port, user=user), client, host_pair, process.pid)
        finally:
            process.terminate()
            process.wait(10)


@contextlib.contextmanager
def ssh_options(server: Server) -> Iterator[list[str]]:
    """Options with which OpenSSH's client logs in to a server, for `ssh` and `scp`; the port is among them as -o."""
    with tempfile.TemporaryDirectory(prefix="ssh-") as folder_name:
        folder = Path(folder_name)
        _secret(folder / "key", server.client_key.private.get_secret_value())
        (folder / "known_hosts").write_text(
            f"[{server.endpoint.host}]:{server.endpoint.port} {server.host_key.public}\n"
        )
        settings = {
            "Port": server.endpoint.port,
            "User": server.endpoint.user,
            "IdentityFile": folder / "key",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": folder / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
        }
        yield ["-F", "/dev/null", *(part for name, value in settings.items() for part in ("-o", f"{name}={value}"))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _await_port(host: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise RuntimeError(f"sshd ended: {log.read_text()}")
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError("sshd does not listen")


async def _serve() -> None:
    keys = json.loads(await asyncio.to_thread(sys.stdin.readline))
    may_log_in = asyncssh.import_authorized_keys(keys["client"] + "\n")

    class Doorman(asyncssh.SSHServer):
        def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
            return True  # a jump host

    async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
        command = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            process.command or "exit 1",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        feed = asyncio.create_task(_pump_in(process.stdin, command.stdin))
        try:
            await asyncio.gather(_pump_out(command.stdout, process.stdout), _pump_out(command.stderr, process.stderr))
            process.exit(await command.wait() & 0xFF)
        finally:
            feed.cancel()

    server = await asyncssh.listen(
        keys.get("address", "127.0.0.1"),
        keys.get("port", 0),
        server_host_keys=[asyncssh.import_private_key(keys["host"])],
        authorized_client_keys=may_log_in,
        server_factory=Doorman,
        process_factory=run,
        encoding=None,
        rekey_bytes=2**40,
        login_timeout=30,
    )
    print(server.get_port(), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)


async def _pump_in(source: object, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, BrokenPipeError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    with contextlib.suppress(ConnectionError, BrokenPipeError):
        sink.close()


async def _pump_out(source: asyncio.StreamReader, sink: object) -> None:
    while data := await source.read(65536):
        try:
            sink.write(data)
            await sink.drain()
        except (OSError, EOFError):
            return  # nobody listens: the command notices when its pipe closes


if __name__ == "__main__":
    asyncio.run(_serve())
