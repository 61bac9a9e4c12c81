"""`plan` and `providers` on a machine where no prices were collected yet."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from prefect_gpu.flows.terminal import first_prices
from prefect_gpu.providers.core.catalog import published, query, store
from prefect_gpu.providers.core.requests import Requirements
from tests.fakes import catalogs


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GPUHUNT_CATALOG_DIR", raising=False)
    return tmp_path / "home"


def test_what_is_published_is_fetched_once_and_then_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "v3"
    for name in ("verda", "lambdalabs"):
        catalogs.publish(folder, name, catalogs.rows(name))
    with catalogs.serve(folder) as address:
        monkeypatch.setenv("GPUHUNT_CATALOG_URL", address)
        assert first_prices.fetched() == "", "one that is not published hides nobody"
    assert set(store.providers()) == {"verda", "lambdalabs"}
    assert query.offers("verda", Requirements())
    monkeypatch.setattr(published, "catalog", None)  # nobody is asked again, whatever is served now
    assert first_prices.fetched() == ""


def test_who_asks_only_for_providers_without_a_price_list_waits_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "catalog", None)
    assert first_prices.fetched(["local", "ssh", "kubernetes"]) == ""


def test_without_network_one_sentence_says_so_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUHUNT_CATALOG_URL", "http://127.0.0.1:1")
    said = first_prices.fetched()
    assert said == (
        f"{', '.join(published.PROVIDERS)}: there is no snapshot yet: "
        "the price catalog of each could not be fetched: ConnectError from 127.0.0.1"
    )


def test_a_network_that_swallows_everything_costs_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(first_prices, "PATIENCE_S", 2.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("GPUHUNT_CATALOG_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        said = first_prices.fetched(["verda"])
    assert said == "verda: there is no snapshot yet: no answer within 2 s"
    assert "no prices were collected here yet: fetching the published ones" in capsys.readouterr().err


def test_a_home_that_cannot_be_written_is_named(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write_text("a file, where a folder should be")
    catalogs.publish(tmp_path / "v3", "verda", catalogs.rows("verda"))
    with catalogs.serve(tmp_path / "v3") as address:
        monkeypatch.setenv("GPUHUNT_CATALOG_URL", address)
        said = first_prices.fetched(["verda"])
    assert said == f"verda: there is no snapshot yet: its prices cannot be kept in {store.folder()}: Not a directory"
