"""EC2's quotas: how many vCPU of a family an account may have in a region, on-demand and spot."""

from __future__ import annotations

import logging
import math
import re
from typing import Final

from prefect_gpu.providers.aws.api import Api
from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.models import Offer

log = logging.getLogger(__name__)

# By the letters a type begins with: on-demand, spot. p6 on spot: sources disagree, so it is not judged.
CODES: Final[dict[str, tuple[str | None, str | None]]] = {
    "p6": ("L-417A185B", None),
    "p5": ("L-417A185B", "L-C4BD4855"),
    "p": ("L-417A185B", "L-7212CCBC"),
    "g": ("L-DB2E81BA", "L-3819A6DF"),
    "gr": ("L-DB2E81BA", "L-3819A6DF"),
    "vt": ("L-DB2E81BA", "L-3819A6DF"),
    "f": ("L-74FC7D96", "L-88CF9481"),
    "x": ("L-7295265B", "L-E3A00192"),
    "inf": ("L-1945791B", "L-B5D1601B"),
    "trn": ("L-2C3B7624", "L-6B0D517C"),
    "dl": ("L-6E869C2A", "L-85EED4F7"),
    **dict.fromkeys("acdhimrtz", ("L-1216C47A", "L-34B43A08")),
}
ANY: Final = "L-1216C47A"  # every account has it


class Quotas:
    """The quotas of one region, each asked for once."""

    def __init__(self, api: Api, region: str) -> None:
        self._api, self._region = api, region
        self._told: dict[str, float | None] = {}

    def problem(self, offer: Offer) -> str | None:
        """Whether the offer is above its quota."""
        code = code_of(offer)
        if code is None or offer.cpu is None:
            return None
        if code not in self._told:
            self._told[code] = self._if_told(code)
        quota = self._told[code]
        if quota is None or quota >= offer.cpu:
            return None
        return f"quota {code} is {quota:g} vCPU in {offer.region}, this takes {offer.cpu:g}: ask AWS for more"

    def _if_told(self, code: str) -> float | None:
        try:
            return read(self._api, self._region, code)
        except ProviderError as error:
            # Not told is not zero: the order will say.
            log.info("%s", error)
            return None


def read(api: Api, region: str, code: str) -> float:
    """One quota, in vCPU."""
    with api.asks(f"ask for quota {code} in {region}", region=region):
        reply = api.client("service-quotas", region).get_service_quota(ServiceCode="ec2", QuotaCode=code)
        quota = float(reply["Quota"]["Value"])
        if not math.isfinite(quota):
            raise ValueError(quota)
        return quota


def code_of(offer: Offer) -> str | None:
    """The quota that an offer counts against: by the longest beginning of its type that has one."""
    letters = re.match(r"[a-z]+", offer.instance_type)
    family = offer.instance_type[: (letters.end() if letters else 0) + 1]
    codes = CODES.get(family) or CODES.get(family[:-1])
    if codes is None:
        return None
    return codes[1] if offer.spot else codes[0]
