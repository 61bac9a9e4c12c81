"""All that stands in an account under names of ours: what is proved to be ours, and what only bears such a name.

A machine is ours if its client token is one of our names: nobody can set or copy it later. A volume has no such field, but it came
into being with its machine, in its zone, and a name has one order: so it is told by the machine, which EC2 goes on showing for an
hour after its end. Whatever else bears one of our names is reported and left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final, NamedTuple

from prefect_gpu.providers.aws.api import Api, each
from prefect_gpu.providers.aws.errors import UNREADABLE
from prefect_gpu.providers.aws.instances import FREE_STATES, Described, checked_id, described, is_name, moment, tags_of
from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.models import Instance, Leftover, Listing, Unproved, Unread

log = logging.getLogger(__name__)

_TOGETHER: Final = timedelta(minutes=2)  # so close to its machine's start a volume is made
_NOT_ITS_NAME: Final = "its client token is not this name: somebody named it so, or made it from a machine of ours"
_NOT_ITS_TIME: Final = (
    "no machine of this name is shown with which it was made: somebody named it so, or its machine is long gone"
)
_NEVER_OURS: Final = "no order leaves one behind: somebody named it so, or it is of no use any more"


def everywhere(api: Api, prefix: str) -> Listing:
    """All regions, side by side; which could not be read is said."""
    enabled, named = api.regions(), set(api.credentials.regions)
    missing = [Unread(scope=region, reason="not enabled in this account") for region in sorted(named - enabled)]

    def ask(region: str) -> Listing | ProviderError:
        try:
            return read(api, region, prefix)
        except ProviderError as error:
            return error

    regions = sorted(enabled)
    answers = dict(zip(regions, each(ask, regions), strict=True))
    read_well = [answer for answer in answers.values() if isinstance(answer, Listing)]
    for region, answer in answers.items():
        if isinstance(answer, Listing):
            continue
        if read_well and region not in named and answer.code == "UnauthorizedOperation":
            # A policy keeps this account out of the region, and nobody asked for it.
            log.info("AWS denies listing %s, which the block does not name: skipped", region)
            continue
        missing.append(Unread(scope=region, reason=answer.message))
    return Listing(
        instances=tuple(one for listing in read_well for one in listing.instances),
        leftovers=tuple(one for listing in read_well for one in listing.leftovers),
        unproved=tuple(one for listing in read_well for one in listing.unproved),
        incomplete=(*missing, *(one for listing in read_well for one in listing.incomplete)),
    )


def read(api: Api, region: str, prefix: str) -> Listing:
    """One region: every state but the two that are known to cost nothing, and what machines left."""
    instances, leftovers = dict[str, Instance](), list[Leftover]()
    unproved, unread = list[Unproved](), list[Unread]()

    def strange(kind: str, resource: str, name: str, reason: str) -> None:
        unproved.append(Unproved(id=f"{region}/{resource}", kind=kind, name=name, region=region, reason=reason))

    with api.asks(f"list {region}", region=region):
        machines = _Machines({}, unread)
        # The tag finds what somebody named so, the token what somebody renamed.
        for by in ("tag:Name", "client-token"):
            machines.add(api, region, by, prefix)
        for one in machines.found.values():
            if one.instance.raw["state"] in FREE_STATES:
                continue
            if one.instance.name.startswith(prefix):
                instances[one.instance.id] = one.instance
            if is_name(one.bears, prefix) and one.instance.name != one.bears:
                strange("instance", one.instance.id.partition("/")[2], one.bears, _NOT_ITS_NAME)
        for resource, name, row in _bearing(api, region, prefix, "Volumes", "VolumeId", "vol-", unread):
            if is_proved(row, [one for one in machines.found.values() if one.instance.name == name]):
                leftovers.append(Leftover(id=f"{region}/{resource}", kind="volume", name=name, region=region))
            else:
                strange("volume", resource, name, _NOT_ITS_TIME)
        for rows, key, kind in (
            ("NetworkInterfaces", "NetworkInterfaceId", "eni-"),
            ("Addresses", "AllocationId", "eipalloc-"),
        ):
            for resource, name, _ in _bearing(api, region, prefix, rows, key, kind, unread):
                strange("network interface" if kind == "eni-" else "address", resource, name, _NEVER_OURS)
    return Listing(
        instances=tuple(instances.values()),
        leftovers=tuple(leftovers),
        unproved=tuple(unproved),
        incomplete=tuple(unread[:1]),
    )


def is_proved(volume: dict[str, Any], machines: list[Described]) -> bool:
    """Whether a volume came into being with one of these machines, in its zone."""
    made = moment(volume.get("CreateTime"))
    return made is not None and any(
        one.launched is not None
        and abs(made - one.launched) <= _TOGETHER
        and volume.get("AvailabilityZone") == one.instance.zone
        for one in machines
    )


def machines_of(api: Api, region: str, name: str) -> list[Described]:
    """The machines that were ordered under a name, in every state that EC2 still shows."""
    with api.asks(f"look for {name}", region=region):
        rows = machine_rows(api, region, {"Name": "client-token", "Values": [name]})
        found = [described(region, row, api.credentials) for row in rows]
    return [one for one in found if one.instance.name == name]


class _Machines(NamedTuple):
    """Machines by id, of several questions; one that cannot be read is said and hides no other."""

    found: dict[str, Described]
    unread: list[Unread]

    def add(self, api: Api, region: str, by: str, prefix: str) -> None:
        for row in machine_rows(api, region, {"Name": by, "Values": [f"{prefix}*"]}):
            try:
                one = described(region, row, api.credentials)
            except UNREADABLE as error:
                self.unread.append(_unreadable(region, "machine", error))
            else:
                self.found[one.instance.id] = one


def machine_rows(api: Api, region: str, only: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for reservation in api.pages(region, "describe_instances", "Reservations", Filters=[only]):
        yield from reservation.get("Instances") or ()


def _bearing(
    api: Api, region: str, prefix: str, rows: str, key: str, kind: str, unread: list[Unread]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Id, name and description of what bears a name of ours and is attached to nothing."""
    named = {"Name": "tag:Name", "Values": [f"{prefix}*"]}
    if rows == "Addresses":  # comes in one page
        found: Any = api.client("ec2", region).describe_addresses(Filters=[named])["Addresses"]
    else:
        call, free = {
            "Volumes": ("describe_volumes", ["available", "error"]),
            "NetworkInterfaces": ("describe_network_interfaces", ["available"]),
        }[rows]
        found = api.pages(region, call, rows, Filters=[named, {"Name": "status", "Values": free}])
    for row in found:
        try:
            resource, tags = checked_id(row[key], kind), tags_of(row.get("Tags") or row.get("TagSet"))
        except UNREADABLE as error:
            unread.append(_unreadable(region, rows.lower(), error))
            continue
        name = tags.get("Name", "")
        if is_name(name, prefix) and "AssociationId" not in row:
            yield resource, name, row


def _unreadable(region: str, what: str, error: Exception) -> Unread:
    return Unread(scope=region, reason=f"AWS describes a {what} there that cannot be read ({type(error).__name__})")
