"""Rent the right GPU, run one job on it, give it back: the product on one screen.

| step | what | where it is waited for, refused, explained |
|---|---|---|
| 1 | ask every provider at once | `steps.fetch_offers` |
| 2 | rank what fits; what failed rules out what is like it | `steps.choose`, `providers.core.errors` |
| 3 | one order under a name of its own, recorded before it is sent | `steps.create_instance`, `flows.record` |
| 4 | wait until the machine answers with its own host key | `steps.wait_ready` |
| 5 | run the job, follow its output, bring back its files | `steps.run_job` |
| 6 | terminate, and see the provider's own list without it | `steps.give_back` |

Every other way out goes through `finally`; when this process cannot, through the hook; when nobody can, through `reap`.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Failed
from pydantic import Field

from flows import steps
from flows.inputs import Refused
from flows.ownership import remember_running_state
from flows.reap import end_run
from providers import DEFAULT_ACCOUNT, ProviderName
from providers.core.errors import ProviderError
from providers.core.models import Job, JobResult, Requirements

ANY_MACHINE: Final = Requirements()
PLAIN_JOB: Final = Job()


@flow(
    name="provision",
    on_running=[remember_running_state],
    on_cancellation=[end_run],
    on_crashed=[end_run],
    persist_result=True,
    result_serializer="json",
)
def provision(
    command: Annotated[
        str | list[str],
        Field(
            title="Command", description="What to run: a shell line, or a list of words.", examples=["python train.py"]
        ),
    ],
    gpu: Annotated[
        str, Field(title="GPU", description="H100:8, A100:80GB, 24GB.., alternatives as H100:8|A100:8; empty: none.")
    ] = "",
    max_price: Annotated[
        float | None, Field(title="Price limit", description="USD per hour for the whole machine; empty: none.")
    ] = None,
    providers: Annotated[
        list[ProviderName], Field(title="Providers", description="Empty: all with saved credentials, and this machine.")
    ] = [],  # noqa: B006 - Prefect shows it in the form and nothing changes it
    order: Annotated[
        Literal["price", "given"],
        Field(title="Order", description="price: cheapest first. given: as the providers are listed."),
    ] = "price",
    requirements: Annotated[Requirements, Field(title="Requirements")] = ANY_MACHINE,
    job: Annotated[Job, Field(title="Job")] = PLAIN_JOB,
    account: Annotated[
        str | dict[str, str],
        Field(title="Account", description="Name of the saved credentials, or a map from provider to name."),
    ] = DEFAULT_ACCOUNT,
) -> State[JobResult]:
    """Rent the right GPU, run one job on it, give it back.

    Args:
        command: What to run: a shell line, or a list of words.
        gpu: `H100:8`, `A100:80GB`, `24GB..`, alternatives in order `H100:8|A100:8`; empty for none.
        max_price: USD per hour for the whole machine; empty for no limit.
        providers: Whom to ask; empty for all with saved credentials, and this machine.
        order: `price` tries the cheapest first, `given` the providers as they are listed.
        requirements: What else the machine must have: cores, memory, disk, spot, regions, network.
        job: Environment, secrets, files up and back, code, image, timeout.
        account: Name of the saved credentials, or a map from provider to name.
    """
    try:
        run = steps.begin(command, gpu, max_price, providers, order, requirements, job, account)
    except (Refused, ProviderError) as refused:
        return Failed(message=str(refused))
    try:
        offers = steps.fetch_offers(run)  # 1
        for offer in steps.choose(run, offers):  # 2
            try:
                instance = steps.create_instance(run, offer)  # 3
                instance = steps.wait_ready(run, offer, instance)  # 4
                result = steps.run_job(run, offer, instance)  # 5
            except ProviderError as failure:
                steps.pass_over(run, offer, failure)
            else:
                steps.give_back(run)  # 6
                return steps.ended(run, result)
        return steps.not_found(run)
    finally:
        run.clean_up()
