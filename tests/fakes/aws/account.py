"""The account that tests find: regions, images, and what the price list says."""

from __future__ import annotations

from typing import Any

from prefect_gpu.providers.core.catalog import store
from prefect_gpu.providers.core.catalog.kinds import Kind, Place, Price
from prefect_gpu.providers.core.gpu.matching import fits
from prefect_gpu.providers.core.models import Offer, utc_now
from prefect_gpu.providers.core.requests import Requirements

REGIONS = ("us-east-1", "us-west-2", "eu-west-1")
ACCOUNT = "123456789012"  # moto's

# What the price list says: type, region, USD per hour, spot, vCPU, GB, GPU, count, GB per GPU. Sorted nowhere, on purpose.
PRICES = (
    ("p4d.24xlarge", "us-east-1", 21.96, False, 96, 1152, "A100", 8, 40),
    ("g4dn.xlarge", "us-east-1", 0.526, False, 4, 16, "T4", 1, 16),
    ("g4dn.xlarge", "us-east-1", 0.158, True, 4, 16, "T4", 1, 16),
    ("g4dn.xlarge", "us-west-2", 0.526, False, 4, 16, "T4", 1, 16),
    ("g4dn.xlarge", "eu-west-1", 0.587, False, 4, 16, "T4", 1, 16),
    ("m5.large", "us-west-2", 0.096, False, 2, 8, None, 0, None),
    ("m5.large", "us-east-1", 0.096, False, 2, 8, None, 0, None),
    ("m5.large", "us-east-1", 0.035, True, 2, 8, None, 0, None),
    ("m5.large", "eu-west-1", 0.107, False, 2, 8, None, 0, None),
)


def _image(number: int, name: str, owner: str, created: str, arch: str = "x86_64") -> dict[str, Any]:
    return {
        "ami_id": f"ami-{number:08x}",
        "name": name,
        "owner_id": owner,
        "creation_date": created,
        "architecture": arch,
        "root_device_name": "/dev/sda1",
        "root_device_type": "ebs",
        "virtualization_type": "hvm",
        "description": name,
        "public": True,
    }


# The newest stands neither first nor last, and somebody else's image of the same name is newer.
IMAGES = (
    _image(1, "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20260101", "898082745236", "2026-01-01T00:00:00.000Z"),
    _image(2, "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20261001", "898082745236", "2026-10-01T00:00:00.000Z"),
    _image(3, "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20260501", "898082745236", "2026-05-01T00:00:00.000Z"),
    _image(4, "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) 20261111", "666666666666", "2026-11-11T00:00:00.000Z"),
    _image(5, "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20260801", "099720109477", "2026-08-01T00:00:00.000Z"),
    _image(6, "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-arm64-server-20260801", "099720109477", "2026-08-01T00:00:00.000Z", "arm64"),
    _image(7, "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20260301", "099720109477", "2026-03-01T00:00:00.000Z"),
    _image(8, "test-machine-1", ACCOUNT, "2026-02-01T00:00:00.000Z"),
)  # fmt: skip


def priced_offers(provider: str, requirements: Requirements) -> list[Offer]:
    """The catalog's part: prices by region, without zones."""
    offers = [
        Offer(
            provider=provider,
            instance_type=kind,
            region=region,
            price=price,
            spot=spot,
            cpu=cpu,
            memory_gb=memory,
            arch="x86_64",
            gpu_name=gpu,
            gpu_count=count,
            gpu_memory_gb=gpu_memory,
            gpu_vendor="nvidia" if gpu else None,
        )
        for kind, region, price, spot, cpu, memory, gpu, count, gpu_memory in PRICES
    ]
    return [offer for offer in offers if fits(offer, requirements)]


def publish_prices() -> None:
    """The same prices as this machine's snapshot (under PREFECT_HOME), for flows in processes of their own."""
    found = [
        Price(Kind(kind, spot, cpu, memory, gpu_name=gpu, gpu_count=count, gpu_memory_gb=gpu_memory, gpu_vendor="nvidia" if gpu else None), Place(region), price)
        for kind, region, price, spot, cpu, memory, gpu, count, gpu_memory in PRICES
    ]  # fmt: skip
    store.publish("aws", found, collected_at=utc_now(), source="the tests")
