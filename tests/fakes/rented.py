"""A rented machine that answers SSH for real: asyncssh on an address of its own, with a home and a stand-in for nvidia-smi.

Any user may log in, as images have them: root, ubuntu, user. Commands run as this process's user, in the machine's own home.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
OWN = ("etc/ssh", "root", "var/lib")  # folders that a rented machine has for itself
# In a mount namespace of its own everything is read-only but these: a script that is wrong harms no file of this machine.
APART = """
set -eu
mount --make-rprivate /
awk '{ print $2 }' /proc/self/mounts | sort -r | while read -r one; do
    mount -o remount,bind,ro "$one" 2>/dev/null || [ "$one" != / ]
done
for one in $OWN; do
    mount --bind "$FOLDER/$one" "/$one"
    mount -o remount,bind,rw "/$one"
done
mount --bind "$FOLDER" "$FOLDER"
mount -o remount,bind,rw "$FOLDER"
if touch /usr/is-not-read-only 2>/dev/null; then exit 1; fi
exec sh -c "$SCRIPT"
"""


def apart(script: str, folder: Path, env: dict[str, str]) -> None:
    """Run a script of sh as it is, as root, with folders of its own below `folder` in place of those in OWN."""
    given = {**env, "FOLDER": str(folder), "OWN": " ".join(OWN), "SCRIPT": script}
    subprocess.run(["unshare", "--mount", "sh", "-c", APART], env=given, check=True, stdin=subprocess.DEVNULL)


class Rented:
    """One machine. Its sshd shows the host key that it has at the moment."""

    def __init__(self, folder: Path, address: str, port: int, authorized: str, gpus: list[str]) -> None:
        self.home = folder / "home"
        self.bin = folder / "bin"
        self._place = {"address": address, "port": port, "client": authorized}
        self._process: subprocess.Popen[bytes] | None = None
        self.home.mkdir()
        self.bin.mkdir()
        lines = "".join(f'echo "{line}"\n' for line in gpus)
        (self.bin / "nvidia-smi").write_text(f"#!/bin/sh\ncase $* in *--query-gpu*) ;; *) exit 0 ;; esac\n{lines}")
        (self.bin / "nvidia-smi").chmod(0o755)

    def show(self, host_key: str) -> None:
        """Its sshd is started, or started again, with this host key."""
        self.stop()
        env = {
            **os.environ,
            "HOME": str(self.home),
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.sshd"], cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({**self._place, "host": host_key}).encode() + b"\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline().strip(), "its sshd does not listen"

    def written(self, path: str, content: str, mode: int) -> None:
        """A file of this machine's own /etc/ssh, /root or /var/lib."""
        assert path.startswith(tuple(f"/{one}/" for one in OWN)), f"{path}: this stand-in of a machine has only {OWN}"
        there = self.home.parent / path.lstrip("/")
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_text(content)
        there.chmod(mode)

    def runs(self, *scripts: str) -> None:
        """These scripts of sh run there as root, late in the boot; then its sshd shows what stands in /etc/ssh.

        Before them the image made host keys of its own. `systemctl` is a stand-in that notes what it is asked.
        """
        folder, asked = self.home.parent, self.home.parent / "asked"
        for one in OWN:
            (folder / one).mkdir(parents=True, exist_ok=True)
        for key in (folder / "etc/ssh").glob("ssh_host_*"):
            key.unlink()
        for kind in ("ed25519", "ecdsa"):
            made = folder / "etc/ssh" / f"ssh_host_{kind}_key"
            subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", made], check=True)
        (self.bin / "systemctl").write_text(f'#!/bin/sh\necho "$@" >>{asked}\n')
        (self.bin / "systemctl").chmod(0o755)
        for script in scripts:
            apart(script, folder, {"PATH": f"{self.bin}:/usr/bin:/bin"})
        assert asked.read_text() == "restart ssh\n"
        (key,) = (folder / "etc/ssh").glob("ssh_host_*_key")
        if (lines := folder / "root/.ssh/authorized_keys").exists():
            self._place["client"] = lines.read_text().strip()
        self.show(key.read_text())

    def stop(self) -> None:
        """Its sshd ends; so do the jobs that are left on it."""
        if self._process is not None:
            self._process.stdin.close()  # type: ignore[union-attr]
            self._process.stdout.close()  # type: ignore[union-attr]
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def end(self) -> None:
        """It is gone, with everything that runs on it."""
        self.stop()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and f"HOME={self.home}".encode() in _environment(entry).split(b"\0"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(entry.name), signal.SIGKILL)


@contextlib.contextmanager
def rented(address: str, authorized: str, *, port: int = 22, gpus: list[str] | None = None) -> Iterator[Rented]:
    """A machine that does not answer yet: `show` its host key."""
    with tempfile.TemporaryDirectory(prefix="rented-", ignore_cleanup_errors=True) as name:
        machine = Rented(Path(name), address, port, authorized, gpus or [])
        try:
            yield machine
        finally:
            machine.end()


def nvidia(count: int, name: str = "NVIDIA H100 80GB HBM3", memory_mib: int = 81559) -> list[str]:
    """What nvidia-smi says of so many GPUs."""
    return [f"{n}, GPU-{n:08x}, {name}, {memory_mib} MiB, 550.54.15, 00000000:{n:02X}:00.0, 0" for n in range(count)]


@functools.cache
def ssh_is_possible() -> str | None:
    """Why machines cannot be had here, with port 22 of a loopback address and folders of their own; None where they can."""
    if os.getuid() != 0:
        return "needs root: port 22 of a loopback address"
    with tempfile.TemporaryDirectory(prefix="rented-") as name:
        for one in OWN:
            (Path(name) / one).mkdir(parents=True)
        try:
            apart("true", Path(name), {"PATH": os.environ["PATH"]})
        except (OSError, subprocess.CalledProcessError):
            return "needs mount namespaces: folders of a machine's own"
    return None


def _environment(entry: Path) -> bytes:
    try:
        return (entry / "environ").read_bytes()
    except OSError:
        return b""
