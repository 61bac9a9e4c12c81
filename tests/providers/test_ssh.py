"""Own machines: claims that exclude each other, whatever happens to workers, links and machines; against real OpenSSH servers."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from pydantic import SecretStr, ValidationError

from blocks.ssh import SshHost, SshJumpHost, SshMachines
from providers.core import machine_check, remote
from providers.core.errors import (
    AuthFailed,
    HostKeyMismatch,
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    Transient,
    Unsupported,
)
from providers.core.gpus import parse_gpu
from providers.core.jobs import Machine
from providers.core.keys import derive, fingerprint
from providers.core.models import (
    Availability,
    Instance,
    InstanceState,
    JobSpec,
    Offer,
    Requirements,
    Spot,
    utc_now,
)
from providers.ssh import HostDown, InUse, Ssh
from tests.conformance import (
    MASTER_SECRET,
    OTHER_REALM,
    Faults,
    ProviderConformance,
    Subject,
    launch_spec,
    lease_name,
)
from tests.fakes import sshd_hosts as fakes
from tests.fakes.sshd_hosts import ADMIN, SshdHost, block, sshd_hosts

WHY_NOT = fakes.missing()
pytestmark = [
    pytest.mark.root,
    pytest.mark.openssh,
    pytest.mark.skipif(WHY_NOT is not None, reason=f"machines of one's own: {WHY_NOT}"),
]

# Kills the sshd of the session that called it: the link breaks in the middle of a script.
BREAK_THE_LINK = """
p=$$
while [ "$p" -gt 1 ]; do
    read -r line </proc/$p/stat; set -- ${line##*) }; p=$2
    case $(cat /proc/$p/comm) in sshd) kill -9 $p; break ;; esac
done
sleep 0.3
"""

TWO_GPUS = """
case $* in
*--query-gpu*)
    echo "0, GPU-aaaa1111, NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15, 00000000:3B:00.0, 0"
    echo "1, GPU-bbbb2222, NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15, 00000000:5E:00.0, 0" ;;
-L) echo "GPU 0: NVIDIA H100"; echo "GPU 1: NVIDIA H100" ;;
*) echo "| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15    CUDA Version: 12.4 |" ;;
esac
"""


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[SshdHost, ...]]:
    with sshd_hosts(*(f"m{number}" for number in range(8))) as hosts:
        yield hosts


@pytest.fixture
def one(machines: tuple[SshdHost, ...]) -> Iterator[SshdHost]:
    yield machines[0]
    restore(machines[0])


@pytest.fixture
def two(machines: tuple[SshdHost, ...]) -> Iterator[SshdHost]:
    yield machines[1]
    restore(machines[1])


def restore(host: SshdHost) -> None:
    """Back to a machine that nobody has used."""
    host.bring_back()
    for tool in host.bin.iterdir():
        tool.unlink()
    host.power_off()
    for claim in host.claims.glob("*"):
        claim.unlink()
    for home in (host.home, host.folder / "worker"):
        shutil.rmtree(home / ".prefect-gpu", ignore_errors=True)
        (home / ".ssh" / "authorized_keys").write_text(ADMIN.public + " the team\n")
    host.power_on()


def offer_of(driver: Ssh, name: str = "") -> Offer:
    offers = driver.fetch_offers(Requirements())
    return next(offer for offer in offers if not name or offer.instance_type == name)


def claim(driver: Ssh, name: str | None = None, machine: str = "") -> Instance:
    return driver.create_instance(offer_of(driver, machine), launch_spec(driver, name or lease_name()))


def machine_of(instance: Instance) -> Machine:
    key = derive(MASTER_SECRET, instance.name, "client")
    assert instance.ssh is not None
    endpoint = instance.ssh
    return Machine(lambda: remote.connect(endpoint, key, None, timeout_s=5.0))


def start(instance: Instance, command: str) -> JobSpec:
    job = JobSpec(id=f"{instance.name}.1", command=command, env=instance.env)
    machine = machine_of(instance)
    assert machine.start(job)
    machine.close()
    return job


def seen_of(host: SshdHost, text: str) -> list[str]:
    """The command lines of living processes that have this in their command line or environment."""
    found: list[str] = []
    for process in host.processes(text):
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()[-300:])
    return found


def wait_until(what: str, condition: object, within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.05)


def age(host: SshdHost, by_s: int = 10**6) -> None:
    """Let the deadline of every claim on a machine pass, without its timer noticing for some seconds."""
    for path in host.claims.glob("slot.*"):
        name, deadline, *rest = path.read_text().split()
        path.write_text(" ".join([name, str(int(deadline) - by_s), *rest]) + "\n")


def kill_timers(host: SshdHost) -> None:
    host.run(
        "for f in $(grep -lsF PREFECT_GPU_LEASE= /proc/[0-9]*/environ); do f=${f#/proc/}; kill -9 ${f%/environ}; done || :"
    )


class SshFaults(Faults):
    def __init__(self, hosts: tuple[SshdHost, ...], driver: Ssh) -> None:
        self.hosts = hosts
        self.driver = driver

    def sell_out(self) -> None:
        for host in self.hosts:
            claim(self.driver, lease_name(OTHER_REALM), host.name)

    def break_reads(self) -> None:
        self.break_once("flock", "exit 1")

    def break_terminates(self) -> None:
        self.break_once("flock", "exit 1")

    def break_creates(self) -> None:
        self.break_once("id", f"{BREAK_THE_LINK}\necho root")

    def break_once(self, tool: str, script: str) -> None:
        """The next call of a tool, on whichever machine, does this; the ones after it are as ever."""
        traps = " ".join(str(host.bin / tool) for host in self.hosts)
        for host in self.hosts:
            host.install(tool, f"rm -f {traps}\n{script}")

    def lose_the_answer(self) -> None:
        self.break_creates()

    def make_unreadable(self) -> str:
        self.hosts[-1].cut_off()
        return self.hosts[-1].name

    def restore(self) -> None:
        self.hosts[-1].bring_back()

    def someone_elses(self) -> str:
        claims = self.hosts[0].claims
        claims.mkdir(exist_ok=True)
        (claims / "slot.theirs").write_text(f"my-pg-conf {int(time.time()) + 60} {int(time.time())} root 7\n")
        return "my-pg-conf"

    def pass_deadline(self, instance: Instance) -> None:
        (host,) = (host for host in self.hosts if host.name == instance.zone)
        age(host)


class TestSsh(ProviderConformance):
    @pytest.fixture
    def subject(self, machines: tuple[SshdHost, ...]) -> Iterator[Subject]:
        described = [host.described(region=f"room-{number % 2}") for number, host in enumerate(machines)]
        driver = Ssh(block(*described))
        yield Subject(
            provider=driver,
            secrets=(ADMIN.private.get_secret_value().splitlines()[2],),
            unknown_id=f"m3/{lease_name()}",
            pass_time=lambda seconds: time.sleep(seconds / 5),
            faults=SshFaults(machines, driver),
            one_each=True,
        )
        for host in machines:
            for left in [*host.bin.iterdir(), *host.claims.glob("slot.theirs")]:
                left.unlink()


# --- claims -----------------------------------------------------------------------------------------------------------


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
    one.claims.mkdir(mode=0o1777, exist_ok=True)
    (one.claims / "slot.all").touch()
    driver = Ssh(block(one))
    held = claim(driver)
    assert driver.get_instance(held.id).state is InstanceState.RUNNING
    with pytest.raises(InUse):
        claim(driver)


def test_what_is_no_claim_and_cannot_be_removed_is_named(one: SshdHost) -> None:
    (one.claims / "slot.all").mkdir(parents=True)
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


# --- machines that do not answer --------------------------------------------------------------------------------------


def test_a_dead_machine_is_reported_passed_over_and_holds_up_nobody(one: SshdHost, two: SshdHost) -> None:
    driver = Ssh(block(one, two))
    down = offer_of(driver, "m1")
    two.power_off()
    began = time.monotonic()
    free, dead = driver.fetch_offers(Requirements())
    assert time.monotonic() - began < 6
    assert (free.instance_type, free.availability) == ("m0", Availability.AVAILABLE)
    assert (dead.instance_type, dead.availability) == ("m1", Availability.UNAVAILABLE)
    assert "does not answer" in str(dead.unavailable_because)
    with pytest.raises(HostDown) as refused:
        driver.create_instance(down, launch_spec(driver, lease_name()))
    assert refused.value.rules_out(down, down)
    assert not refused.value.rules_out(down, free)


def test_a_dead_machine_is_named_even_where_gpus_are_wanted_and_only_known_facts_rule_it_out(one: SshdHost) -> None:
    one.power_off()
    driver = Ssh(block(one.described(region="cellar", price=2.0)))
    wanted = Requirements(gpu=parse_gpu("H100:8"), memory_gb=100)
    assert [offer.instance_type for offer in driver.fetch_offers(wanted)] == ["m0"]
    assert driver.fetch_offers(wanted.model_copy(update={"regions": ("attic",)})) == []
    assert driver.fetch_offers(wanted.model_copy(update={"max_price": 1.0})) == []


def test_a_machine_out_of_reach_is_unread_and_its_claim_is_there_when_it_is_back(one: SshdHost, two: SshdHost) -> None:
    driver = Ssh(block(one, two))
    here, there = claim(driver, machine="m0"), claim(driver, machine="m1")
    two.cut_off()
    listing = driver.list_instances("pg-")
    assert [found.name for found in listing.instances] == [here.name]
    assert [unread.scope for unread in listing.incomplete] == ["m1"]
    with pytest.raises(Transient):
        driver.get_instance(there.id)
    with pytest.raises(Transient):
        driver.terminate_instance(there.id)
    two.bring_back()
    assert driver.list_instances("pg-").is_complete
    assert driver.get_instance(there.id).state is InstanceState.RUNNING


def test_a_machine_that_is_cut_off_mid_job_is_noticed_and_attached_to_again(one: SshdHost, tmp_path: Path) -> None:
    driver = Ssh(block(one))
    held = claim(driver)
    machine = machine_of(held)
    job = JobSpec(id=f"{held.name}.1", command="i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); sleep 0.5; done")
    said: list[tuple[float, str]] = []
    cut_at: list[float] = []

    def cable() -> None:
        time.sleep(3)
        cut_at.append(time.monotonic())
        one.cut_off()
        wait_until("the loss is noticed", lambda: said, 25)
        one.bring_back()

    puller = threading.Thread(target=cable)
    puller.start()
    result = machine.run(job, tmp_path / "log", on_link=lambda text: said.append((time.monotonic(), text)))
    puller.join()
    machine.close()
    assert said[0][0] - cut_at[0] <= 20
    assert "attached to the job again" in said[-1][1]
    assert result is not None
    assert result.exit_code == 0
    assert (tmp_path / "log").read_text().splitlines() == [f"line {number}" for number in range(60)]


def test_a_machine_that_breaks_our_own_code_holds_up_nobody(one: SshdHost, two: SshdHost) -> None:
    unreadable_key = "ssh-ed25519 AAAAA"  # base64 that ends too early: a ValueError where it is compared
    driver = Ssh(block(one, two.described(host_key=unreadable_key)))
    held = claim(driver, machine="m0")
    listing = driver.list_instances("pg-")
    assert [found.name for found in listing.instances] == [held.name]
    assert [unread.scope for unread in listing.incomplete] == ["m1"]
    assert [text.partition(":")[0] for text in driver.missing_rights()] == ["m1"]
    driver.terminate_instance(held.id)
    offers = {offer.instance_type: offer for offer in driver.fetch_offers(Requirements())}
    assert "m1 cannot be asked" in str(offers["m1"].unavailable_because)
    assert "m0" in offers


def test_a_machine_that_was_taken_out_of_the_block_is_not_called_absent(one: SshdHost, two: SshdHost) -> None:
    held = claim(Ssh(block(one, two)), machine="m1")
    with pytest.raises(InvalidRequest, match="put it back"):
        Ssh(block(one)).get_instance(held.id)
    with pytest.raises(InvalidRequest, match="put it back"):
        Ssh(block(one)).terminate_instance(held.id)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_known_host_key_is_the_only_one_accepted(one: SshdHost) -> None:
    wrong = derive(b"another", "machine", "host").public
    driver = Ssh(block(one.described(host_key=wrong)))
    (offer,) = driver.fetch_offers(Requirements())
    assert offer.availability is Availability.UNAVAILABLE
    assert fingerprint(one.host_key.public) in str(offer.unavailable_because)
    assert fingerprint(wrong) in str(offer.unavailable_because)
    with pytest.raises(HostDown):
        driver.create_instance(offer, launch_spec(driver, lease_name()))
    assert driver.list_instances("pg-").incomplete


def test_an_unknown_host_key_is_pinned_on_first_use_and_the_offer_says_so(one: SshdHost, two: SshdHost) -> None:
    driver = Ssh(block(one.described(host_key=None)))
    assert driver.capabilities.host_key == "first_use"
    held = claim(driver)
    assert held.ssh is not None
    assert held.ssh.host_key is None
    (offer,) = driver.fetch_offers(Requirements())
    assert offer.raw["host_key_on_first_use"] == fingerprint(one.host_key.public)
    impostor = Ssh(block(two.described(host_key=None, name="m0")))
    impostor._first_use._pins.update(driver._first_use._pins)  # another machine answers under the name that was pinned
    with pytest.raises(HostKeyMismatch):
        impostor.get_instance(held.id)


def test_a_key_that_is_refused_is_auth_failed_and_says_where(one: SshdHost, two: SshdHost) -> None:
    stranger = derive(b"a stranger", "key", "client").private
    driver = Ssh(block(one, private_key=stranger))
    held = f"m0/{lease_name()}"
    for call in (
        lambda: driver.fetch_offers(Requirements()),
        lambda: driver.get_instance(held),
        lambda: driver.terminate_instance(held),
        driver.missing_rights,
    ):
        with pytest.raises(AuthFailed) as refused:
            call()
        assert "refuses the key of the user root" in refused.value.message
        assert stranger.get_secret_value().splitlines()[2] not in repr(refused.value)
    half = Ssh(block(one.described(key="old"), two, other_keys={"old": stranger.get_secret_value()}))
    free, refused_one = half.fetch_offers(Requirements())
    assert (free.instance_type, refused_one.instance_type) == ("m1", "m0")
    assert "refuses the key" in str(refused_one.unavailable_because)
    assert [text.partition(":")[0] for text in half.missing_rights()] == ["m0"]


def test_a_machine_behind_a_jump_host_is_claimed_and_its_endpoint_names_the_jump(one: SshdHost) -> None:
    for jump_key in (one.host_key.public, None):
        jump = SshJumpHost(address=one.address, user="worker", host_key=jump_key)
        inner = SshHost(address="127.0.0.1", name="inner", host_key=one.host_key.public if jump_key else None)
        driver = Ssh(block(inner, jump=jump))
        held = claim(driver)
        assert held.ssh is not None
        assert held.ssh.jump is not None
        assert (held.ssh.host, held.ssh.jump.host, held.ssh.jump.user) == ("127.0.0.1", one.address, "worker")
        if jump_key:
            machine_of(held).connection().close()
        driver.terminate_instance(held.id)
        wait_until("the claim is gone", lambda driver=driver, held=held: not driver.list_instances(held.name).instances)


# --- offers -----------------------------------------------------------------------------------------------------------


def test_an_offer_tells_what_the_machine_has(one: SshdHost) -> None:
    one.install("nvidia-smi", TWO_GPUS)
    driver = Ssh(block(one.described(price=1.5, region="berlin", country="DE", labels={"rack": "7"})))
    (offer,) = driver.fetch_offers(Requirements(gpu=parse_gpu("H100:2"), countries=("DE",)))
    assert offer.gpu == "H100:2"
    assert (offer.gpu_memory_gb, offer.gpu_vendor) == (80, "nvidia")
    assert offer.cpu is not None
    assert offer.cpu >= 1
    assert offer.memory_gb is not None
    assert offer.memory_gb > 0.5
    assert offer.disk_gb is not None
    assert offer.arch in {"x86_64", "arm64"}
    assert (offer.price, offer.region, offer.zone, offer.scope) == (1.5, "berlin", "m0", "m0")
    assert offer.raw["labels"] == {"rack": "7"}
    assert driver.fetch_offers(Requirements(gpu=parse_gpu("A100"))) == []
    assert driver.fetch_offers(Requirements(spot=Spot.SPOT)) == []


def test_each_slice_is_an_offer_with_its_share_of_the_machine(one: SshdHost) -> None:
    one.install("nvidia-smi", TWO_GPUS)
    whole = offer_of(Ssh(block(one)))
    slices = Ssh(block(one.described(gpu_slices=("0", "GPU-bbbb2222")))).fetch_offers(Requirements())
    assert [offer.instance_type for offer in slices] == ["m0:0", "m0:GPU-bbbb2222"]
    assert [offer.gpu for offer in slices] == ["H100:1", "H100:1"]
    assert all(offer.memory_gb == pytest.approx((whole.memory_gb or 0) / 2, abs=0.1) for offer in slices)


def test_a_slice_whose_gpu_is_not_there_is_said(one: SshdHost) -> None:
    one.install("nvidia-smi", TWO_GPUS)
    offers = Ssh(block(one.described(gpu_slices=("0", "1,2")))).fetch_offers(Requirements())
    assert [offer.availability for offer in offers] == [Availability.AVAILABLE, Availability.UNAVAILABLE]
    assert "slice 1,2" in str(offers[1].unavailable_because)


# --- the machine check, on a machine whose nvidia-smi is a stand-in ---------------------------------------------------


def test_a_machine_with_fewer_gpus_than_promised_has_a_problem(one: SshdHost) -> None:
    one.install("nvidia-smi", TWO_GPUS)
    driver = Ssh(block(one))
    offer = offer_of(driver)
    held = driver.create_instance(offer, launch_spec(driver, lease_name()))
    connection = machine_of(held).connection()
    report = machine_check.check(connection, offer)
    assert report.problem is None
    assert report.gpus == ("NVIDIA H100 80GB HBM3, 81559 MiB",) * 2
    assert report.driver == "550.54.15"
    one.install(
        "nvidia-smi", 'echo "0, GPU-aaaa1111, NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15, 00000000:3B:00.0, 0"'
    )
    assert machine_check.check(connection, offer).problem == (
        "the offer promised 2 x H100, and 1 of them answer nvidia-smi"
    )
    connection.close()


def test_a_machine_with_a_broken_gpu_has_a_problem(one: SshdHost) -> None:
    one.install("nvidia-smi", TWO_GPUS)
    driver = Ssh(block(one))
    offer = offer_of(driver)
    connection = machine_of(driver.create_instance(offer, launch_spec(driver, lease_name()))).connection()
    one.install(
        "nvidia-smi",
        'echo "0, GPU-aaaa1111, NVIDIA H100 80GB HBM3, 81559 MiB, 550.54.15, 00000000:3B:00.0, 0"\n'
        'echo "Unable to determine the device handle for GPU0000:5E:00.0: GPU is lost.  Reboot the system to recover this GPU"\n'
        "exit 15",
    )
    problem = machine_check.check(connection, offer).problem
    assert problem is not None
    assert "GPU is lost" in problem
    one.install("nvidia-smi", TWO_GPUS)
    one.install(
        "dmesg",
        'read up rest </proc/uptime; echo "[${up%.*}.000001] NVRM: Xid (PCI:0000:5e:00): 79, pid=1, GPU has fallen off the bus."',
    )
    assert machine_check.check(connection, offer).problem == (
        "GPU 1 (NVIDIA H100 80GB HBM3) reported Xid 79: it needs a reset"
    )
    connection.close()


# --- the block --------------------------------------------------------------------------------------------------------


def test_the_block_refuses_what_could_not_work() -> None:
    key = SecretStr("key")
    with pytest.raises(ValidationError, match="the block has no private key"):
        SshMachines(hosts=[SshHost(address="a")])
    with pytest.raises(ValidationError, match="no other key is called 'x'"):
        SshMachines(hosts=[SshHost(address="a", jump=SshJumpHost(address="j", key="x"))], private_key=key)
    with pytest.raises(ValidationError, match="two machines are called a"):
        SshMachines(hosts=[SshHost(address="a"), SshHost(address="b", name="a")], private_key=key)
    with pytest.raises(ValidationError, match="in two slices"):
        SshHost(address="a", gpu_slices=("0,1", "1,2"))
    with pytest.raises(ValidationError, match="no host key"):
        SshHost(address="a", host_key="SHA256:abc")
    with pytest.raises(ValidationError, match="cannot be a host's name"):
        SshHost(address="a", name="a/b")
    assert SshHost(address="fe80::1").name == "fe80--1"
    assert SshMachines.get_block_type_slug() == "gpu-ssh"


def test_a_saved_block_hides_every_key_and_comes_back_whole(prefect_api: None) -> None:
    machines = SshMachines(
        hosts=[SshHost(address="a", key="one", jump=SshJumpHost(address="j", key="two"))],
        private_key=SecretStr("KEY-ZERO"),
        other_keys={"one": "KEY-ONE", "two": "KEY-TWO"},  # type: ignore[arg-type]
    )
    assert "KEY-" not in repr(machines) + str(machines.model_dump())
    machines.save("hidden", _sync=True)
    with get_client(sync_client=True) as client:
        shown = client.request("POST", "/block_documents/filter", json={"include_secrets": False}).text
    assert "hidden" in shown
    assert "KEY-" not in shown
    loaded = SshMachines.load("hidden", _sync=True)
    keys = [loaded.key(name) for name in ("", "one", "two")]
    assert [key.get_secret_value() if key else None for key in keys] == ["KEY-ZERO", "KEY-ONE", "KEY-TWO"]
    assert loaded.hosts[0].name == "a"


def test_there_is_no_spot_on_own_machines(one: SshdHost) -> None:
    driver = Ssh(block(one))
    offer = offer_of(driver).model_copy(update={"spot": True})
    with pytest.raises(Unsupported):
        driver.create_instance(offer, launch_spec(driver, lease_name()))
