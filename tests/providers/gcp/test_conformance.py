"""Google Cloud's driver passes the contract."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.models import Instance, utc_now
from tests.conformance import Faults, ProviderConformance, Subject
from tests.fakes.gcp import FakeGcp
from tests.fakes.gcp.orders import pool_exhausted
from tests.fakes.gcp.project import error, key
from tests.providers.gcp.conftest import gcp

KEY_LINE = json.loads(key())["private_key"].splitlines()[1]


class GcpFaults(Faults):
    def __init__(self, cloud: FakeGcp) -> None:
        self.cloud = cloud

    def sell_out(self) -> str:
        self.cloud.refuses_inserts = [pool_exhausted("us-central1-a", "e2-standard-4")]
        return "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"

    def refuse_quota(self) -> str:
        words = "Quota 'CPUS' exceeded.  Limit: 24.0 in region us-central1."
        self.cloud.next["insert"] = error(403, "quotaExceeded", words)
        return "Quota 'CPUS' exceeded. Limit: 24.0 in region us-central1."

    def empty_the_balance(self) -> str:
        words = "This API method requires billing to be enabled. Please enable billing on project #8181"
        self.cloud.next["insert"] = error(403, "forbidden", words)
        return words

    def refuse_the_request(self) -> str:
        words = "Invalid value for field 'resource.flavour': 'vanilla'."
        self.cloud.next["insert"] = error(400, "invalid", words)
        return words

    def refuse_credentials(self) -> str:
        words = "Invalid JWT Signature."
        self.cloud.refused = error(401, "authError", words)
        return words

    def limit_rate(self) -> float:
        self.cloud.next["get"] = error(429, "rateLimitExceeded", "Rate Limit Exceeded")
        return 3

    def limit_creates(self) -> None:
        self.cloud.next["insert"] = error(403, "rateLimitExceeded", "Rate Limit Exceeded")

    def break_creates(self) -> str:
        self.cloud.next["insert"] = error(503, "backendError", "Backend error.")
        return "Backend error."

    def break_reads(self) -> str:
        self.cloud.broken = True
        return "Try again later."

    def break_terminates(self) -> str:
        self.cloud.next["delete"] = error(500, "internalError", "Internal error.")
        return "Internal error."

    def lose_the_answer(self) -> None:
        self.cloud.next["insert"] = "lost"

    def garble_the_answer(self) -> None:
        self.cloud.next["insert"] = b'{"kind": "compute#oper'

    def refuse_connections(self) -> None:
        self.cloud.next["insert"] = "unreachable"

    def make_unreadable(self) -> str:
        self.cloud.unreachable = {"europe-west4-b"}
        return "europe-west4-b"

    def restore(self) -> None:
        self.cloud.unreachable = set()
        self.cloud.refused = None
        self.cloud.broken = False

    def show_status(self, instance: Instance, status: str) -> None:
        self.cloud.vm(instance.id).said = {"status": status}

    def shrink_pages(self) -> None:
        self.cloud.page_size = 1

    def leave_something(self) -> None:
        self.cloud.keeps_next_disk = True

    def create_requests(self) -> int:
        return self.cloud.creates

    def someone_elses(self) -> str:
        self.cloud.order_by_hand("x-pg-conf-web")
        return "x-pg-conf-web"

    def borrow_the_name(self, instance: Instance) -> str:
        pytest.skip(f"nothing else can be called {instance.name} in its zone, and a name never changes")

    def pass_deadline(self, instance: Instance) -> None:
        lease = Lease.parse(instance.name)
        assert lease is not None
        self.cloud.advance((lease.deadline - utc_now()).total_seconds() + 30)


@pytest.mark.parametrize("listing_lag_s", [0, 55], ids=["listed at once", "listed late"])
class TestGcp(ProviderConformance):
    @pytest.fixture
    def subject(self, cloud: FakeGcp, listing_lag_s: float) -> Subject:
        cloud.listing_lag_s = listing_lag_s
        return Subject(
            provider=gcp(cloud),
            secrets=(KEY_LINE, "ya29."),
            unknown_id=f"us-central1-a/pg-conf{'0' * 33}",
            pass_time=cloud.advance,
            faults=GcpFaults(cloud),
        )


def test_answers_are_held_to_google_s_document(cloud: FakeGcp) -> None:
    from tests.fakes.gcp import discovery

    if discovery.document() is None:
        pytest.skip("google-api-python-client is not installed")
    wrong: Any = {"name": "x", "flavour": 7}
    with pytest.raises(AssertionError, match="has no field flavour"):
        discovery.check(wrong, "Instance", "body")
    with pytest.raises(AssertionError, match="takes no sort"):
        discovery.check_request("GET", "projects/p/aggregated/instances", {"sort": "x"}, None)
