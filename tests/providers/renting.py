"""What the tests of drivers of REST APIs share: faults that every such fake has, and a clock that is the fake's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from prefect_gpu.providers.core.models import Instance
from prefect_gpu.providers.core.renting.order import Clock
from tests.conformance import Faults
from tests.fakes.vendor import FakeVendor


def without_waiting(patch: pytest.MonkeyPatch) -> None:
    """No time passes between the tries of a GET."""
    patch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda _: None))


class VendorFaults(Faults):
    """Faults of a `FakeVendor`; what a refusal looks like is each vendor's own."""

    def __init__(self, cloud: Any) -> None:
        self.cloud = cloud

    def refusal(self, what: str) -> tuple[httpx.Response, str]:
        """The answer, and the words in it, for: sold out, quota, funds, request, credentials, down."""
        raise NotImplementedError

    def _refuse(self, what: str, call: str = "create") -> str:
        self.cloud.next[call], words = self.refusal(what)
        return words

    def sell_out(self) -> str:
        return self._refuse("sold out")

    def refuse_quota(self) -> str:
        return self._refuse("quota")

    def empty_the_balance(self) -> str:
        return self._refuse("funds")

    def refuse_the_request(self) -> str:
        return self._refuse("request")

    def refuse_credentials(self) -> str:
        self.cloud.refused, words = self.refusal("credentials")
        return words

    def limit_rate(self) -> float:
        self.cloud.next["get"] = httpx.Response(429, headers={"retry-after": "3"}, json={"message": "slow down"})
        return 3

    def limit_creates(self) -> None:
        self.cloud.next["create"] = httpx.Response(429, json={"message": "slow down"})

    def break_creates(self) -> str:
        return self._refuse("down")

    def break_reads(self) -> str:
        self.cloud.broken.add("get")
        return self.refusal("down")[1]

    def break_terminates(self) -> str:
        return self._refuse("down", "delete")

    def lose_the_answer(self) -> None:
        self.cloud.next["create"] = "lost"

    def garble_the_answer(self) -> None:
        self.cloud.next["create"] = b'{"data": {"id'

    def refuse_connections(self) -> None:
        self.cloud.next["create"] = "unreachable"

    def restore(self) -> None:
        self.cloud.unreadable = self.cloud.refused = None
        self.cloud.broken.clear()

    def show_status(self, instance: Instance, status: str) -> None:
        self.cloud.say(instance.id, status=status)

    def create_requests(self) -> int:
        return self.cloud.creates

    def someone_elses(self) -> str:
        self.cloud.order_by_hand("x-pg-conf-web")
        return "x-pg-conf-web"


class CloudClock(Clock):
    """The fake's clock, which waiting moves."""

    def __init__(self, cloud: FakeVendor) -> None:
        self.cloud = cloud

    def now(self) -> float:
        return self.cloud.now

    def sleep(self, seconds: float) -> None:
        self.cloud.advance(seconds)
