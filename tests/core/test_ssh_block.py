"""The block of own machines refuses what could not work, and keeps its secrets."""

from __future__ import annotations

import pytest
from prefect.client.orchestration import get_client
from pydantic import SecretStr, ValidationError

from prefect_gpu.blocks.ssh import SshHost, SshJumpHost, SshMachines


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
    with pytest.raises(ValidationError, match="not a host key"):
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
