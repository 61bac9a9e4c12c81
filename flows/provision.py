"""Rent the right GPU, run one job on it, give it back: six steps, each a few lines of `flows/run/steps.py`.

What leaves the steps by any other way goes through `finally`; when this process cannot, the hook; when nobody can, `reap`.
"""

from __future__ import annotations

from prefect import flow
from prefect.client.schemas.objects import State

from prefect_gpu.flows import fields as form
from prefect_gpu.flows.run import steps
from prefect_gpu.flows.run.giving_back import end_run
from prefect_gpu.flows.run.ownership import remember_running_state
from prefect_gpu.flows.run.request import Refused
from prefect_gpu.providers.core.aside import Stopped
from prefect_gpu.providers.core.errors import ProviderError
from prefect_gpu.providers.core.models import JobResult


@flow(
    name="provision",
    on_running=[remember_running_state],
    on_cancellation=[end_run],
    on_crashed=[end_run],
    persist_result=True,
    result_serializer="json",
)
def provision(
    command: form.Command,
    gpu: form.Gpu = "",
    max_price: form.MaxPrice = None,
    providers: form.Providers = [],  # noqa: B006 - Prefect shows it in the form and nothing changes it
    max_cost: form.MaxCost = None,
    max_wait: form.MaxWait = "",
    order: form.Order = "price",
    resume: form.Resume = True,
    retries: form.Retries = 0,
    retry_exit_codes: form.RetryExitCodes = [],  # noqa: B006 - see above
    requirements: form.Requirements = form.ANY_MACHINE,
    job: form.Job = form.PLAIN_JOB,
    account: form.Account = form.DEFAULT_ACCOUNT,
    options: form.Options = {},  # noqa: B006 - see above
) -> State[JobResult]:
    """Rent the right GPU, run one job on it, give it back.

    Args:
        command: What to run: a shell line, or a list of words.
        gpu: `H100:8`, `A100:80GB`, `24GB..`, alternatives in order `H100:8|A100:8`; empty for none.
        max_price: USD per hour for the whole machine; empty for no limit.
        providers: Whom to ask; empty for all with saved credentials, or this machine if there are none.
        max_cost: USD for the whole run, failed attempts included: it is stopped before more can be billed; empty for no limit.
        max_wait: How long to look again while nothing is to be had: `30m`, `2h`, `1d`; empty for not at all.
        order: `price` tries the cheapest first, `given` the providers as they are listed.
        resume: When the worker dies, another one goes on with the machine and its job; off: the machine is given back.
        retries: How often a job that failed is run again, on the same machine and in the same directory.
        retry_exit_codes: Only after these exit codes; empty for any but 0.
        requirements: What else the machine must have: cores, memory, disk, spot, regions, network, trust.
        job: Environment, secrets, files up and back, code, image, timeout.
        account: Name of the saved credentials, or a map from provider to name.
        options: By provider, what only it has, for example `{"aws": {"volume_type": "gp3"}}`.
    """
    try:
        limits = steps.checked_limits(max_cost, max_wait, retries, retry_exit_codes, resume=resume)
        run = steps.begin(command, gpu, max_price, providers, order, requirements, job, account, options, limits)
    except (Refused, ProviderError) as refused:
        return steps.refused(refused)
    try:
        if run.result is not None:
            return steps.ended(run, run.result)
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
    except Stopped as stop:
        return steps.stopped(run, stop)
    finally:
        run.clean_up()
