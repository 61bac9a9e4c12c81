"""TaskLibrary: a driver's methods as Prefect tasks, and all that is the same for every provider.

Retries, names, credentials by block name, what to do after a lost reply, SSH keys and the way onto a machine are decided
here and nowhere else. Every task has `NO_CACHE`: two equal orders are two orders. No task takes or returns a secret.

`tasks = TaskLibrary(Vultr, VultrCredentials)` is the last line of a provider's file; any flow may call the tasks:

    from providers.vultr import tasks as vultr
    offers = vultr.fetch_offers(Requirements(gpu=parse_gpu("H100:8")))
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar

from prefect.blocks.core import Block
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from blocks.realm import GpuRealm
from providers.core import accounts, images, keys, orders, running, shared_prices
from providers.core.aside import Stopped, never
from providers.core.contract import Capabilities, Connection, Provider
from providers.core.errors import InstanceFailed, NotFound, ProviderError, RateLimited, Transient, Unsupported
from providers.core.jobs import Machine, Wrap
from providers.core.lease import Lease
from providers.core.models import (
    Instance,
    InstanceState,
    Job,
    JobResult,
    JobSpec,
    LaunchSpec,
    Listing,
    Offer,
    RegistryAuth,
    Requirements,
    utc_now,
)
from providers.core.readiness import wait_until_ready

if TYPE_CHECKING:
    from providers.core.first_use import FirstUse

C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")

FILES_S: Final = 15 * 60  # of a lease: for files up and down
RESUMES_S: Final = 30 * 60  # of a lease: for workers that die
GIVE_BACK_S: Final = 10.0  # so long a give-back waits for absence beyond the provider's listing lag


def lease_deadline(offer: Offer, capabilities: Capabilities, job: Job) -> datetime:
    """When the lease of an order placed now ends: boot, files, job and resumes; a resume never extends it."""
    boot_s = offer.boot_deadline_s or capabilities.boot_deadline_s
    return utc_now() + timedelta(seconds=boot_s + FILES_S + job.timeout_s + RESUMES_S)


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
        self._drivers: dict[str, Provider[C]] = {}
        self._machines: dict[str, Machine] = {}
        self._first_use: FirstUse | None = None
        self._secret: bytes | None = None
        self._lock = threading.Lock()

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

        self.fetch_offers = as_task(self._fetch_offers, "fetch offers", retries=1)
        self.create_instance = as_task(self._create_instance, "create instance")
        self.wait_until_ready = as_task(self._wait_until_ready, "wait until ready")
        self.run_job = as_task(self._run_job, "run job")
        self.get_instance = as_task(self._get_instance, "get instance", retries=2)
        self.list_instances = as_task(self._list_instances, "list instances", retries=2)
        self.terminate_instance = as_task(self.give_back, "give back")

    # --- credentials and ways in --------------------------------------------------------------------------------------

    def driver(self, account: str = "default") -> Provider[C]:
        """The driver with the account's credentials; made once a process."""
        with self._lock:
            if account not in self._drivers:
                credentials = accounts.load(self.credentials_class, account) if self.credentials_class else None
                self._drivers[account] = self.driver_class(credentials)  # pyright: ignore[reportArgumentType] - C is that block's type
            return self._drivers[account]

    def connect(self, instance: Instance, account: str = "default", *, timeout_s: float = 10.0) -> Connection:
        """A verified way onto the machine: by its derived keys over SSH, or by the provider's own channel.

        Raises NotReady while it does not answer as it should, LinkLost when a link breaks.
        """
        driver = self.driver(account)
        if self.capabilities.host_key == "channel":
            return driver.open_channel(instance)
        from providers.core.first_use import FirstUse  # paramiko takes 0.2 s to import

        if instance.ssh is None:
            raise InstanceFailed(f"{instance.name} has no SSH endpoint")
        with self._lock:
            first_use = self._first_use = self._first_use or FirstUse()
        secret = self._master_secret()
        host_key = instance.ssh.host_key
        if host_key is None and self.capabilities.host_key == "placed":
            host_key = keys.derive(secret, instance.name, "host").public
        return first_use.connect(
            instance.name,
            instance.ssh,
            keys.derive(secret, instance.name, "client"),
            host_key,
            may_pin=self.capabilities.host_key == "first_use",
            timeout_s=timeout_s,
        )

    def machine(self, instance: Instance, account: str = "default") -> Machine:
        """The machine as jobs see it, connected to again by itself when the link is lost; one per name in this process."""
        with self._lock:
            if instance.name not in self._machines:
                self._machines[instance.name] = Machine(lambda: self.connect(instance, account), wrap=self._wrap)
            return self._machines[instance.name]

    def hang_up(self, name: str) -> None:
        """Close the connection to the machine of that name, if one is open."""
        with self._lock:
            machine = self._machines.pop(name, None)
        if machine is not None:
            machine.close()

    def _master_secret(self) -> bytes:
        # Asked for once a process: a link that is lost while Prefect's API is down too is mended all the same.
        with self._lock:
            if self._secret is None:
                self._secret = GpuRealm.current().secret_bytes()
            return self._secret

    def _wrap(self, job: JobSpec) -> Wrap | None:
        return images.in_docker(job) if job.image and self.capabilities.images == "docker" else None

    def spec(
        self,
        lease: Lease,
        *,
        requirements: Requirements | None = None,
        job: Job | None = None,
        registry: RegistryAuth | None = None,
        options: dict[str, Any] | None = None,
    ) -> LaunchSpec:
        """What an order under this lease carries; the same lease gives the same bytes in every process."""
        job, requirements = job or Job(), requirements or Requirements()
        if job.image and self.capabilities.images == "none":
            raise Unsupported(f"{self.name} runs no container images: leave job.image empty or choose another provider")
        secret = self._master_secret()
        native = self.capabilities.images == "native"
        return LaunchSpec(
            name=lease.name,
            deadline=lease.deadline,
            client_public_key=keys.derive(secret, lease.name, "client").public,
            host_key=keys.derive(secret, lease.name, "host") if self.capabilities.host_key == "placed" else None,
            image=job.image if native else None,
            registry=registry if native else None,
            cpu=requirements.cpu,
            memory_gb=requirements.memory_gb,
            disk_gb=requirements.disk_gb,
            network=requirements.network,
            max_price=requirements.max_price,
            tags={
                "prefect-gpu-realm": lease.realm,
                "prefect-gpu-flow-run": str(lease.run_id),
                "prefect-gpu-lease-ends": lease.deadline.isoformat(timespec="minutes"),
            },
            options=options or {},
        )

    # --- what the tasks do --------------------------------------------------------------------------------------------

    def _fetch_offers(self, requirements: Requirements, account: str = "default") -> list[Offer]:
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
    ) -> Instance:
        """One order under the lease's name, carried to a definite answer. Raises what settles the offer (errors.py)."""
        registry = accounts.registry(job.registry) if job and job.registry else None
        spec = self.spec(lease, requirements=requirements, job=job, registry=registry, options=options)
        return orders.place_order(self.driver(account), offer, spec, should_stop=should_stop)

    def _wait_until_ready(
        self,
        instance: Instance,
        offer: Offer,
        account: str = "default",
        should_stop: Callable[[], str | None] = never,
        on_progress: Callable[[str, float], None] = lambda _state, _seconds: None,
    ) -> Instance:
        """The instance once a verified connection to it stands, which `run_job` then uses."""
        ready, connection = wait_until_ready(
            self.driver(account),
            instance,
            lambda seen: self.connect(seen, account),
            boot_deadline_s=offer.boot_deadline_s or self.capabilities.boot_deadline_s,
            should_stop=should_stop,
            on_progress=on_progress,
        )
        with self._lock:
            self._machines[ready.name] = Machine(lambda: self.connect(ready, account), connection, wrap=self._wrap)
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
    ) -> JobResult:
        """The machine check, files up, the job, its output and files down into `folder`; see `running.run_on`."""
        machine = self.machine(instance, account)
        driver = self.driver(account)
        found = running.check_machine(
            machine,
            instance,
            offer,
            requirements or Requirements(),
            lambda: driver.check(instance, machine.connection(should_stop)),
            should_stop,
        )
        lease = Lease.parse(instance.name)
        in_docker = self.capabilities.images == "docker"
        spec = JobSpec(
            id=f"{instance.name}.{tries}",
            command=command,
            env={**job.env, **instance.env},  # a job keeps to the GPUs that its slice has
            secrets=accounts.secrets(job.secrets),
            image=job.image if in_docker else None,
            registry=accounts.registry(job.registry) if job.registry and in_docker else None,
            working_directory=job.working_directory,
            timeout_s=job.timeout_s,
            deadline=lease.deadline if lease else None,
        )
        return running.run_on(
            machine, spec, job, folder, lambda: self._why_gone(driver, instance), should_stop
        ).model_copy(update=found)

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
        return self.driver(account).get_instance(instance_id)

    def _list_instances(self, prefix: str = "pg-", account: str = "default") -> Listing:
        """All instances whose names begin with the prefix, and what could not be read."""
        return self.driver(account).list_instances(prefix)

    def give_back(
        self,
        name: str,
        instance_ids: tuple[str, ...] = (),
        account: str = "default",
        ordered_at: datetime | None = None,
        confirm: bool = True,
        within_s: float | None = None,
        names: frozenset[str] | None = None,
    ) -> orders.Absence:
        """Terminate what stands under a name (or a run's prefix) and observe that it is gone: a plain function and a task."""
        self.hang_up(name)
        if within_s is None:
            within_s = GIVE_BACK_S + self.capabilities.listing_lag_s
        return orders.give_back(
            self.driver(account),
            name,
            names=names,
            known_ids=instance_ids,
            ordered_at=ordered_at,
            within_s=within_s,
            confirm=confirm,
        )
