"""What one order carries, and what is refused before the driver is asked: capabilities that are not declared, options that are not its."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from prefect_gpu.providers.core.contract import Capabilities, Provider
from prefect_gpu.providers.core.errors import InvalidRequest, Unsupported
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.machine import keys
from prefect_gpu.providers.core.models import LaunchSpec, Offer, RegistryAuth, utc_now
from prefect_gpu.providers.core.requests import Job, Requirements
from prefect_gpu.providers.core.toolkit import options as driver_options

FILES_S: Final = 15 * 60  # of a lease: for files up and down
RESUMES_S: Final = 30 * 60  # of a lease: for workers that die


def lease_deadline(offer: Offer, capabilities: Capabilities, job: Job) -> datetime:
    """When the lease of an order placed now ends: boot, files, job and resumes; a resume never extends it."""
    return utc_now() + timedelta(seconds=_boots_s(offer, capabilities) + FILES_S + job.timeout_s + RESUMES_S)


def _boots_s(offer: Offer | None, capabilities: Capabilities) -> float:
    return (offer and offer.boot_deadline_s) or capabilities.boot_deadline_s


def refuse_undeclared(
    driver: type[Provider[Any]], offer: Offer | None, job: Job, options: Mapping[str, Any] | None
) -> None:
    """Raises Unsupported or InvalidRequest, in a sentence, for what this provider cannot do: before anything is asked or bought."""
    capabilities, name = driver.capabilities, driver.name
    if job.image and capabilities.images == "none":
        raise Unsupported(f"{name} runs no container images: leave job.image empty or choose another provider")
    if offer is not None and offer.provider != name:
        raise InvalidRequest(f"this offer is {offer.provider}'s, and this is {name}")
    if offer is not None and offer.spot and not capabilities.spot:
        raise Unsupported(f"{name} has no spot instances: ask for on-demand or choose another provider")
    driver_options.read(driver.options_model, name, options or {})


def launch_spec(
    driver: type[Provider[Any]],
    lease: Lease,
    secret: bytes,
    *,
    offer: Offer | None = None,
    requirements: Requirements | None = None,
    job: Job | None = None,
    registry: RegistryAuth | None = None,
    options: Mapping[str, Any] | None = None,
) -> LaunchSpec:
    """What an order under this lease carries; the same lease gives the same bytes in every process."""
    job, requirements = job or Job(), requirements or Requirements()
    refuse_undeclared(driver, offer, job, options)
    native = driver.capabilities.images == "native"
    places_key = driver.capabilities.host_key == "placed"
    boots_s = _boots_s(offer, driver.capabilities)
    if lease.ordered_at is not None:
        lasts_s = (lease.deadline - lease.ordered_at).total_seconds()
    else:  # at most so long; how much of it was over when the machine was ordered only its calendar can tell
        lasts_s = boots_s = boots_s + FILES_S + job.timeout_s + RESUMES_S + 60
    return LaunchSpec(
        name=lease.name,
        deadline=lease.deadline,
        lasts_s=math.ceil(lasts_s),
        boots_s=math.ceil(boots_s),
        client_public_key=keys.derive(secret, lease.name, "client").public,
        host_key=keys.derive(secret, lease.name, "host") if places_key else None,
        image=job.image if native else None,
        registry=registry if native else None,
        cpu=requirements.cpu,
        memory_gb=requirements.memory_gb,
        disk_gb=requirements.disk_gb,
        network=requirements.network,
        max_price=requirements.max_price,
        tags={
            "prefect-gpu-realm": lease.realm,
            "prefect-gpu-flow-run": str(lease.run_id),
            "prefect-gpu-lease-ends": lease.deadline.isoformat(timespec="minutes"),
        },
        options=dict(options or {}),
    )
