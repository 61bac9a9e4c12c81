"""Before a block of own machines is saved the whole way is gone once, and the host keys that were seen are kept in it."""

from __future__ import annotations

import pytest

from prefect_gpu.blocks.ssh import SshHost, SshJumpHost, SshMachines
from prefect_gpu.providers.core.errors import AuthFailed
from prefect_gpu.providers.core.machine.keys import derive, fingerprint
from prefect_gpu.providers.core.models import Availability
from prefect_gpu.providers.core.requests import Requirements
from prefect_gpu.providers.ssh.driver import Ssh
from prefect_gpu.providers.ssh.errors import HostKeyAlarm
from tests.conformance import launch_spec, lease_name
from tests.fakes.own_machines import BREAK_THE_LINK, TWO_GPUS, claim, needs_machines, wait_until
from tests.fakes.sshd_hosts import ADMIN, SshdHost, block

pytestmark = needs_machines


def nothing_is_left(host: SshdHost) -> bool:
    keys = (host.home / ".ssh" / "authorized_keys").read_text()
    left = [path for path in host.claims.glob("*") if path.name != "lock"]
    return "pg-" not in keys and not left and not host.processes("pg-")


def test_the_whole_way_is_gone_once_and_nothing_of_it_stays(one: SshdHost, two: SshdHost) -> None:
    assert Ssh(block(one, two)).missing_rights() == []
    wait_until("nothing is left", lambda: nothing_is_left(one) and nothing_is_left(two))


def test_a_machine_whose_sshd_reads_the_keys_elsewhere_is_told_before_anything_is_saved(one: SshdHost) -> None:
    elsewhere = one.folder / "keys-of-root"
    elsewhere.write_text(ADMIN.public + "\n")
    config = one.folder / "config"
    as_it_was = config.read_text()
    try:
        config.write_text(as_it_was + f"AuthorizedKeysFile {elsewhere}\n")
        one.power_off()
        one.power_on()
        (problem,) = Ssh(block(one)).missing_rights()
        assert "m0: it refuses a key that was added to ~/.ssh/authorized_keys of the user root" in problem
        assert "AuthorizedKeysFile" in problem
        wait_until("nothing is left", lambda: nothing_is_left(one))
    finally:
        config.write_text(as_it_was)


def test_a_machine_in_use_is_not_called_wrong_and_is_left_alone(one: SshdHost, two: SshdHost) -> None:
    one.install("nvidia-smi", TWO_GPUS)
    driver = Ssh(block(one.described(gpu_slices=("0", "1")), two))
    held = claim(driver, machine="m0:0")
    assert driver.missing_rights() == []  # by its other slice
    other = claim(driver, machine="m0:1")
    (problem,) = driver.missing_rights()
    assert problem.startswith(("m0: m0 is in use by " + held.name, "m0: m0 is in use by " + other.name))
    assert problem.endswith("so a claim was not tried")
    assert {found.name for found in driver.list_instances("pg-").instances} == {held.name, other.name}


def test_a_machine_where_commands_end_badly_or_claims_cannot_be_made_is_told(one: SshdHost) -> None:
    one.install("stat", "exit 1")
    (problem,) = Ssh(block(one)).missing_rights()
    assert "m0 cannot be claimed" in problem


def test_keys_that_are_seen_at_first_contact_are_kept_and_shown_and_later_no_other_is_accepted(
    one: SshdHost, two: SshdHost
) -> None:
    driver = Ssh(block(one.described(host_key=None), two.described()))
    saved, told = driver.first_contact()
    assert [host.host_key for host in saved.hosts] == [one.host_key.public, two.host_key.public]
    (line,) = told
    assert fingerprint(one.host_key.public) in line
    assert line.startswith("m0 shows the host key ")
    later = SshMachines.model_validate(
        {**saved.model_dump(), "private_key": ADMIN.private, "hosts": [saved.hosts[0].model_dump()]}
    )
    later_driver = Ssh(later)
    (offer,) = later_driver.fetch_offers(Requirements())
    assert offer.availability is Availability.AVAILABLE
    assert "host_key_on_first_use" not in offer.raw
    impostor = saved.hosts[0].model_copy(update={"address": two.address})
    with pytest.raises(HostKeyAlarm, match="ALARM") as caught:
        Ssh(block(impostor)).create_instance(offer, launch_spec(later_driver, lease_name()))
    assert caught.value.is_loud
    assert fingerprint(one.host_key.public) in caught.value.message
    assert fingerprint(two.host_key.public) in caught.value.message


def test_the_key_of_a_jump_host_is_kept_too(one: SshdHost) -> None:
    jump = SshJumpHost(address=one.address, user="worker")
    inner = SshHost(address="127.0.0.1", name="inner")
    saved, told = Ssh(block(inner, jump=jump)).first_contact()
    assert saved.jump is not None
    assert (saved.jump.host_key, saved.hosts[0].host_key) == (one.host_key.public, one.host_key.public)
    assert len(told) == 2
    own, told = Ssh(block(inner.model_copy(update={"jump": jump}))).first_contact()
    assert own.hosts[0].jump is not None
    assert own.hosts[0].jump.host_key == one.host_key.public
    assert any(line.startswith(f"the jump host {one.address} shows") for line in told)


def test_a_machine_that_does_not_answer_is_saved_as_it_is(one: SshdHost, two: SshdHost) -> None:
    two.power_off()
    saved, told = Ssh(block(one.described(host_key=None), two.described(host_key=None))).first_contact()
    assert [host.host_key for host in saved.hosts] == [one.host_key.public, None]
    assert len(told) == 1


def test_a_key_that_no_machine_knows_saves_nothing(one: SshdHost) -> None:
    with pytest.raises(AuthFailed, match="refuses the key of the user root"):
        Ssh(block(one, private_key=derive(b"a stranger", "key", "client").private)).missing_rights()


def test_a_check_whose_link_breaks_leaves_no_claim(one: SshdHost) -> None:
    one.install("ln", f'rm -f {one.bin}/ln\n({BREAK_THE_LINK})\nexec /bin/ln "$@"')
    (problem,) = Ssh(block(one)).missing_rights()
    assert "whether m0 was claimed is not known" in problem
    wait_until("nothing is left", lambda: nothing_is_left(one))
