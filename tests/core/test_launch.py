"""What an order carries, and what is refused before any driver is asked."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, ConfigDict, Field

from prefect_gpu.providers.core.errors import InvalidRequest, ProviderError, Unsupported
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import Offer
from prefect_gpu.providers.core.renting.launch import launch_spec
from prefect_gpu.providers.core.requests import Job
from prefect_gpu.providers.core.toolkit import options
from tests.conformance import lease_name
from tests.fakes.reference import Reference

SECRET = b"the master secret of these tests"


class Choices(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    zone: str = Field(default="a")
    disks: int = Field(default=1, ge=1)


class Choosy(Reference):
    options_model: ClassVar[type[BaseModel]] = Choices


class NoSpot(Reference):
    capabilities = Reference.capabilities.model_copy(update={"spot": False})


def offer(**more: Any) -> Offer:
    return Offer.model_validate(
        {"provider": "reference", "instance_type": "cpu", "region": "north", "price": 1.0} | more
    )


def spec(driver: type[Reference] = Reference, *, job: Job | None = None, **more: Any) -> Any:
    lease = Lease.parse(lease_name())
    assert lease is not None
    return launch_spec(driver, lease, SECRET, offer=offer(**more.pop("offer", {})), job=job, **more)


@pytest.mark.parametrize(
    ("driver", "asked", "kind", "words"),
    [
        (Reference, {"job": Job(image="busybox")}, Unsupported, "runs no container images: leave job.image empty"),
        (NoSpot, {"offer": {"spot": True}}, Unsupported, "has no spot instances: ask for on-demand"),
        (Reference, {"offer": {"provider": "aws"}}, InvalidRequest, "this offer is aws's, and this is reference"),
        (Reference, {"options": {"x": 1}}, InvalidRequest, "reference has no option 'x': it takes none"),
        (Choosy, {"options": {"x": 1}}, InvalidRequest, "reference has no option 'x': it takes disks, zone"),
        (
            Choosy,
            {"options": {"disks": 0}},
            InvalidRequest,
            "option 'disks': input should be greater than or equal to 1",
        ),
    ],
)
def test_what_is_not_declared_is_refused_in_a_sentence(
    driver: type[Reference], asked: dict[str, Any], kind: type[ProviderError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        spec(driver, **asked)


def test_the_same_lease_is_the_same_order_byte_for_byte_and_options_travel() -> None:
    name = lease_name()
    one, other = (
        launch_spec(Choosy, Lease.parse(name), SECRET, options={"disks": 2}).model_dump_json() for _ in range(2)
    )
    assert one == other
    assert '"options":{"disks":2}' in one


def test_an_order_s_options_go_before_the_block_s_and_these_before_the_defaults() -> None:
    class Block(BaseModel):
        options: Choices = Choices(disks=3)

    assert options.read(Choices, "x", {}) == Choices(zone="a", disks=1)
    assert options.read(Choices, "x", {}, Block()) == Choices(zone="a", disks=3)
    assert options.read(Choices, "x", {"disks": 4, "zone": "b"}, Block()) == Choices(zone="b", disks=4)


def test_an_order_says_how_long_its_lease_lasts_the_same_to_whoever_sends_it_again() -> None:
    lease = Lease.parse(lease_name())
    assert lease is not None
    ordered_at = lease.deadline - timedelta(seconds=7199.5)
    known = Lease.model_validate_json(lease.model_copy(update={"ordered_at": ordered_at}).model_dump_json())
    assert known.name == lease.name
    first = launch_spec(Reference, known, SECRET, offer=offer(boot_deadline_s=300))
    assert (first.lasts_s, first.boots_s) == (7200, 300)
    unknown = launch_spec(Reference, lease, SECRET, offer=offer(boot_deadline_s=300), job=Job(timeout_s=3600))
    assert unknown.lasts_s == unknown.boots_s == 300 + 15 * 60 + 3600 + 30 * 60 + 60, "at most"
