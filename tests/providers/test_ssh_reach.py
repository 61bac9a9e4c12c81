"""Own machines that do not answer, or not as they should: each is told apart, and holds up nobody."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from prefect_gpu.blocks.ssh import SshHost, SshJumpHost
from prefect_gpu.providers.core.errors import (
    AuthFailed,
    HostKeyMismatch,
    InvalidRequest,
    Transient,
)
from prefect_gpu.providers.core.gpu.request import parse_gpu
from prefect_gpu.providers.core.machine.keys import derive, fingerprint
from prefect_gpu.providers.core.models import Availability, InstanceState, JobSpec
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.ssh import reach, silence
from prefect_gpu.providers.ssh.driver import Ssh
from prefect_gpu.providers.ssh.errors import HostDown
from tests.conformance import launch_spec, lease_name
from tests.fakes.own_machines import (
    claim,
    machine_of,
    needs_machines,
    offer_of,
    wait_until,
)
from tests.fakes.sshd_hosts import SshdHost, block

pytestmark = needs_machines


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
    driver.terminate_instance(held.id)
    wait_until("m0 is free", lambda: not driver.list_instances(held.name).instances)
    assert [text.partition(":")[0] for text in driver.missing_rights()] == ["m1"]
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
    impostor.hosts.first_use._pins.update(
        driver.hosts.first_use._pins
    )  # another machine answers under the name that was pinned
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


# --- machines that answer strangely -----------------------------------------------------------------------------------


def reasons(driver: Ssh) -> tuple[str, str]:
    """Why it is not to be had, and why it is unread."""
    (offer,) = driver.fetch_offers(Requirements())
    assert offer.availability is Availability.UNAVAILABLE
    return str(offer.unavailable_because), driver.list_instances("pg-").incomplete[0].reason


def with_shell(host: SshdHost, shell: str) -> SshHost:
    """The machine, whose user root has this login shell."""
    passwd = host.folder / "passwd"
    passwd.write_text(passwd.read_text().replace(f"{host.home}:/bin/bash", f"{host.home}:{shell}"))
    return host.described()


@pytest.mark.parametrize(
    ("shell", "words"),
    [("/bin/rbash", "restricted"), ("/usr/sbin/nologin", "not available"), ("/bin/false", "exit 1")],
)
def test_a_login_shell_that_runs_no_commands_is_told_in_its_own_words(one: SshdHost, shell: str, words: str) -> None:
    if not Path(shell).exists():
        pytest.skip(f"no {shell} here")
    as_it_was = (one.folder / "passwd").read_text()
    try:
        driver = Ssh(block(with_shell(one, shell)))
        for reason in reasons(driver):
            assert "runs no commands" in reason
            assert words in reason
        offer = driver.fetch_offers(Requirements())[0]
        with pytest.raises(HostDown, match="runs no commands"):
            driver.create_instance(offer, launch_spec(driver, lease_name()))
    finally:
        (one.folder / "passwd").write_text(as_it_was)


def test_a_machine_that_lets_us_in_and_runs_nothing_costs_seconds_and_less_the_second_time(
    one: SshdHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "FIRST_WORD_S", 4.0)
    monkeypatch.setattr(silence, "SHORT_S", 0.5)
    one.install("hang", "exec sleep 60")
    as_it_was = (one.folder / "passwd").read_text()
    try:
        driver = Ssh(block(with_shell(one, str(one.bin / "hang"))))
        first, second = reasons(driver)
        assert "runs nothing for 4 s" in first
        assert "runs nothing for 0 s" in second
    finally:
        (one.folder / "passwd").write_text(as_it_was)


def test_a_port_that_accepts_and_says_nothing_is_told_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "SHORT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = SshHost(address="127.0.0.1", port=listener.getsockname()[1], name="hung", host_key="ssh-ed25519 AAAA")
        driver = Ssh(block(host, timeout_s=3.0))
        took: list[float] = []
        for _ in range(3):
            began = time.monotonic()
            reason = driver.list_instances("pg-").incomplete[0].reason
            took.append(time.monotonic() - began)
            assert "hung is out of reach" in reason
            assert "not as an SSH server" in reason
        assert took[0] >= 2.5
        assert max(took[1:]) < took[0]
        monkeypatch.setattr(silence, "REMEMBERED_S", 0.0)
        began = time.monotonic()
        assert driver.list_instances("pg-").incomplete
        assert time.monotonic() - began >= 2.5


def test_a_changed_host_key_is_an_alarm_wherever_it_is_seen(one: SshdHost) -> None:
    wrong = derive(b"another", "machine", "host").public
    driver = Ssh(block(one.described(host_key=wrong)))
    for reason in reasons(driver):
        assert reason.startswith("ALARM: ")
        assert reason.count("ALARM") == 1
        assert fingerprint(one.host_key.public) in reason
        assert fingerprint(wrong) in reason
    with pytest.raises(HostKeyMismatch, match="ALARM"):
        driver.get_instance(f"m0/{lease_name()}")


# --- many machines behind one jump host -------------------------------------------------------------------------------

BEHIND = 16


@pytest.fixture
def crowd(one: SshdHost) -> list[SshHost]:
    """Machines that only `one` reaches, whose sshd has OpenSSH's own limits."""
    config = one.folder / "config"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("Max")]
    inner = [line for line in lines if not line.startswith("ListenAddress")]
    addresses = [f"127.0.1.{number + 1}" for number in range(BEHIND)]
    (one.folder / "inner").write_text(
        "\n".join([*inner, "MaxStartups 200", *(f"ListenAddress {address}" for address in addresses), ""])
    )
    (one.folder / "default").write_text("\n".join([*inner, f"ListenAddress {one.address}:2222", ""]))
    one.run(f"/usr/sbin/sshd -f {one.folder}/inner && /usr/sbin/sshd -E {one.folder}/jump-log -f {one.folder}/default")
    jump = SshJumpHost(address=one.address, port=2222, host_key=one.host_key.public)
    return [
        SshHost(address=address, name=f"b{number}", host_key=one.host_key.public, jump=jump)
        for number, address in enumerate(addresses)
    ]


def test_sixteen_machines_behind_a_jump_host_with_default_limits_are_all_there_ten_times_over(
    one: SshdHost, crowd: list[SshHost]
) -> None:
    driver = Ssh(block(*crowd))
    for _ in range(10):
        assert driver.list_instances("pg-").incomplete == ()
    logins = (one.folder / "jump-log").read_text().count("Accepted publickey")
    assert 1 <= logins <= 20  # one a listing, where its machines are asked at once
    assert len(driver.fetch_offers(Requirements())) == BEHIND
