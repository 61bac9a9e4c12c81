"""What this machine is, as an offer: its processors, memory, free disk, and GPUs as their drivers tell of them."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prefect_gpu.providers.core.gpu.matching import fits
from prefect_gpu.providers.core.machine import scripts, smi
from prefect_gpu.providers.core.models import Availability, Offer
from prefect_gpu.providers.core.requests import Requirements

if TYPE_CHECKING:
    from collections.abc import Sequence

_ARCH: Final = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}
_ASK_S: Final = 90  # two questions that each give up after 40 s


class Gpus(NamedTuple):
    """GPUs of one kind in this machine."""

    name: str
    vendor: str
    devices: tuple[str, ...]
    memory_gb: float


def fitting(requirements: Requirements, provider: str, roots: Sequence[Path], tools: str | None) -> list[Offer]:
    """This machine, whole or as many of its GPUs as are asked for, where it fits. `tools`: where the drivers' tools are, else PATH."""
    offer, unseen = _this_machine(provider, roots, tools, needs_cuda=requirements.min_cuda is not None)
    if unseen and requirements.wants_gpu:
        because = {"availability": Availability.UNAVAILABLE, "unavailable_because": unseen, "is_unseen": True}
        offer = offer.model_copy(update=because)
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


def _this_machine(
    provider: str, roots: Sequence[Path], tools: str | None, *, needs_cuda: bool
) -> tuple[Offer, str | None]:
    """What it is, and why its GPUs are not seen where their driver is in trouble."""
    told = _told(tools, needs_cuda=needs_cuda)
    found = smi.parse(told)
    gpus = _largest_kind(found)
    raw: dict[str, Any] = {}
    if gpus is not None:
        raw["devices"] = gpus.devices
        if (cuda := smi.cuda(told)) is not None:
            raw["cuda"] = cuda
    offer = Offer(
        provider=provider,
        instance_type="this computer",
        region="local",
        price=0.0,
        cpu=float(len(os.sched_getaffinity(0))),
        memory_gb=round(_memory_bytes() / 1e9, 1),
        disk_gb=_disk_gb(roots),
        arch=_ARCH.get(platform.machine()),
        gpu_name=gpus.name if gpus else None,
        gpu_count=len(gpus.devices) if gpus else 0,
        gpu_memory_gb=gpus.memory_gb if gpus else None,
        gpu_vendor=gpus.vendor if gpus else None,
        availability=Availability.AVAILABLE,
        raw=raw,
    )
    return offer, found.unseen


def _told(tools: str | None, *, needs_cuda: bool) -> str:
    """What the drivers' tools say; nothing where there is none."""
    if not any(shutil.which(tool, path=tools) for tool in smi.TOOLS):
        return ""
    script = scripts.text("smi", *(["cuda"] if needs_cuda else []))
    env = {**os.environ, "LC_ALL": "C"}
    if tools is not None:
        env["PATH"] = f"{tools}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(
            ["/bin/sh", "-c", script], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, timeout=_ASK_S, check=False,
        ).stdout.decode(errors="replace")  # fmt: skip
    return ""


def _largest_kind(found: smi.Gpus) -> Gpus | None:
    """This machine's GPUs; of several kinds the one that has most memory in all."""
    kinds: dict[tuple[str, float, str], list[str]] = {}
    for gpu in found.gpus:
        if gpu.memory_gb is not None:
            name = gpu.name or gpu.model.removeprefix("NVIDIA ").removeprefix("AMD ")
            kinds.setdefault((name, gpu.memory_gb, gpu.vendor), []).append(gpu.number)
    if not kinds:
        return None
    (name, memory_gb, vendor), devices = max(kinds.items(), key=lambda kind: (kind[0][1] * len(kind[1]), kind[0]))
    return Gpus(name, vendor, tuple(devices), memory_gb)


def _disk_gb(roots: Sequence[Path]) -> float:
    """Free where instances go, or would go: nothing is made before somebody orders."""
    for root in roots:
        for place in (root, *root.parents):
            with contextlib.suppress(OSError):
                return round(shutil.disk_usage(place).free / 1e9, 1)
    return 0.0


def _memory_bytes() -> int:
    """Of this machine, or of the container that this process is in."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(limit).read_text(encoding="ascii")))
    return total
