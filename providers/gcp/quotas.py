"""Quotas: how many GPUs, cores, addresses and GB of disk a project may have in a region, and how many are in use."""

from __future__ import annotations

import logging
import math
from typing import Any, Final, NamedTuple

from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.models import Offer
from prefect_gpu.providers.gcp import machines
from prefect_gpu.providers.gcp.api import Api, dicts_of

log = logging.getLogger(__name__)

ALL_GPUS: Final = "GPUS_ALL_REGIONS"
SPOT: Final = "PREEMPTIBLE_"
_ASK: Final = "ask Google for more"


class Quota(NamedTuple):
    """One quota, and what is used of it."""

    limit: float
    usage: float

    @property
    def free(self) -> float:
        return self.limit - self.usage


class Quotas:
    """The quotas of one project. What is not told is not judged: the order will say."""

    def __init__(self, api: Api, *, is_public: bool) -> None:
        self._is_public = is_public
        self._everywhere: dict[str, Quota] = {}
        self._by_region: dict[str, dict[str, Quota]] = {}
        self.down: set[str] = set()  # regions that Google calls down
        try:
            self._everywhere = _read(api.http.row(api.path(), "", what="ask for the project's quotas").get("quotas"))
            for row in api.rows("regions", what="ask for the quotas of all regions"):
                self._by_region[str(row.get("name"))] = _read(row.get("quotas"))
                if row.get("status") == "DOWN":
                    self.down.add(str(row.get("name")))
        except ProviderError as error:
            log.info("%s", error)

    def problem(self, offer: Offer) -> str | None:
        """Whether the offer is above a quota that Google tells."""
        here = self._by_region.get(offer.region, {})
        gpus, cpus = machines.gpu_quota(offer), machines.cpu_quota(offer)
        wanted: list[tuple[str, float]] = []
        if gpus is not None:
            wanted.append((gpus, offer.gpu_count))
        if cpus is not None and offer.cpu is not None:
            wanted.append((cpus, offer.cpu))
        for metric, amount in wanted:
            if (problem := _problem(here, metric, amount, offer)) is not None:
                return problem
        kind = machines.disk_type(offer.instance_type)
        of_disk = "HDB_TOTAL_GB" if kind.startswith("hyperdisk") else "SSD_TOTAL_GB"
        others = [(of_disk, offer.disk_gb or 0.0), *([("IN_USE_ADDRESSES", 1.0)] if self._is_public else [])]
        for metric, amount in others:
            if metric in here and here[metric].free < amount:
                return _words(metric, here[metric], amount, offer.region)
        total = self._everywhere.get(ALL_GPUS)
        if offer.gpu_count and not offer.spot and total is not None and total.free < offer.gpu_count:
            return _words(ALL_GPUS, total, offer.gpu_count, "all regions together")
        return None


def _problem(here: dict[str, Quota], metric: str, amount: float, offer: Offer) -> str | None:
    """Spot has quotas of its own; where a project has none of these, it counts against the usual one."""
    quota = here.get(metric)
    spot_metric = SPOT + ("CPUS" if metric.endswith("CPUS") else metric)
    own = here.get(spot_metric) if offer.spot else None
    if own is not None and own.limit > 0:
        metric, quota = spot_metric, own
    if quota is None or quota.free >= amount:
        return None
    return _words(metric, quota, amount, offer.region)


def _words(metric: str, quota: Quota, amount: float, where: str) -> str:
    used = f", {quota.usage:g} in use" if quota.usage else ""
    return f"quota {metric} is {quota.limit:g} in {where}{used}, this takes {amount:g}: {_ASK}"


def _read(rows: Any) -> dict[str, Quota]:
    found: dict[str, Quota] = {}
    for row in dicts_of(rows):
        limit, usage = row.get("limit"), row.get("usage")
        if isinstance(limit, int | float) and isinstance(usage, int | float) and math.isfinite(limit - usage):
            found[str(row.get("metric"))] = Quota(float(limit), float(usage))
    return found
