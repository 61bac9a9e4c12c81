"""Nodes as offers: one for each shape of node and kind of GPU, by what is free on the emptiest node of that shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prefect_gpu.blocks.kubernetes import KubernetesCredentials
from prefect_gpu.providers.core.errors import AuthFailed
from prefect_gpu.providers.core.gpu import matching
from prefect_gpu.providers.core.models import Availability, Offer
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.core.toolkit.http import JsonApi
from prefect_gpu.providers.kubernetes.gpus import Gpu
from prefect_gpu.providers.kubernetes.listing import rows
from prefect_gpu.providers.kubernetes.nodes import Node
from prefect_gpu.providers.kubernetes.objects import as_dict, as_text

AUTOSCALED_FROM_S = 60.0  # who waits so long for a node expects one to be added
_ALL = "all pods"


def fetch(api: JsonApi, block: KubernetesCredentials, requirements: Requirements, page: int) -> list[Offer]:
    """An offer a shape and kind of GPU: the fewest GPUs that meet the requirements, or all where the nearest is asked for."""
    nodes = [node for node in map(Node, rows(api, "/api/v1/nodes", page)) if node.runs_linux]
    counted = _count_pods(api, block.namespace, {node.name: node for node in nodes}, page)
    shapes: dict[tuple[object, ...], list[Node]] = {}
    for node in nodes:
        if block.node_selector.items() <= node.labels.items():
            shapes.setdefault(node.shape, []).append(node)
    return [
        offer for shape in shapes.values() for gpu in _kinds(shape[0], requirements)
        if (offer := _first(shape, gpu, counted, requirements, block)) is not None
    ]  # fmt: skip


def _count_pods(api: JsonApi, namespace: str, nodes: Mapping[str, Node], page: int) -> str:
    """Take off the nodes what their pods have; which pods that could be told of."""
    running = {"fieldSelector": "status.phase!=Succeeded,status.phase!=Failed"}
    counted = _ALL
    try:
        pods = list(rows(api, "/api/v1/pods", page, **running))
    except AuthFailed:  # a right that is worth having, not one that is needed
        counted = f"the pods of the namespace {namespace}"
        pods = list(rows(api, f"/api/v1/namespaces/{namespace}/pods", page, **running))
    for pod in pods:
        node = nodes.get(as_text(as_dict(pod.get("spec")).get("nodeName"), 253))
        if node is not None:
            node.take(pod)
    return counted


def _kinds(node: Node, requirements: Requirements) -> list[Gpu] | list[None]:
    """The kinds of GPU that are worth an offer; one without where none is asked for."""
    needs_one = requirements.gpu_vendor or requirements.min_cuda or requirements.min_compute_capability
    if any(request.instance_type for request in requirements.gpu):
        return node.gpus or [None]  # that type, whatever its GPUs
    return node.gpus if requirements.wants_gpu or needs_one else [None]


def _counts(node: Node, gpu: Gpu | None, requirements: Requirements) -> Iterator[int]:
    """How many GPUs a pod on such a node may ask for, in the order they are tried."""
    if gpu is None:
        yield 0
    elif requirements.nearest:
        yield node.count(gpu)
    elif not requirements.wants_gpu:
        yield 1
    elif any(request.instance_type for request in requirements.gpu):
        yield node.count(gpu)
        yield from range(1, node.count(gpu))
    else:
        yield from range(min(request.count_min for request in requirements.gpu), node.count(gpu) + 1)


def _first(
    shape: list[Node], gpu: Gpu | None, counted: str, requirements: Requirements, block: KubernetesCredentials
) -> Offer | None:
    offers = (_offer(shape, gpu, count, counted, requirements, block) for count in _counts(shape[0], gpu, requirements))
    return next((offer for offer in offers if matching.fits(offer, requirements)), None)


def _offer(
    shape: list[Node],
    gpu: Gpu | None,
    count: int,
    counted: str,
    requirements: Requirements,
    block: KubernetesCredentials,
) -> Offer:
    wants = {
        "cpu": float(requirements.cpu or block.cpu),
        "memory": (requirements.memory_gb or block.memory_gb) * 2**30,
        "ephemeral-storage": (requirements.disk_gb or 0.0) * 2**30,
        "pods": 1.0,
        **({gpu.resource: float(count)} if gpu else {}),
    }
    problems = {node.name: node.problem(wants, block.tolerations, gpu) for node in shape}
    usable = [node for node in shape if problems[node.name] is None]
    best = max(usable or shape, key=lambda node: (node.free.get("cpu", 0.0), node.free.get("memory", 0.0)))
    problem = problems[best.name]
    availability = Availability.AVAILABLE if counted == _ALL else Availability.UNKNOWN
    if problem is not None:
        waits = problem.is_full and block.scheduling_timeout_s >= AUTOSCALED_FROM_S
        availability = Availability.UNKNOWN if waits else Availability.UNAVAILABLE
    has = best.allocatable if problem else _limited(best.free, wants, block)
    return Offer(
        provider="kubernetes",
        instance_type=best.instance_type,
        region=best.region or block.namespace,
        zone=best.zone,
        country=block.country,
        price=_price(best, gpu, count, wants, block),
        spot=best.is_spot,
        # What the emptiest node has: a pod without limits may use it all, and is sure of what the job asks for.
        cpu=round(has.get("cpu", 0.0), 2),
        memory_gb=round(has.get("memory", 0.0) / 2**30, 1),
        disk_gb=round(has.get("ephemeral-storage", 0.0) / 2**30, 1),
        arch={"amd64": "x86_64"}.get(best.arch, best.arch) or None,
        gpu_name=gpu.name if gpu else None,
        gpu_count=count,
        gpu_memory_gb=gpu.memory_gb if gpu else None,
        gpu_vendor=gpu.vendor if gpu else None,
        availability=availability,
        unavailable_because=problem.words if problem else None,
        raw={
            "gpu_resource": gpu.resource if gpu else None,
            "node_selector": best.selector,
            "absent_labels": best.lacks,
            "counted": counted,  # whose requests were taken off what the nodes have
            **({"cuda": best.cuda} if best.cuda else {}),
        },
    )


def _limited(free: Mapping[str, float], wants: Mapping[str, float], block: KubernetesCredentials) -> dict[str, float]:
    """What a pod may use of what is free."""
    caps = {"cpu": block.cpu_limit, "memory": block.memory_limit_gb and block.memory_limit_gb * 2**30}
    if block.limits == "as requests":
        caps = {key: caps[key] or wants[key] for key in caps}
    return {key: min(amount, caps.get(key) or amount) for key, amount in free.items()}


def _price(node: Node, gpu: Gpu | None, count: int, wants: Mapping[str, float], block: KubernetesCredentials) -> float:
    whole = block.node_price_per_hour.get(node.instance_type)
    if whole is not None:
        resource, part = (gpu.resource, float(count)) if gpu else ("cpu", wants["cpu"])
        return round(whole * min(1.0, part / max(node.allocatable.get(resource, 0.0), part)), 6)
    if gpu is None:
        return 0.0
    each = next((p for name, p in block.price_per_gpu_hour.items() if matching.same_gpu(name, gpu.name)), 0.0)
    return each * count
