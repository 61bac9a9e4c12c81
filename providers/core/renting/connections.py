"""Ways to one provider's machines: its drivers by account, and verified connections by derived keys."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from prefect.blocks.core import Block
from pydantic import SecretStr

from prefect_gpu.blocks.realm import GpuRealm
from prefect_gpu.providers.core.contract import Connection, Provider
from prefect_gpu.providers.core.errors import HostKeyMismatch, InstanceFailed, NotFound, NotReady
from prefect_gpu.providers.core.machine import docker, keys
from prefect_gpu.providers.core.machine.job_end import RESTARTED
from prefect_gpu.providers.core.machine.jobs import Machine
from prefect_gpu.providers.core.machine.wrap import Wrap
from prefect_gpu.providers.core.models import Instance, JobSpec, Listing, SshEndpoint, SshJump
from prefect_gpu.providers.core.renting import accounts
from prefect_gpu.providers.core.renting.limits import Limits
from prefect_gpu.providers.core.toolkit import container_boot

if TYPE_CHECKING:
    from prefect_gpu.providers.core.machine.host_keys import FirstUse

C = TypeVar("C")

LOG_EVERY_S: Final = 2.0  # so often a machine's log is asked for its host key


class Connections(Generic[C]):
    """One provider's drivers and open connections in this process."""

    def __init__(self, driver: type[Provider[C]], credentials: type[Block] | None) -> None:
        self._driver_class = driver
        self._credentials_class = credentials
        self._capabilities = driver.capabilities
        self.drivers: dict[str, Provider[C]] = {}
        self._machines: dict[str, Machine] = {}
        self._jump_keys: dict[tuple[str, int, str], SecretStr] = {}
        self._told_keys: dict[str, str] = {}  # host keys that machines told by their logs
        self._logs_read: dict[str, float] = {}  # when
        self._first_use: FirstUse | None = None
        self._secret: bytes | None = None
        self._lock = threading.Lock()

    def driver(self, account: str = "default") -> Provider[C]:
        """The driver with the account's credentials; made once a process."""
        with self._lock:
            if account not in self.drivers:
                credentials = accounts.load(self._credentials_class, account) if self._credentials_class else None
                made = self._driver_class(credentials)  # pyright: ignore[reportArgumentType] - C is that block's type
                if self._capabilities.rate_limits:
                    Limits(self._driver_class.name, account, self._capabilities.rate_limits).apply(made)
                self.drivers[account] = made
            return self.drivers[account]

    def connect(self, instance: Instance, account: str = "default", *, timeout_s: float = 10.0) -> Connection:
        """A verified way onto the machine: by its derived keys over SSH, or by the provider's own channel.

        Raises NotReady while it does not answer as it should, LinkLost when a link breaks.
        """
        driver = self.driver(account)
        if self._capabilities.host_key == "channel":
            return driver.open_channel(instance)
        from prefect_gpu.providers.core.machine.host_keys import FirstUse  # paramiko takes 0.2 s to import

        if instance.ssh is None:
            raise InstanceFailed(f"{instance.name} has no SSH endpoint")
        with self._lock:
            first_use = self._first_use = self._first_use or FirstUse()
        secret = self.master_secret()
        client_key = keys.derive(secret, instance.name, "client")
        try:
            return first_use.connect(
                instance.name,
                self._with_jump_key(instance, instance.ssh, driver),
                client_key,
                instance.ssh.host_key or self._host_key(driver, instance, secret, client_key.public),
                may_pin=self._capabilities.host_key == "first_use",
                timeout_s=timeout_s,
            )
        except HostKeyMismatch as other:
            if self._capabilities.host_key != "by_logs" or not self._began_again(driver, instance, client_key.public):
                raise
            raise InstanceFailed(RESTARTED, category="lost") from other

    def machine(self, instance: Instance, account: str = "default") -> Machine:
        """The machine as jobs see it, connected to again by itself when the link is lost; one per name in this process."""
        with self._lock:
            if instance.name not in self._machines:
                self._machines[instance.name] = Machine(lambda: self.connect(instance, account), wrap=self._wrap)
            return self._machines[instance.name]

    def keep(self, instance: Instance, connection: Connection, account: str) -> None:
        """A connection that stands already is the one that the machine is used by."""
        with self._lock:
            self._machines[instance.name] = Machine(
                lambda: self.connect(instance, account), connection, wrap=self._wrap
            )

    def hang_up(self, name: str) -> None:
        """Close the connection to the machine of that name, if one is open."""
        with self._lock:
            machine = self._machines.pop(name, None)
            self._told_keys.pop(name, None)
            self._logs_read.pop(name, None)
        if machine is not None:
            machine.close()

    def master_secret(self) -> bytes:
        """What all keys are derived from; asked for once a process: a link that is lost while Prefect's API is down is mended too."""
        with self._lock:
            if self._secret is None:
                self._secret = GpuRealm.current().secret_bytes()
            return self._secret

    def without_secrets(self, instance: Instance) -> Instance:
        """The instance without the key of its jump host, which is remembered here: what a task returns may be stored."""
        ssh = instance.ssh
        if ssh is None or ssh.jump is None or not ssh.jump.private_key:
            return instance
        with self._lock:
            self._jump_keys[_place(ssh.jump)] = ssh.jump.private_key
        return instance.model_copy(update={"ssh": _with_key(ssh, ssh.jump, SecretStr(""))})

    def all_without_secrets(self, listing: Listing) -> Listing:
        """The same for what a listing holds."""
        return listing.model_copy(update={"instances": tuple(self.without_secrets(one) for one in listing.instances)})

    def _with_jump_key(self, instance: Instance, ssh: SshEndpoint, driver: Provider[C]) -> SshEndpoint:
        if ssh.jump is None or ssh.jump.private_key:
            return ssh
        with self._lock:
            known = self._jump_keys.get(_place(ssh.jump))
        if known is None:  # another process was told; the driver has it from the account's block
            fresh = driver.get_instance(instance.id)
            self.without_secrets(fresh)
            known = fresh.ssh.jump.private_key if fresh.ssh and fresh.ssh.jump else SecretStr("")
        return _with_key(ssh, ssh.jump, known)

    def _host_key(self, driver: Provider[C], instance: Instance, secret: bytes, client_key: str) -> str | None:
        """The only host key that is accepted; None where the first one seen is pinned."""
        if self._capabilities.host_key == "placed":
            return keys.derive(secret, instance.name, "host").public
        if self._capabilities.host_key != "by_logs":
            return None
        with self._lock:
            told = self._told_keys.get(instance.name)
        if told is None:
            try:
                log = self._log(driver, instance)
            except NotFound as early:  # by its id it may not be known there yet; whether it is gone is asked elsewhere
                raise NotReady(f"the machine's log is not there yet: {early.message}") from early
            told = container_boot.host_key_in(log, container_boot.nonce(client_key))
            if told is None and (failure := container_boot.failure_in(log)) is not None:
                raise InstanceFailed(failure, category="image")
            if told is None:
                raise NotReady("the machine's log does not show its host key yet")
            with self._lock:
                told = self._told_keys.setdefault(instance.name, told)
        return told

    def _began_again(self, driver: Provider[C], instance: Instance, client_key: str) -> bool:
        """Whether another host key is no alarm: the container was started again and made one anew, or it is gone and its address another's."""
        try:
            return container_boot.began_again(self._log(driver, instance), container_boot.nonce(client_key))
        except NotFound:
            return self._capabilities.not_found_proves_absence

    def _log(self, driver: Provider[C], instance: Instance) -> str:
        """The machine's log; empty where it was read just now: a machine that boots is connected to many times a second."""
        with self._lock:
            now, last = time.monotonic(), self._logs_read.get(instance.name, -LOG_EVERY_S)
            if now - last < LOG_EVERY_S:
                return ""
            self._logs_read[instance.name] = now
        return driver.read_log(instance)

    def _wrap(self, job: JobSpec) -> Wrap | None:
        return docker.in_docker(job) if job.image and self._capabilities.images == "docker" else None


def _place(jump: SshJump) -> tuple[str, int, str]:
    return jump.host, jump.port, jump.user


def _with_key(ssh: SshEndpoint, jump: SshJump, key: SecretStr) -> SshEndpoint:
    return ssh.model_copy(update={"jump": jump.model_copy(update={"private_key": key})})
