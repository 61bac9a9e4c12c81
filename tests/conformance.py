"""What every driver must do: subclass `ProviderConformance`, give a `subject`, and run.

    class TestVultr(ProviderConformance):
        @pytest.fixture
        def subject(self, ...) -> Iterator[Subject]:
            with FakeVultr() as fake:
                yield Subject(
                    provider=Vultr(credentials, transport=fake.transport),
                    secrets=("the-api-key",),
                    unknown_id="00000000-0000-4000-8000-000000000000",
                    pass_time=fake.advance,
                    faults=VultrFaults(fake),
                )

A test that needs a fault that the driver's test cannot inject is skipped with the reason, never passed. `Faults` says what each
fault is; override those that the vendor's fake has.
The tests stand in tests/contract, by concern.
"""

from __future__ import annotations

from tests.contract.create import Create
from tests.contract.offers import Offers
from tests.contract.read import Read
from tests.contract.refusals import Refusals
from tests.contract.subject import (
    MASTER_SECRET,
    OTHER_REALM,
    REALM,
    Faults,
    Subject,
    launch_spec,
    lease_name,
    refuse_secrets,
)
from tests.contract.terminate import Terminate

__all__ = [
    "MASTER_SECRET",
    "OTHER_REALM",
    "REALM",
    "Faults",
    "ProviderConformance",
    "Subject",
    "launch_spec",
    "lease_name",
    "refuse_secrets",
]


class ProviderConformance(Offers, Create, Read, Terminate, Refusals):
    """The suite."""
