"""The pod that is ordered, and the Secret of its image's registry: the same spec gives the same objects."""

from __future__ import annotations

import base64
import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Final

from prefect_gpu.blocks.kubernetes import KubernetesCredentials, KubernetesMount
from prefect_gpu.providers.core.machine import scripts
from prefect_gpu.providers.core.models import LaunchSpec, Offer, RegistryAuth, utc_now
from prefect_gpu.providers.kubernetes.nodes import OS, usual_tolerations
from prefect_gpu.providers.kubernetes.objects import Json
from prefect_gpu.providers.kubernetes.options import OURS, KubernetesOptions
from prefect_gpu.providers.kubernetes.pod_state import CONTAINER

MANAGED_BY: Final = {"app.kubernetes.io/managed-by": "prefect-gpu"}
HOME: Final = "/home/prefect-gpu"  # of a user who may have none in the image, or could not write to it
_WAIT: Final = scripts.text("wait", folder=Path(__file__).with_name("sh"))


def pod(
    offer: Offer,
    spec: LaunchSpec,
    options: KubernetesOptions,
    block: KubernetesCredentials,
    limits_of: frozenset[str] = frozenset(),
) -> Json:
    """The order. `limits_of` names the resources whose limits equal their requests because the cluster wants limits.

    The same spec gives the same pod, but for `activeDeadlineSeconds`, which counts from when the pod starts.
    """
    left_s = max(1, int((spec.deadline - utc_now()) / timedelta(seconds=1)))
    pull = [*([spec.name] if spec.registry else []), *([block.pull_secret] if block.pull_secret else [])]
    tolerations = (*options.tolerations, *usual_tolerations(offer.gpu_vendor if offer.gpu_count else None))
    volumes, places = _volumes(options)
    container: Json = {
        "name": CONTAINER,
        "image": spec.image or block.image,
        # The name stands here too: nobody can change a pod's command, so it tells a pod of ours from one with our labels.
        "command": command(spec.name, int(spec.deadline.timestamp())),
        "resources": _resources(offer, spec, options, block, limits_of),
        "volumeMounts": places,
        **({"env": [{"name": "HOME", "value": HOME}]} if _needs_home(options) else {}),
        **({"imagePullPolicy": block.image_pull_policy} if block.image_pull_policy else {}),
        **_security_of_container(options),
    }
    selector = {**options.node_selector, **offer.raw.get("node_selector", {OS: "linux"})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": spec.name,
            "labels": {**options.labels, **labels(spec)},
            "annotations": _annotations(offer, spec, options),
        },
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": left_s,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 5,
            "nodeSelector": selector,
            "tolerations": [one.model_dump(exclude_none=True) for one in tolerations],
            "containers": [container],
            "volumes": volumes,
            **_affinity(offer.raw.get("absent_labels", [])),
            **_security_of_pod(options),
            **({"imagePullSecrets": [{"name": name} for name in pull]} if pull else {}),
            **({"priorityClassName": options.priority_class} if options.priority_class else {}),
            **({"runtimeClassName": options.runtime_class} if options.runtime_class else {}),
        },
    }


def command(name: str, ends_at: int) -> list[str]:
    """What the container of ours runs: fixed from the order on."""
    return ["sh", "-c", _WAIT, "sh", str(ends_at), name]


def labels(spec: LaunchSpec) -> dict[str, str]:
    """For people and for our own listings."""
    tags = {OURS + key.removeprefix("prefect-gpu-"): value for key, value in spec.tags.items()}
    fits = {
        key: value
        for key, value in tags.items()
        if re.fullmatch(r"([A-Za-z0-9][-\w.]{0,61})?[A-Za-z0-9]", value, re.ASCII)
    }
    return {**fits, **MANAGED_BY, f"{OURS}name": spec.name}


def pull_secret(name: str, registry: RegistryAuth, spec: LaunchSpec) -> Json:
    """The login of the image's registry, as the kubelet reads it."""
    login = f"{registry.username}:{registry.password.get_secret_value()}"
    # Docker Hub goes by an old name in what pulls images.
    is_docker_hub = registry.server in {"docker.io", "index.docker.io", ""}
    server = "https://index.docker.io/v1/" if is_docker_hub else registry.server
    auths = {"auths": {server: {"auth": base64.b64encode(login.encode()).decode()}}}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"name": name, "labels": labels(spec)},
        "data": {".dockerconfigjson": base64.b64encode(json.dumps(auths).encode()).decode()},
    }


def _annotations(offer: Offer, spec: LaunchSpec, options: KubernetesOptions) -> dict[str, str]:
    return {
        # A pod without a controller is not made again elsewhere: consolidating nodes would end the job.
        "karpenter.sh/do-not-disrupt": "true",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        **options.annotations,
        **{OURS + key.removeprefix("prefect-gpu-"): value for key, value in spec.tags.items()},
        f"{OURS}region": offer.region,
        f"{OURS}zone": offer.zone or "",
        f"{OURS}price": str(offer.price),
        f"{OURS}spot": str(offer.spot).lower(),
    }


def _resources(
    offer: Offer, spec: LaunchSpec, options: KubernetesOptions, block: KubernetesCredentials, limits_of: frozenset[str]
) -> Json:
    resource = offer.raw.get("gpu_resource")
    gpus = {str(resource): str(offer.gpu_count)} if resource and offer.gpu_count else {}
    cpu = spec.cpu or min(block.cpu, options.cpu_limit or block.cpu)
    memory_gb = spec.memory_gb or min(block.memory_gb, options.memory_limit_gb or block.memory_gb)
    requests = {
        "cpu": f"{round(cpu * 1000)}m",
        "memory": _mi(memory_gb),
        **({"ephemeral-storage": _mi(spec.disk_gb)} if spec.disk_gb else {}),
    }
    equal = requests.keys() if options.limits == "as requests" else requests.keys() & limits_of
    limits = {
        **{key: requests[key] for key in sorted(equal)},
        **({"cpu": f"{round(options.cpu_limit * 1000)}m"} if options.cpu_limit else {}),
        **({"memory": _mi(options.memory_limit_gb)} if options.memory_limit_gb else {}),
    }
    return {"requests": {**requests, **gpus}, "limits": {**limits, **gpus}}


def _mi(gb: float) -> str:
    return f"{round(gb * 1024)}Mi"


def _needs_home(options: KubernetesOptions) -> bool:
    return bool(options.read_only_root or options.run_as_user)


def _security_of_pod(options: KubernetesOptions) -> Json:
    user = options.run_as_user
    context: Json = {
        # fsGroup: what is mounted belongs to a group that this user is in.
        **({"runAsUser": user, "runAsGroup": user, "fsGroup": user} if user is not None else {}),
        **({"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}} if _is_restricted(options) else {}),
    }
    return {"securityContext": context} if context else {}


def _security_of_container(options: KubernetesOptions) -> Json:
    context: Json = {
        **({"readOnlyRootFilesystem": True} if options.read_only_root else {}),
        **({"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}} if _is_restricted(options) else {}),
    }
    return {"securityContext": context} if context else {}


def _is_restricted(options: KubernetesOptions) -> bool:
    return options.security == "restricted"


def _affinity(absent: list[str]) -> Json:
    """Off the nodes that are less than what was offered, and off Windows, also where an offered node says nothing of its system."""
    expressions: list[Json] = [{"key": label, "operator": "DoesNotExist"} for label in absent]
    expressions.append({"key": OS, "operator": "NotIn", "values": ["windows"]})
    terms = [{"matchExpressions": expressions}]
    return {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    }


def _volumes(options: KubernetesOptions) -> tuple[list[Json], list[Json]]:
    """Volumes and where they are mounted; /dev/shm is memory, as big as the job needs (a container's own is 64 MB)."""
    memory: Json = {
        "medium": "Memory",
        **({"sizeLimit": _mi(options.shared_memory_gb)} if options.shared_memory_gb else {}),
    }
    volumes: list[Json] = [{"name": "shm", "emptyDir": memory}]
    places: list[Json] = [{"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108 - a mount point
    writable = [HOME] if _needs_home(options) else []
    if options.read_only_root:
        writable += ["/tmp", "/var/tmp"]  # noqa: S108 - mount points
    for path in writable:
        name = path.strip("/").replace("/", "-")
        volumes.append({"name": name, "emptyDir": {}})
        places.append({"name": name, "mountPath": path})
    for number, mount in enumerate(options.mounts):
        sub = {"subPath": mount.sub_path} if mount.sub_path else {}
        volumes.append({"name": f"mount-{number}", **_source(mount, options)})
        places.append({"name": f"mount-{number}", "mountPath": mount.path, "readOnly": mount.read_only, **sub})
    return volumes, places


def _source(mount: KubernetesMount, options: KubernetesOptions) -> Json:
    if mount.config_map:
        return {"configMap": {"name": mount.config_map, "defaultMode": 0o555 if mount.is_executable else 0o444}}
    if mount.secret:
        # A user that only the image knows is in no group that is known here.
        is_open = _is_restricted(options) and options.run_as_user is None
        mode = (0o555 if is_open else 0o500) if mount.is_executable else (0o444 if is_open else 0o400)
        return {"secret": {"secretName": mount.secret, "defaultMode": mode}}
    return {"persistentVolumeClaim": {"claimName": mount.claim, "readOnly": mount.read_only}}
