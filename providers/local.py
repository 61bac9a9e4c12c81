"""This machine: each instance is a process tree with a directory and an SSH server on 127.0.0.1 of its own. Free of charge.

What needs no account, and what a newcomer sees first: everything after `create` is the way that cloud instances go. Instances are
found under the user's home by every process of the user (and under /tmp, where the home cannot be written); one that was made on
another host that shares the home is unread, never absent. Linux only: how an instance's processes are found and ended is Linux's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import pwd
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from providers.core import loopback
from providers.core.contract import Billing, Capabilities, Provider
from providers.core.errors import InvalidRequest, NoCapacity, NotFound, ProviderError, Transient, Unsupported
from providers.core.gpus import gpu_memory_gb, gpu_name
from providers.core.library import TaskLibrary
from providers.core.matching import fits
from providers.core.models import (
    Availability,
    Instance,
    InstanceState,
    LaunchSpec,
    Leftover,
    Listing,
    Offer,
    Requirements,
    SshEndpoint,
    Unread,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE}
_ARCH: Final = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}
_SMI_TIMEOUT_S: Final = 20  # the first call after boot loads the driver


class Gpus(NamedTuple):
    """GPUs of one kind in this machine."""

    name: str
    indices: tuple[int, ...]
    memory_gb: float


class Local(Provider[None]):
    """Rents out this machine to itself."""

    name: ClassVar[str] = "local"
    capabilities: ClassVar[Capabilities] = Capabilities(
        create_repeatable="account",
        listing_lag_s=0,
        not_found_proves_absence=True,
        self_ends="guest",
        spot=False,
        images="none",
        host_key="placed",
        needs_catalog=False,
        boot_deadline_s=60,
        billing=Billing(starts="order", step_s=1, minimum_s=0),
    )

    def __init__(
        self, credentials: None = None, *, roots: Sequence[Path] | None = None, nvidia_smi: str = "nvidia-smi"
    ) -> None:
        """`roots` are the directories that may hold instances; a new one goes to the first that can be written."""
        super().__init__(credentials)
        self._roots = tuple(roots) if roots is not None else _default_roots()
        self._nvidia_smi = nvidia_smi

    def account_id(self) -> str:
        return loopback.machine_id()

    def fetch_offers(self, requirements: Requirements) -> list[Offer]:
        _refuse_other_systems()
        offer = self._this_machine(needs_cuda=requirements.min_cuda is not None)
        if fits(offer, requirements):
            return [offer]
        # Somebody who asks for one GPU may have one of this machine's eight.
        counts = {request.count_max for request in requirements.gpu if request.count_max is not None}
        smaller = [
            offer.model_copy(update={"gpu_count": count})
            for count in sorted(counts, reverse=True)
            if count < offer.gpu_count
        ]
        return [offer for offer in smaller if fits(offer, requirements)][:1]

    def create_instance(self, offer: Offer, spec: LaunchSpec) -> Instance:
        _refuse_other_systems()
        if spec.image is not None:
            raise Unsupported("local runs no container images: leave `image` empty, or take another provider")
        if offer.spot:
            raise Unsupported("local has no spot instances: ask for on-demand")
        if spec.host_key is None:
            raise InvalidRequest("local needs a host key for the instance: give LaunchSpec.host_key")
        if spec.options:
            raise InvalidRequest(f"local has no options: leave out {', '.join(sorted(spec.options))}")
        environment: dict[str, str] = {}
        devices = offer.raw.get("devices", ())
        if len(devices) != offer.gpu_count:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(str(device) for device in devices[: offer.gpu_count])
        try:
            return self._instance(loopback.start(self._writable_root(), spec, environment))
        except loopback.Exists as error:
            raise InvalidRequest(str(error)) from None
        except OSError as error:
            kind: type[ProviderError] = NoCapacity if error.errno in _NO_ROOM else InvalidRequest
            raise kind(f"this machine could not start an instance: {error.strerror or error}") from None

    def get_instance(self, instance_id: str) -> Instance:
        for root in self._roots:
            machine = loopback.read(root, instance_id)
            if machine is not None:
                return self._instance(machine)
        raise NotFound(f"this machine has no instance {instance_id}")

    def list_instances(self, prefix: str) -> Listing:
        instances: dict[str, Instance] = {}
        leftovers: list[Leftover] = []
        unread: dict[str, str] = {}
        for root in self._roots:
            try:
                for name in loopback.names(root, prefix):
                    machine = loopback.read(root, name)
                    if machine is None:
                        continue
                    if machine.is_visible:
                        instances.setdefault(name, self._instance(machine))
                    else:
                        unread[machine.host] = (
                            f"{name} was made on another host or in another container: look from there"
                        )
                leftovers += [
                    Leftover(id=directory, kind="directory", name=name)
                    for name, directory in loopback.leftovers(root, prefix)
                ]
            except OSError as error:
                unread[str(root)] = f"{root} cannot be read: {error.strerror or error}"
        return Listing(
            instances=tuple(instances.values()),
            leftovers=tuple(leftovers),
            incomplete=tuple(Unread(scope=scope, reason=reason) for scope, reason in unread.items()),
        )

    def terminate_instance(self, instance_id: str) -> None:
        for root in self._roots:
            try:
                loopback.end(root, instance_id)
            except OSError as error:
                raise Transient(f"{instance_id} could not be ended: {error.strerror or error}") from None

    def _instance(self, machine: loopback.Machine) -> Instance:
        return Instance(
            id=machine.name,
            name=machine.name,
            provider=self.name,
            state=machine.state if machine.is_visible else InstanceState.UNKNOWN,
            region="local",
            created_at=machine.created_at,
            ssh=SshEndpoint(host="127.0.0.1", port=machine.port, user=machine.user) if machine.port else None,
            reason=machine.reason if machine.is_visible else f"it was made on {machine.host}",
            price=0.0,
        )

    def _this_machine(self, *, needs_cuda: bool) -> Offer:
        gpus = self._gpus()
        raw: dict[str, Any] = {}
        if gpus is not None:
            raw["devices"] = gpus.indices
            if needs_cuda and (cuda := self._cuda()) is not None:
                raw["cuda"] = cuda
        return Offer(
            provider=self.name,
            instance_type="this computer",
            region="local",
            price=0.0,
            cpu=float(len(os.sched_getaffinity(0))),
            memory_gb=round(_memory_bytes() / 1e9, 1),
            disk_gb=self._disk_gb(),
            arch=_ARCH.get(platform.machine()),
            gpu_name=gpus.name if gpus else None,
            gpu_count=len(gpus.indices) if gpus else 0,
            gpu_memory_gb=gpus.memory_gb if gpus else None,
            gpu_vendor="nvidia" if gpus else None,
            availability=Availability.AVAILABLE,
            raw=raw,
        )

    def _gpus(self) -> Gpus | None:
        """This machine's GPUs; of several kinds the one that has most memory in all."""
        kinds: dict[tuple[str, float], list[int]] = {}
        for line in self._smi("--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits").splitlines():
            fields = [field.strip() for field in line.split(",")]
            if len(fields) == 3 and fields[0].isdigit() and fields[2].isdigit():
                name = gpu_name(fields[1]) or fields[1].removeprefix("NVIDIA ")
                kinds.setdefault((name, gpu_memory_gb(name, int(fields[2]))), []).append(int(fields[0]))
        if not kinds:
            return None
        (name, memory_gb), indices = max(kinds.items(), key=lambda kind: (kind[0][1] * len(kind[1]), kind[0]))
        return Gpus(name, tuple(indices), memory_gb)

    def _cuda(self) -> float | None:
        found = re.search(r"CUDA Version:\s*(\d+\.\d+)", self._smi())
        return float(found[1]) if found else None

    def _smi(self, *arguments: str) -> str:
        """What nvidia-smi says; nothing where there is none, or no driver."""
        program = shutil.which(self._nvidia_smi)
        if program is None:
            return ""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            answer = subprocess.run(
                [program, *arguments], capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=False
            )
            if answer.returncode == 0:
                return answer.stdout
        return ""

    def _disk_gb(self) -> float:
        """Free where instances go, or would go: nothing is made before somebody orders."""
        for root in self._roots:
            for place in (root, *root.parents):
                with contextlib.suppress(OSError):
                    return round(shutil.disk_usage(place).free / 1e9, 1)
        return 0.0

    def _writable_root(self) -> Path:
        reasons: list[str] = []
        for root in self._roots:
            try:
                _make_private(root)
            except OSError as error:
                reasons.append(f"{root}: {error.strerror or error}")
            else:
                return root
        raise InvalidRequest(
            f"no directory for instances can be written ({'; '.join(reasons)}): make one of them writable"
        )


def _refuse_other_systems() -> None:
    if sys.platform != "linux":
        raise Unsupported(f"local needs Linux and this is {platform.system()}: take `ssh` or a cloud")


def _default_roots() -> tuple[Path, ...]:
    """By the system's list of users and not by $HOME or $XDG_STATE_HOME: every process of a user must find the same instances."""
    fallback = Path("/tmp") / f"prefect-gpu-{os.getuid()}"  # noqa: S108  # its owner and mode are checked
    try:
        home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return (fallback,)
    return (home / ".local" / "state" / "prefect-gpu" / "local", fallback)


def _make_private(root: Path) -> None:
    """A directory that is ours and nobody else can look into or put things into."""
    root.mkdir(parents=True, mode=0o700, exist_ok=True)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "belongs to somebody else")
    if found.st_mode & 0o077:
        root.chmod(0o700)
    if not os.access(root, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "cannot be written")


def _memory_bytes() -> int:
    """Of this machine, or of the container that this process is in."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(limit).read_text(encoding="ascii")))
    return total


tasks = TaskLibrary(Local)
