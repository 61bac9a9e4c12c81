"""When a rented machine powers itself off: by what it has lived, whatever its calendar says, over restarts too."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from prefect_gpu.providers.core.models import LaunchSpec
from prefect_gpu.providers.core.toolkit import cloud_init

LASTS, BOOTS, EVERY = 7200, 900, 300  # seconds: the lease, the boot deadline, and between two looks here
ORDERED = datetime(2030, 1, 1, 12, tzinfo=UTC)
DAY, HOUR = 86_400, 3600
SINCE_1970 = -int(ORDERED.timestamp())
Skew = Callable[["Vm"], int]


class Vm:
    """A machine that was ordered at 0 and has been up since 120 s later; `skew`: by how much its calendar is ahead."""

    def __init__(self, folder: Path, skew: Skew) -> None:
        self.folder, self.skew = folder, skew
        self.now, self.boots, self.is_off = 0, 0, False
        spec = LaunchSpec(
            name="a",
            deadline=ORDERED + timedelta(seconds=LASTS),
            lasts_s=LASTS,
            boots_s=BOOTS,
            client_public_key="ssh-ed25519 A",
        )
        files = yaml.safe_load(cloud_init.user_data(spec, powers_off=True))["write_files"]
        (script,) = [file["content"] for file in files if file["path"].endswith("/lease")]
        self.state = folder / "var" / "lease"
        self.script = script.replace("/var/lib/prefect-gpu/lease", str(self.state)).replace("/proc", str(folder))
        (folder / "sys/kernel/random").mkdir(parents=True)
        (folder / "date").write_text(f"#!/bin/sh\n[ $* = +%s ] && cat {folder}/today\n")
        (folder / "systemctl").write_text(f'#!/bin/sh\n[ "$*" = "poweroff --force" ] && echo off >{folder}/off\n')
        for command in ("date", "systemctl"):
            (folder / command).chmod(0o755)
        self.boot(after_s=120)

    @property
    def up(self) -> int:
        return self.now - self.booted

    def boot(self, after_s: int) -> None:
        self.now += after_s
        self.booted, self.boots = self.now, self.boots + 1
        (self.folder / "sys/kernel/random/boot_id").write_text(f"boot-{self.boots}\n")

    def lives(self, seconds: int) -> None:
        """For so long, or until it powers itself off."""
        end = self.now + seconds
        while self.now < end and not self.is_off:
            self.now += EVERY
            (self.folder / "uptime").write_text(f"{self.up}.50 1.00\n")
            (self.folder / "today").write_text(f"{int(ORDERED.timestamp()) + self.now + self.skew(self)}\n")
            path = {"PATH": f"{self.folder}:{os.environ['PATH']}"}
            done = subprocess.run(["/bin/sh", "-c", self.script], env=path, capture_output=True, text=True, check=False)
            assert not done.stderr, done.stderr
            self.is_off = (self.folder / "off").exists()


def right(vm: Vm) -> int:
    return 0


def corrected(skew: int) -> Skew:
    """Wrong for five minutes after each boot, until the network's time is heard."""
    return lambda vm: skew if vm.up <= 300 else 0


def steps(skew: int) -> Skew:
    """From the middle of the lease on."""
    return lambda vm: skew if vm.now > LASTS // 2 else 0


@pytest.mark.parametrize(
    ("skew", "early", "late"),
    [
        pytest.param(right, 0, 0, id="right"),
        pytest.param(corrected(SINCE_1970), 0, 0, id="1970, then right"),
        pytest.param(corrected(DAY), 0, 0, id="tomorrow, then right"),
        pytest.param(steps(HOUR), 0, 0, id="steps an hour forward"),
        pytest.param(steps(DAY), 0, 0, id="steps a day forward"),
        pytest.param(steps(-HOUR), 0, 0, id="steps an hour back"),
        # What it never learns is how long it booted: it takes that as nothing, or as the most that it may take.
        pytest.param(lambda _: SINCE_1970, 0, 120, id="1970 for ever"),
        pytest.param(lambda _: DAY, BOOTS - 120, 0, id="tomorrow for ever"),
    ],
)
def test_a_wrong_calendar_neither_ends_a_machine_early_nor_lets_it_live_on(
    tmp_path: Path, skew: Skew, early: int, late: int
) -> None:
    vm = Vm(tmp_path, skew)
    vm.lives(3 * LASTS)
    assert LASTS - early <= vm.now <= LASTS + late + EVERY
    assert vm.is_off


@pytest.mark.parametrize(
    ("skew", "lived", "late"),
    [
        pytest.param(right, 300, 0, id="right"),
        pytest.param(right, 2400, 0, id="right, later"),
        pytest.param(corrected(SINCE_1970), 300, 0, id="1970, then right"),
        pytest.param(corrected(SINCE_1970), 2400, 0, id="1970, then right, later"),
        pytest.param(corrected(DAY), 2400, 0, id="tomorrow, then right, later"),
        # Nothing that was said before the restart was right: what it was away may be a leap back.
        pytest.param(corrected(DAY), 300, 120 + 1800, id="tomorrow, then right"),
    ],
)
def test_what_it_lived_before_a_restart_and_how_long_it_was_away_count(
    tmp_path: Path, skew: Skew, lived: int, late: int
) -> None:
    vm = Vm(tmp_path, skew)
    vm.lives(lived)
    vm.boot(after_s=1800)
    vm.lives(3 * LASTS)
    assert vm.is_off
    assert LASTS <= vm.now <= LASTS + late + EVERY


def test_a_calendar_that_is_always_a_day_ahead_ends_nothing_early_after_a_restart_either(tmp_path: Path) -> None:
    vm = Vm(tmp_path, lambda _: DAY)
    vm.lives(2400)
    vm.boot(after_s=60)
    vm.lives(3 * LASTS)
    assert vm.is_off
    assert vm.now >= LASTS - BOOTS


def test_one_that_was_switched_off_until_its_lease_was_over_ends_ten_minutes_after_it_is_back(tmp_path: Path) -> None:
    vm = Vm(tmp_path, corrected(SINCE_1970))
    vm.lives(2400)
    vm.boot(after_s=2 * LASTS)
    vm.lives(3 * LASTS)
    assert vm.is_off
    assert vm.up <= 600


@pytest.mark.parametrize("left", ["", "boot-1 0 x no 5 6"])
def test_what_cannot_be_read_is_as_if_it_had_just_booted_and_the_calendar_is_asked_again(
    tmp_path: Path, left: str
) -> None:
    vm = Vm(tmp_path, right)
    vm.lives(2400)
    vm.state.write_text(left)
    vm.lives(3 * LASTS)
    assert vm.is_off
    assert LASTS <= vm.now <= LASTS + BOOTS + EVERY


def test_a_restart_every_ten_minutes_does_not_keep_it(tmp_path: Path) -> None:
    vm = Vm(tmp_path, right)
    for _ in range(100):
        vm.lives(EVERY)
        if vm.is_off:
            break
        vm.boot(after_s=0)
    assert vm.is_off
    assert LASTS <= vm.now <= LASTS + 120 + EVERY
