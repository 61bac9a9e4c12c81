"""What stands on a machine and the programs that work on it: claims, the keys they let in, the timers that end them.

On a machine, all of it the login user's own:

    /var/tmp/prefect-gpu-claims-<uid>/slot.<slot>     one line: name, deadline (epoch), start, user, GPUs, boot, deadline (uptime)
    /var/tmp/prefect-gpu-claims-<uid>/ending.<name>   the claim is being given back
    ~/.ssh/authorized_keys                            one line more, its comment is the name
    ~/.prefect-gpu/<name>.<try>/                      jobs (jobs.py)
    a process with PREFECT_GPU_LEASE=<name>:          gives the claim back at its deadline; its arguments tell other users

All that changes claims or keys holds a lock which the kernel frees when its holder dies. A machine's clock decides about its
claims, and its uptime until the next boot; a deadline arrives there as "so many seconds from now".
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from prefect_gpu.providers.core.errors import NotFound, Transient
from prefect_gpu.providers.core.lease import Lease
from prefect_gpu.providers.core.machine import scripts
from prefect_gpu.providers.core.machine.docker import NAME_LABEL
from prefect_gpu.providers.core.machine.jobs import DEFAULT_ROOT
from prefect_gpu.providers.core.machine.supervisor import end_all_function, locate

WHOLE: Final = "all"

_GRACE_S = 2  # between TERM and KILL for what a lease leaves
_EPOCH = re.compile(r"[0-9]{1,11}", re.ASCII)
_GPUS = re.compile(r"[A-Za-z0-9,./-]{1,4000}", re.ASCII)
_SLOT_LENGTH = 100


class Claim(NamedTuple):
    """Who may use what of a machine until when."""

    name: str
    deadline: datetime
    created: datetime
    gpus: str


def parse_claim(name: str, deadline: str, created: str, gpus: str) -> Claim:
    """A claim as a machine tells it; ValueError where it is not one."""
    if Lease.parse(name) is None or not _GPUS.fullmatch(gpus):
        raise ValueError("this is not a claim")
    return Claim(name, moment(deadline), moment(created), gpus)


def moment(epoch: str) -> datetime:
    """A time as a machine tells it; ValueError for anything else."""
    if not _EPOCH.fullmatch(epoch):
        raise ValueError("this is not a time")
    return datetime.fromtimestamp(int(epoch), UTC)


def checked_name(name: str) -> str:
    """The whole name of a lease; NotFound for anything else: nobody has that."""
    if Lease.parse(name) is None:
        raise NotFound(f"{name!r} is not the name of a lease")
    return name


def overlap(one: str, other: str) -> bool:
    """Whether two claims want the same GPU."""
    return WHOLE in (one, other) or bool(set(one.split(",")) & set(other.split(",")))


def slot_of(gpus: str) -> str:
    """What the file of a claim of these GPUs is called."""
    plain = re.sub(r"[^A-Za-z0-9,.-]", "-", gpus)
    return plain if len(plain) <= _SLOT_LENGTH else hashlib.sha256(gpus.encode()).hexdigest()


def unreadable(host: str, what: str) -> Transient:
    """The error of a machine that says what cannot be so."""
    return Transient(f"{host} says what cannot be read: {what[:100]!r}")


# --- programs ---------------------------------------------------------------------------------------------------------


def _text(*names: str) -> str:
    return scripts.text(*names, folder=Path(__file__).with_name("sh"))


def claim_program(*, name: str, gpus: str, seconds: int, key: str) -> str:
    """Claims a machine or a slice of it; tells `claimed DEADLINE CREATED GPUS` or `taken NAME [DEADLINE]`."""
    watch = _claims() + _forget() + _text("release", "timer")
    given = scripts.assigned(name=name, slot=slot_of(gpus), gpus=gpus, seconds=str(seconds), key=key, watch=watch)
    return given + _claims() + _forget() + _text("others", "claim")


def give_back_program(name: str) -> str:
    """Gives a claim back, with all that its owner left; tells `gone` or `ending`."""
    release = _claims() + _forget() + _text("release") + '\nrelease "$1"'
    return scripts.assigned(name=name, release=release) + _claims() + _root() + _text("give_back")


def survey_program(*, settled: bool) -> str:
    """Tells all that stands there; `settled`: a claim whose answer was lost may still be on its way, and is waited for."""
    return (
        _claims()
        + _root()
        + scripts.assigned(label=NAME_LABEL)
        + _text("others")
        + ("lock\nunlock\n" if settled else "own\n")
        + _text("survey")
    )


def facts_program() -> str:
    """Tells what the machine has, beside its GPUs; after `survey_program`."""
    return _text("facts")


def _claims() -> str:
    return _text("claims")


def _root() -> str:
    return locate(DEFAULT_ROOT, "none")


def _forget() -> str:
    return end_all_function(DEFAULT_ROOT, grace_s=_GRACE_S) + scripts.assigned(label=NAME_LABEL) + _text("forget")
