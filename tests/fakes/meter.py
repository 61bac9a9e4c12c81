"""The bill of the reference cloud: what its vendor would charge, by rules of its own, counted from what the cloud itself knows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from prefect_gpu.providers.core.contract import Billing

if TYPE_CHECKING:
    from tests.fakes.reference import Order, ReferenceCloud


@dataclass(frozen=True)
class Meter:
    """How the vendor counts."""

    starts: Literal["order", "running"] = "order"
    step_s: int = 1
    minimum_s: int = 0
    extras: float = 0.0

    @property
    def declared(self) -> Billing:
        """The same, as a driver declares it."""
        return Billing(starts=self.starts, step_s=self.step_s, minimum_s=self.minimum_s, hourly_extras=self.extras)

    def bill(self, cloud: ReferenceCloud) -> float:
        """USD for everything that was ever ordered there, refused orders for nothing."""
        return math.fsum(self.position(cloud, order) for order in cloud.orders())

    def position(self, cloud: ReferenceCloud, order: Order) -> float:
        """USD for one instance: whole steps, at least the minimum."""
        ended = cloud.now() if order.ended_at is None else order.ended_at
        began = order.ordered_at
        if self.starts == "running":
            began += cloud.terms.boot_s
            if ended < began or order.fate in {"never runs", "fails at boot"} or order.status == "unborn":
                return 0.0
        steps = max(1, math.ceil(max(self.minimum_s, ended - began) / self.step_s))
        return (order.price + self.extras) * steps * self.step_s / 3600
