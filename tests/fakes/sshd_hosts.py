"""Several machines with a real OpenSSH server each: own address, network, process numbers, home, /var/tmp and host name.

    with sshd_hosts("one", "two") as (one, two):
        account = block(one, two)           # an SshMachines block that knows their keys
        one.cut_off(); one.bring_back()     # the cable is pulled: packets vanish, its processes go on
        one.power_off(); one.power_on()     # all its processes die at once; files stay

They are namespaces of this machine (needs root), so their files are at the same path inside and outside, and the Docker Engine of
this machine is theirs too. They end with the process that started them. `one.install("nvidia-smi", script)` puts a stand-in first
on a machine's PATH.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect_gpu.blocks.ssh import SshHost, SshMachines
from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.models import KeyPair, SshEndpoint

SSHD = Path("/usr/sbin/sshd")
_PREFIX = "pgh"

ADMIN: KeyPair = derive(b"tests", "the team's own key", "client")


def missing() -> str | None:
    """Why these machines cannot be had here, or None."""
    if os.getuid() != 0:
        return "needs root"
    if not SSHD.exists():
        return "needs OpenSSH's server"
    for tool in ("ip", "unshare", "setpriv", "mount"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    if (
        subprocess.run(
            ["ip", "netns", "add", f"{_PREFIX}-probe-{os.getpid()}"], check=False, capture_output=True
        ).returncode
        != 0
    ):
        return "needs network namespaces"
    subprocess.run(["ip", "netns", "del", f"{_PREFIX}-probe-{os.getpid()}"], check=True)
    return None


class SshdHost:
    """One machine."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.home = folder / "home"
        self.bin = folder / "bin"
        self.claims = folder / "var-tmp" / "prefect-gpu-claims-0"
        self.shared_claims = folder / "var-tmp" / "prefect-gpu-claims"  # the first version's
        self.host_key = derive(b"tests", f"{name} {folder.name}", "host")
        self._netns = f"{_PREFIX}-{os.getpid()}-{folder.name}-{name}"
        suffix = os.urandom(4).hex()
        self._outside, self._inside = f"pgo{suffix}", f"pgi{suffix}"
        self._gateway, self.address = _free_addresses()
        self._process: subprocess.Popen[bytes] | None = None
        self._lay_out()
        self._connect()

    @property
    def endpoint(self) -> SshEndpoint:
        return SshEndpoint(host=self.address, user="root", host_key=self.host_key.public)

    def described(self, **more: Any) -> SshHost:
        """The machine as a block has it."""
        return SshHost(**{"address": self.address, "name": self.name, "host_key": self.host_key.public, **more})

    def power_on(self) -> None:
        script = (
            f"hostname {self.name} && mount --bind {self.folder}/passwd /etc/passwd && "
            f"mount --bind {self.folder}/var-tmp /var/tmp && exec {SSHD} -D -e -f {self.folder}/config"
        )
        command = ["ip", "netns", "exec", self._netns, "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child"]
        with (self.folder / "log").open("ab") as log:
            # Dies with its parent, so that a test run that is killed leaves nothing running.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command, "--mount-proc", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        for _ in range(200):
            if self._process.poll() is not None:
                raise RuntimeError(f"sshd ended: {(self.folder / 'log').read_text()}")
            with contextlib.suppress(OSError), socket.create_connection((self.address, 22), timeout=1):
                return
            time.sleep(0.05)
        raise RuntimeError("sshd does not listen")

    def power_off(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None
            deadline = time.monotonic() + 10
            while self.processes() and time.monotonic() < deadline:
                time.sleep(0.02)

    def cut_off(self) -> None:
        subprocess.run(["ip", "-n", self._netns, "link", "set", self._inside, "down"], check=True)

    def bring_back(self) -> None:
        subprocess.run(["ip", "-n", self._netns, "link", "set", self._inside, "up"], check=True)

    def processes(self, containing: str = "") -> list[int]:
        """The numbers (outside) of its living processes, of those whose command line or environment has this text."""
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            with contextlib.suppress(OSError):
                if f"/{self._netns}" != self._network_of(entry):
                    continue
                if entry.joinpath("stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                    continue
                text = entry.joinpath("cmdline").read_bytes() + entry.joinpath("environ").read_bytes()
                if containing.encode() in text:
                    found.append(int(entry.name))
        return found

    def run(self, script: str, *, wait: bool = True) -> str:
        """Run a shell script there, not by SSH; its output."""
        assert self._process is not None
        (init,) = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        command = ["nsenter", "--target", init, "--mount", "--uts", "--net", "--pid", "sh", "-c", script]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=self._environment(), timeout=60)
        return done.stdout

    def install(self, tool: str, script: str) -> None:
        path = self.bin / tool
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.power_off()
        subprocess.run(["ip", "link", "del", self._outside], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", self._netns], check=False, capture_output=True)

    def _network_of(self, process: Path) -> str:
        # Compared by inode: the name of the namespace is a mount outside.
        mine = Path(f"/run/netns/{self._netns}").stat().st_ino
        return f"/{self._netns}" if process.joinpath("ns/net").stat().st_ino == mine else ""

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.home),
        }

    def _lay_out(self) -> None:
        for part in (self.home / ".ssh", self.bin, self.folder / "var-tmp", self.folder / "worker"):
            part.mkdir(parents=True)
        (self.folder / "var-tmp").chmod(0o1777)
        (self.folder / "passwd").write_text(
            f"root:x:0:0:root:{self.home}:/bin/bash\n"
            f"sshd:x:{_uid('sshd')}:65534::/run/sshd:/usr/sbin/nologin\n"
            f"worker:x:4242:4242::{self.folder}/worker:/bin/sh\n"
        )
        for folder, uid in ((self.home, 0), (self.folder / "worker", 4242)):
            (folder / ".ssh").mkdir(exist_ok=True)
            (folder / ".ssh" / "authorized_keys").write_text(ADMIN.public + " the team\n")
            for path in (folder, folder / ".ssh", folder / ".ssh" / "authorized_keys"):
                os.chown(path, uid, uid)
        key = self.folder / "host_key"
        key.touch(mode=0o600)
        key.write_text(self.host_key.private.get_secret_value())
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        lines = [
            "Port 22",
            "ListenAddress 0.0.0.0",
            f"HostKey {key}",
            "PidFile none",
            "UsePAM no",
            "StrictModes no",
            "PasswordAuthentication no",
            "PermitRootLogin prohibit-password",
            "MaxStartups 200",
            "MaxSessions 100",
            "UseDNS no",
            f"SetEnv PATH={self._environment()['PATH']}",
        ]
        (self.folder / "config").write_text("\n".join([*lines, ""]))

    def _connect(self) -> None:
        for command in (
            f"ip netns add {self._netns}",
            f"ip link add {self._outside} type veth peer name {self._inside} netns {self._netns}",
            f"ip addr add {self._gateway}/30 dev {self._outside}",
            f"ip link set {self._outside} up",
            f"ip -n {self._netns} addr add {self.address}/30 dev {self._inside}",
            f"ip -n {self._netns} link set {self._inside} up",
            f"ip -n {self._netns} link set lo up",
        ):
            subprocess.run(command.split(), check=True, capture_output=True)


@contextlib.contextmanager
def sshd_hosts(*names: str) -> Iterator[tuple[SshdHost, ...]]:
    """Machines of these names, running."""
    _forget_the_dead()
    hosts: list[SshdHost] = []
    with tempfile.TemporaryDirectory(prefix="h", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        try:
            for name in names:
                hosts.append(SshdHost(name, Path(folder, name, "m")))
                hosts[-1].power_on()
            yield tuple(hosts)
        finally:
            for host in hosts:
                host.close()


def block(*hosts: SshdHost | SshHost, **more: Any) -> SshMachines:
    """A block of these machines; a stand-in is described with its key."""
    described = [host.described() if isinstance(host, SshdHost) else host for host in hosts]
    return SshMachines(**{"hosts": described, "private_key": ADMIN.private, "timeout_s": 10.0, **more})


def _free_addresses() -> tuple[str, str]:
    for _ in range(100):
        start = f"10.213.{random.randrange(256)}"
        low = random.randrange(64) * 4
        taken = subprocess.run(
            ["ip", "-4", "-o", "addr", "show", "to", f"{start}.{low}/30"], check=True, capture_output=True
        ).stdout
        if not taken:
            return f"{start}.{low + 1}", f"{start}.{low + 2}"
    raise RuntimeError("no free addresses in 10.213.0.0/16")


def _uid(name: str) -> str:
    for line in Path("/etc/passwd").read_text().splitlines():
        fields = line.split(":")
        if fields[0] == name:
            return fields[2]
    return "105"


def _forget_the_dead() -> None:
    """Namespaces that a killed test run left: their processes died with it."""
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    for line in listed.splitlines():
        name = line.split()[0]
        parts = name.split("-")
        if parts[0] == _PREFIX and len(parts) > 2 and parts[1].isdecimal():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(parts[1]), 0)
                continue
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
