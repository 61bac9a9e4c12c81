"""Whatever happens to a run on Azure, with a real server and worker, nothing of it stays there: each test states how soon.

The worker logs in by azure-identity and reaches Azure by way of a company's proxy with the company's CA.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from uuid import UUID

import pytest

from prefect_gpu.providers.azure.driver import Azure
from prefect_gpu.providers.core.errors import AuthFailed
from tests.clean_up import AFTER_KILL_S, Asked, CleanUp, Left, gone_within, start_long_job
from tests.fakes.azure import facts
from tests.fakes.azure.server import AzureServer
from tests.stack import Stack, wait_until

pytestmark = [pytest.mark.server, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    with AzureServer(tmp_path_factory.mktemp("azure")).running() as server:
        yield server


@pytest.fixture(scope="module")
def provision(stack: Stack, azure: AzureServer) -> Iterator[UUID]:
    stack.python("from tests.fakes.azure.server import publish_prices; publish_prices()")
    with stack.account(azure.block()):
        yield stack.deploy("tests.fakes.azure.flows.provision", "azure")


@pytest.fixture(autouse=True)
def _an_empty_subscription(azure: AzureServer) -> None:
    azure.reset()


@pytest.fixture
def asked() -> Asked:
    return {"providers": ["azure"], "requirements": {"regions": ["eastus"]}}


@pytest.fixture
def left(azure: AzureServer) -> Left:
    return azure.cloud.left


class TestAzure(CleanUp):
    """What every provider must survive."""

    is_short = True


def test_a_job_runs_after_a_type_was_sold_out_and_an_answer_was_lost_on_one_machine(
    azure: AzureServer, stack: Stack, provision: UUID, left: Left
) -> None:
    words = "The requested VM size for resource is currently not available in location 'eastus'."
    azure.cloud.next["create"] = facts.error(409, "SkuNotAvailable", words)
    run_id = stack.run(provision, command="echo hello from $HOME", providers=["azure"])
    stack.wait_for_state(run_id, "Completed")
    assert left() == []
    assert stack.message(run_id).startswith("exit 0 in ")
    assert "sold out" in stack.message(run_id)
    said = [line for line in stack.logs(run_id) if line.startswith("hello from ")]
    assert [line.strip().endswith("/home") for line in said] == [True], "\n".join(stack.logs(run_id))
    assert azure.cloud.creates == 2
    assert azure.logins[-1]["client_id"] == [facts.CLIENT]


def test_a_spot_machine_that_is_taken_back_is_told_in_azure_s_words_and_its_job_begins_anew_elsewhere(
    azure: AzureServer, stack: Stack, provision: UUID, left: Left, asked: Asked
) -> None:
    spot = {**asked, "requirements": {"spot": "spot", "regions": ["eastus"]}}
    run_id = start_long_job(stack, provision, spot, left)
    (first,) = azure.cloud.things["virtualMachines"]
    azure.cloud.take_back(f"prefect-gpu/{first}")
    stack.wait_for_log(run_id, "Azure took this spot machine back at")
    wait_until(lambda: azure.cloud.creates == 2, 120, "another machine")
    assert first not in azure.cloud.things["virtualMachines"]
    stack.cancel(run_id)
    gone_within(left, AFTER_KILL_S, time.monotonic())
    stack.wait_for_state(run_id, "Cancelled")


def test_a_secret_that_is_wrong_is_told_in_azure_s_words(azure: AzureServer) -> None:
    driver = Azure(azure.block(client_secret="AZURE~WRONG"))
    with pytest.raises(AuthFailed, match="AADSTS7000215: Invalid client secret provided"):
        driver.account_id()
