"""What machines boot: the marketplace's Ubuntu with the driver of the GPU's generation, or the block's image."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from prefect_gpu.blocks.azure import AzureCredentials, AzureImage
from prefect_gpu.providers.core.errors import Unsupported
from prefect_gpu.providers.core.models import Offer

# Generation 2 all of them. 2204 has NVIDIA's open kernel modules, which Volta does not know.
# https://github.com/Azure/azhpc-images
HPC: Final = "microsoft-dsvm:ubuntu-hpc:2204:latest"
HPC_V100: Final = "microsoft-dsvm:ubuntu-hpc:2204-v100:latest"
HPC_ROCM: Final = "microsoft-dsvm:ubuntu-hpc:2204-rocm:latest"
UBUNTU: Final = "Canonical:ubuntu-24_04-lts:server:latest"
UBUNTU_ARM: Final = "Canonical:ubuntu-24_04-lts:server-arm64:latest"
# Their machines have slices of a GPU, and NVIDIA's GRID driver for these is in no image of the marketplace's.
# https://learn.microsoft.com/azure/virtual-machines/linux/n-series-driver-setup
GRID_ONLY: Final = {"A10", "M60"}


class Image(NamedTuple):
    """An image as an order names it."""

    reference: str
    port: int
    has_plan: bool
    generation: str | None  # "V2"; None: not known

    def of_order(self) -> dict[str, Any]:
        """The order's `imageReference`."""
        if not self.reference.startswith("/"):
            publisher, name, sku, version = self.reference.split(":")
            return {"publisher": publisher, "offer": name, "sku": sku, "version": version}
        field = {"/communitygalleries/": "communityGalleryImageId", "/sharedgalleries/": "sharedGalleryImageId"}
        start = next((one for one in field if self.reference.lower().startswith(one)), None)
        return {field[start] if start else "id": self.reference}

    def plan(self) -> dict[str, str] | None:
        """The purchase plan that belongs to it."""
        if not self.has_plan or self.reference.startswith("/"):
            return None
        publisher, product, name, _ = self.reference.split(":")
        return {"publisher": publisher, "product": product, "name": name}


def of(credentials: AzureCredentials, offer: Offer, chosen: str | None = None) -> Image:
    """The image of an offer's machine. Unsupported, of its type, where there is none."""
    block = credentials.gpu_image if offer.gpu_count else credentials.cpu_image
    if chosen is not None:
        block = AzureImage(reference=chosen, port=block.port if block else 22)
    if block is not None:
        return Image(block.reference, block.port, block.has_plan, None)
    if (why := problem(offer)) is not None:
        raise Unsupported(why, reach="type", category="image")
    return Image(_usual(offer), 22, has_plan=False, generation="V2")


def problem(offer: Offer) -> str | None:
    """Why the marketplace has no image for this machine, where that is so and the block names none."""
    if not offer.gpu_count:
        return None
    if offer.gpu_name in GRID_ONLY:
        return f"{offer.gpu_name} needs NVIDIA's GRID driver, which no image here has: name one of yours as the block's GPU image"
    if offer.arch == "arm64":
        return "there is no image with GPU drivers for arm64: name one of yours as the block's GPU image"
    return None


def _usual(offer: Offer) -> str:
    if not offer.gpu_count:
        return UBUNTU_ARM if offer.arch == "arm64" else UBUNTU
    if offer.gpu_vendor == "amd":
        return HPC_ROCM
    return HPC_V100 if offer.gpu_name == "V100" else HPC
