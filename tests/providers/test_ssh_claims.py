"""Claims on own machines exclude each other, end, and leave nothing, whatever happens to workers and machines."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from prefect_gpu.providers.core.errors import (
    NoCapacity,
    NotFound,
    ProviderError,
)
from prefect_gpu.providers.core.machine.keys import derive
from prefect_gpu.providers.core.models import Availability, Instance, InstanceState, utc_now
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.ssh.driver import Ssh
from prefect_gpu.providers.ssh.errors import InUse
from tests.conformance import MASTER_SECRET, launch_spec, lease_name
from tests.fakes.own_machines import (
    TWO_GPUS,
    age,
    claim,
    kill_timers,
    machine_of,
    needs_machines,
    offer_of,
    seen_of,
    start,
    wait_until,
)
from tests.fakes.sshd_hosts import ADMIN, SshdHost, block

pytestmark = needs_machines


def test_of_many_workers_that_want_one_machine_exactly_one_gets_it(one: SshdHost) -> None:
    offer = offer_of(Ssh(block(one)))
    for _ in range(4):
        together = threading.Barrier(8)
        names = [lease_name() for _ in range(8)]

        def order(name: str, together: threading.Barrier = together) -> Instance | ProviderError:
            driver = Ssh(block(one))  # each worker has its own, as on a machine of its own
            spec = launch_spec(driver, name)
            together.wait()
            try:
                return driver.create_instance(offer, spec)
            except ProviderError as refused:
                return refused

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(order, names))
        (winner,) = (answer for answer in answers if isinstance(answer, Instance))
        losers = [answer for answer in answers if not isinstance(answer, Instance)]
        assert all(isinstance(loser, InUse) and winner.name in loser.message for loser in losers)
        Ssh(block(one)).terminate_instance(winner.id)


def test_a_claim_past_its_deadline_is_taken_over_and_what_its_owner_left_is_dead(one: SshdHost) -> None:
    driver = Ssh(block(one))
    old = claim(driver)
    start(old, "trap '' TERM; sleep 1001 & while :; do sleep 1002; done")
    wait_until("the job runs", lambda: one.processes("sleep\x001001"))
    kill_timers(one)  # as after a reboot: nobody on the machine ends it
    age(one)
    new = claim(driver)
    assert new.state is InstanceState.RUNNING
    assert one.processes("sleep\x00100") == []
    assert seen_of(one, old.name) == []
    assert not list(one.home.glob(f".prefect-gpu/{old.name}*"))
    keys = (one.home / ".ssh" / "authorized_keys").read_text()
    assert old.name not in keys
    assert new.name in keys
    assert [found.name for found in driver.list_instances("pg-").instances] == [new.name]
    with pytest.raises(NotFound):
        driver.get_instance(old.id)


def test_at_its_deadline_a_claim_ends_by_itself_and_its_job_too(one: SshdHost) -> None:
    driver = Ssh(block(one))
    name = lease_name()
    spec = launch_spec(driver, name, deadline=utc_now() + timedelta(seconds=4))
    held = driver.create_instance(offer_of(driver), spec)
    start(held, "sleep 1003")
    wait_until("the job runs", lambda: one.processes("sleep\x001003"))
    wait_until("the claim is gone", lambda: not list(one.claims.glob("slot.*")), 25)
    wait_until("nothing runs", lambda: one.processes(name) == [])
    assert one.processes("sleep\x001003") == []
    assert name not in (one.home / ".ssh" / "authorized_keys").read_text()


def test_a_live_claim_is_never_taken_over(one: SshdHost) -> None:
    driver = Ssh(block(one))
    held = claim(driver)
    with pytest.raises(InUse) as refused:
        claim(driver)
    assert held.name in refused.value.message
    assert isinstance(refused.value, NoCapacity)
    assert driver.get_instance(held.id).state is InstanceState.RUNNING


def test_giving_back_ends_the_job_and_leaves_nothing(one: SshdHost) -> None:
    driver = Ssh(block(one))
    before = (one.home / ".ssh" / "authorized_keys").read_text()
    held = claim(driver)
    start(held, "setsid sleep 1004 & nohup sleep 1005 & env -i sleep 1006 & wait")
    wait_until("the job runs", lambda: one.processes("sleep\x001006"))
    began = time.monotonic()
    driver.terminate_instance(held.id)
    assert time.monotonic() - began < 5
    wait_until("the claim is gone", lambda: not driver.list_instances(held.name).instances)
    assert one.processes("sleep\x00100") == []
    wait_until("nothing runs", lambda: one.processes(held.name) == [])
    assert not list(one.home.glob(".prefect-gpu/*"))
    assert (one.home / ".ssh" / "authorized_keys").read_text() == before
    assert [path.name for path in one.claims.iterdir()] == ["lock"]


def test_giving_back_ends_no_process_that_came_into_the_machine_from_outside(one: SshdHost) -> None:
    """Where the machine is a container, such a process (`docker exec`) has 0 as its parent."""
    driver = Ssh(block(one))
    instance = claim(driver)
    start(instance, "sleep 300")
    mark = f"{uuid.uuid4().int % 10**6 + 10**6}"
    guest = threading.Thread(target=lambda: one.run(f"sleep {mark} || :"))
    guest.start()
    try:
        wait_until("the guest", lambda: one.processes(mark))
        driver.terminate_instance(instance.id)
        wait_until("it is free", lambda: not driver.list_instances(instance.name).instances)
        assert one.processes(mark)
    finally:
        one.run(f"pkill -x -f 'sleep {mark}'")
        guest.join()


def test_a_job_that_ignores_every_signal_ends_and_meanwhile_the_machine_is_not_free(one: SshdHost) -> None:
    driver = Ssh(block(one))
    held = claim(driver)
    start(held, "trap '' TERM INT HUP; while :; do sleep 0.1; done")
    driver.terminate_instance(held.id)
    assert driver.get_instance(held.id).state is InstanceState.TERMINATING
    with pytest.raises(ProviderError):
        claim(driver)
    wait_until("the claim is gone", lambda: not driver.list_instances(held.name).instances)
    wait_until("nothing runs", lambda: one.processes(held.name) == [])


def test_giving_back_one_slice_leaves_the_other_slices_job_alone(one: SshdHost) -> None:
    one.install("nvidia-smi", TWO_GPUS)
    driver = Ssh(block(one.described(gpu_slices=("0", "1"))))
    first, second = claim(driver, machine="m0:0"), claim(driver, machine="m0:1")
    assert (first.env, second.env) == ({"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"})
    start(first, "sleep 1007")
    start(second, "sleep 1008")
    wait_until("both run", lambda: one.processes("sleep\x001007") and one.processes("sleep\x001008"))
    driver.terminate_instance(first.id)
    wait_until("the claim is gone", lambda: not driver.list_instances(first.name).instances)
    assert one.processes("sleep\x001007") == []
    assert len(one.processes("sleep\x001008")) == 1
    assert driver.get_instance(second.id).state is InstanceState.RUNNING


def test_the_whole_machine_and_a_slice_of_it_exclude_each_other(one: SshdHost) -> None:
    one.install("nvidia-smi", TWO_GPUS)
    sliced, whole = Ssh(block(one.described(gpu_slices=("0", "1")))), Ssh(block(one))
    held = claim(sliced, machine="m0:1")
    with pytest.raises(InUse):
        claim(whole)
    sliced.terminate_instance(held.id)
    wait_until("free", lambda: not sliced.list_instances("pg-").instances)
    claim(whole)
    assert all(
        offer.availability is Availability.UNAVAILABLE and "in use by pg-" in str(offer.unavailable_because)
        for offer in sliced.fetch_offers(Requirements())
    )


def test_what_was_left_without_a_claim_is_listed_and_removed(one: SshdHost) -> None:
    driver = Ssh(block(one))
    name = lease_name()
    (one.home / ".prefect-gpu" / f"{name}.1" / "work").mkdir(parents=True)
    with (one.home / ".ssh" / "authorized_keys").open("a") as keys:
        keys.write(f"{derive(MASTER_SECRET, name, 'client').public} {name}\n")
    listing = driver.list_instances(name)
    (leftover,) = listing.leftovers
    assert (leftover.name, listing.instances) == (name, ())
    driver.terminate_instance(leftover.id)
    wait_until("nothing is left", lambda: not driver.list_instances(name).leftovers)
    assert not list(one.home.glob(".prefect-gpu/*"))
    assert name not in (one.home / ".ssh" / "authorized_keys").read_text()


def test_a_claim_survives_a_reboot_and_can_be_given_back(one: SshdHost) -> None:
    driver = Ssh(block(one))
    held = claim(driver)
    one.power_off()
    one.power_on()
    assert driver.get_instance(held.id).state is InstanceState.RUNNING
    driver.terminate_instance(held.id)
    wait_until("the claim is gone", lambda: not driver.list_instances(held.name).instances)


def test_the_same_order_again_after_a_lost_answer_is_the_same_claim_with_one_timer(one: SshdHost) -> None:
    driver = Ssh(block(one))
    offer, spec = offer_of(driver), launch_spec(driver, lease_name())
    assert driver.create_instance(offer, spec).id == driver.create_instance(offer, spec).id
    assert len(one.processes(f"PREFECT_GPU_LEASE={spec.name}:")) == 2  # the timer and its sleep
    assert (one.home / ".ssh" / "authorized_keys").read_text().count(spec.name) == 1


def test_the_teams_keys_keep_their_mode_and_a_missing_newline_loses_nobody(one: SshdHost) -> None:
    keys = one.home / ".ssh" / "authorized_keys"
    keys.write_text(ADMIN.public + " the team")  # as an editor may leave it
    keys.chmod(0o640)
    driver = Ssh(block(one))
    held = claim(driver)
    machine_of(held).connection().close()
    driver.terminate_instance(held.id)
    wait_until("the claim is gone", lambda: not driver.list_instances(held.name).instances)
    assert keys.read_text() == ADMIN.public + " the team\n"
    assert keys.stat().st_mode & 0o777 == 0o640


def test_a_machine_is_shared_with_another_user_of_it_by_the_same_claims(one: SshdHost) -> None:
    as_worker, as_root = Ssh(block(one.described(user="worker"))), Ssh(block(one))
    held = claim(as_worker)
    start(held, "sleep 1009")
    wait_until("the job runs", lambda: one.processes("sleep\x001009"))
    with pytest.raises(InUse):
        claim(as_root)
    as_worker.terminate_instance(held.id)
    wait_until("the claim is gone", lambda: not as_root.list_instances(held.name).instances)
    assert one.processes("sleep\x001009") == []
    claim(as_root)


def test_folders_that_a_job_made_read_only_go_when_it_is_given_back(one: SshdHost) -> None:
    driver = Ssh(block(one.described(user="worker")))  # without sudo
    held = claim(driver)
    start(
        held,
        "mkdir -p pkg/mod/x && : >pkg/mod/x/f && chmod -R a-w pkg && mkdir shut && : >shut/f && chmod 0 shut && sleep 1011",
    )
    wait_until("they are there", lambda: one.processes("sleep\x001011"))
    driver.terminate_instance(held.id)
    wait_until("the claim is gone", lambda: not driver.list_instances(held.name).instances)
    assert not list(one.folder.glob("worker/.prefect-gpu/*"))


def test_a_claim_that_a_power_cut_left_empty_does_not_hold_the_machine_for_ever(one: SshdHost) -> None:
    one.claims.mkdir(mode=0o700)
    (one.claims / "slot.all").touch()
    driver = Ssh(block(one))
    held = claim(driver)
    assert driver.get_instance(held.id).state is InstanceState.RUNNING
    with pytest.raises(InUse):
        claim(driver)


def test_what_is_no_claim_and_cannot_be_removed_is_named(one: SshdHost) -> None:
    one.claims.mkdir(mode=0o700)
    (one.claims / "slot.all").mkdir()
    try:
        with pytest.raises(ProviderError, match=r"/slot\.all is no claim of anybody: remove it"):
            claim(Ssh(block(one)))
    finally:
        (one.claims / "slot.all").rmdir()


def test_a_file_among_the_claims_that_is_none_does_no_harm(one: SshdHost) -> None:
    victim = one.folder / "victim"
    victim.mkdir()
    one.claims.mkdir(exist_ok=True)
    (one.claims / "slot.all").write_text("../../victim 1 1 mallory all\n")
    (one.claims / "slot.x").write_text("pg-x a[$(touch${IFS}/tmp/pwned)] 1 mallory all\n")
    driver = Ssh(block(one))
    with contextlib.suppress(ProviderError):
        claim(driver)
    assert victim.exists()
    assert driver.list_instances("").instances == () or all(
        found.name.startswith("pg-") for found in driver.list_instances("").instances
    )
