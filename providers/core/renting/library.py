"""TaskLibrary: a driver's methods as Prefect tasks, and all that is the same for every provider.

Retries, names, credentials by block name, what to do after a lost reply, SSH keys and the way onto a machine are decided
here and nowhere else. Every task has `NO_CACHE`: two equal orders are two orders. No task takes or returns a secret.

`tasks = TaskLibrary(Vultr, VultrCredentials)` is the last line of a provider's file; any flow may call the tasks:

    from prefect_gpu.providers.vultr import tasks as vultr
    offers = vultr.fetch_offers(Requirements(gpu=parse_gpu("H100:8")))
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Generic, ParamSpec, TypeVar

from prefect.blocks.core import Block
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from prefect_gpu.providers.core.aside import Stopped, always, never
from prefect_gpu.providers.core.contract import Provider
from prefect_gpu.providers.core.errors import InvalidRequest, NotFound, ProviderError, RateLimited, Transient
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.machine.tries import job_id
from prefect_gpu.providers.core.models import Instance, InstanceState, JobResult, JobSpec, LaunchSpec, Listing, Offer
from prefect_gpu.providers.core.renting import accounts, launch, order, running, shared_prices
from prefect_gpu.providers.core.renting.connections import Connections
from prefect_gpu.providers.core.renting.give_back import Absence, give_back
from prefect_gpu.providers.core.renting.keeping import Store
from prefect_gpu.providers.core.renting.plain_log import logger, told_in_the_log
from prefect_gpu.providers.core.renting.progress import OnProgress
from prefect_gpu.providers.core.renting.ready import wait_until_ready
from prefect_gpu.providers.core.requests import Job, Requirements

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")

GIVE_BACK_S: Final = 10.0  # so long a give-back waits for absence beyond the provider's listing lag


class _PlainRefusals(logging.Filter):
    """What a provider refuses is said in its sentence: a traceback of ours would tell a user nothing."""

    def filter(self, record: logging.LogRecord) -> bool:
        failure = record.exc_info[1] if record.exc_info else None
        if isinstance(failure, ProviderError | Stopped):
            said = f"{failure.short}: {failure.message}" if isinstance(failure, ProviderError) else str(failure)
            record.msg, record.args, record.exc_info, record.exc_text = said, (), None, None
        return True


logging.getLogger("prefect.task_runs").addFilter(_PlainRefusals())


def _is_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Only what the same call may mend is worth a second call."""
    failure = state.result(raise_on_failure=False)
    return isinstance(failure, Transient) and not isinstance(failure, RateLimited)


class TaskLibrary(Generic[C]):
    """One provider's tasks. Each takes `account`, the name of a saved credentials block."""

    def __init__(self, driver: type[Provider[C]], credentials: type[Block] | None = None) -> None:
        self.driver_class = driver
        self.credentials_class = credentials
        self.name = driver.name
        self.capabilities = driver.capabilities
        self.connections: Connections[C] = Connections(driver, credentials)

        # No tags: for a task with tags Prefect asks the API for a concurrency limit each time, 30 ms and more.
        def as_task(function: Callable[P, R], title: str, retries: int = 0) -> Task[P, R]:
            return Task(
                fn=function,
                name=f"{title} ({self.name})",
                cache_policy=NO_CACHE,
                persist_result=False,
                retries=retries,
                retry_delay_seconds=1,
                retry_condition_fn=_is_transient if retries else None,
            )

        self.fetch_offers = as_task(self.offers, "fetch offers", retries=1)
        self.create_instance = as_task(self._create_instance, "create instance")
        self.settle_order = as_task(self._settle_order, "settle order")
        self.wait_until_ready = as_task(self._wait_until_ready, "wait until ready")
        self.run_job = as_task(self._run_job, "run job")
        self.get_instance = as_task(self._get_instance, "get instance", retries=2)
        self.list_instances = as_task(self._list_instances, "list instances", retries=2)
        self.terminate_instance = as_task(self._terminate_instance, "terminate instance")
        self.give_back_as_task = as_task(self.give_back, "give back")

    def driver(self, account: str = "default") -> Provider[C]:
        """The driver with the account's credentials; made once a process."""
        return self.connections.driver(account)

    def refuse_undeclared(self, offer: Offer | None, job: Job, options: Mapping[str, Any] | None = None) -> None:
        """Raises Unsupported or InvalidRequest, in a sentence, for what this provider cannot do; asks nobody."""
        launch.refuse_undeclared(self.driver_class, offer, job, options)

    def spec(self, lease: Lease, **carried: Any) -> LaunchSpec:
        """What an order under this lease carries: `launch.launch_spec` with this server's keys."""
        return launch.launch_spec(self.driver_class, lease, self.connections.master_secret(), **carried)

    # --- what the tasks do --------------------------------------------------------------------------------------------

    def offers(self, requirements: Requirements, account: str = "default") -> list[Offer]:
        """What the provider sells now that fits; empty if nothing."""
        if self.capabilities.needs_catalog:
            shared_prices.fetch_newer(self.name)
        return self.driver(account).fetch_offers(requirements)

    def _create_instance(
        self,
        offer: Offer,
        lease: Lease,
        requirements: Requirements | None = None,
        job: Job | None = None,
        options: dict[str, Any] | None = None,
        account: str = "default",
        should_stop: Callable[[], str | None] = never,
        on_progress: OnProgress = told_in_the_log,
    ) -> Instance:
        """One order under the lease's name, carried to a definite answer. Raises what settles the offer (errors.py)."""
        self.refuse_undeclared(offer, job or Job(), options)
        registry = accounts.registry(job.registry) if job and job.registry else None
        spec = self.spec(lease, offer=offer, requirements=requirements, job=job, registry=registry, options=options)
        driver = self.driver(account)
        created = order.place_order(driver, offer, spec, should_stop=should_stop, on_progress=on_progress)
        return self.connections.without_secrets(created)

    def _settle_order(
        self,
        offer: Offer,
        lease: Lease,
        requirements: Requirements | None = None,
        job: Job | None = None,
        options: dict[str, Any] | None = None,
        account: str = "default",
        should_stop: Callable[[], str | None] = never,
        on_progress: OnProgress = told_in_the_log,
    ) -> Instance:
        """What an order bought whose sender is gone before the answer was known; Owed where that is not seen. It is sent again where that buys nothing twice."""
        if self.capabilities.create_repeatable is not None:
            return self._create_instance(offer, lease, requirements, job, options, account, should_stop, on_progress)
        found = order.find_order(self.driver(account), lease.name, should_stop=should_stop, on_progress=on_progress)
        return self.connections.without_secrets(found)

    def _wait_until_ready(
        self,
        instance: Instance,
        offer: Offer,
        account: str = "default",
        should_stop: Callable[[], str | None] = never,
        on_progress: OnProgress = told_in_the_log,
        on_running: Callable[[], object] = never,
    ) -> Instance:
        """The instance once a verified connection to it stands, which `run_job` then uses."""
        driver = self.driver(account)
        ready, connection = wait_until_ready(
            driver,
            instance,
            lambda seen: self.connections.connect(seen, account),
            boot_deadline_s=offer.boot_deadline_s or self.capabilities.boot_deadline_s,
            should_stop=should_stop,
            on_progress=on_progress,
            on_running=on_running,
        )
        ready = self.connections.without_secrets(ready)
        self.connections.keep(ready, connection, account)
        try:
            driver.settle_in(ready)
        except ProviderError as trouble:  # it goes with the machine at the latest
            logger().warning("%s could not be settled in: %s", ready.name, trouble.message)
        return ready

    def _run_job(
        self,
        instance: Instance,
        offer: Offer,
        command: str | tuple[str, ...],
        job: Job,
        folder: Path,
        requirements: Requirements | None = None,
        tries: int = 1,
        account: str = "default",
        should_stop: Callable[[], str | None] = never,
        until: datetime | None = None,
        is_retried: Callable[[JobResult], bool] = lambda _: False,
        is_resumed: bool = False,
        still_owns: Callable[[], bool] = always,
        before_start: Callable[[], object] = never,
        store: Store | None = None,
    ) -> JobResult:
        """The machine check, files up, the job, its output and files down into `folder`; see `running.run_on`.

        The machine ends the job with its lease, or earlier `until`. `is_resumed`: the job may run there already, and is gone on with; else
        `before_start` is called first. Its output is shown while this process `still_owns` the run.
        """
        machine, driver = self.connections.machine(instance, account), self.driver(account)
        runs_already = is_resumed and machine.has_started(job_id(instance.name, tries), should_stop)
        found: dict[str, object] = {}
        if not runs_already:
            found = running.check_machine(
                machine,
                instance,
                offer,
                requirements or Requirements(),
                lambda: driver.check(instance, machine.connection(should_stop)),
                should_stop,
            )
        lease = Lease.parse(instance.name)
        in_docker, ends = self.capabilities.images == "docker", (lease and lease.deadline, until)
        spec = JobSpec(
            id=job_id(instance.name, tries),
            command=command,
            env={**job.env, **instance.env},  # a job keeps to the GPUs that its slice has
            secrets=accounts.secrets(job.secrets),
            image=job.image if in_docker else None,
            registry=accounts.registry(job.registry) if job.registry and in_docker else None,
            working_directory=job.working_directory,
            timeout_s=job.timeout_s,
            notice_signal=job.notice_signal,
            deadline=min(filter(None, ends), default=None),
        )
        how = running.Course(tries, runs_already, is_retried, still_owns, store, offer.spot, before_start)
        result = running.run_on(machine, spec, job, folder, partial(self._why_gone, driver, instance), should_stop, how)
        return result.model_copy(update={**found, "tries": tries})

    def _why_gone(self, driver: Provider[C], instance: Instance) -> str | None:
        """Why the machine is no more, by its provider's own word; None while it may come back."""
        try:
            seen = driver.get_instance(instance.id)
        except NotFound:
            return "its provider does not know it any more" if self.capabilities.not_found_proves_absence else None
        except ProviderError:
            return None
        if seen.state in (InstanceState.RUNNING, InstanceState.PROVISIONING, InstanceState.UNKNOWN):
            return None
        return driver.interruption_reason(seen) or seen.reason or f"its provider says that it is {seen.state.value}"

    def _get_instance(self, instance_id: str, account: str = "default") -> Instance:
        """The instance as its provider sees it now."""
        return self.connections.without_secrets(self.driver(account).get_instance(instance_id))

    def _list_instances(self, prefix: str = "pg-", account: str = "default") -> Listing:
        """All instances whose names begin with the prefix, and what could not be read."""
        return self.connections.all_without_secrets(self.driver(account).list_instances(prefix))

    def _terminate_instance(self, instance: str, account: str = "default") -> Absence:
        """Terminate one instance, by its id or its whole name, and observe that it is gone.

        Raises NotFound where the provider knows no such id, InvalidRequest where the name it bears is not one of ours.
        """
        if Lease.parse(instance) is not None:
            return self.give_back(instance, account=account)
        found = self.driver(account).get_instance(instance)
        if Lease.parse(found.name) is None:
            raise InvalidRequest(
                f"{instance} is not an instance that prefect-gpu made ({found.name or 'no name'}): it is left alone"
            )
        return self.give_back(found.name, (instance,), account, found.created_at)

    def give_back(
        self,
        name: str,
        instance_ids: tuple[str, ...] = (),
        account: str = "default",
        ordered_at: datetime | None = None,
        confirm: bool = True,
        within_s: float | None = None,
        names: frozenset[str] | None = None,
        are_seen: bool = False,
        on_progress: OnProgress = told_in_the_log,
    ) -> Absence:
        """Terminate what stands under a lease's name (or under many, found below a prefix) and observe that it is gone.

        A plain function; `give_back_as_task` is it as a task. `are_seen`: the caller itself saw the ids under these names.
        """
        self.connections.hang_up(name)
        if within_s is None:
            within_s = GIVE_BACK_S + self.capabilities.listing_lag_s
        return give_back(
            self.driver(account),
            name,
            names=names,
            known_ids=instance_ids,
            ordered_at=ordered_at,
            within_s=within_s,
            confirm=confirm,
            are_seen=are_seen,
            on_progress=on_progress,
        )
