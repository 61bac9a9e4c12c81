"""How machines are reached has one shape in every credentials block, and what the first version saved goes on loading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentUpdate
from pydantic import SecretStr, ValidationError, model_validator

from prefect_gpu.blocks.network import ANYWHERE, JumpHost, Network, network_field, with_network
from prefect_gpu.blocks.ssh import SshHost, SshJumpHost, SshMachines
from prefect_gpu.providers.core.errors import InvalidRequest
from prefect_gpu.providers.core.models import SshJump
from prefect_gpu.providers.core.toolkit.network import jump_of

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHdr6TyVSdtHfm/7MFJ8wVkTfxl4kJh6WjDcqPzYrZ1o"


class Account(Block):
    """As the block of any provider."""

    _block_type_slug = "gpu-test-of-network"

    region: str = "here"
    network: Network = network_field()

    _reads_flat_fields = model_validator(mode="before")(with_network)


# As the first version's block of AWS wrote them.
FLAT: dict[str, Any] = {
    "region": "there",
    "ssh_from": ["203.0.113.0/24"],
    "private": True,
    "jump_host": "bastion.example.com",
    "jump_port": 2222,
    "jump_user": "ec2-user",
    "jump_private_key": "KEY-OF-THE-JUMP-HOST",
    "jump_host_key": HOST_KEY,
}
FLAT_DEFAULTS: dict[str, Any] = {
    "region": "here",
    "ssh_from": ["0.0.0.0/0", "::/0"],
    "private": False,
    "jump_host": None,
    "jump_port": 22,
    "jump_user": "ubuntu",
    "jump_private_key": None,
    "jump_host_key": None,
}


@pytest.fixture
def saved_flat(prefect_api: None) -> Iterator[str]:
    """A block document whose fields are those of the first version."""
    name = f"flat-{uuid4().hex[:8]}"
    identity = Account().save(name, _sync=True)
    with get_client(sync_client=True) as client:
        client.update_block_document(identity, BlockDocumentUpdate(data=FLAT, merge_existing_data=False))
        yield name
        client.delete_block_document(identity)


def test_a_block_that_the_first_version_saved_loads_with_all_it_said(saved_flat: str) -> None:
    account = Account.load(saved_flat, _sync=True)
    jump = account.network.jump
    assert jump is not None
    assert (account.region, account.network.private, account.network.ssh_from) == ("there", True, ["203.0.113.0/24"])
    assert (jump.address, jump.port, jump.user, jump.host_key) == ("bastion.example.com", 2222, "ec2-user", HOST_KEY)
    assert jump.private_key is not None
    assert jump.private_key.get_secret_value() == "KEY-OF-THE-JUMP-HOST"
    assert not {"private", "ssh_from", "jump_host"} & account.model_dump().keys()


def test_a_block_that_was_saved_with_the_first_version_s_defaults_has_the_defaults() -> None:
    assert Account(**FLAT_DEFAULTS).network == Network() == Account().network
    assert tuple(Network().ssh_from) == ANYWHERE


def test_what_was_written_as_a_network_goes_before_flat_fields() -> None:
    both = Account(**{**FLAT, "network": {"private": False}})
    assert not both.network.private
    assert both.network.jump is not None
    assert not Account(**{**FLAT, "network": Network(private=False)}).network.private  # type: ignore[arg-type]


def test_a_host_key_that_nobody_checked_then_still_loads_and_is_not_dropped() -> None:
    old = Account(**{**FLAT, "jump_host_key": "SHA256:abc"}).network.jump
    assert old is not None
    assert old.host_key == "SHA256:abc"
    with pytest.raises(ValidationError, match="not a host key"):
        JumpHost(address="j", host_key="SHA256:abc")


@pytest.mark.parametrize(
    "line", ["ssh-ed25519", "ssh-ed25519 AAAA\nssh-ed25519 BBBB", "ssh-ed25519 ÄÖ", "ecdsa-sha2- AA"]
)
def test_what_is_not_one_line_with_a_host_key_is_refused(line: str) -> None:
    with pytest.raises(ValidationError, match="not a host key"):
        JumpHost(address="j", host_key=line)
    with pytest.raises(ValidationError, match="not a host key"):
        SshHost(address="a", host_key=line)


def test_an_empty_host_key_is_none() -> None:
    assert JumpHost(address="j", host_key=" \n").host_key is None
    assert JumpHost(address="j", host_key=f" {HOST_KEY} root@j\n").host_key == f"{HOST_KEY} root@j"


def test_an_address_range_is_written_one_way_and_nonsense_is_refused() -> None:
    assert Network(ssh_from=["203.0.113.7", " 10.0.0.0/8"]).ssh_from == ["203.0.113.7/32", "10.0.0.0/8"]
    for wrong in ("home", "203.0.113.7/24", ""):
        with pytest.raises(ValidationError, match="is not an address range"):
            Network(ssh_from=[wrong])


def test_the_jump_host_s_key_shows_nowhere(prefect_api: None) -> None:
    account = Account(network=Network(jump=JumpHost(address="j", private_key=SecretStr("KEY-OF-THE-JUMP-HOST"))))
    assert "KEY-OF" not in repr(account) + str(account.model_dump()) + account.model_dump_json()
    identity = account.save(f"hidden-{uuid4().hex[:8]}", _sync=True)
    with get_client(sync_client=True) as client:
        shown = client.request("GET", "/block_documents/{id}", path_params={"id": identity}).text
        client.delete_block_document(identity)
    assert '"address":"j"' in shown
    assert "KEY-OF" not in shown


def test_own_machines_that_the_first_version_saved_load() -> None:
    old = {
        "hosts": [
            {
                "address": "10.0.0.1",
                "name": "a",
                "port": 22,
                "user": "root",
                "key": "",
                "host_key": HOST_KEY,
                "jump": {"address": "j", "port": 22, "user": "root", "key": "j", "host_key": None},
                "region": "own",
                "country": None,
                "price": 0.0,
                "gpu_slices": ["0,1"],
                "labels": {},
            }
        ],
        "private_key": "KEY",
        "other_keys": {"j": "KEY-J"},
        "jump": {"address": "k", "port": 22, "user": "root", "key": "", "host_key": HOST_KEY},
        "timeout_s": 8.0,
    }
    machines = SshMachines.model_validate(old)
    assert machines.hosts[0].jump == SshJumpHost(address="j", key="j")
    assert machines.jump is not None
    assert machines.jump.host_key == HOST_KEY


def test_a_driver_gets_the_jump_host_or_a_sentence_before_it_orders() -> None:
    assert jump_of(Network()) is None
    with pytest.raises(InvalidRequest, match="no private key logs in to the jump host j"):
        jump_of(Network(jump=JumpHost(address="j")))
    jump = jump_of(Network(jump=JumpHost(address="j", port=2, user="u", private_key=SecretStr("K"), host_key=HOST_KEY)))
    assert jump == SshJump(host="j", port=2, user="u", private_key=SecretStr("K"), host_key=HOST_KEY)
