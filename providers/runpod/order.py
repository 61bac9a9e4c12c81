"""An order: its body, and the registry credentials and the volume that are made before it under its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from prefect_gpu.blocks.runpod import RunpodOptions
from prefect_gpu.providers.core import errors, models
from prefect_gpu.providers.core.toolkit import companions, container_boot
from prefect_gpu.providers.runpod.offers import WORDS

LEASE: Final = "PREFECT_GPU_LEASE"  # a pod can be renamed by hand, its environment is set by the order
# At the end of the lease, with the key that RunPod gives each pod for itself. Whether that may is not proved: `self_ends` is none.
GIVE_BACK: Final = (
    'u=https://api.runpod.io/v2/pods/$RUNPOD_POD_ID; h="Authorization: Bearer $RUNPOD_API_KEY"; '
    'curl -sX DELETE -H "$h" "$u" || wget -qO- --method=DELETE --header="$h" "$u"; sleep 30; kill -TERM 1'
)
CUDA_OF: Final = {RunpodOptions().image: 12.8}  # on a host whose driver is older it does not start
_DOCKER_HUB: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})


def body_of(
    offer: models.Offer, spec: models.LaunchSpec, chosen: RunpodOptions, brought: Mapping[str, str]
) -> dict[str, Any]:
    """What POST /pods gets; `brought` are the ids of what was made before, by kind."""
    *entrypoint, script = container_boot.command()
    image = spec.image or chosen.image
    gpu: dict[str, Any] = {"id": offer.instance_type, "count": offer.gpu_count}
    cuda = max(offer.raw.get("min_cuda") or 0.0, CUDA_OF.get(image, 0.0))
    if cuda and offer.gpu_vendor == "nvidia":
        gpu["minCudaVersion"] = f"{cuda:.1f}"
    body: dict[str, Any] = {
        "name": spec.name,
        "image": image,
        "cloud": offer.raw["cloud"],
        "gpu": gpu,
        "disk": int(offer.disk_gb or chosen.disk_gb),
        "ports": [f"{container_boot.PORT}/tcp"],
        "env": {**container_boot.environment(spec, give_back=GIVE_BACK), LEASE: spec.name},
        # In this form it takes the place of the image's entrypoint too. https://docs.runpod.io/pods/templates/manage-templates
        "args": json.dumps({"entrypoint": entrypoint, "cmd": [script]}),
    }
    if offer.region not in WORDS.values():
        body["dataCenterIds"] = [offer.region]
    if "registries" in brought:
        body["registry"] = brought["registries"]
    if "network-volumes" in brought:
        body["mounts"] = {"network": [{"volumeId": brought["network-volumes"], "path": "/workspace"}]}
    return body


def brought_along(
    offer: models.Offer, spec: models.LaunchSpec, chosen: RunpodOptions, lists: companions.Lists
) -> list[companions.Companion]:
    """What this order needs first. Raises, in a sentence, for what RunPod cannot do; nothing was made then."""
    if spec.network == "private":
        raise errors.Unsupported("RunPod's pods have public addresses: leave out network=private")
    things: list[companions.Companion] = []
    if spec.registry is not None:
        # RunPod asks not of which registry they are, and shows them to the one that the image's name says.
        image, server = spec.image or chosen.image, spec.registry.server
        if _registry(image) != _registry(f"{server.removeprefix('https://').partition('/')[0]}/x"):
            raise errors.InvalidRequest(f"the credentials are for {server}, and the image {image} is not from there")
        login = {"username": spec.registry.username, "password": spec.registry.password.get_secret_value()}
        things.append(companions.named("registries", {"name": spec.name, **login}, lists))
    if chosen.volume_gb is not None:
        if offer.raw["cloud"] != "SECURE":
            raise errors.Unsupported("RunPod's community cloud has no network volumes", reach="offer")
        volume = {"name": spec.name, "size": chosen.volume_gb, "dataCenter": offer.region}
        things.append(companions.named("network-volumes", volume, lists))
    return things


def _registry(image: str) -> str:
    """The registry that an image's name says; Docker Hub where it says none."""
    first, slash, _ = image.partition("/")
    is_host = bool(slash) and (first == "localhost" or any(mark in first for mark in ".:"))
    return "docker.io" if not is_host or first in _DOCKER_HUB else first
