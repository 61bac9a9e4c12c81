"""Whoever was first on a shared machine, and whatever was put there for us to find, gets nothing of ours done to other files."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from prefect_gpu.blocks.ssh import SshHost
from prefect_gpu.providers.core.errors import InstanceFailed, ProviderError, Transient
from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.models import Availability, InstanceState
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.ssh.driver import Ssh
from prefect_gpu.providers.ssh.errors import InUse
from tests.conformance import MASTER_SECRET, launch_spec, lease_name
from tests.fakes.own_machines import claim, kill_timers, needs_machines, start, wait_until
from tests.fakes.sshd_hosts import ADMIN, SshdHost, block

pytestmark = needs_machines

STRANGER = 4242  # the user `worker` of each machine
TEAM = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHdr6TyVSdtHfm/7MFJ8wVkTfxl4kJh6WjDcqPzYrZ1o"


def planted(host: SshdHost) -> Path:
    """The folder of the first version's claims, made by somebody else before anybody of ours came."""
    host.shared_claims.mkdir(mode=0o777)
    os.chown(host.shared_claims, STRANGER, STRANGER)
    return host.shared_claims


def live(name: str, gpus: str = "all") -> str:
    return f"{name} {int(time.time()) + 3600} {int(time.time())} mallory {gpus}\n"


def test_planted_links_are_followed_by_nothing(one: SshdHost) -> None:
    folder = planted(one)
    driver, name = Ssh(block(one)), lease_name()
    targets = [one.folder / target for target in ("lock-target", "ending-target", "slot-target")]
    targets[1].write_text("kept")
    (folder / "lock").symlink_to(targets[0])
    (folder / f"ending.{name}").symlink_to(targets[1])
    (folder / "slot.all").symlink_to(targets[2])
    held = claim(driver, name)
    driver.terminate_instance(held.id)
    wait_until("it is free", lambda: not driver.list_instances(name).instances)
    assert [target.exists() for target in targets] == [False, True, False]
    assert targets[1].read_text() == "kept"
    assert len(list(folder.iterdir())) == 3


def test_a_planted_claim_deletes_no_line_among_the_keys_and_holds_nothing(one: SshdHost) -> None:
    folder = planted(one)
    team = f"{ADMIN.public} the team\n{TEAM} e\n# a comment with pg- in it\n{TEAM} {lease_name()}x\n"
    keys = one.home / ".ssh" / "authorized_keys"
    keys.write_text(team)
    for slot, name in {"all": "e", "0": "the", "1": "team", "2": lease_name()}.items():
        (folder / f"slot.{slot}").write_text(f"{name} 1 1 mallory all\n")
        os.chown(folder / f"slot.{slot}", STRANGER, STRANGER)
    (folder / "slot.3").write_text(live(lease_name()))
    os.chown(folder / "slot.3", STRANGER, STRANGER)
    driver = Ssh(block(one))
    assert driver.list_instances("").instances == ()
    held = claim(driver)
    driver.terminate_instance(held.id)
    wait_until("it is free", lambda: not driver.list_instances(held.name).instances)
    assert keys.read_text() == team


@pytest.mark.parametrize("how", ["link", "another's", "open", "file"])
def test_a_claims_folder_that_is_not_ours_alone_is_refused_and_left_as_it_is(one: SshdHost, how: str) -> None:
    elsewhere = one.folder / "elsewhere"
    elsewhere.mkdir(mode=0o700, exist_ok=True)
    if how == "link":
        one.claims.symlink_to(elsewhere)
    elif how == "file":
        one.claims.touch()
    else:
        one.claims.mkdir()
        one.claims.chmod(0o777 if how == "open" else 0o700)
        os.chown(one.claims, STRANGER if how == "another's" else 0, 0)
    driver = Ssh(block(one))
    (offer,) = driver.fetch_offers(Requirements())
    assert offer.availability is Availability.UNAVAILABLE
    assert "is not a directory of the user root alone" in str(offer.unavailable_because)
    with pytest.raises(ProviderError, match="remove it"):
        claim(driver)
    with pytest.raises(Transient, match="remove it"):
        driver.terminate_instance(f"m0/{lease_name()}")
    assert "remove it" in driver.list_instances("pg-").incomplete[0].reason
    assert list(elsewhere.iterdir()) == []


def test_the_folder_is_the_login_user_s_own_and_nobody_else_s(one: SshdHost) -> None:
    claim(Ssh(block(one)))
    told = one.claims.lstat()
    assert (stat.S_IMODE(told.st_mode), told.st_uid) == (0o700, 0)
    assert all(stat.S_IMODE(path.lstat().st_mode) == 0o600 for path in one.claims.iterdir())


@pytest.mark.parametrize(
    "line",
    [
        "{name}x {later} 1 root all",
        "pg-short {later} 1 root all",
        "{name} 9999999999999999999999 1 root all",
        "{name} 0{later} 1 root all",
        "{name} {later} $(touch /pwned) root all",
        "{name} {later} 1 root a[$(touch/pwned)]",
        "{name} {later} 1 root",
        "x" * 10_000,
        "",
    ],
)
def test_what_is_not_a_whole_claim_is_not_believed(one: SshdHost, line: str) -> None:
    one.claims.mkdir(mode=0o700)
    (one.claims / "slot.7").write_text(line.format(name=lease_name(), later=int(time.time()) + 3600) + "\n")
    driver = Ssh(block(one))
    listing = driver.list_instances("")
    assert (listing.instances, listing.incomplete) == ((), ())
    claim(driver)


def test_links_and_pipes_among_the_claims_are_not_read(one: SshdHost) -> None:
    one.claims.mkdir(mode=0o700)
    real = one.folder / "real"
    real.write_text(live(lease_name()))
    (one.claims / "slot.link").symlink_to(real)
    os.mkfifo(one.claims / "slot.pipe")
    driver = Ssh(block(one))
    assert driver.list_instances("").instances == ()
    claim(driver)
    assert real.exists()


def test_a_claim_of_the_first_version_still_holds_and_is_given_back(one: SshdHost) -> None:
    one.shared_claims.mkdir(mode=0o1777)
    (one.shared_claims / "lock").touch()
    name = lease_name()
    old = one.shared_claims / "slot.all"
    old.write_text(f"{name} {int(time.time()) + 3600} {int(time.time())} root all\n")
    with (one.home / ".ssh" / "authorized_keys").open("a") as keys:
        keys.write(f"{derive(MASTER_SECRET, name, 'client').public} {name}\n")
    driver = Ssh(block(one))
    (held,) = driver.list_instances("pg-").instances
    assert (held.name, held.state) == (name, InstanceState.RUNNING)
    with pytest.raises(InUse, match=name):
        claim(driver)
    start(held, "sleep 1021")
    driver.terminate_instance(held.id)
    wait_until("it is free", lambda: not driver.list_instances(name).instances)
    assert not old.exists()
    assert one.processes("sleep\x001021") == []
    assert name not in (one.home / ".ssh" / "authorized_keys").read_text()


def test_a_claim_of_the_first_version_past_its_deadline_is_taken_over(one: SshdHost) -> None:
    one.shared_claims.mkdir(mode=0o1777)
    old, name = one.shared_claims / "slot.all", lease_name()
    old.write_text(f"{name} {int(time.time()) - 60} {int(time.time()) - 600} root all\n")
    held = claim(Ssh(block(one)))
    assert held.state is InstanceState.RUNNING
    assert not old.exists()


def test_another_user_s_process_that_bears_a_lease_is_not_ended_and_stops_no_timer(one: SshdHost) -> None:
    driver, name = Ssh(block(one)), lease_name()
    one.run(f"PREFECT_GPU_LEASE={name}: setpriv --reuid 4242 --clear-groups sleep 1031 >/dev/null 2>&1 </dev/null &")
    wait_until("it runs", lambda: one.processes("sleep\x001031"))
    held = claim(driver, name)
    assert len(one.processes(f"PREFECT_GPU_LEASE={name}:")) >= 2  # theirs, and our timer
    driver.terminate_instance(held.id)
    wait_until("it is free", lambda: not driver.list_instances(name).instances)
    assert one.processes("sleep\x001031")
    kill_timers(one)


def test_a_slice_of_many_uuids_has_a_file_of_its_own(one: SshdHost) -> None:
    many = ",".join(f"GPU-{number:08d}-0000-0000-0000-000000000000" for number in range(16))
    driver = Ssh(block(SshHost(**{**one.described().model_dump(), "gpu_slices": (many,)})))
    offer = driver.fetch_offers(Requirements())[0]
    held = driver.create_instance(offer, launch_spec(driver, lease_name()))
    assert held.env == {"CUDA_VISIBLE_DEVICES": many}
    with pytest.raises(InUse):
        driver.create_instance(offer, launch_spec(driver, lease_name()))


def test_a_clock_that_is_set_forward_ends_no_claim(one: SshdHost) -> None:
    driver = Ssh(block(one))
    held = claim(driver)
    one.install("date", 'exec /bin/date -d "+3 days" "$@"')
    with pytest.raises((InUse, InstanceFailed)):
        claim(driver)
    assert driver.get_instance(held.id).state is InstanceState.RUNNING
