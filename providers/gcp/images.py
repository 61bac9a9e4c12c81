"""The image that a machine boots: the block's, or one of Google's or Canonical's whose driver knows the machine's GPU."""

from __future__ import annotations

from typing import Any, NamedTuple

from prefect_gpu.blocks.gcp import GcpImage
from prefect_gpu.providers.core.errors import NotFound, RegionClosed
from prefect_gpu.providers.core.models import Offer
from prefect_gpu.providers.gcp import machines
from prefect_gpu.providers.gcp.api import Api

DLVM = "deeplearning-platform-release"


class Image(NamedTuple):
    """What an order needs to know of its image."""

    link: str
    disk_gb: int
    user: str
    port: int
    installs_driver: bool  # at its first boot, when it is told to


class Images:
    """The images of one account, each looked up once: they are global."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._found: dict[GcpImage, tuple[dict[str, Any], Image]] = {}

    def of(self, offer: Offer, chosen: str | None = None) -> Image:
        """The image of an order. RegionClosed, for its type alone, where there is none that fits."""
        wanted = self._wanted(offer, chosen)
        if wanted is None:
            raise RegionClosed(f"{unsupported(offer)}: name one in the block", reach="type", category="image")
        if wanted not in self._found:
            self._found[wanted] = self._looked_up(wanted)
        row, image = self._found[wanted]
        told, needed = str(row.get("architecture") or ""), machines.arch(offer)
        if told in {"ARM64", "X86_64"} and told.lower() != needed:
            raise RegionClosed(
                f"the image {_title(wanted)} is for {told.lower()}, not {needed}", reach="type", category="image"
            )
        return image

    def problem(self, offer: Offer) -> str | None:
        """Why there is no image for this offer; None where there is, as far as is known without asking."""
        return None if self._wanted(offer, None) is not None else f"{unsupported(offer)}: name one in the block"

    def _wanted(self, offer: Offer, chosen: str | None) -> GcpImage | None:
        block = self._api.credentials
        named = block.gpu_image if offer.gpu_count else block.cpu_image
        chosen = chosen or block.options.image
        if chosen is None and named is not None:
            return named
        project, _, family = (chosen or machines.image(offer) or "").partition("/")
        return GcpImage(project=project, family=family) if family else None

    def _looked_up(self, wanted: GcpImage) -> tuple[dict[str, Any], Image]:
        kind = [*(["family"] if wanted.family else []), wanted.family or wanted.name or ""]
        path = self._api.path("global", "images", *kind, project=wanted.project)
        try:
            row = self._api.http.row(path, "", what=f"look for the image {_title(wanted)}")
        except NotFound as missing:
            raise RegionClosed(
                f"Google Cloud has no image {_title(wanted)}, or shows it to others only: name another in the block",
                code=missing.code,
                reach="type",
                category="image",
            ) from None
        size, name = str(row.get("diskSizeGb") or "0"), str(row.get("name") or wanted.name)
        link = self._api.path("global", "images", name, project=wanted.project).removeprefix("/")
        is_dlvm = wanted.project == DLVM
        return row, Image(link, int(size) if size.isdecimal() else 0, wanted.user, wanted.port, is_dlvm)


def unsupported(offer: Offer) -> str:
    """Why Google has no image of its own for this offer's GPU."""
    kind = offer.gpu_name if offer.gpu_vendor in {None, "nvidia"} else offer.gpu_vendor
    return f"Google has no image with {kind} drivers" + (" for arm64" if machines.arch(offer) == "arm64" else "")


def _title(wanted: GcpImage) -> str:
    return f"{wanted.project}/{wanted.family or wanted.name}"
