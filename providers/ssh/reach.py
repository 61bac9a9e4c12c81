"""Ways onto the machines of a block: who logs in where, what is known of those that do not answer, all of them asked at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Final, TypeVar

from prefect_gpu.blocks.network import Hop
from prefect_gpu.blocks.ssh import SshHost, SshMachines
from prefect_gpu.providers.core.contract import Connection
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    HostKeyMismatch,
    InstanceFailed,
    InvalidRequest,
    LinkLost,
    LoginRefused,
    ProviderError,
    Transient,
)
from prefect_gpu.providers.core.machine.channels import said
from prefect_gpu.providers.core.machine.host_keys import FirstUse
from prefect_gpu.providers.core.machine.shell import Finished, run_script
from prefect_gpu.providers.core.models import KeyPair, SshEndpoint, SshJump
from prefect_gpu.providers.ssh.errors import LinkBroke, RunsNothing, out_of_reach
from prefect_gpu.providers.ssh.silence import Listening, silent

T = TypeVar("T")

FIRST_WORD_S: Final = 15.0  # a slow .bashrc takes 1 s, one on a slow network file system more

_AT_ONCE = 64


class Hosts:
    """The machines of one block."""

    def __init__(self, credentials: SshMachines) -> None:
        self.credentials = credentials
        self.first_use = FirstUse()

    def host(self, name: str) -> SshHost:
        """The machine of that name; InvalidRequest where the block has none."""
        for host in self.credentials.hosts:
            if host.name == name:
                return host
        raise InvalidRequest(
            f"no machine of the block is called {name!r}: put it back, so that what it holds can be given back"
        )

    def endpoint(self, host: SshHost) -> SshEndpoint:
        """Where and as whom to log in, with the jump host on the way."""
        jump = host.jump or self.credentials.jump
        if jump is None:
            return SshEndpoint(host=host.address, port=host.port, user=host.user, host_key=host.host_key)
        key = self.credentials.key(jump.key)
        if key is None:
            raise AuthFailed(f"no private key logs in to the jump host {jump.address}: give it one")
        hop = SshJump(host=jump.address, port=jump.port, user=jump.user, private_key=key, host_key=jump.host_key)
        return SshEndpoint(host=host.address, port=host.port, user=host.user, host_key=host.host_key, jump=hop)

    def pinned_jump(self, jump: Hop) -> str | None:
        """The host key that a jump host showed."""
        return self.first_use.pinned(f"{jump.user}@{jump.address}:{jump.port}")

    def connect(self, host: SshHost, key: KeyPair | None = None) -> Connection:
        """A connection by this key, else the block's. Transient where none comes about, AuthFailed where the key is refused."""
        if key is None:
            private = self.credentials.key(host.key)
            if private is None:
                raise AuthFailed(f"no private key logs in to {host.name}: give the block one")
            key = KeyPair(private=private, public="")
        endpoint = self.endpoint(host)
        patience_s = silent.patience(endpoint, self.credentials.timeout_s)
        try:
            connection = self.first_use.connect(host.name, endpoint, key, timeout_s=patience_s)
        except LoginRefused as refused:  # no boot to wait for: the machine is up and does not know the key
            raise AuthFailed(refused.message) from refused
        except HostKeyMismatch as mismatch:
            raise HostKeyMismatch(out_of_reach(host.name, mismatch)) from mismatch
        except Transient as down:
            silent.remember(endpoint)
            raise Transient(out_of_reach(host.name, down)) from down
        return connection

    def execute(self, host: SshHost, script: str, *, timeout_s: float = 40.0) -> Finished:
        """What a script did there. Transient where it did not come to its end, and why."""
        with closing(self.connect(host)) as connection:
            return self.execute_over(connection, host, script, timeout_s=timeout_s)

    def execute_over(self, connection: Connection, host: SshHost, script: str, *, timeout_s: float = 40.0) -> Finished:
        """The same over an open connection."""
        endpoint = self.endpoint(host)
        listening = Listening(connection, silent.patience(endpoint, FIRST_WORD_S))
        lets_in = f"{host.name} lets the user {host.user} log in"
        try:
            done = run_script(listening, script, timeout_s=timeout_s)
        except (LinkLost, InstanceFailed) as trouble:
            if listening.is_mute:
                silent.remember(endpoint)
                words = f": it says {listening.words!r}" if listening.words else ""
                raise Transient(f"{lets_in} and runs nothing for {listening.patience_s:.0f} s{words}") from trouble
            if not listening.has_spoken and connection.is_alive():
                raise RunsNothing(
                    f"{lets_in} and runs no commands: {listening.end or said(trouble.message)}"
                ) from trouble
            broke = LinkBroke if isinstance(trouble, LinkLost) else Transient
            raise broke(f"{host.name}: {said(trouble.message)}") from trouble
        if not listening.has_spoken:
            raise RunsNothing(
                f"{lets_in} and runs no commands (login shell, ForceCommand?): {listening.end or f'exit {done.exit_code}'}"
            )
        silent.forget(endpoint)
        return done

    def everywhere(self, ask: Callable[[SshHost], T]) -> list[tuple[SshHost, T | ProviderError]]:
        """What each machine answers, or its error: whatever one of them does, the others are heard."""

        def answer(host: SshHost) -> T | ProviderError:
            try:
                return ask(host)
            except ProviderError as failure:
                return failure
            except Exception as oddity:  # noqa: BLE001 - one machine's oddity is no reason not to see the others
                return Transient(f"{host.name} cannot be asked: {type(oddity).__name__}: {said(oddity)}")

        hosts = self.credentials.hosts
        with ThreadPoolExecutor(min(_AT_ONCE, len(hosts)), thread_name_prefix="prefect-gpu ssh") as pool:
            return list(zip(hosts, pool.map(answer, hosts), strict=True))
