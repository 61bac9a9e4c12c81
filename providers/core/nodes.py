"""The nodes of a Kubernetes cluster as offers see them: what they are, what is free on them, and why a pod cannot stand there.

GPUs are told by the labels of NVIDIA's GPU feature discovery, AMD's node labeller, GKE and Karpenter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, cast

from blocks.kubernetes import KubernetesToleration
from providers.core.gpus import gpu_memory_gb, gpu_name
from providers.core.models import Requirements

Json = dict[str, Any]


def as_dict(value: object) -> Json:
    """A JSON object, or an empty one where there is none: Kubernetes leaves out what is empty."""
    return cast("Json", value) if isinstance(value, dict) else {}


def as_list(value: object) -> list[Json]:
    """A JSON array of objects, or an empty one where there is none."""
    return cast("list[Json]", value) if isinstance(value, list) else []


class Gpu(NamedTuple):
    """The GPUs of a node: what pods ask for, and what they are as prices call it."""

    resource: str
    name: str
    vendor: str
    memory_gb: float | None


class Problem(NamedTuple):
    words: str
    is_full: bool = False


_SPOT_LABELS: Final = {
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "cloud.google.com/gke-spot": "true",
    "cloud.google.com/gke-preemptible": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
# How GKE labels nodes whose GPUs are offered in slices or to several pods at once.
_PARTITION: Final = "cloud.google.com/gke-gpu-partition-size"
_SHARING: Final = "cloud.google.com/gke-gpu-sharing-strategy"
_LESSER_LABELS: Final = (*_SPOT_LABELS, _PARTITION, _SHARING)
_SHAPE_LABELS: Final = (
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "kubernetes.io/arch",
    "nvidia.com/gpu.product",
    "amd.com/gpu.product-name",
    "amd.com/gpu.device-id",
    "cloud.google.com/gke-accelerator",
    *_LESSER_LABELS,
)
_RESOURCES: Final = {"nvidia.com/gpu": "nvidia", "amd.com/gpu": "amd"}
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
_SLICED: Final = re.compile(r"(.*?)(-MIG-\d+g\.\d+gb(?:\.\w+)*)?(-SHARED)?")


class Node:
    """A node as offers see it: labels, what it has, what is free on it."""

    def __init__(self, raw: Json) -> None:
        self.name: str = raw["metadata"]["name"]
        self.labels: dict[str, str] = as_dict(raw["metadata"].get("labels"))
        self.taints: list[Json] = as_list(as_dict(raw.get("spec")).get("taints"))
        self.is_cordoned = bool(as_dict(raw.get("spec")).get("unschedulable"))
        conditions: list[Json] = as_list(as_dict(raw.get("status")).get("conditions"))
        self.is_ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
        self.allocatable = {
            key: quantity(value) for key, value in as_dict(as_dict(raw.get("status")).get("allocatable")).items()
        }
        self.free = dict(self.allocatable)
        self.gpu = gpu_of(self.labels, self.allocatable)

    @property
    def selector(self) -> dict[str, str]:
        """The labels that hold a pod to nodes of this shape."""
        return {label: self.labels[label] for label in _SHAPE_LABELS if label in self.labels}

    @property
    def lacks(self) -> list[str]:
        """The labels of its cloud's lesser nodes (spot, sliced, shared) that it does not have: its pods may not stand on such a node."""
        domains = {label.partition("/")[0] for label in self.labels}
        return [one for one in _LESSER_LABELS if one not in self.labels and one.partition("/")[0] in domains]

    @property
    def shape(self) -> tuple[object, ...]:
        """What makes two nodes the same thing to a pod: labels, GPUs and size (to a twentieth: the kubelet's own share varies)."""
        gpus = self.allocatable.get(self.gpu.resource, 0.0) if self.gpu else 0.0
        size = round(self.allocatable.get("cpu", 0.0)), round(self.allocatable.get("memory", 0.0) / 2**30 / 4)
        return (tuple(sorted(self.selector.items())), self.gpu, gpus, size)

    @property
    def instance_type(self) -> str:
        labels = self.labels
        return (
            labels.get("node.kubernetes.io/instance-type")
            or labels.get("nvidia.com/gpu.product")
            or labels.get("amd.com/gpu.product-name")
            or (f"{self.gpu.name}-node" if self.gpu else f"{self.arch or 'any'}-node")
        )

    @property
    def region(self) -> str | None:
        return self.labels.get("topology.kubernetes.io/region")

    @property
    def zone(self) -> str | None:
        return self.labels.get("topology.kubernetes.io/zone")

    @property
    def arch(self) -> str:
        return self.labels.get("kubernetes.io/arch", "")

    @property
    def is_spot(self) -> bool:
        return any(self.labels.get(label) == value for label, value in _SPOT_LABELS.items())

    @property
    def cuda(self) -> float | None:
        """The newest CUDA that its driver runs, as NVIDIA's feature discovery labels it."""
        major, minor = (self.labels.get(f"nvidia.com/cuda.runtime.{part}", "") for part in ("major", "minor"))
        return float(f"{major}.{minor}") if major.isdigit() and minor.isdigit() else None

    def take(self, pod: Json) -> None:
        """A pod that stands here has what it asked for."""
        for resource, amount in requests(pod["spec"]).items():
            if resource in self.free:
                self.free[resource] -= amount

    def problem(self, wants: Mapping[str, float], tolerations: Iterable[KubernetesToleration]) -> Problem | None:
        """Why a pod that wants this cannot stand here, or None."""
        if not self.is_ready:
            return Problem(f"the node {self.name} is not ready")
        if self.is_cordoned:
            return Problem(f"the node {self.name} is cordoned")
        borne = (
            *tolerations,
            *usual_tolerations(self.gpu.resource if self.gpu and wants.get(self.gpu.resource) else None),
        )
        for taint in self.taints:
            if taint.get("effect") in {"NoSchedule", "NoExecute"} and not any(_bears(one, taint) for one in borne):
                return Problem(
                    f"the node {self.name} has the taint {taint.get('key')}: add a toleration to the account's block"
                )
        for resource, amount in wants.items():
            free = self.free.get(resource, 0.0)
            if amount > free + 1e-6:
                has = f"{max(0.0, free) / 2**30:.1f} GB" if amount >= 2**20 else f"{max(0.0, free):g}"
                return Problem(f"the node {self.name} has {has} of {resource} free", is_full=True)
        return None


def gpu_of(labels: Mapping[str, str], allocatable: Mapping[str, float]) -> Gpu | None:
    """What the GPUs of a node are, by the labels of NVIDIA's and AMD's operators, of GKE or of Karpenter; None without any."""
    for resource, vendor in _RESOURCES.items():
        if allocatable.get(resource, 0.0) < 1:
            continue
        written, memory_mib = _nvidia(labels) if vendor == "nvidia" else _amd(labels)
        # A slice (MIG) or a share (time-slicing) of a GPU is not that GPU: it is offered under a name of its own.
        plain, sliced, shared = cast("re.Match[str]", _SLICED.fullmatch(written)).groups("")
        known = gpu_name(plain)
        memory = re.search(r"(\d+)\s?-?GB", sliced or plain, re.IGNORECASE)
        memory_gb: float | None = None
        if memory_mib is not None:
            is_whole = not sliced and not shared
            memory_gb = gpu_memory_gb(known or plain, memory_mib) if is_whole else float(round(memory_mib / 1024))
        elif memory:
            memory_gb = float(memory[1])
        return Gpu(resource, (known or plain) + sliced + shared or "GPU", vendor, memory_gb)
    return None


def _nvidia(labels: Mapping[str, str]) -> tuple[str, float | None]:
    if product := labels.get("nvidia.com/gpu.product"):
        mib = labels.get("nvidia.com/gpu.memory", "")
        return product, float(mib) if mib.isdigit() else None
    if product := labels.get("karpenter.k8s.aws/instance-gpu-name"):
        mib = labels.get("karpenter.k8s.aws/instance-gpu-memory", "")
        return product, float(mib) if mib.isdigit() else None
    product = labels.get("cloud.google.com/gke-accelerator", "").replace("-mega-", "-")  # an H100 with more network
    sliced = f"-MIG-{labels[_PARTITION]}" if labels.get(_PARTITION) else ""
    return f"{product}{sliced}{'-SHARED' if labels.get(_SHARING) else ''}", None


def _amd(labels: Mapping[str, str]) -> tuple[str, float | None]:
    """AMD's labeller writes `amd.com/gpu.x=value`, and with several kinds in one node `beta.amd.com/gpu.x.value=count`."""

    def label(what: str) -> str:
        prefix = f"amd.com/gpu.{what}."
        counted = (key.split(prefix, 1)[1] for key in labels if prefix in key)
        return labels.get(f"amd.com/gpu.{what}") or next(counted, "")

    device = label("device-id").lower().removeprefix("0x")
    name = re.sub(r"(_HF)?(_VF)?$", "", label("product-name")) or _AMD_DEVICES.get(device, "")
    vram = re.fullmatch(r"(\d+)(G|GiB|M|MiB)?", label("vram"))
    if vram is None:
        return name, None
    return name, float(vram[1]) * (1024 if (vram[2] or "M").startswith("G") else 1)


def usual_tolerations(resource: str | None) -> tuple[KubernetesToleration, ...]:
    """GPU nodes are often tainted with their resource's name, for pods that ask for it; some clusters add this by themselves."""
    return (KubernetesToleration(key=resource, operator="Exists"),) if resource else ()


def _bears(toleration: KubernetesToleration, taint: Json) -> bool:
    if toleration.effect is not None and toleration.effect != taint.get("effect"):
        return False
    if toleration.key is not None and toleration.key != taint.get("key"):
        return False
    return toleration.operator == "Exists" or (toleration.value or "") == taint.get("value", "")


def gpu_counts(node: Node, requirements: Requirements) -> list[int]:
    """How many GPUs a pod on such a node may ask for, the fewest first."""
    needs_one = requirements.gpu_vendor or requirements.min_cuda or requirements.min_compute_capability
    if not requirements.wants_gpu and not needs_one:
        return [0]
    total = int(node.allocatable.get(node.gpu.resource, 0.0)) if node.gpu else 0
    if not requirements.wants_gpu:
        return [1] if total else []
    return list(range(min(request.count_min for request in requirements.gpu), total + 1))


_UNITS: Final = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip


def quantity(text: str) -> float:
    """A Kubernetes quantity as a number: "1930m" is 1.93, "24581696Ki" is bytes. 0 for what is none."""
    match = re.fullmatch(r"([+-]?[0-9.]+(?:[eE][+-]?\d+)?)([A-Za-z]{0,2})", str(text))
    if match is None or match[2] not in _UNITS:
        return 0.0
    return float(match[1]) * _UNITS[match[2]]


def requests(spec: Json) -> dict[str, float]:
    """What a pod has of its node: the sum of its containers or its biggest init container, and the overhead."""

    def of(container: Json) -> dict[str, float]:
        resources: Json = as_dict(container.get("resources"))
        return {
            key: quantity(value)
            for key, value in {**as_dict(resources.get("limits")), **as_dict(resources.get("requests"))}.items()
        }

    total: dict[str, float] = {"pods": 1.0}
    init: list[Json] = as_list(spec.get("initContainers"))
    sidecars = [one for one in init if one.get("restartPolicy") == "Always"]
    for container in (*spec.get("containers", []), *sidecars):
        for key, value in of(container).items():
            total[key] = total.get(key, 0.0) + value
    for container in init:
        for key, value in of(container).items():
            total[key] = max(total.get(key, 0.0), value)
    for key, value in as_dict(spec.get("overhead")).items():
        total[key] = total.get(key, 0.0) + quantity(value)
    return total
