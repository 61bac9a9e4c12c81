"""The nodes of a cluster as offers see them: what they are, what is free on them, and why a pod cannot stand there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from prefect_gpu.blocks.kubernetes import KubernetesToleration
from prefect_gpu.providers.kubernetes.gpus import PARTITION, SHARING, Gpu, gpus_of
from prefect_gpu.providers.kubernetes.objects import (
    Json,
    as_dict,
    as_list,
    as_text,
    as_texts,
    instant,
    quantities,
    requests,
)

OS: Final = "kubernetes.io/os"
_SPOT_LABELS: Final = {
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "cloud.google.com/gke-spot": "true",
    "cloud.google.com/gke-preemptible": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
_LESSER_LABELS: Final = (*_SPOT_LABELS, PARTITION, SHARING)
_SHAPE_LABELS: Final = (
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "kubernetes.io/arch",
    OS,
    "nvidia.com/gpu.product",
    "amd.com/gpu.product-name",
    "amd.com/gpu.device-id",
    "cloud.google.com/gke-accelerator",
    *_LESSER_LABELS,
)
_MOST_GPUS: Final = 1024  # no node has more, shared ones included


class Problem(NamedTuple):
    """Why a pod cannot stand on a node, in a user's words."""

    words: str
    is_full: bool = False


class Node:
    """A node as offers see it: labels, what it has, what is free on it."""

    def __init__(self, raw: Json) -> None:
        metadata, spec, status = (as_dict(raw.get(part)) for part in ("metadata", "spec", "status"))
        self.name = as_text(metadata.get("name"), 253) or "without a name"
        self.labels = as_texts(metadata.get("labels"))
        self.taints = as_list(spec.get("taints"))
        self.is_cordoned = bool(spec.get("unschedulable"))
        self.ready = next((one for one in as_list(status.get("conditions")) if one.get("type") == "Ready"), Json())
        self.allocatable = quantities(status.get("allocatable"))
        self.free = dict(self.allocatable)
        self.gpus = gpus_of(self.labels, self.allocatable)

    @property
    def is_ready(self) -> bool:
        return self.ready.get("status") == "True"

    @property
    def runs_linux(self) -> bool:
        """Whether our pods' images can run there; a node that does not say is taken for one of the many."""
        return self.labels.get(OS, self.labels.get("beta.kubernetes.io/os", "linux")) == "linux"

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
        gpus = tuple((gpu, self.count(gpu)) for gpu in self.gpus)
        size = round(self.allocatable.get("cpu", 0.0)), round(self.allocatable.get("memory", 0.0) / 2**30 / 4)
        return (tuple(sorted(self.selector.items())), gpus, size)

    @property
    def instance_type(self) -> str:
        labels = self.labels
        return (
            labels.get("node.kubernetes.io/instance-type")
            or labels.get("nvidia.com/gpu.product")
            or labels.get("amd.com/gpu.product-name")
            or (f"{self.gpus[0].name}-node" if self.gpus else f"{self.arch or 'any'}-node")
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
        is_version = re.fullmatch(r"\d{1,3}\.\d{1,3}", f"{major}.{minor}", re.ASCII)
        return float(is_version[0]) if is_version else None

    def count(self, gpu: Gpu) -> int:
        """How many GPUs of that kind it has."""
        return min(_MOST_GPUS, int(self.allocatable.get(gpu.resource, 0.0)))

    def take(self, pod: Json) -> None:
        """A pod that stands here has what it asked for."""
        for resource, amount in requests(as_dict(pod.get("spec"))).items():
            if resource in self.free:
                self.free[resource] -= amount

    def problem(
        self, wants: Mapping[str, float], tolerations: Iterable[KubernetesToleration], gpu: Gpu | None = None
    ) -> Problem | None:
        """Why a pod that wants this cannot stand here, or None."""
        if not self.is_ready:
            return Problem(f"the node {self.name} is not ready{self._why_not_ready()}")
        if self.is_cordoned:
            return Problem(f"the node {self.name} is cordoned: kubectl uncordon {self.name} makes it available again")
        borne = (*tolerations, *usual_tolerations(gpu.vendor if gpu else None))
        for taint in self.taints:
            if taint.get("effect") in {"NoSchedule", "NoExecute"} and not any(_bears(one, taint) for one in borne):
                key = as_text(taint.get("key"), 100)
                return Problem(f"the node {self.name} has the taint {key}: add a toleration to the account's block")
        for resource, amount in wants.items():
            free = self.free.get(resource, 0.0)
            if amount > free + 1e-6:
                in_use = self.allocatable.get(resource, 0.0) - free
                taken = f", {_amount(in_use, amount)} in use" if in_use > 1e-6 else ""
                return Problem(
                    f"the node {self.name} has {_amount(free, amount)} of {resource} free{taken}", is_full=True
                )
        return None

    def _why_not_ready(self) -> str:
        words = as_text(self.ready.get("message"), 200)
        since = instant(self.ready.get("lastTransitionTime"))
        return (f" since {since:%Y-%m-%d %H:%M} UTC" if since else "") + (f": {words}" if words else "")


def usual_tolerations(gpu_vendor: str | None) -> tuple[KubernetesToleration, ...]:
    """GPU nodes are often tainted with their vendor's resource, for pods that ask for it; some clusters add this by themselves."""
    return (KubernetesToleration(key=f"{gpu_vendor}.com/gpu", operator="Exists"),) if gpu_vendor else ()


def _bears(toleration: KubernetesToleration, taint: Json) -> bool:
    if toleration.effect is not None and toleration.effect != taint.get("effect"):
        return False
    if toleration.key is not None and toleration.key != taint.get("key"):
        return False
    return toleration.operator == "Exists" or (toleration.value or "") == taint.get("value", "")


def _amount(number: float, like: float) -> str:
    """A number of cores or GPUs, or a size where what was asked for is one."""
    return f"{max(0.0, number) / 2**30:.1f} GB" if like >= 2**20 else f"{max(0.0, number):g}"
