"""What a seed does: the run that it starts, what its clouds do to it, who dies at which point. The number alone determines all of it.

Seeds run in batches of `BATCH` on the same server, workers and clouds; what befalls all of them (the server dies, a worker dies, a listing fails) is
the batch's, which the seed's number determines as well.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

BATCH = 20
SPAN_S = 45.0  # in which everything begins that befalls a batch

PROVIDERS = ("vultr", "verda", "lambdalabs", "tensordock")  # whose names the fake clouds bear
SPOT = "tensordock"

Do = Literal["kill", "stop", "stop and give away", "terminate"]

# What a process of ours is about to do, or has just done, where it dies. "api" is any request to Prefect's API.
POINTS = (
    *("cloud account", "cloud offers", "cloud create", "cloud get", "cloud list", "cloud terminate"),
    *("record", "job log", "machine", "api"),
)


@dataclass(frozen=True)
class Fault:
    """What a cloud does to the calls about this run, or to what it orders."""

    provider: str
    on: str
    what: str
    times: int = 1
    seconds: float = 0.0


@dataclass(frozen=True)
class Act:
    """What happens to the process of a run: at a point that it comes to the nth time, before or after it."""

    execution: int  # of the run: the first process is 1
    point: str
    nth: int
    side: Literal["before", "after"]
    do: Do
    seconds: float = 0.0  # that it is stopped


@dataclass(frozen=True)
class Event:
    """What befalls a whole batch, so many seconds after it began."""

    at_s: float
    what: Literal["server", "worker dies", "worker is replaced", "fault"]
    seconds: float = 0.0  # until it is there again
    which: int = 0  # worker
    fault: Fault | None = None


@dataclass(frozen=True)
class Schedule:
    """Everything about one seed."""

    seed: int
    starts_at_s: float
    providers: tuple[str, ...]
    spot: bool
    resume: bool
    lines: int
    pause_s: float  # between two lines of the job
    cancel_at_s: float | None  # after its job began to speak
    faults: tuple[Fault, ...]
    acts: tuple[Act, ...]

    @property
    def batch(self) -> int:
        return self.seed // BATCH


REFUSED = ("sold out", "over quota", "rate limited", "server error", "never sent", "no funds", "code nobody mapped")
RULES_OUT_MUCH = ("over quota", "no funds", "code nobody mapped")
UNANSWERED = ("lost", "late", "no id", "slow before", "slow after")
MACHINES = ("never runs", "fails at boot", "odd status", "twice", "leaves a disk", "ends late")
TAKEN_BACK = ("interrupted", "vanishes")
CALLS = ("rate limited", "server error", "never sent", "slow before", "slow after")
SECONDS = {"late": 2.0, "slow before": 3.0, "slow after": 3.0, "rate limited": 1.0, "ends late": 6.0}


def schedule(seed: int) -> Schedule:
    """The seed's own part."""
    dice = random.Random(f"chaos {seed}")
    spot = dice.random() < 0.25
    others = [name for name in PROVIDERS if name != SPOT]
    dice.shuffle(others)
    providers = (SPOT,) if spot else tuple(others[:2])
    resume = dice.random() >= 0.05
    cancel = dice.random() < 0.07
    return Schedule(
        seed=seed,
        starts_at_s=round(dice.uniform(0, 15), 1),
        providers=providers,
        spot=spot,
        resume=resume,
        lines=dice.choice((20, 40, 60, 2000)),
        pause_s=0.0 if dice.random() < 0.15 else 0.2,
        cancel_at_s=round(dice.uniform(0, 8), 1) if cancel else None,
        faults=tuple(_fault(dice, dice.choice((0, 0, 0, len(providers) - 1)), providers) for _ in range(_few(dice))),
        acts=_acts(dice),
    )


def events(batch: int) -> tuple[Event, ...]:
    """What befalls all seeds of a batch, in its order."""
    dice = random.Random(f"chaos batch {batch}")
    found: list[Event] = []
    if dice.random() < 0.6:
        found.append(Event(_when(dice), "server", round(dice.uniform(0, 15), 1)))
    if dice.random() < 0.5:
        found.append(Event(_when(dice), "worker dies", round(dice.uniform(0, 10), 1), dice.randrange(2)))
    if dice.random() < 0.3:
        found.append(Event(_when(dice), "worker is replaced", 0.0, dice.randrange(2)))
    for _ in range(dice.randrange(4)):
        provider, on = dice.choice(PROVIDERS[:3]), dice.choice(("list", "offers", "account"))
        what = dice.choice((*CALLS, "unread") if on == "list" else CALLS)
        fault = Fault(provider, on, what, dice.randint(1, 4), SECONDS.get(what, 0.0))
        found.append(Event(_when(dice), "fault", fault=fault))
    return tuple(sorted(found, key=lambda one: one.at_s))


def _when(dice: random.Random) -> float:
    return round(dice.uniform(5, SPAN_S), 1)


def _few(dice: random.Random) -> int:
    return dice.choices((0, 1, 2), (30, 40, 30))[0]


def _fault(dice: random.Random, which: int, providers: tuple[str, ...]) -> Fault:
    is_last = which == len(providers) - 1
    on = dice.choices(("create", "get", "terminate"), (60, 15, 25))[0]
    if on == "create":
        what = dice.choice(dice.choice((REFUSED, UNANSWERED, MACHINES, TAKEN_BACK)[: 4 if providers == (SPOT,) else 3]))
        if is_last and what in RULES_OUT_MUCH:
            what = "sold out"  # somebody has a machine for each run
    else:
        what = dice.choice((*CALLS, "lost") if on == "terminate" else CALLS)
    seconds = round(dice.uniform(4, 14), 1) if what in TAKEN_BACK else SECONDS.get(what, 0.0)
    times = dice.randint(1, 4) if on != "create" and what in CALLS else 1
    return Fault(providers[which], on, what, times, seconds)


def _acts(dice: random.Random) -> tuple[Act, ...]:
    acts: list[Act] = []
    for execution in range(1, 1 + dice.choices((0, 1, 2, 3), (20, 50, 20, 10))[0]):
        point = dice.choices(POINTS, (2, 2, 14, 6, 10, 10, 12, 12, 12, 20))[0]
        nth = {"api": dice.randint(1, 70), "job log": dice.randint(1, 12), "machine": dice.randint(1, 4)}.get(
            point, dice.choices((1, 2, 3), (70, 20, 10))[0]
        )
        do: Do = dice.choices(("kill", "stop", "stop and give away", "terminate"), (65, 10, 13, 12))[0]
        seconds = {"stop": dice.choice((4.0, 10.0, 10.0, 20.0)), "stop and give away": 25.0}.get(do, 0.0)
        acts.append(Act(execution, point, nth, dice.choice(("before", "after")), do, seconds))
    return tuple(acts)
