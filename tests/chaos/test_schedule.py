"""A seed's number determines everything that it does, and every kind of fault comes to pass in the seeds that are run."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

from tests.chaos.__main__ import seeds_of
from tests.chaos.schedule import (
    CALLS,
    MACHINES,
    POINTS,
    PROVIDERS,
    REFUSED,
    SPOT,
    TAKEN_BACK,
    UNANSWERED,
    events,
    schedule,
)
from tests.stack import ROOT

SEEDS = range(300)


def test_the_same_seed_ten_times_is_the_same_schedule_in_any_process() -> None:
    program = "from tests.chaos.schedule import BATCH, events, schedule\nprint([(schedule(n), events(n // BATCH)) for n in range(300)])"
    here = str([(schedule(number), events(schedule(number).batch)) for number in SEEDS])
    for _ in range(9):
        assert str([(schedule(number), events(schedule(number).batch)) for number in SEEDS]) == here
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert told.stdout.strip() == here


def test_the_seeds_differ() -> None:
    assert len({(schedule(number).faults, schedule(number).acts, schedule(number).lines) for number in SEEDS}) > 250


def test_every_fault_every_point_and_every_way_to_die_is_among_them() -> None:
    faults = Counter(fault.what for number in SEEDS for fault in schedule(number).faults)
    assert set(faults) >= {*REFUSED, *UNANSWERED, *MACHINES, *TAKEN_BACK, *CALLS}
    acts = [act for number in SEEDS for act in schedule(number).acts]
    assert {act.point for act in acts} == set(POINTS)
    assert {act.do for act in acts} == {"kill", "stop", "stop and give away", "terminate"}
    befallen = {event.what for batch in range(15) for event in events(batch)}
    assert befallen == {"server", "worker dies", "worker is replaced", "fault"}


def test_no_seed_asks_for_what_cannot_be_had() -> None:
    for number in SEEDS:
        one = schedule(number)
        assert one.providers == (SPOT,) if one.spot else SPOT not in one.providers
        assert set(one.providers) <= set(PROVIDERS)
        assert all(fault.provider in one.providers for fault in one.faults)
        assert (
            len(one.acts) + sum(event.what.startswith("worker") for event in events(one.batch)) <= 5
        )  # so often it is resumed


def test_seeds_are_written_as_ranges() -> None:
    assert seeds_of("0-2,7,9-10") == [0, 1, 2, 7, 9, 10]
