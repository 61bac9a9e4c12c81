"""Whose realm it is: what tells a Prefect server from one that has a copy of its database."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import SecretStr

from prefect_gpu.blocks import realm
from prefect_gpu.blocks.realm import GpuRealm, NotItsServer, is_own_server, this_server


def seen_at(url: str) -> str:
    with temporary_settings({PREFECT_API_URL: url}):
        return this_server(with_home=False)


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    (tmp_path / "machine-id").write_text("0123456789abcdef\n")
    monkeypatch.setattr(realm, "_MACHINE_ID", tmp_path / "machine-id")
    monkeypatch.setattr(realm, "_NAMESPACE", tmp_path / "namespace")
    return tmp_path


def test_a_server_elsewhere_is_known_by_its_address() -> None:
    assert seen_at("https://Prefect.Example.org/api") == "prefect.example.org"
    assert seen_at("http://prefect.example.org:4200/api/") == "prefect.example.org:4200"
    assert (
        seen_at("https://api.prefect.cloud/api/accounts/a/workspaces/w")
        == "api.prefect.cloud/api/accounts/a/workspaces/w"
    )


def test_one_s_own_is_known_by_its_host_whatever_port_it_has_today(host: Path) -> None:
    assert seen_at("http://127.0.0.1:4200/api") == seen_at("http://localhost:59999/api")
    here = seen_at("http://127.0.0.1:4200/api")
    (host / "machine-id").write_text("fedcba9876543210\n")
    assert seen_at("http://127.0.0.1:4200/api") != here


def test_a_container_that_is_made_anew_is_not_another_server(host: Path) -> None:
    (host / "machine-id").unlink()
    assert seen_at("http://127.0.0.1:4200/api") == "container"


def test_a_short_name_means_another_server_in_another_namespace(host: Path) -> None:
    url = "http://prefect-server:4200/api"
    for namespace in ("production", "staging"):
        (host / "namespace").write_text(namespace)
        assert seen_at(url) == f"prefect-server.{namespace}:4200"
    assert seen_at("http://prefect.example.org:4200/api") == "prefect.example.org:4200"


def test_a_realm_of_another_server_is_refused_and_one_of_before_this_was_known_is_not() -> None:
    made = GpuRealm(realm="ab12", master_secret=SecretStr("ab" * 32))
    made.must_be_of("anywhere")
    ours = made.model_copy(update={"servers": ["host-1 /home/a", "prefect.example.org"]})
    for server in ("host-1 /home/a", "host-1", "prefect.example.org"):
        ours.must_be_of(server)
    for server in ("host-1 /home/b", "host-2", "host-", "prefect.example.org.evil"):
        with pytest.raises(NotItsServer, match="trust_server=true"):
            ours.must_be_of(server)


@pytest.mark.parametrize(
    ("url", "own"), [("http://127.0.0.1:4200/api", True), ("https://prefect.example.org/api", False)]
)
def test_a_server_of_one_s_own_is_on_this_host(url: str, own: bool) -> None:
    with temporary_settings({PREFECT_API_URL: url}):
        assert is_own_server() is own
