"""Claiming a machine or a slice of it."""

from __future__ import annotations

import re
from contextlib import closing

from prefect_gpu.blocks.ssh import SshHost
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    HostKeyMismatch,
    InstanceFailed,
    InvalidRequest,
    ProviderError,
    Transient,
    Unconfirmed,
    Unsupported,
)
from prefect_gpu.providers.core.machine.channels import said
from prefect_gpu.providers.core.models import Instance, LaunchSpec, Offer, utc_now
from prefect_gpu.providers.ssh import listing
from prefect_gpu.providers.ssh.claims import WHOLE, checked_name, claim_program, moment, parse_claim
from prefect_gpu.providers.ssh.errors import HostDown, HostKeyAlarm, InUse, RunsNothing, because, out_of_reach
from prefect_gpu.providers.ssh.reach import Hosts

_PUBLIC_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]+={0,2}", re.ASCII)
_TIMEOUT_S = 90.0  # what a claim past its deadline left may take a while to end


def create(hosts: Hosts, offer: Offer, spec: LaunchSpec) -> Instance:
    """One order: the claim of an offer."""
    if offer.spot:
        raise Unsupported("own machines are not interrupted: there is no spot")
    host = hosts.host(offer.zone or "")
    gpus = str(offer.raw.get("gpus", WHOLE))
    seconds = int((spec.deadline - utc_now()).total_seconds())
    if seconds <= 0:
        raise InvalidRequest(f"the lease of {spec.name} is over already")
    return claim(hosts, host, name=spec.name, gpus=gpus, seconds=seconds, key=spec.client_public_key)


def claim(hosts: Hosts, host: SshHost, *, name: str, gpus: str, seconds: int, key: str) -> Instance:
    """A machine, or these GPUs of it, for so many seconds; `key` may log in as long."""
    if not _PUBLIC_KEY.fullmatch(key):
        raise InvalidRequest("the key of a lease is one line ssh-ed25519 AAAA...")
    program = claim_program(name=checked_name(name), gpus=gpus, seconds=seconds, key=key)
    try:
        connection = hosts.connect(host)
    except (AuthFailed, InvalidRequest):
        raise
    except HostKeyMismatch as mismatch:
        raise HostKeyAlarm(mismatch.message) from mismatch
    except ProviderError as down:
        raise HostDown(out_of_reach(host.name, down)) from down
    with closing(connection):
        try:
            done = hosts.execute_over(connection, host, program, timeout_s=_TIMEOUT_S)
        except RunsNothing as closed:
            raise HostDown(closed.message) from closed
        except Transient as lost:
            raise Unconfirmed(f"whether {host.name} was claimed is not known ({because(lost)})") from lost
    answer = done.stdout.decode(errors="replace").strip().rpartition("\n")[2].split()
    try:
        match answer:
            case ["claimed", deadline, created, held]:
                made = parse_claim(name, deadline, created, held)
                return listing.instance(host, hosts.endpoint(host), made)
            case ["taken", other]:
                raise InUse(f"{host.name} is in use by {checked_name(other)}, of another user")
            case ["taken", other, until]:
                raise InUse(f"{host.name} is in use by {checked_name(other)} until {moment(until):%Y-%m-%d %H:%M} UTC")
            case _:
                raise InstanceFailed(f"{host.name} cannot be claimed: {said(done.stderr) or f'exit {done.exit_code}'}")
    except (ValueError, ProviderError) as error:
        if isinstance(error, InUse | InstanceFailed):
            raise
        raise Unconfirmed(f"{host.name} answers a claim with what cannot be read: {said(' '.join(answer))!r}") from None
