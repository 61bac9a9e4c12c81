"""What is known of machine types, as data: attached GPUs, disks, images, quotas (`machines.toml`)."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from prefect_gpu.providers.core.models import Offer

USUAL_DISK = "pd-balanced"
BEFORE_TURING = frozenset({"K80", "P4", "P100", "V100"})


@cache
def _facts() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "machines.toml").read_text())


def is_of(instance_type: str, names: str) -> bool:
    """Whether a type is one of these series or types: `a3-ultragpu-8g` is of `a3` and of `a3-ultragpu`, not of `a4`."""
    return any(instance_type == name or instance_type.startswith(f"{name}-") for name in names.split())


def accelerator(offer: Offer) -> str | None:
    """The accelerator type to attach; None where the GPUs come with the machine type, or there are none."""
    if not offer.gpu_count or not is_of(offer.instance_type, "n1"):
        return None
    return _facts()["accelerators"].get(offer.gpu_name or "", "")


def disk_type(instance_type: str) -> str:
    """What the boot disk is, where nobody says so."""
    for kind, series in _facts()["disks"].items():
        if is_of(instance_type, series):
            return kind
    return USUAL_DISK


def arch(offer: Offer) -> str:
    """The processor's: as the price list says it, else by the series."""
    if offer.arch is not None:
        return "arm64" if offer.arch in {"arm64", "aarch64", "arm"} else "x86_64"
    return "arm64" if is_of(offer.instance_type, _facts()["series"]["arm64"]) else "x86_64"


def image(offer: Offer) -> str | None:
    """`project/family` of an image whose driver knows the machine's GPU; None where Google has none."""
    images = _facts()["images"]
    if not offer.gpu_count:
        return images[f"none_{arch(offer)}"]
    if is_of(offer.instance_type, _facts()["series"]["fabric"]):
        return images[f"fabric_{arch(offer)}"]
    if offer.gpu_vendor not in {None, "nvidia"} or arch(offer) == "arm64":
        return None
    return images["before_turing" if offer.gpu_name in BEFORE_TURING else "usual"]


def is_only_reserved(offer: Offer) -> bool:
    """Whether Google sells it on demand to nobody but who reserved it."""
    return not offer.spot and is_of(offer.instance_type, _facts()["series"]["reserved"])


def gpu_quota(offer: Offer) -> str | None:
    """The metric that its GPUs count against, where a region tells it."""
    if not offer.gpu_count or is_of(offer.instance_type, _facts()["series"]["other_quotas"]):
        return None
    return _facts()["quotas"].get(f"{offer.gpu_name}-{offer.gpu_memory_gb or 0:.0f}")


def cpu_quota(offer: Offer) -> str | None:
    """The metric that its cores count against, where a region tells it."""
    return _facts()["cpus"].get(offer.instance_type.partition("-")[0])
