"""Whose realm it is: what tells a Prefect server from one that has a copy of its database."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
from pydantic import SecretStr

from prefect_gpu.blocks import server
from prefect_gpu.blocks.realm import GpuRealm, NotItsServer
from prefect_gpu.blocks.server import is_own_server, this_server

COMPOSE = "http://server:4200/api"  # in production as in staging
HERE = "http://127.0.0.1:4200/api"


class Place:
    """A host or container."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.become("host", machine_id="0123456789abcdef")

    def become(self, name: str, *, machine_id: str = "", is_container: bool = False) -> Place:
        self.home = self.folder / name
        self.home.mkdir(exist_ok=True)
        (self.home / "machine-id").write_text(f"{machine_id}\n")
        (self.home / "mark").touch()
        self.patch.setattr(server, "_MACHINE_ID", self.home / "machine-id")
        self.patch.setattr(server, "_CONTAINER", (self.home / "mark",) if is_container else ())
        self.patch.setattr(server, "_ACCOUNT", self.home / "account")
        return self

    def pod(self, name: str, namespace: str, authority: str) -> Place:
        self.become(name, is_container=True)
        (self.home / "account").mkdir()
        (self.home / "account" / "namespace").write_text(namespace)
        (self.home / "account" / "ca.crt").write_text(authority)
        return self

    def sees(self, url: str) -> str:
        with temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: self.home}):
            return this_server(with_home=False)


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Place:
    monkeypatch.delenv(server.VARIABLE, raising=False)
    return Place(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("url", "known"),
    [
        ("https://Prefect.Example.org/api", "prefect.example.org"),
        ("http://prefect.example.org:4200/api/", "prefect.example.org:4200"),
        ("http://8.8.8.8:4200/api", "8.8.8.8:4200"),
        (
            "https://api.prefect.cloud/api/accounts/a/workspaces/w",
            "api.prefect.cloud/api/accounts/a/workspaces/w",
        ),
    ],
)
def test_a_server_at_an_address_that_is_one_place_in_the_world_is_known_by_it_from_everywhere(
    place: Place, url: str, known: str
) -> None:
    for one in (place, place.become("c", is_container=True), place.pod("p", "production", "authority")):
        assert one.sees(url) == known


def test_one_s_own_is_known_by_its_host_whatever_port_it_has_today(place: Place) -> None:
    assert place.sees(HERE) == place.sees("http://localhost:59999/api")
    here = place.sees(HERE)
    assert place.become("another", machine_id="fedcba9876543210").sees(HERE) != here


def test_the_machine_id_of_an_image_is_none_of_the_container(place: Place) -> None:
    seen = {place.become(name, machine_id=f"baked into {name}", is_container=True).sees(HERE) for name in ("a", "b")}
    assert seen == {"container"}, "what tells two of them apart is the server's own folder"


@pytest.mark.parametrize(
    ("url", "known"),
    [
        (COMPOSE, "server:4200"),
        ("http://10.0.0.5:4200/api", "10.0.0.5:4200"),
        ("http://host.docker.internal:4200/api", "host.docker.internal:4200"),
    ],
)
def test_a_container_that_is_made_anew_asks_the_same_server(place: Place, url: str, known: str) -> None:
    """Each run of a Docker pool is a new one. Two networks may have a server of this address each: that is what a name is for."""
    assert {place.become(name, is_container=True).sees(url) for name in ("one", "next")} == {known}
    assert place.become("host", machine_id="0123456789abcdef").sees(url) == known


def test_a_short_name_means_another_server_in_another_namespace_or_cluster(place: Place) -> None:
    of = {
        (namespace, authority, name): place.pod(f"{namespace}-{authority}-{name}", namespace, authority).sees(COMPOSE)
        for namespace in ("production", "staging")
        for authority in ("one", "two")
        for name in ("pod", "its-successor")
    }
    assert len(set(of.values())) == 4, "a pod that is made anew is no other"
    assert of["production", "one", "pod"].startswith("server:4200 in production of cluster-")


def test_the_name_that_an_operator_gave_decides_alone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(server.VARIABLE, " production  eu ")
    for url in (HERE, COMPOSE, "https://prefect.example.org/api"):
        assert place.become("c", is_container=True).sees(url) == "named production-eu"


def test_a_realm_of_another_server_is_refused_and_one_of_before_this_was_known_is_not() -> None:
    made = GpuRealm(realm="ab12", master_secret=SecretStr("ab" * 32))
    made.must_be_of("anywhere")
    ours = made.model_copy(update={"servers": ["host-1 /home/a", "prefect.example.org"]})
    for known in ("host-1 /home/a", "host-1", "prefect.example.org"):
        ours.must_be_of(known)
    for known in ("host-1 /home/b", "host-2", "host-", "prefect.example.org.evil"):
        with pytest.raises(NotItsServer, match="trust_server=true"):
            ours.must_be_of(known)


@pytest.mark.parametrize(
    ("url", "own"), [("http://127.0.0.1:4200/api", True), ("https://prefect.example.org/api", False)]
)
def test_a_server_of_one_s_own_is_on_this_host(url: str, own: bool) -> None:
    with temporary_settings({PREFECT_API_URL: url}):
        assert is_own_server() is own
