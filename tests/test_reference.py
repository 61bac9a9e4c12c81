"""The reference driver passes the conformance suite, and its cloud has the faults that flows are tested against."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from providers.core.models import Instance
from tests.conformance import Faults, ProviderConformance, Subject
from tests.fakes.reference import Reference, ReferenceCloud, Terms, reference


class ReferenceFaults(Faults):
    def __init__(self, cloud: ReferenceCloud) -> None:
        self.cloud = cloud

    def sell_out(self) -> str:
        self.cloud.fault("create", "sold out")
        return "we are out of"

    def refuse_quota(self) -> str:
        self.cloud.fault("create", "over quota")
        return "your quota of"

    def empty_the_balance(self) -> str:
        self.cloud.fault("create", "no funds")
        return "please top up"

    def refuse_credentials(self) -> str:
        for call in ("account", "offers", "create", "get", "list", "terminate"):
            self.cloud.fault(call, "bad credentials", times=None)
        return "this key was revoked"

    def refuse_the_request(self) -> str:
        self.cloud.fault("create", "code nobody mapped")
        return "short and stout"

    def limit_rate(self) -> float:
        for call in ("get", "create"):
            self.cloud.fault(call, "rate limited", seconds=7)
        return 7

    def break_creates(self) -> str:
        self.cloud.fault("create", "server error")
        return "upstream connect error"

    def break_reads(self) -> str:
        self.cloud.fault("get", "server error")
        return "upstream connect error"

    def break_terminates(self) -> str:
        self.cloud.fault("terminate", "server error")
        return "upstream connect error"

    def lose_the_answer(self) -> None:
        self.cloud.fault("create", "lost")

    def garble_the_answer(self) -> None:
        self.cloud.fault("create", "no id")

    def refuse_connections(self) -> None:
        self.cloud.fault("create", "never sent")

    def make_unreadable(self) -> str:
        self.cloud.fault("list", "unread", region="south", times=None)
        return "south"

    def restore(self) -> None:
        self.cloud.mend()

    def show_status(self, instance: Instance, status: str) -> None:
        self.cloud.rename_status(instance.id, status)

    def shrink_pages(self) -> None:
        self.cloud.change(page_size=1)

    def leave_something(self) -> None:
        self.cloud.fault("create", "leaves a disk")

    def create_requests(self) -> int:
        return len(self.cloud.calls("create"))

    def someone_elses(self) -> str:
        self.cloud.order_by_hand("my-pg-conf-database")
        return "my-pg-conf-database"

    def pass_deadline(self, instance: Instance) -> None:
        self.cloud.advance(3 * 3600)


def reference_subject(cloud: ReferenceCloud, driver: type[Reference] = Reference, **capabilities: object) -> Subject:
    return Subject(
        provider=reference(cloud, driver, **capabilities),
        secrets=(cloud.terms.api_key,),
        unknown_id="i-999999",
        pass_time=cloud.advance,
        faults=ReferenceFaults(cloud),
    )


class TestReference(ProviderConformance):
    @pytest.fixture
    def subject(self) -> Iterator[Subject]:
        cloud = ReferenceCloud(is_stopped=True)
        yield reference_subject(cloud)
        cloud.close()


class TestReferenceOnABadDay(ProviderConformance):
    """Slow to boot, slow to end, slow to list, forgetful, and in a file."""

    @pytest.fixture
    def subject(self, tmp_path) -> Iterator[Subject]:
        terms = Terms(boot_s=40, terminate_s=20, listing_lag_s=15, forgets_after_s=30, page_size=1)
        cloud = ReferenceCloud(tmp_path / "cloud.db", terms, is_stopped=True)
        yield reference_subject(cloud, listing_lag_s=15)
        cloud.close()


class TestReferenceWithoutKeys(ProviderConformance):
    """Create cannot be repeated, 404 proves nothing, no spot."""

    @pytest.fixture
    def subject(self) -> Iterator[Subject]:
        cloud = ReferenceCloud(terms=Terms(is_repeatable=False), is_stopped=True)
        yield reference_subject(
            cloud, create_repeatable=None, not_found_proves_absence=False, spot=False, listing_lag_s=5
        )
        cloud.close()
