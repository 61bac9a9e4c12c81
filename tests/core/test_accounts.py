"""Which saved secrets a job may name."""

from __future__ import annotations

import json

import pytest
from prefect.blocks.system import Secret
from pydantic import SecretStr

from prefect_gpu.blocks.realm import GpuRealm
from prefect_gpu.blocks.registry import GpuRegistry
from prefect_gpu.providers.core.errors import AuthFailed
from prefect_gpu.providers.core.renting import accounts


@pytest.fixture(autouse=True)
def saved(prefect_api: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_GPU_SECRET_PREFIX", raising=False)
    for name in ("job-token", "database"):
        Secret(value=f"{name}'s value").save(name, overwrite=True, _sync=True)


def test_without_a_prefix_a_job_may_name_every_secret() -> None:
    assert accounts.secrets({"A": "database"})["A"].get_secret_value() == "database's value"


@pytest.mark.parametrize("by", ["block", "environment"])
def test_a_job_may_name_only_secrets_with_the_operator_s_prefix(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "environment":
        monkeypatch.setenv("PREFECT_GPU_SECRET_PREFIX", "job-")
    else:
        realm_with(monkeypatch, "job-")
    assert accounts.secrets({"A": "job-token"})["A"].get_secret_value() == "job-token's value"
    for name in ("database", "Job-token", "no-such", ""):
        with pytest.raises(AuthFailed, match=r"begin with 'job-' only: correct job\.secrets\['B'\]"):
            accounts.secrets({"A": "job-token", "B": name})


def test_who_may_write_blocks_cannot_open_what_the_worker_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_GPU_SECRET_PREFIX", "job-")
    realm_with(monkeypatch, "")
    with pytest.raises(AuthFailed):
        accounts.secrets({"A": "database"})


def realm_with(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    realm = GpuRealm(realm="ab12", master_secret=SecretStr("ab" * 32), secrets_prefix=prefix)
    monkeypatch.setattr(GpuRealm, "current", lambda: realm)


def test_a_secret_that_holds_an_object_arrives_as_json() -> None:
    Secret(value={"user": "a", "ports": [1, 2], "on": True}).save("object", overwrite=True, _sync=True)
    assert json.loads(accounts.secrets({"A": "object"})["A"].get_secret_value()) == {
        "user": "a",
        "ports": [1, 2],
        "on": True,
    }


def test_all_saved_accounts_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the first page, what an account holds was seen by no reap."""
    monkeypatch.setattr(accounts, "PAGE", 2)
    names = [f"registry-{number}" for number in range(5)]
    for name in names:
        GpuRegistry(server="ghcr.io", username="u", password=SecretStr("p")).save(name, overwrite=True, _sync=True)
    found = accounts.saved(["gpu-registry", "secret"])
    assert found["gpu-registry"] == names
    assert {"database", "job-token"} <= set(found["secret"])
