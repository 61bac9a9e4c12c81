"""Vast.ai's driver against a stateful fake of its API, which is held to the vendor's document and to the vendor's own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from prefect_gpu.blocks.vastai import VastaiCredentials, VastaiOptions
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.models import Instance
from prefect_gpu.providers.core.requests import Requirements, Spot
from prefect_gpu.providers.vastai import driver as driver_module
from prefect_gpu.providers.vastai.driver import Vastai
from tests.conformance import ProviderConformance, Subject, launch_spec, lease_name
from tests.fakes import vastai as fakes
from tests.fakes.vastai import FakeVastai
from tests.providers.renting import VendorFaults, without_waiting

KEY = "VASTAIKEY0123456789ABCDEF"
H100 = Requirements(gpu=parse_gpu("H100"))
SPOT = H100.model_copy(update={"spot": Spot.SPOT})


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        without_waiting(patch)
        patch.setattr(driver_module, "PAGE_S", 0.0)
        patch.setattr(driver_module, "END_S", 0.0)
        yield


@pytest.fixture
def cloud() -> Iterator[FakeVastai]:
    with FakeVastai(KEY) as fake:
        yield fake


def vastai(cloud: FakeVastai, **options: Any) -> Vastai:
    block = VastaiCredentials(api_key=SecretStr(KEY), options=VastaiOptions(**options))
    return Vastai(block, transport=cloud.transport)


def order(driver: Vastai, requirements: Requirements = H100, **more: Any) -> Instance:
    return driver.create_instance(driver.fetch_offers(requirements)[0], launch_spec(driver, lease_name(), **more))


class VastaiFaults(VendorFaults):
    cloud: FakeVastai

    def refusal(self, what: str) -> tuple[httpx.Response, str]:
        status, code, said = {
            "sold out": (410, "no_such_ask", "error 410/3907: no_such_ask Instance type 101 is no longer available."),
            "funds": (400, "insufficient_credit", "Your account lacks credit; see the billing page."),
            "request": (400, "invalid_args", "error 400/3467: Invalid args: disk"),
            "credentials": (401, "auth_error", "Invalid user key"),
            "down": (503, "unavailable", "Service temporarily down"),
        }[what]
        return fakes.error(status, code, said), said

    def refuse_quota(self) -> str:
        pytest.skip("Vast.ai has no quotas")

    def limit_rate(self) -> float:
        said = {"detail": "API requests too frequent endpoint threshold=2.0"}
        self.cloud.next["get"] = httpx.Response(429, headers={"retry-after": "3"}, json=said)
        return 3

    def make_unreadable(self) -> str:
        self.cloud.unreadable = "instances"
        return "instances"

    def shrink_pages(self) -> None:
        self.cloud.pages_of = 1

    def leave_something(self) -> None:
        pytest.skip("a container's disk goes with it: nothing else is made")

    def borrow_the_name(self, instance: Instance) -> str:
        return self.cloud.order_by_hand(instance.name)

    def show_status(self, instance: Instance, status: str) -> None:
        self.cloud.say(instance.id, actual_status=status)


@pytest.mark.parametrize("listing_lag_s", [0, 55], ids=["listed at once", "listed late"])
class TestVastai(ProviderConformance):
    @pytest.fixture
    def subject(self, cloud: FakeVastai, listing_lag_s: float) -> Subject:
        cloud.listing_lag_s = listing_lag_s
        return subject(cloud)


def subject(cloud: FakeVastai) -> Subject:
    cloud.is_taken = False  # the suite rents one offer many times
    return Subject(
        provider=vastai(cloud),
        secrets=(KEY,),
        unknown_id="instances/999999",
        pass_time=cloud.advance,
        requirements=H100,
        faults=VastaiFaults(cloud),
    )
