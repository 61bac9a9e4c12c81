"""What the fake project has: zones, machine types, images, quotas, prices, and a service account with a key."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from prefect_gpu.providers.core.gpu.matching import why_not
from prefect_gpu.providers.core.models import Offer, utc_now
from prefect_gpu.providers.core.requests import Requirements

PROJECT = "tuneful-robin-123"
EMAIL = f"prefect-gpu@{PROJECT}.iam.gserviceaccount.com"
ZONES = ("us-central1-a", "us-central1-b", "europe-west4-b")
REGIONS = ("europe-west4", "us-central1")
# vCPU, MiB, GPUs that come with it, architecture
TYPES: dict[str, tuple[int, int, int, str]] = {
    "e2-standard-4": (4, 16384, 0, "X86_64"),
    "t2a-standard-4": (4, 16384, 0, "ARM64"),
    "n1-standard-8": (8, 30720, 0, "X86_64"),
    "g2-standard-8": (8, 32768, 1, "X86_64"),
    "a2-highgpu-1g": (12, 87040, 1, "X86_64"),
    "a3-highgpu-8g": (208, 1916928, 8, "X86_64"),
    "a4-highgpu-8g": (224, 4063232, 8, "X86_64"),
    "g4-standard-48": (48, 184320, 1, "X86_64"),
}
ACCELERATORS = ("nvidia-tesla-t4", "nvidia-tesla-v100")
HYPERDISK_ONLY = ("a4-", "g4-")
IMAGES: dict[tuple[str, str], tuple[str, int, str]] = {  # project and family: image, GB, architecture
    ("ubuntu-os-cloud", "ubuntu-2404-lts-amd64"): ("ubuntu-2404-noble-amd64-v20261112", 10, "X86_64"),
    ("ubuntu-os-cloud", "ubuntu-2404-lts-arm64"): ("ubuntu-2404-noble-arm64-v20261112", 10, "ARM64"),
    ("deeplearning-platform-release", "common-cu129-ubuntu-2204-nvidia-580"): ("common-cu129-ubuntu-2204-nvidia-580-v20261109", 50, "X86_64"),
    ("deeplearning-platform-release", "common-cu124-ubuntu-2204"): ("common-cu124-ubuntu-2204-v20250325", 50, "X86_64"),
    ("ubuntu-os-accelerator-images", "ubuntu-accelerator-2404-amd64-with-nvidia-580"): (
        "ubuntu-accelerator-2404-amd64-with-nvidia-580-v20261101", 20, "X86_64",
    ),
    (PROJECT, "big"): ("big-1", 250, "X86_64"),
}  # fmt: skip
QUOTAS = {
    "CPUS": 500, "A2_CPUS": 48, "SSD_TOTAL_GB": 5000, "HDB_TOTAL_GB": 5000, "IN_USE_ADDRESSES": 50, "NVIDIA_L4_GPUS": 8,
    "NVIDIA_T4_GPUS": 8, "NVIDIA_V100_GPUS": 8, "NVIDIA_A100_GPUS": 8, "PREEMPTIBLE_NVIDIA_L4_GPUS": 8,
    "PREEMPTIBLE_NVIDIA_T4_GPUS": 0,
}  # fmt: skip


@cache
def key(token_uri: str = "https://oauth2.googleapis.com/token") -> str:
    """The key file of the project's service account."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # quickly read
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return json.dumps({
        "type": "service_account", "project_id": PROJECT, "private_key_id": "0123456789abcdef", "private_key": pem.decode(),
        "client_email": EMAIL, "client_id": "1234567890", "token_uri": token_uri,
    })  # fmt: skip


def price(
    kind: str, zone: str, hourly: float, gpu: str | None = None, count: int = 0, gb: float = 0, *, spot: bool = False
) -> Offer:
    has_gpu = {"gpu_name": gpu, "gpu_count": count, "gpu_memory_gb": gb, "gpu_vendor": "nvidia"} if gpu else {}
    cpu, mib, _, arch = TYPES[kind]
    return Offer(
        provider="gcp", instance_type=kind, region=zone.rpartition("-")[0], zone=zone, price=hourly, spot=spot,
        country={"us-central1": "US", "europe-west4": "NL"}[zone.rpartition("-")[0]],
        cpu=cpu, memory_gb=mib / 1024, arch={"X86_64": "x86_64", "ARM64": "arm64"}[arch], **has_gpu,
    )  # fmt: skip


PRICES = [
    offer
    for number, zone in enumerate(ZONES)
    for offer in (
        price("e2-standard-4", zone, 0.134 + number / 1000),
        price("e2-standard-4", zone, 0.05 + number / 1000, spot=True),
        price("t2a-standard-4", zone, 0.154 + number / 1000),
        price("n1-standard-8", zone, 0.73 + number / 100, "T4", 1, 16),
        price("n1-standard-8", zone, 0.31 + number / 100, "T4", 1, 16, spot=True),
        price("n1-standard-8", zone, 5.3 + number / 100, "V100", 2, 16),
        price("g2-standard-8", zone, 0.85 + number / 100, "L4", 1, 24),
        price("g2-standard-8", zone, 0.34 + number / 100, "L4", 1, 24, spot=True),
        price("a2-highgpu-1g", zone, 3.67 + number / 100, "A100", 1, 40),
        price("a3-highgpu-8g", zone, 88.5 + number / 100, "H100", 8, 80),
        price("a4-highgpu-8g", zone, 128.9 + number / 100, "B200", 8, 180),
        price("a4-highgpu-8g", zone, 42.9 + number / 100, "B200", 8, 180, spot=True),
        price("g4-standard-48", zone, 4.5 + number / 100, "RTXPRO6000", 1, 96),
    )
]


def priced_offers(provider: str, requirements: Requirements) -> list[Offer]:
    """As the catalog's query, without a catalog."""
    assert provider == "gcp"
    return [offer for offer in PRICES if why_not(offer, requirements) is None]


def publish_prices() -> None:
    """The same prices as this machine's snapshot (under PREFECT_HOME), for flows in processes of their own."""
    from prefect_gpu.providers.core.catalog import collect, store

    collected = collect.from_offers(PRICES, "the tests")
    store.publish("gcp", collected.prices, collected_at=utc_now(), source="the tests")


def error(status: int, reason: str, message: str, /, **more: Any) -> tuple[int, dict[str, Any]]:
    """Google's envelope."""
    told = {"code": status, "message": message, "errors": [{"message": message, "domain": "global", "reason": reason}]}
    return status, {"error": {**told, **more}}
