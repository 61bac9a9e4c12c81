"""Azure's quotas: how many vCPU of a family a subscription uses and may use in a region, on demand and spot."""

from __future__ import annotations

import logging
from typing import Final

from prefect_gpu.providers.azure.api import COMPUTE, Arm, at
from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.models import Offer

log = logging.getLogger(__name__)

TOTAL: Final = "cores"
SPOT: Final = "lowprioritycores"  # of all families together
_NAMES: Final = {TOTAL: "all families", SPOT: "spot"}


class Quotas:
    """The quotas of one region: free and limit, by name in lower case."""

    def __init__(self, arm: Arm, region: str) -> None:
        self._region = region
        self._told: dict[str, tuple[int, int]] = {}
        path = f"{arm.subscription}{COMPUTE}/locations/{region}/usages"
        try:
            for row in arm.rows(path, what=f"ask for the quotas of {region}"):
                name, used, limit = at(row, "name.value", ""), row.get("currentValue"), row.get("limit")
                if name and isinstance(used, int) and isinstance(limit, int) and limit >= 0:
                    self._told[name.lower()] = (limit - used, limit)
        except ProviderError as error:
            # Not told is not zero: the order will say.
            log.info("%s", error)

    def problem(self, offer: Offer, family: str) -> str | None:
        """Whether the offer is above a quota that counts it."""
        for name in (SPOT,) if offer.spot else (family.lower(), TOTAL):
            if offer.cpu is None or name not in self._told:
                continue
            free, limit = self._told[name]
            if free < offer.cpu:
                label = _NAMES.get(name, family)
                return (
                    f"the quota of {label} leaves {max(0, free)} of {limit} vCPU in {self._region}, "
                    f"this takes {offer.cpu:g}: ask Azure for more"
                )
        return None
