"""The GPUs of a node, told by the labels of NVIDIA's feature discovery, AMD's node labeller, GKE and Karpenter.

Slices (MIG) and shares (time-slicing, MPS) of a GPU are offered under names of their own, such as A100-MIG-1g.5gb and T4-SHARED. With
NVIDIA's MIG strategy `single` a slice is a `nvidia.com/gpu`; with `mixed` each profile is a resource of its own, `nvidia.com/mig-1g.5gb`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple, cast

from prefect_gpu.providers.core.gpu.names import gpu_memory_gb, gpu_name

# How GKE labels nodes whose GPUs are offered in slices or to several pods at once.
PARTITION: Final = "cloud.google.com/gke-gpu-partition-size"
SHARING: Final = "cloud.google.com/gke-gpu-sharing-strategy"

_MIG: Final = re.compile(r"nvidia\.com/mig-(\d+g\.\d+gb(?:\.\w+)*?)(\.shared)?", re.ASCII)
_SLICED: Final = re.compile(r"(.*?)(-MIG-\d+g\.\d+gb(?:\.\w+)*)?(-SHARED)?", re.DOTALL)
# https://admin.pci-ids.ucw.cz/read/PC/1002: what AMD's labeller writes where it does not know the product's name. Virtual functions
# (VF) have ids of their own: as clouds hand them out they are whole GPUs.
_AMD_DEVICES: Final = {
    "738c": "MI100", "738e": "MI100",
    "740c": "MI250", "7408": "MI250X", "740f": "MI210", "7410": "MI210",
    "74a0": "MI300A", "74a1": "MI300X", "74a9": "MI300X", "74b5": "MI300X", "74bd": "MI300X",
    "74a2": "MI308X", "74a8": "MI308X", "74b6": "MI308X", "74bc": "MI308X",
    "74a5": "MI325X", "74b9": "MI325X",
    "75a0": "MI350X", "75b0": "MI350X", "75a3": "MI355X", "75b3": "MI355X",
}  # fmt: skip
_MOST_MEMORY_MIB: Final = 2**30


class Gpu(NamedTuple):
    """One kind of GPU of a node: what pods ask for, and what it is as prices call it."""

    resource: str
    name: str  # as `gpu=` takes it: with = in front where no price list knows it
    vendor: str
    memory_gb: float | None


def gpus_of(labels: Mapping[str, str], allocatable: Mapping[str, float]) -> list[Gpu]:
    """Each kind of GPU that a node has; none without a resource that counts them."""
    found: list[Gpu] = []
    for resource, amount in allocatable.items():
        if amount < 1:
            continue
        if resource in {"nvidia.com/gpu", "nvidia.com/gpu.shared"}:
            written, memory_mib = _nvidia(labels)
            shared = "-SHARED" if resource.endswith(".shared") and not written.endswith("-SHARED") else ""
            found.append(_gpu(resource, written + shared, "nvidia", memory_mib))
        elif resource == "amd.com/gpu":
            found.append(_gpu(resource, *_amd(labels)))
        elif profile := _MIG.fullmatch(resource):
            found.append(_gpu(resource, *_mig(labels, resource, profile[1], is_shared=bool(profile[2]))))
    return sorted(found)


def _gpu(resource: str, written: str, vendor: str, memory_mib: float | None) -> Gpu:
    plain, sliced, shared = cast("re.Match[str]", _SLICED.fullmatch(written[:100])).groups("")
    known = gpu_name(plain) if plain else None
    memory = re.search(r"(\d{1,5})\s?-?GB", sliced or plain, re.IGNORECASE)
    memory_gb: float | None = None
    if memory_mib is not None:
        is_whole = not sliced and not shared
        memory_gb = gpu_memory_gb(known or plain, memory_mib) if is_whole else float(round(memory_mib / 1024))
    elif memory:
        memory_gb = float(memory[1])
    return Gpu(resource, (known or plain or "GPU") + sliced + shared, vendor, memory_gb)


def _nvidia(labels: Mapping[str, str]) -> tuple[str, float | None]:
    if product := labels.get("nvidia.com/gpu.product"):
        return product, _mib(labels.get("nvidia.com/gpu.memory", ""))
    if product := labels.get("karpenter.k8s.aws/instance-gpu-name"):
        return product, _mib(labels.get("karpenter.k8s.aws/instance-gpu-memory", ""))
    product = labels.get("cloud.google.com/gke-accelerator", "").replace("-mega-", "-")  # an H100 with more network
    sliced = f"-MIG-{labels[PARTITION]}" if labels.get(PARTITION) else ""
    return f"{product}{sliced}{'-SHARED' if labels.get(SHARING) else ''}", None


def _mig(labels: Mapping[str, str], resource: str, profile: str, *, is_shared: bool) -> tuple[str, str, float | None]:
    """A profile of the strategy `mixed`: its labels bear the resource's name, the node's own those of the whole GPU."""
    plain = resource.removesuffix(".shared")
    written = labels.get(f"{plain}.product") or f"{_nvidia(labels)[0]}-MIG-{profile}"
    shared = "-SHARED" if is_shared and not written.endswith("-SHARED") else ""
    return written + shared, "nvidia", _mib(labels.get(f"{plain}.memory", ""))


def _amd(labels: Mapping[str, str]) -> tuple[str, str, float | None]:
    """AMD's labeller writes `amd.com/gpu.x=value`, and with several kinds in one node `beta.amd.com/gpu.x.value=count`."""

    def label(what: str) -> str:
        prefix = f"amd.com/gpu.{what}."
        counted = (key.split(prefix, 1)[1] for key in labels if prefix in key)
        return labels.get(f"amd.com/gpu.{what}") or next(counted, "")

    device = label("device-id").lower().removeprefix("0x")
    name = re.sub(r"(_HF)?(_VF)?$", "", label("product-name")) or _AMD_DEVICES.get(device, "")
    vram = re.fullmatch(r"(\d{1,9})(G|GiB|M|MiB)?", label("vram"), re.ASCII)
    if vram is None:
        return name, "amd", None
    return name, "amd", min(float(vram[1]) * (1024 if (vram[2] or "M").startswith("G") else 1), _MOST_MEMORY_MIB)


def _mib(text: str) -> float | None:
    return min(float(text), _MOST_MEMORY_MIB) if re.fullmatch(r"\d{1,12}", text, re.ASCII) else None
