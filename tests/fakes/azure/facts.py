"""What the fake Azure sells, and what its prices are."""

from __future__ import annotations

import base64
import json
import time
from typing import Any, NamedTuple

import httpx

from prefect_gpu.providers.core.gpu.matching import why_not
from prefect_gpu.providers.core.models import Offer
from prefect_gpu.providers.core.requests import Requirements

SUBSCRIPTION = "0b1f6471-1bf0-4dda-aec3-cb9272f09590"
TENANT = "72f988bf-86f1-41af-91ab-2d7cd011db47"
CLIENT = "d5bf3e68-3d3a-4d35-8b80-0c6b4f7f2f5c"
SECRET = "AZURE~SECRET~0123456789abcdef"
GROUP = "prefect-gpu"
REGIONS = {"eastus": "US", "westeurope": "NL"}
HPC = ("microsoft-dsvm", "ubuntu-hpc", {"2204", "2204-v100", "2204-rocm"})
CANONICAL = ("Canonical", "ubuntu-24_04-lts", {"server", "server-arm64"})


class Size(NamedTuple):
    family: str
    cpu: int
    memory_gb: float
    price: float
    gpu: str | None = None
    count: int = 0
    gpu_gb: float | None = None
    arch: str = "x64"
    generations: str = "V1,V2"
    spot: bool = True


SIZES = {
    "Standard_D2ps_v5": Size("standardDPSv5Family", 2, 8, 0.077, arch="Arm64", generations="V2"),
    "Standard_NC6s_v3": Size("standardNCSv3Family", 6, 112, 3.06, "V100", 1, 16),
    "Standard_NC40ads_H100_v5": Size("StandardNCadsH100v5Family", 40, 320, 6.98, "H100NVL", 1, 94, generations="V2"),
    "Standard_ND96isr_H100_v5": Size(
        "standardNDSH100v5Family", 96, 1900, 98.32, "H100", 8, 80, generations="V2", spot=False
    ),
    "Standard_NV36ads_A10_v5": Size("StandardNVADSA10v5Family", 36, 440, 3.2, "A10", 1, 24),
    "Standard_D2s_v3": Size("standardDSv3Family", 2, 8, 0.096),
}
LIMITS = {"cores": 350, "lowPriorityCores": 100, **{size.family: 200 for size in SIZES.values()}}


def offers_of(provider: str = "azure") -> list[Offer]:
    found = []
    for region, country in REGIONS.items():
        for name, size in SIZES.items():
            for spot in (False, True):
                gpu = {
                    "gpu_name": size.gpu,
                    "gpu_count": size.count,
                    "gpu_memory_gb": size.gpu_gb,
                    "gpu_vendor": "nvidia",
                }
                found.append(
                    Offer(
                        provider=provider,
                        instance_type=name,
                        region=region,
                        country=country,
                        spot=spot,
                        cpu=size.cpu,
                        price=round(size.price * (0.3 if spot else 1) * (1 if region == "eastus" else 1.1), 4),
                        memory_gb=size.memory_gb,
                        arch="x86_64" if size.arch == "x64" else "arm64",
                        **(gpu if size.gpu else {}),
                    )
                )
    return found


def priced_offers(provider: str, requirements: Requirements) -> list[Offer]:
    """As the catalog answers, from the fake's own prices."""
    return [offer for offer in offers_of(provider) if why_not(offer, requirements) is None]


def skus(region: str, restrictions: dict[tuple[str, str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"resourceType": "disks", "name": "Premium_LRS", "locations": [region], "restrictions": [], "capabilities": []}
    ]
    for name, size in SIZES.items():
        told = {
            "vCPUs": size.cpu, "MemoryGB": size.memory_gb, "HyperVGenerations": size.generations,
            "CpuArchitectureType": size.arch, "LowPriorityCapable": size.spot, "AcceleratedNetworkingEnabled": True,
        }  # fmt: skip
        rows.append(
            {
                "resourceType": "virtualMachines",
                "name": name,
                "tier": "Standard",
                "size": name.partition("_")[2],
                "family": size.family,
                "locations": [region],
                "restrictions": restrictions.get((name, region), []),
                "locationInfo": [{"location": region, "zones": ["1", "2", "3"], "zoneDetails": []}],
                "capabilities": [{"name": key, "value": str(value)} for key, value in told.items()],
            }
        )
    return rows


def error(
    status: int, code: str, words: str, details: list[dict[str, Any]] | None = None, **headers: str
) -> httpx.Response:
    body: dict[str, Any] = {"code": code, "message": words}
    if details:
        body["details"] = details
    return httpx.Response(status, json={"error": body}, headers=headers)


class Token(NamedTuple):
    token: str
    expires_on: int


class FakeCredential:
    """What azure-identity gives: tokens that the fake takes for good, counted."""

    def __init__(self, good_for_s: float = 3600) -> None:
        self.asked = 0
        self.good_for_s = good_for_s
        self.fails: Exception | None = None

    def get_token(self, *scopes: str, **_: Any) -> Token:
        assert scopes == ("https://management.azure.com/.default",)
        if self.fails is not None:
            raise self.fails
        self.asked += 1
        return Token(token_of(self.asked), int(time.time() + self.good_for_s))


def token_of(number: int) -> str:
    """As long as Azure's, with a body that nobody verifies here."""
    claims = base64.urlsafe_b64encode(json.dumps({"tid": TENANT, "n": number}).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJSUzI1NiJ9.{claims}.TOKENSIGNATURE"
