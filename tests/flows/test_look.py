"""What is asked without a run of its own, and without the SDK of a provider that nobody uses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from prefect_gpu.flows.run import market
from prefect_gpu.providers import ProviderName

PROGRAM = """
import sys
from prefect_gpu.flows.run import market
from prefect_gpu.flows.terminal import planning, ps, stop, logs, fetching, overview
from prefect_gpu.providers import ProviderName
for name in ProviderName:
    market.written_billing_of(name.value)
print([name for name in ("boto3", "botocore", "kubernetes", "google.auth", "azure", "paramiko", "gpuhunt") if name in sys.modules])
"""


@pytest.mark.parametrize("provider", list(ProviderName))
def test_how_a_provider_bills_is_read_from_its_source(provider: ProviderName) -> None:
    assert market.written_billing_of(provider.value) == market.billing_of(provider.value)


def test_no_command_imports_the_sdk_of_a_provider_that_nobody_uses() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout == "[]\n"
