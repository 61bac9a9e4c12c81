"""The fake clouds: four reference clouds under names of real providers, each with terms of its own, and their drivers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.chaos.schedule import PROVIDERS, SPOT
from tests.fakes.meter import Meter
from tests.fakes.reference import MachineType, ReferenceCloud, Terms

if TYPE_CHECKING:
    from prefect_gpu.providers.core.renting.library import TaskLibrary

# Everything is as at a vendor's, but seconds long where it is minutes there.
TERMS: dict[str, dict[str, Any]] = {
    "vultr": {"is_repeatable": False, "listing_lag_s": 3, "ends_at_deadline": False, "boot_s": 1},
    "verda": {"is_repeatable": True, "listing_lag_s": 0, "boot_s": 2},
    "lambdalabs": {"is_repeatable": False, "listing_lag_s": 0, "terminate_s": 3, "forgets_after_s": 5},
    "tensordock": {"is_repeatable": True, "listing_lag_s": 2, "boot_s": 0, "terminate_s": 1},
}
METERS = {
    "vultr": Meter(step_s=3600, minimum_s=3600),
    "verda": Meter(step_s=1),
    "lambdalabs": Meter(step_s=60, minimum_s=60),
    "tensordock": Meter(step_s=3600, minimum_s=3600, extras=0.01),
}
SKEW_S = {"vultr": 20.0, "verda": -20.0, "lambdalabs": 0.0, "tensordock": 5.0}  # of the clouds' clocks
BOOT_DEADLINE_S = 60


def terms(provider: str) -> Terms:
    """What the provider's cloud is like on a good day."""
    kinds = (MachineType(name="cpu.small", price=0.05 + 0.01 * PROVIDERS.index(provider), cpu=4, memory_gb=16),)
    return Terms.model_validate(
        {"account": f"ref-{provider}", "types": kinds, "page_size": 20, "has_ssh": True, **TERMS[provider]}
    )


def path(folder: Path, provider: str) -> Path:
    return folder / "clouds" / f"{provider}.db"


def opened(folder: Path, provider: str) -> ReferenceCloud:
    """The cloud itself, founded where it is not there."""
    path(folder, provider).parent.mkdir(exist_ok=True)
    is_new = not path(folder, provider).exists()
    cloud = ReferenceCloud(path(folder, provider), terms(provider))
    if is_new:
        cloud.advance(SKEW_S[provider])
    return cloud


def install(folder: Path, port: int) -> dict[str, TaskLibrary[Any]]:
    """Make these clouds the only providers of this process beside this machine, reached by the port of their own."""
    from pydantic import SecretStr

    from prefect_gpu import providers as registry
    from prefect_gpu.providers.core.renting.library import TaskLibrary
    from tests.chaos.remote import RemoteCloud
    from tests.fakes.reference import Reference, ReferenceAccount

    libraries: dict[str, TaskLibrary[Any]] = {}
    for provider in PROVIDERS:
        known = terms(provider)
        capabilities = Reference.capabilities.model_copy(
            update={
                "create_repeatable": "zone" if known.is_repeatable else None,
                "listing_lag_s": known.listing_lag_s,
                "self_ends": "server" if known.ends_at_deadline else "none",
                "spot": provider == SPOT,
                "billing": METERS[provider].declared,
                "boot_deadline_s": BOOT_DEADLINE_S,
                "sold_out_s": 0,  # what is sold out to one seed is not to the others
            }
        )
        driver = type(provider.title(), (Reference,), {"name": provider, "capabilities": capabilities})
        library: TaskLibrary[Any] = TaskLibrary(driver)
        account = ReferenceAccount(cloud=str(path(folder, provider)), api_key=SecretStr(known.api_key))
        library.connections.drivers["default"] = driver(account, RemoteCloud(port, provider, known))  # type: ignore[arg-type]
        libraries[provider] = library
    local = registry.ProviderName.LOCAL
    names = [registry.ProviderName(one) for one in PROVIDERS]
    of_this_machine = registry.library(local)
    registry.library = lambda name: libraries.get(str(name), of_this_machine)
    registry.enabled = lambda *_: [*names, local]  # type: ignore[assignment]
    registry.saved_accounts = lambda: {**{one: ["default"] for one in names}, local: []}  # type: ignore[assignment]
    return libraries
