"""What a block's keys may do on its machines, tried by going the whole way once; and the host keys that its machines show."""

from __future__ import annotations

import secrets
import time
import uuid
from contextlib import closing
from datetime import timedelta

from prefect_gpu.blocks.ssh import SshHost, SshMachines
from prefect_gpu.providers.core.errors import AuthFailed, LoginRefused, ProviderError, Unconfirmed
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.machine.channels import said
from prefect_gpu.providers.core.machine.keys import derive, fingerprint
from prefect_gpu.providers.core.models import KeyPair, utc_now
from prefect_gpu.providers.ssh.claims import WHOLE
from prefect_gpu.providers.ssh.ending import give_back
from prefect_gpu.providers.ssh.errors import InUse, because
from prefect_gpu.providers.ssh.order import claim
from prefect_gpu.providers.ssh.reach import Hosts

_CHECK_REALM = "chck"  # of no Prefect server
_CHECK_S = 120
_GONE_WITHIN_S = 20.0


def missing(hosts: Hosts) -> list[str]:
    """What stands in the way of a job on each machine: claim it, log in by the key of the claim, run a command, give it back."""
    answers = hosts.everywhere(lambda host: _whole_way(hosts, host))
    problems = [
        f"{host.name}: {because(answer) if isinstance(answer, ProviderError) else answer}"
        for host, answer in answers
        if answer
    ]
    if all(isinstance(answer, AuthFailed) for _, answer in answers):
        raise AuthFailed("; ".join(problems))
    return problems


def _whole_way(hosts: Hosts, host: SshHost) -> str | None:
    deadline = utc_now() + timedelta(seconds=_CHECK_S)
    name = Lease(realm=_CHECK_REALM, run_id=uuid.uuid4(), deadline=deadline, run_count=0, attempt=0).name
    key = derive(secrets.token_bytes(32), name, "client")
    taken: InUse | None = None
    for gpus in host.gpu_slices or (WHOLE,):
        try:
            claim(hosts, host, name=name, gpus=gpus, seconds=_CHECK_S, key=key.public)
            break
        except InUse as used:
            taken = used
        except Unconfirmed:
            _gone(hosts, host, name)
            raise
    else:
        return f"{because(taken)}, so a claim was not tried" if taken else None
    problem = ""
    try:
        problem = _login(hosts, host, key)
    finally:
        is_gone = _gone(hosts, host, name)
    return problem or (None if is_gone else f"it does not end a claim within {_GONE_WITHIN_S:.0f} s")


def _login(hosts: Hosts, host: SshHost, key: KeyPair) -> str:
    """What keeps a job from running there, now that the key of its claim may log in; empty where nothing does."""
    try:
        with closing(hosts.connect(host, key)) as connection:
            done = hosts.execute_over(connection, host, "echo it runs")
            return "" if done.exit_code == 0 else f"a command there ends with {said(done.problem)}"
    except AuthFailed as refused:
        if not isinstance(refused.__cause__, LoginRefused):
            raise
        return (
            f"it refuses a key that was added to ~/.ssh/authorized_keys of the user {host.user}, so no job could log in: "
            "let AuthorizedKeysFile in its sshd_config name .ssh/authorized_keys"
        )


def _gone(hosts: Hosts, host: SshHost, name: str) -> bool:
    until = time.monotonic() + _GONE_WITHIN_S
    while not (is_gone := give_back(hosts, host, name)) and time.monotonic() < until:
        time.sleep(0.2)
    return is_gone


def with_host_keys(hosts: Hosts) -> tuple[SshMachines, list[str]]:
    """The block with the host keys that its machines show, and a line about each that is new, for a person to compare.

    Machines whose key the block knows are left as they are, and so are those that do not answer.
    """
    block = hosts.credentials
    hosts.everywhere(lambda host: hosts.connect(host).close())
    told: list[str] = []
    named: list[SshHost] = []
    for host in block.hosts:
        updates: dict[str, object] = {}
        shown = hosts.first_use.pinned(host.name)
        if host.host_key is None and shown:
            updates["host_key"] = shown
            told.append(_told(host.name, shown))
        if host.jump is not None and host.jump.host_key is None and (shown := hosts.pinned_jump(host.jump)):
            updates["jump"] = host.jump.model_copy(update={"host_key": shown})
            told.append(_told(f"the jump host {host.jump.address}", shown))
        named.append(host.model_copy(update=updates))
    changes: dict[str, object] = {"hosts": named}
    if block.jump is not None and block.jump.host_key is None and (shown := hosts.pinned_jump(block.jump)):
        changes["jump"] = block.jump.model_copy(update={"host_key": shown})
        told.append(_told(f"the jump host {block.jump.address}", shown))
    return block.model_copy(update=changes), list(dict.fromkeys(told))


def _told(who: str, shown: str) -> str:
    kind = shown.split(maxsplit=1)[0].removeprefix("ssh-")
    return f"{who} shows the host key {fingerprint(shown)} ({kind}): from now on no other is accepted"
