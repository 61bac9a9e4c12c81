"""What one machine says it holds: claims, what is being given back, what was left; as instances and leftovers."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from prefect_gpu.blocks.ssh import SshHost
from prefect_gpu.providers.core.errors import Transient
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.machine.channels import said
from prefect_gpu.providers.core.machine.shell import Finished
from prefect_gpu.providers.core.models import Instance, InstanceState, Leftover, SshEndpoint
from prefect_gpu.providers.ssh.claims import WHOLE, Claim, moment, overlap, parse_claim, unreadable

_MOST_LINES = 20_000
_MOST_NAMES = 2_000
_KINDS = frozenset({"key", "directory", "container"})


class Survey(NamedTuple):
    """What one machine said."""

    text: str
    claims: tuple[Claim, ...]
    others: tuple[tuple[str, str], ...]  # name and GPUs of what other users of the machine hold
    ending: frozenset[str]
    left: dict[str, str]  # name to kind
    booted: datetime
    now: datetime

    def holder(self, gpus: str) -> str | None:
        """Who has these GPUs, as the end of a sentence."""
        for claim in self.claims:
            if overlap(claim.gpus, gpus) and claim.deadline > self.now:
                return f"{claim.name} until {claim.deadline:%Y-%m-%d %H:%M} UTC"
        return next((f"{name}, of another user" for name, held in self.others if overlap(held, gpus)), None)


def parse(host: str, done: Finished) -> Survey:
    """What `survey_program` printed. Transient where it is not whole or cannot be so: that machine counts as unread."""
    text = done.stdout.decode(errors="replace")
    claims: list[Claim] = []
    others: list[tuple[str, str]] = []
    ending: set[str] = set()
    left: dict[str, str] = {}
    booted: datetime | None = None
    now: datetime | None = None
    lines = text.split("\n", _MOST_LINES)
    if len(lines) > _MOST_LINES:
        raise unreadable(host, f"{_MOST_LINES} lines and more")
    for line in lines:
        try:
            match line.split():
                case ["claim", name, deadline, created, gpus]:
                    claims.append(parse_claim(name, deadline, created, gpus))
                case ["other", name, gpus]:
                    others.append((parse_claim(name, "0", "0", gpus).name, gpus))
                case ["ending", name] if Lease.parse(name):
                    ending.add(name)
                case ["left", kind, name] if kind in _KINDS and Lease.parse(name):
                    left.setdefault(name, kind)
                case ["booted", epoch]:
                    booted = moment(epoch)
                case ["now", epoch]:
                    now = moment(epoch)
                case _:
                    pass
        except ValueError:
            raise unreadable(host, line) from None
    if now is None or booted is None:  # the script did not come to its end: what it told is not all
        raise Transient(f"{host} did not tell its claims: {said(done.stderr[-400:]) or f'exit {done.exit_code}'}")
    if len(claims) + len(others) + len(ending) + len(left) > _MOST_NAMES:
        raise unreadable(host, f"{_MOST_NAMES} claims and more")
    left |= dict.fromkeys(ending, "claim")
    return Survey(text, tuple(claims), tuple(others), frozenset(ending), left, booted, now)


def instance(host: SshHost, endpoint: SshEndpoint, claim: Claim, survey: Survey | None = None) -> Instance:
    """A claim as an instance; without a survey it was made just now."""
    is_ending = survey is not None and claim.name in survey.ending
    reason = ""
    if survey is not None and claim.created < survey.booted:
        reason = f"{host.name} was started again at {survey.booted:%Y-%m-%d %H:%M} UTC, which ended what ran there"
    # AMD's HIP reads it too, and a second variable would count twice.
    env = {} if claim.gpus == WHOLE else {"CUDA_VISIBLE_DEVICES": claim.gpus}
    return Instance(
        id=f"{host.name}/{claim.name}",
        name=claim.name,
        provider="ssh",
        state=InstanceState.TERMINATING if is_ending else InstanceState.RUNNING,
        region=host.region,
        zone=host.name,
        created_at=claim.created,
        ssh=endpoint,
        reason=reason,
        price=host.price,
        env=env,
    )


def leftovers(host: SshHost, survey: Survey, prefix: str) -> list[Leftover]:
    """What names of that prefix left without a claim."""
    claimed = {claim.name for claim in survey.claims}
    return [
        Leftover(id=f"{host.name}/{name}", kind=kind, name=name, region=host.region)
        for name, kind in survey.left.items()
        if name.startswith(prefix) and name not in claimed
    ]
