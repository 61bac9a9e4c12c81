"""Which rights a block's credentials lack: asked of Azure as what they may do, without trying it."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from prefect_gpu.providers.azure.api import Arm, at
from prefect_gpu.providers.core.errors import AuthFailed, NotFound

PERMISSIONS: Final = "/providers/Microsoft.Authorization/permissions"
ASKING: Final = "Microsoft.Authorization/permissions/read"
# What the driver does in the subscription, and in the resource group. docs/azure-role.json is the role of both.
IN_SUBSCRIPTION: Final = (
    "Microsoft.Compute/locations/usages/read",
    "Microsoft.Compute/skus/read",
    "Microsoft.Resources/subscriptions/read",
    "Microsoft.Resources/subscriptions/resourceGroups/read",
)
IN_GROUP: Final = (
    "Microsoft.Compute/disks/delete",
    "Microsoft.Compute/disks/read",
    "Microsoft.Compute/disks/write",
    "Microsoft.Compute/virtualMachines/delete",
    "Microsoft.Compute/virtualMachines/read",
    "Microsoft.Compute/virtualMachines/write",
    "Microsoft.Network/networkInterfaces/delete",
    "Microsoft.Network/networkInterfaces/join/action",
    "Microsoft.Network/networkInterfaces/read",
    "Microsoft.Network/networkInterfaces/write",
    "Microsoft.Network/networkSecurityGroups/join/action",
    "Microsoft.Network/publicIPAddresses/delete",
    "Microsoft.Network/publicIPAddresses/join/action",
    "Microsoft.Network/publicIPAddresses/read",
    "Microsoft.Network/publicIPAddresses/write",
    "Microsoft.Network/virtualNetworks/read",
    "Microsoft.Network/virtualNetworks/subnets/join/action",
)
# Where the block names none of its own, and where it names what needs more.
FOR_A_NETWORK: Final = ("Microsoft.Network/virtualNetworks/write",)
FOR_A_SECURITY_GROUP: Final = (
    "Microsoft.Network/networkSecurityGroups/read",
    "Microsoft.Network/networkSecurityGroups/write",
)
FOR_A_GROUP: Final = ("Microsoft.Resources/subscriptions/resourceGroups/write",)
FOR_RESERVATIONS: Final = (
    "Microsoft.Compute/capacityReservationGroups/capacityReservations/read",
    "Microsoft.Compute/capacityReservationGroups/deploy/action",
    "Microsoft.Compute/capacityReservationGroups/read",
)
FOR_AN_IDENTITY: Final = ("Microsoft.ManagedIdentity/userAssignedIdentities/assign/action",)
FOR_REASONS: Final = ("Microsoft.Insights/eventtypes/values/read",)  # why a spot machine was taken back


class Granted(NamedTuple):
    """What may be done in one scope: of each role its actions, and what it excepts."""

    roles: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]

    def has(self, action: str) -> bool:
        """Whether one role grants this action and does not except it."""
        return any(_any(action, actions) and not _any(action, excepted) for actions, excepted in self.roles)


def missing(arm: Arm) -> list[str]:
    """The rights that these credentials lack, in Azure's terms. AuthFailed when they are no good at all."""
    arm.get(arm.subscription, what="look at the subscription")
    block = arm.credentials
    try:
        everywhere = _granted(arm, arm.subscription)
    except AuthFailed:
        return [f"{ASKING} (without it the others show only when something is refused)"]
    try:
        in_group = _granted(arm, arm.group)
    except NotFound:  # the first order makes it
        in_group = everywhere
        wanted = [*IN_GROUP, *FOR_A_GROUP]
    else:
        wanted = [*IN_GROUP]
    wanted += () if block.subnets else FOR_A_NETWORK
    wanted += () if block.security_group else FOR_A_SECURITY_GROUP
    wanted += FOR_RESERVATIONS if block.capacity_reservation_group else ()
    wanted += FOR_AN_IDENTITY if block.identity else ()
    lacking = [f"{one} (in the subscription)" for one in IN_SUBSCRIPTION if not everywhere.has(one)]
    # What the block names may stand in other groups; only the subscription and this group were asked.
    return lacking + [one for one in wanted if not in_group.has(one)]


def _granted(arm: Arm, scope: str) -> Granted:
    rows = arm.rows(f"{scope}{PERMISSIONS}", what="ask what these credentials may do")
    return Granted(tuple((_texts(row, "actions"), _texts(row, "notActions")) for row in rows))


def _texts(row: dict[str, Any], field: str) -> tuple[str, ...]:
    return tuple(str(one) for one in at(row, field, [""]))


def _any(action: str, patterns: tuple[str, ...]) -> bool:
    return any(
        re.fullmatch(re.escape(one).replace(r"\*", ".*"), action, re.IGNORECASE) is not None for one in patterns if one
    )
