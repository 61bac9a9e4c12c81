"""Machines are taken as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_gpu.flows.terminal import addresses
from prefect_gpu.flows.terminal.addresses import machines


@pytest.fixture(autouse=True)
def ssh_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in ~/.ssh/config, and what OpenSSH does for all others."""
    known = {"gpu1": {"hostname": "10.0.0.7", "user": "ada", "port": "2200"}}

    def asked(host: str) -> dict[str, str]:
        return known.get(host, {"hostname": host, "user": "me", "port": "22"})

    monkeypatch.setattr(addresses, "_asked", asked)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("root@127.0.0.1", [{"address": "127.0.0.1", "user": "root"}]),
        (
            "a.example:2222, ada@b.example",
            [{"address": "a.example", "port": 2222}, {"address": "b.example", "user": "ada"}],
        ),
        ("ssh://ada@[2001:db8::1]:22", [{"address": "2001:db8::1", "user": "ada", "port": 22}]),
        ("gpu1", [{"address": "10.0.0.7", "name": "gpu1", "user": "ada", "port": 2200}]),
        ("root@gpu1:22", [{"address": "10.0.0.7", "name": "gpu1", "user": "root", "port": 22}]),
        ("", []),
    ],
)
def test_user_host_and_port_are_told_apart(text: str, found: list[dict[str, Any]]) -> None:
    assert machines(text) == found


@pytest.mark.parametrize("text", ["a@b@c", "host:port", "host:123456", "[x"])
def test_what_is_no_address_is_told_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address: write host, user@host or user@host:port"):
        machines(text)
