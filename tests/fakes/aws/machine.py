"""A machine for an EC2 that has none: an SSH server on a loopback address of its own, with the keys its user data carries.

As root with OpenSSH it is a real sshd (user `root`); elsewhere asyncssh, which takes any user. It keeps its lease as the unit
files in its user data say, and when it ends, everything that was started on it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import asyncssh
import yaml

MARK = "PREFECT_GPU_FAKE_MACHINE"
SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin")
HAS_OPENSSH = os.geteuid() == 0 and SSHD is not None


class Machine:
    def __init__(self, folder: Path, address: str, port: int, user_data: str, on_lease_end: Callable[[], None]) -> None:
        self.folder, self.address, self.port, self.on_lease_end = folder, address, port, on_lease_end
        assert user_data.startswith("#cloud-config\n"), "cloud-init would not read this user data"
        self.config = yaml.safe_load(user_data)
        self.home = folder / "home"
        self._sshd: subprocess.Popen[bytes] | None = None
        self._server: asyncssh.SSHAcceptor | None = None
        self._timer: threading.Timer | None = None

    def start(self) -> None:
        self.home.mkdir(parents=True)
        assert self.config["ssh_deletekeys"] is True, "the image's own host keys would stay"
        (self.folder / "authorized_keys").write_text("\n".join(self.config["ssh_authorized_keys"]) + "\n")
        key = self.folder / "host_key"
        key.touch(mode=0o600)
        key.write_text(self.config["ssh_keys"]["ed25519_private"])
        (self.folder / "host_key.pub").write_text(self.config["ssh_keys"]["ed25519_public"] + "\n")
        if HAS_OPENSSH:
            self._start_openssh()
        else:
            self._server = asyncio.run_coroutine_threadsafe(self._listen(), _loop()).result(10)
        if (end := self.lease_end()) is not None:
            self._timer = threading.Timer(max(0.0, (end - datetime.now(UTC)).total_seconds()), self.on_lease_end)
            self._timer.daemon = True
            self._timer.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            _loop().call_soon_threadsafe(self._server.close)
        if self._sshd is not None:
            connections = _below(self._sshd.pid)
            self._sshd.kill()
            self._sshd.wait(10)
            for pid in connections:  # each is a process of its own, which outlives the server
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 10
        while processes := self.processes():
            for pid in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > end:
                raise RuntimeError(f"{processes} outlive their machine")
            time.sleep(0.01)
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[int]:
        """Pids of everything that was started on this machine."""
        mark = f"{MARK}={self.folder.name}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                is_ours = entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0")
                if is_ours and (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def lease_end(self) -> datetime | None:
        """When the timer in the user data goes off; None where there is none, or nothing starts it."""
        for file in self.config.get("write_files", []):
            if file["path"].endswith("/prefect-gpu-lease.timer"):
                starts = self.config.get("runcmd", [])
                if not any("--now" in line and "prefect-gpu-lease.timer" in line for line in starts):
                    return None
                when = re.search(r"^OnCalendar=(.+) UTC$", file["content"], re.MULTILINE)
                assert when is not None
                return datetime.strptime(when[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        return None

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": str(self.home), MARK: self.folder.name}

    def _start_openssh(self) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)
        settings = {
            "ListenAddress": self.address,
            "Port": self.port,
            "HostKey": self.folder / "host_key",
            "AuthorizedKeysFile": self.folder / "authorized_keys",
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PermitRootLogin": "prohibit-password",
            "PasswordAuthentication": "no",
            "MaxStartups": 100,
            "SetEnv": f"HOME={self.home} {MARK}={self.folder.name}",
            "ForceCommand": 'cd "$HOME" && exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"',
        }
        config = self.folder / "sshd_config"
        config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
        with (self.folder / "sshd.log").open("wb") as log:
            assert SSHD is not None
            self._sshd = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end = time.monotonic() + 10
        while b"Server listening" not in (self.folder / "sshd.log").read_bytes():
            if self._sshd.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self.folder / "sshd.log").read_text())
            time.sleep(0.005)

    async def _listen(self) -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            self.address,
            self.port,
            server_host_keys=[str(self.folder / "host_key")],
            authorized_client_keys=str(self.folder / "authorized_keys"),
            process_factory=self._serve,
            encoding=None,
            line_editor=False,
        )

    async def _serve(self, channel: asyncssh.SSHServerProcess[bytes]) -> None:
        child = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            channel.command or "true",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.home,
            env=self._environment(),
            start_new_session=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        # By hand: asyncssh's redirect() drops the connection under back-pressure.
        upward = asyncio.create_task(_pump_in(channel.stdin, child.stdin))
        await asyncio.gather(_pump_out(child.stdout, channel.stdout), _pump_out(child.stderr, channel.stderr))
        status = await child.wait()
        upward.cancel()
        channel.exit(status if status >= 0 else 128 - status)


def _below(pid: int) -> list[int]:
    """The pids of a process's children, and of theirs."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found, edge = list[int](), [pid]
    while edge:
        children = parents.get(edge.pop(), [])
        found += children
        edge += children
    return found


async def _pump_in(source: asyncssh.SSHReader[bytes], sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.close()
    except OSError:
        pass


async def _pump_out(source: asyncio.StreamReader, sink: asyncssh.SSHWriter[bytes]) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    except (OSError, asyncssh.Error):
        pass


_LOOP: list[asyncio.AbstractEventLoop] = []
_LOOP_LOCK = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    """One event loop in a thread of its own, for the machines that asyncssh serves."""
    with _LOOP_LOCK:
        if not _LOOP:
            _LOOP.append(asyncio.new_event_loop())
            threading.Thread(target=_LOOP[0].run_forever, daemon=True).start()
    return _LOOP[0]
