"""How an execution of `provision` begins: nonsense is refused, the flow run claimed, what an earlier execution left taken over."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext

from prefect_gpu import providers as registry
from prefect_gpu.blocks.realm import NotItsServer
from prefect_gpu.flows.report import last_reap
from prefect_gpu.flows.run import adopting, outliving, request, resuming, run_log
from prefect_gpu.flows.run.execution import Run
from prefect_gpu.flows.run.limits import Limits
from prefect_gpu.flows.run.own_realm import own_realm
from prefect_gpu.flows.run.ownership import Ownership
from prefect_gpu.flows.run.record import Record
from prefect_gpu.providers import ProviderName
from prefect_gpu.providers.core.aside import Aside
from prefect_gpu.providers.core.lease import MAX_RUN_COUNT
from prefect_gpu.providers.core.renting import accounts
from prefect_gpu.providers.core.requests import Job, Requirements


def begin(
    command: str | list[str],
    gpu: str,
    max_price: float | None,
    providers: list[ProviderName],
    order: str,
    requirements: Requirements,
    job: Job,
    account: str | dict[str, str],
    options: dict[str, dict[str, Any]],
    limits: Limits,
) -> Run:
    """Refuse nonsense, claim the flow run, take over or give back what an earlier execution of it left."""
    outliving.outlive_worker()
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("provision runs as a Prefect flow")
    flow_run = context.flow_run
    if flow_run.run_count > MAX_RUN_COUNT:
        raise request.Refused(f"this run was started {flow_run.run_count} times: start a new one")
    ownership = Ownership(flow_run).start()
    try:
        run = _checked(
            flow_run, ownership, command, gpu, max_price, providers, order, requirements, job, account, options, limits
        )
        if run.providers != [ProviderName.LOCAL]:  # what is rented elsewhere stays, if nobody reaps
            run.reap_overdue = Aside(last_reap.overdue)
        if run.is_again:
            adopting.take_over(run)
    except BaseException:
        ownership.close()
        raise
    return run


def _checked(
    flow_run: FlowRun,
    ownership: Ownership,
    command: str | list[str],
    gpu: str,
    max_price: float | None,
    providers: list[ProviderName],
    order: str,
    requirements: Requirements,
    job: Job,
    account: str | dict[str, str],
    options: dict[str, dict[str, Any]],
    limits: Limits,
) -> Run:
    """The run, everything that was asked for found to make sense."""
    checked_command = request.checked_command(command)
    wanted = request.checked_requirements(gpu, max_price, requirements)
    checked_job = request.checked_job(job, Path.cwd())
    try:
        own = own_realm(with_home=False)
    except NotItsServer as other:
        raise request.Refused(str(other)) from other
    secrets = accounts.secrets(job.secrets)  # asked for now, while nothing is bought
    request.refuse_too_long(checked_command, checked_job.env, secrets)
    if job.registry:
        accounts.registry(job.registry)
    wanted_options = request.checked_options(options)
    for provider, of_provider in wanted_options.items():
        registry.library(provider).refuse_undeclared(None, Job(), of_provider)
    return Run(
        id=flow_run.id,
        count=flow_run.run_count,
        realm=own.realm,
        command=checked_command,
        requirements=wanted,
        job=checked_job,
        order=order,
        account=account,
        options=wanted_options,
        providers=request.checked_providers(
            providers, registry.enabled(account, providers), account, own.providers_off
        ),
        record=Record.read(flow_run.id) if ran_before(flow_run) else Record(flow_run.id),
        ownership=ownership,
        limits=limits,
        may_follow=resuming.may_follow(flow_run),
        log=run_log.steps(),
        is_again=ran_before(flow_run),
    )


def ran_before(flow_run: FlowRun) -> bool:
    """Whether an earlier execution of the run may have left a record. After Suspend Prefect may count no second one."""
    return flow_run.run_count > 1 or flow_run.total_run_time > timedelta(0)
