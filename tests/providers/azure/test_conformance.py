"""Azure's driver does what every driver must, against a fake that Azure's own SDK takes for Azure."""

from __future__ import annotations

import httpx
import pytest

from prefect_gpu.providers.core.models import Instance
from tests.conformance import Faults, ProviderConformance, Subject
from tests.fakes.azure import facts
from tests.fakes.azure.cloud import FakeAzure
from tests.providers.azure.ordering import azure, order


class AzureFaults(Faults):
    def __init__(self, cloud: FakeAzure) -> None:
        self.cloud = cloud

    def _refuse(self, status: int, code: str, words: str, call: str = "create") -> str:
        self.cloud.next[call] = facts.error(status, code, words)
        return words

    def sell_out(self) -> str:
        return self._refuse(
            409, "SkuNotAvailable", "The requested VM size is currently not available in location 'eastus'."
        )

    def refuse_quota(self) -> str:
        words = "Operation could not be completed as it results in exceeding approved standardDSv3Family Cores quota."
        return self._refuse(409, "OperationNotAllowed", words)

    def empty_the_balance(self) -> str:
        return self._refuse(
            409, "ReadOnlyDisabledSubscription", "The subscription is disabled and marked as read only."
        )

    def refuse_the_request(self) -> str:
        return self._refuse(400, "InvalidParameter", "The value of parameter linuxConfiguration is invalid.")

    def refuse_credentials(self) -> str:
        words = "The access token is from the wrong issuer."
        self.cloud.refused = facts.error(401, "InvalidAuthenticationTokenTenant", words)
        return words

    def limit_rate(self) -> float:
        self.cloud.next["get"] = facts.error(429, "TooManyRequests", "slow down", **{"retry-after": "3"})
        return 3

    def limit_creates(self) -> None:
        self.cloud.next["create"] = facts.error(429, "OperationNotAllowed", "The server rejected the request.")

    def break_creates(self) -> str:
        return self._refuse(500, "InternalExecutionError", "An internal execution error occurred.")

    def break_reads(self) -> str:
        self.cloud.broken = True
        return "The service is unavailable."

    def break_terminates(self) -> str:
        return self._refuse(500, "InternalServerError", "Encountered internal server error.", "delete")

    def lose_the_answer(self) -> None:
        self.cloud.next["create"] = "lost"

    def garble_the_answer(self) -> None:
        self.cloud.next["create"] = b'{"name": "pg-'

    def refuse_connections(self) -> None:
        self.cloud.next["create"] = "unreachable"

    def make_unreadable(self) -> str:
        self.cloud.unreadable = "disks"
        return "disks"

    def restore(self) -> None:
        self.cloud.unreadable = self.cloud.refused = None
        self.cloud.broken = False

    def show_status(self, instance: Instance, status: str) -> None:
        self.cloud.say(instance.id, state=status)

    def shrink_pages(self) -> None:
        self.cloud.page_size = 2

    def leave_something(self) -> None:
        self.cloud.keeps_next_disk = True

    def create_requests(self) -> int:
        return self.cloud.creates

    def someone_elses(self) -> str:
        driver = azure(self.cloud)
        body = self.cloud.body(order(driver).name)
        path = f"/subscriptions/{facts.SUBSCRIPTION}/resourceGroups/{facts.GROUP}/providers/Microsoft.Compute/virtualMachines"
        headers = {"authorization": f"Bearer {facts.token_of(0)}"}
        sent = httpx.Request(
            "PUT", f"https://management.azure.com{path}/x-pg-conf-web?api-version=1", json=body, headers=headers
        )
        assert self.cloud.answer(sent).status_code == 201
        return "x-pg-conf-web"

    def borrow_the_name(self, instance: Instance) -> str:
        pytest.skip(f"nothing else can be called {instance.name}: a name in a resource group has one machine")


@pytest.mark.parametrize("listing_lag_s", [0, 55], ids=["listed at once", "listed late"])
class TestAzure(ProviderConformance):
    @pytest.fixture
    def subject(self, cloud: FakeAzure, listing_lag_s: float) -> Subject:
        cloud.listing_lag_s = listing_lag_s
        return Subject(
            provider=azure(cloud),
            secrets=(facts.SECRET, "TOKENSIGNATURE"),
            unknown_id=f"{facts.GROUP}/pg-conf{'0' * 33}",
            pass_time=cloud.advance,
            faults=AzureFaults(cloud),
        )
