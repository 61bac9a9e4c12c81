"""All that stands in a project under names of ours: machines, and boot disks that their machine left behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.models import Instance, Leftover, Listing, Unproved, Unread
from prefect_gpu.providers.gcp.api import Api
from prefect_gpu.providers.gcp.errors import UNREADABLE
from prefect_gpu.providers.gcp.instances import described, disk_id, is_name, is_zone, region_of

_REGIONAL: Final = "no order of ours makes a regional disk: somebody named it so"


def everywhere(api: Api, prefix: str) -> Listing:
    """All zones and pages; which could not be read is said."""
    unread: list[Unread] = []
    instances: list[Instance] = []
    for zone, row in _called(api, "instances", prefix, unread):
        try:
            one = described(row, api.credentials, zone)
        except UNREADABLE as error:
            unread.append(_unreadable(zone, "machine", error))
            continue
        if is_name(one.name, prefix):
            instances.append(one)
    leftovers: list[Leftover] = []
    unproved: list[Unproved] = []
    try:
        for zone, row in _called(api, "disks", prefix, unread):
            # A disk that is in use goes with its machine. Its name is of its making too, and never changes.
            name = row.get("name")
            if isinstance(name, str) and is_name(name, prefix) and not row.get("users"):
                if not is_zone(zone):
                    unproved.append(
                        Unproved(id=f"{zone}/{name}", kind="disk", name=name, region=zone, reason=_REGIONAL)
                    )
                    continue
                standing = any(one.name == name and one.zone == zone for one in instances)
                if not standing:
                    leftovers.append(Leftover(id=disk_id(zone, name), kind="disk", name=name, region=region_of(zone)))
    except ProviderError as error:
        unread.append(Unread(scope="disks", reason=error.message))
    return Listing(
        instances=tuple(instances),
        leftovers=tuple(leftovers),
        unproved=tuple(unproved),
        incomplete=tuple(unread),
    )


def _called(api: Api, kind: str, prefix: str, unread: list[Unread]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is called so: Google's filter reads RE2, and the prefix is looked at again here."""
    plain = prefix if prefix.replace("-", "").isalnum() and prefix.isascii() else ""
    only = f'name eq "{plain}.*"' if plain else ""
    return api.everywhere(kind, unread, what=f"list {kind}", only=only)


def _unreadable(zone: str, what: str, error: Exception) -> Unread:
    return Unread(
        scope=zone, reason=f"Google Cloud describes a {what} there that cannot be read ({type(error).__name__})"
    )
