"""Giving back: a machine with its disk and address, or a disk that was left; nothing that bears no whole name of ours."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from prefect_gpu.providers.core.errors import InvalidRequest, NotFound
from prefect_gpu.providers.gcp.api import Api, dicts_of
from prefect_gpu.providers.gcp.instances import is_name, split


def terminate(api: Api, resource_id: str) -> None:
    """Ask for its end; gone already is success. The operation is not waited for: who called looks until it is gone."""
    try:
        zone, kind, name = split(resource_id)
    except NotFound:
        return
    if not is_name(name):
        raise InvalidRequest(f"{resource_id} is left alone: it was not ordered under a name of ours")
    with suppress(NotFound):
        api.http.delete(api.path("zones", zone, kind, name), what=f"give back {resource_id}")


def without_user_data(api: Api, resource_id: str, key: str) -> None:
    """Take the user data out of a machine's metadata: it held the host key, and who may describe machines could read it."""
    zone, _, name = split(resource_id)
    path = api.path("zones", zone, "instances", name)
    metadata = api.http.row(path, "metadata", what=f"look at the metadata of {name}")
    kept = [one for one in dicts_of(metadata.get("items")) if one.get("key") != key]
    body: dict[str, Any] = {"fingerprint": metadata.get("fingerprint"), "items": kept}
    api.http.post(f"{path}/setMetadata", body, what=f"take the host key out of the metadata of {name}")
