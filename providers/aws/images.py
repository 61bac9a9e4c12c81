"""The image that a machine boots: the block's, or the newest of AWS or Canonical whose driver knows the machine's GPU."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple, cast

from prefect_gpu.blocks.aws import AwsImage
from prefect_gpu.providers.aws.api import Api
from prefect_gpu.providers.aws.instances import checked_id
from prefect_gpu.providers.core.errors import RegionClosed
from prefect_gpu.providers.core.models import Offer

_DLAMI: Final = "898082745236"
_CANONICAL: Final = "099720109477"

# NVIDIA's open driver begins with Turing (T4). Which image knows which machines:
# https://docs.aws.amazon.com/dlami/latest/devguide/appendix-ami-release-notes.html
_OPEN: Final = {
    "x86_64": "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *",
    "arm64": "Deep Learning ARM64 Base OSS Nvidia Driver GPU AMI (Ubuntu 22.04) *",
}
_OPEN_FOR: Final = {"GB300": {"arm64": "Deep Learning ARM64 Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) *"}}
_PROPRIETARY: Final = {"x86_64": "Deep Learning Base Proprietary Nvidia Driver GPU AMI (Ubuntu 20.04) *"}
_BEFORE_TURING: Final = {"M60", "P4", "P40", "P100", "V100", "V100S"}  # Maxwell, Pascal, Volta
_BEFORE_MAXWELL: Final = {"K520", "K80"}  # Kepler: its last driver is 470, which AWS builds no image with any more
_NO_GPU: Final = {
    "x86_64": "ubuntu/images/hvm-ssd*/ubuntu-noble-24.04-amd64-server-*",
    "arm64": "ubuntu/images/hvm-ssd*/ubuntu-noble-24.04-arm64-server-*",
}


class Image(NamedTuple):
    """What an order needs to know of its image."""

    id: str
    root_device: str
    disk_gb: int
    user: str
    port: int


class Images:
    """The images of one account, each looked up once."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._found: dict[tuple[str, str, str, str], Image] = {}

    def of(self, offer: Offer, image_id: str | None = None, image_user: str | None = None) -> Image:
        """The image of an order. RegionClosed, for its type alone, where the region has none that fits."""
        arch, wanted = arch_of(offer), self._wanted(offer)
        if wanted is None:
            raise RegionClosed(f"{unsupported(offer)}: name one in the block", reach="type")
        if image_id:
            wanted = wanted.model_copy(update={"name": image_id, "user": image_user or wanted.user})
        key = (offer.region, wanted.owner, wanted.name, arch)
        if key not in self._found:
            self._found[key] = self._newest(offer.region, arch, wanted, image_id)
        return self._found[key]._replace(user=wanted.user, port=wanted.port)

    def problem(self, offer: Offer) -> str | None:
        """Why there is no image for this offer in its region; None where there is, or where AWS's own is everywhere."""
        if self._named(offer) is None and offer.gpu_name not in _BEFORE_TURING:
            return None if self._wanted(offer) else f"{unsupported(offer)}: name one in the block"
        try:
            self.of(offer)
        except RegionClosed as error:
            return error.message
        return None

    def _named(self, offer: Offer) -> AwsImage | None:
        block = self._api.credentials
        return block.gpu_image if offer.gpu_count else block.cpu_image

    def _wanted(self, offer: Offer) -> AwsImage | None:
        """The block's image, else the one for the GPU's generation; None where AWS has none."""
        if (named := self._named(offer)) is not None:
            return named
        arch = arch_of(offer)
        if not offer.gpu_count:
            return AwsImage(owner=_CANONICAL, name=_NO_GPU[arch])
        if offer.gpu_vendor not in {None, "nvidia"} or offer.gpu_name in _BEFORE_MAXWELL:
            return None
        names = (
            _PROPRIETARY if offer.gpu_name in _BEFORE_TURING else {**_OPEN, **_OPEN_FOR.get(offer.gpu_name or "", {})}
        )
        return AwsImage(owner=_DLAMI, name=names[arch]) if arch in names else None

    def _newest(self, region: str, arch: str, wanted: AwsImage, image_id: str | None) -> Image:
        filters = {"name": wanted.name, "architecture": arch, "state": "available"}
        query: dict[str, Any] = {
            "Owners": [wanted.owner],
            "Filters": [{"Name": name, "Values": [value]} for name, value in filters.items()],
            "IncludeDeprecated": True,  # the driver of old GPUs gets no new image
        }
        with self._api.asks(f"look for the image {wanted.name}", region=region):
            given = {"ImageIds": [image_id]} if image_id else query
            found = list(self._api.pages(region, "describe_images", "Images", **given))
            if not found:
                raise RegionClosed(
                    f"no {arch} image {wanted.name!r} of owner {wanted.owner} in {region}: name another in the block",
                    reach="type",
                )
            if image_id and found[0].get("Architecture", arch) != arch:
                raise RegionClosed(f"the image {image_id} is for {found[0]['Architecture']}, not {arch}", reach="type")
            newest = max(found, key=lambda image: (str(image.get("CreationDate", "")), str(image["ImageId"])))
            root = str(newest.get("RootDeviceName") or "/dev/sda1")
            sizes = [
                int(device.get("Ebs", {}).get("VolumeSize") or 0)
                for device in cast("list[dict[str, Any]]", newest.get("BlockDeviceMappings") or [])
                if device.get("DeviceName") == root
            ]
            return Image(checked_id(newest["ImageId"], "ami-"), root, max(sizes, default=0), wanted.user, wanted.port)


def unsupported(offer: Offer) -> str:
    """Why AWS has no image of its own for this offer's GPU."""
    kind = offer.gpu_name if offer.gpu_vendor in {None, "nvidia"} else offer.gpu_vendor
    return f"AWS has no image with {kind} drivers" + (" for arm64" if arch_of(offer) == "arm64" else "")


def arch_of(offer: Offer) -> str:
    """The processor's: as the price list says it, else by the type's name (https://docs.aws.amazon.com/ec2/latest/instancetypes/)."""
    if offer.arch is not None:
        return "arm64" if offer.arch in {"arm64", "aarch64", "arm"} else "x86_64"
    family = re.match(r"([a-z]+)(\d*)([a-z]*)((?:-[a-z0-9]+)*)", offer.instance_type)
    if family is None:
        return "x86_64"
    letters, _, options, more = family.groups()
    is_arm = "g" in options or letters == "a" or "-gb" in more  # Graviton; Grace
    return "arm64" if is_arm else "x86_64"
