"""Giving back, of what is proved to be ours: machines by their client token, disks by the machine they came with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prefect_gpu.providers.aws import listing
from prefect_gpu.providers.aws.api import Api
from prefect_gpu.providers.aws.instances import proved_name, split, tags_of
from prefect_gpu.providers.core.errors import InvalidRequest, NotFound, ProviderError

_AT_ONCE: Final = 100  # ids in one call; EC2 takes 200 values in a filter


def terminate(api: Api, ids: Sequence[str]) -> None:
    """End these machines and remove these disks. InvalidRequest, after the others were ended, for what is seen not to be ours."""
    machines: dict[str, list[str]] = {}
    troubles: list[ProviderError] = []
    for one in ids:
        try:
            region, resource = split(one)
            if resource.startswith("i-"):
                machines.setdefault(region, []).append(resource)
            elif resource.startswith("vol-"):
                _delete_volume(api, region, resource)
            else:
                raise InvalidRequest(f"{one} is left alone: no order of ours leaves one behind")
        except NotFound:
            # No proof that it is gone, and nothing more to ask for: who called looks at listings until it is.
            continue
        except ProviderError as trouble:
            troubles.append(trouble)
    for region, some in machines.items():
        for start in range(0, len(some), _AT_ONCE):
            try:
                _end(api, region, some[start : start + _AT_ONCE], troubles)
            except ProviderError as trouble:
                troubles.append(trouble)
    if troubles:
        raise troubles[0]


def _end(api: Api, region: str, ids: list[str], troubles: list[ProviderError]) -> None:
    doing = f"give back {region}/{ids[0]}" if len(ids) == 1 else f"give back {len(ids)} instances in {region}"
    with api.asks(doing, region=region):
        rows = list(listing.machine_rows(api, region, {"Name": "instance-id", "Values": ids}))
        strangers = {str(row["InstanceId"]) for row in rows if not proved_name(row.get("ClientToken"))}
    troubles += [
        InvalidRequest(f"{region}/{one} is left alone: it was not ordered under a name of ours")
        for one in sorted(strangers)
    ]
    # What EC2 does not show yet was ordered a moment ago, or is long gone.
    ours = [one for one in ids if one not in strangers]
    if not ours:
        return
    try:
        with api.asks(doing, region=region):
            api.client("ec2", region).terminate_instances(InstanceIds=ours)
    except NotFound:
        if len(ours) > 1:  # one unknown id, and AWS terminates none of them
            for one in ours:
                _end(api, region, [one], troubles)


def _delete_volume(api: Api, region: str, volume: str) -> None:
    doing = f"remove {region}/{volume}"
    with api.asks(doing, region=region):
        only = [{"Name": "volume-id", "Values": [volume]}]
        for row in api.pages(region, "describe_volumes", "Volumes", Filters=only):
            name = tags_of(row.get("Tags")).get("Name", "")
            if not name or not listing.is_proved(row, listing.machines_of(api, region, name)):
                raise InvalidRequest(
                    f"{region}/{volume} is left alone: no machine of ours is shown with which it was made"
                )
            api.client("ec2", region).delete_volume(VolumeId=volume)
